"""The decoder with key/value tensors; made by models/export_smollm2.py, skipped without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.compiler.evaluation.metrics import relative_error
from abqc.runtime.model import Model

pytest.importorskip("onnxruntime")
from abqc.compiler.onnxruntime_peer import Peer

pytestmark = pytest.mark.slow

STEPS = 64
Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 49000, (1, STEPS))


@pytest.fixture(scope="module")
def whole(real_model: Callable[[str], Path], ids: np.ndarray) -> np.ndarray:
    """onnxruntime's logits [STEPS, vocabulary] of the whole sequence."""
    peer = Peer(real_model("smollm2"))
    caches = [i.name for i in peer.session.get_inputs() if i.name.startswith("past")]
    return peer.run(sequence(ids, 0, STEPS) | empty_caches(caches))[0][0]


@pytest.fixture(scope="module")
def model(compiled: Callable[[str, str], Path]) -> Model:
    return abqc.load(compiled("smollm2", "none"))


def sequence(ids: np.ndarray, begin: int, end: int) -> Feeds:
    return {
        "input_ids": ids[:, begin:end],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(begin, end)[None],
    }


def empty_caches(names: list[str]) -> Feeds:
    return {name: np.zeros((1, 3, 0, 64), np.float32) for name in names}


def cache_names(model: Model) -> list[str]:
    return [spec.name for spec in model.inputs if spec.name.startswith("past")]


def test_whole_sequence(model: Model, ids: np.ndarray, whole: np.ndarray) -> None:
    logits = model.run(sequence(ids, 0, STEPS) | empty_caches(cache_names(model)))[0][0]
    assert relative_error(whole, logits) <= 3e-4


def test_single_steps_with_returned_caches(
    model: Model, ids: np.ndarray, whole: np.ndarray
) -> None:
    caches = empty_caches(cache_names(model))
    for step in range(STEPS):
        logits, *present = model.run(sequence(ids, step, step + 1) | caches)
        caches = dict(zip(caches, present, strict=True))
        assert relative_error(whole[step], logits[0, 0]) <= 3e-4, f"step {step}"


def test_single_steps_in_place(model: Model, ids: np.ndarray, whole: np.ndarray) -> None:
    """The caller's buffers come back grown: nothing but the new positions is written."""
    buffers = {n: np.zeros((1, 3, STEPS, 64), np.float32) for n in cache_names(model)}
    for step in range(STEPS):
        past = {name: buffer[:, :, :step] for name, buffer in buffers.items()}
        grown = {
            name.replace("past_key_values", "present"): buffer[:, :, : step + 1]
            for name, buffer in buffers.items()
        }
        logits = model.run(sequence(ids, step, step + 1) | past, outputs=grown)[0]
        assert relative_error(whole[step], logits[0, 0]) <= 3e-4, f"step {step}"
