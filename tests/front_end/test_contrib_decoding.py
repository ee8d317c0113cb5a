"""Attention of decoders whose caches are buffers with room, with and without beams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abqc.errors import InputError, ModelError
from front_end.contrib_forms import Arrays, Form, check, floats, model_of
from front_end.oracle import compiled, outputs

F32, I32 = np.float32, np.int32
BATCH, HEADS, WIDTH, ROOM = 4, 2, 8, 8
HIDDEN = HEADS * WIDTH
ORIGINS = np.random.default_rng(0).integers(0, 2, (2, 2, ROOM)).astype(I32)


def step(new: int, past: int, **more: np.ndarray) -> Arrays:
    rows = {name: floats(BATCH, new, HIDDEN) * (i + 1) for i, name in enumerate("qkv")}
    caches = {f"past_{name}": floats(BATCH, HEADS, ROOM, WIDTH) for name in "kv"}
    return {**rows, **caches, "length": np.array([past], I32), **more}


def form(op: str, inputs: str, feeds: list[Arrays], **changes: Any) -> Form:
    """`inputs`: names in order, "_" where one is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    shown = {"y": F32, "keys": F32, "values": F32}
    fields = {"outputs": changes.pop("outputs", shown), "sizes": changes.pop("sizes", {})}
    return Form(op, feeds, inputs=names, attributes={"num_heads": HEADS, **changes}, **fields)


MASK = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]], I32)
ENCODED = {"q": floats(BATCH, 1, HIDDEN), "bias": floats(3 * HIDDEN),
           "k": floats(BATCH, HEADS, 5, WIDTH), "v": floats(BATCH, HEADS, 5, WIDTH),
           "mask": np.array([[1, 1, 1, 0, 0]] * BATCH, I32)}  # fmt: skip
DECODER = "DecoderMaskedMultiHeadAttention"

FORMS = {
    "shared": form(
        "MultiHeadAttention", "q k v _ _ _ past_k past_v length", [step(2, 3), step(2, 0)],
        unidirectional=1,
    ),
    "beams": form(
        "MultiHeadAttention", "q k v _ _ _ past_k past_v length origins",
        [step(1, 3, origins=ORIGINS), step(1, 7, origins=ORIGINS)],
    ),
    "decoder": form(
        DECODER, "q k v mask _ past_k past_v length _ _ bias",
        [step(1, 3, mask=MASK, bias=floats(3 * HIDDEN))] * 2, past_present_share_buffer=1,
        output_qk=1, outputs={"y": F32, "keys": F32, "values": F32, "scores": F32},
    ),
    "decoder of beams": form(
        DECODER, "q k v mask added past_k past_v length beams origins",
        [step(1, 3, mask=MASK, added=floats(1, HEADS, 1, 4), beams=np.array([2], I32),
              origins=ORIGINS)] * 2,
        past_present_share_buffer=1,
    ),
    "encoder": form(
        DECODER, "q k v mask _ _ _ _ _ _ bias", [ENCODED] * 2, outputs={"y": F32},
    ),
}  # fmt: skip


def test_agrees_with_onnxruntime(tmp_path: Path) -> None:
    check(FORMS, tmp_path)


def test_packed_queries_keys_and_values(tmp_path: Path) -> None:
    """As the same three inputs give (onnxruntime's CPU kernel ends with an error)."""
    apart, caches = step(1, 3), "past_k past_v length"
    joined = {name: apart[name] for name in caches.split()}
    joined["q"] = np.concatenate([apart[x] for x in "qkv"], axis=2)
    shared = {"past_present_share_buffer": 1}
    forms = {
        "a": form(DECODER, f"q _ _ _ _ {caches}", [joined], **shared),
        "b": form(DECODER, f"q k v _ _ {caches}", [apart], **shared),
    }
    given = {f"a.{k}": v for k, v in joined.items()} | {f"b.{k}": v for k, v in apart.items()}
    got = outputs(compiled(model_of(forms), tmp_path), given)
    for y, wanted in zip(got[:3], got[3:], strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_a_full_cache_is_an_error_of_the_run(tmp_path: Path) -> None:
    one = form(DECODER, "q k v _ _ past_k past_v length", [step(1, 0)], past_present_share_buffer=1)
    model = compiled(model_of({"node": one}), tmp_path)
    with pytest.raises(InputError, match="has no room"):
        outputs(model, {f"node.{k}": v for k, v in step(1, ROOM).items()})


def test_a_length_without_shared_buffers_is_refused(tmp_path: Path) -> None:
    one = form(DECODER, "q k v _ _ past_k past_v length", [step(1, 0)])
    with pytest.raises(ModelError, match="come together"):
        compiled(model_of({"node": one}), tmp_path)
