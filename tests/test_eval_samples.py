"""`abqc eval` on samples and labels: what is counted, and what is wrong with data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from abqc.compiler.evaluation.samples import evaluate_samples
from abqc.compiler.evaluation.text import compare_windows, evaluate_text
from abqc.errors import InputError
from abqc.runtime.tensor_spec import TensorSpec

X = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


class Fake:
    """A model of one input and one output; `answer` computes."""

    def __init__(self, answer: Callable[[Any], Any], name: str = "x", output: str = "y") -> None:
        self.answer, self.path, self.runs = answer, "fake.so", 0
        self.manifest: dict[str, Any] = {}
        shape = (1, 4) if name == "input_ids" else ("n", 4)
        self.inputs = (TensorSpec(name, "int64" if name == "input_ids" else "float32", shape),)
        self.outputs = (TensorSpec(output, "float32", ("n", 4)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.runs += 1
        return [self.answer(feeds[self.inputs[0].name])]


def test_the_float_model_runs_once_for_all_models() -> None:
    peer, models = Fake(lambda x: x), [Fake(lambda x: x), Fake(lambda x: -x)]
    same, opposite = evaluate_samples(peer, models, {"x": X}, 4)
    assert peer.runs == 3
    assert (same.outputs[0].cosine, opposite.outputs[0].cosine) == (1, -1)
    assert same.outputs[0].vectors == 10 and same.task is None


def test_task_accuracy_is_of_both_models() -> None:
    labels = X.argmax(-1)
    labels[0] = -1
    (result,) = evaluate_samples(
        Fake(lambda x: x), [Fake(lambda x: -x)], {"x": X}, 3, labels=labels, output="y"
    )
    assert result.task is not None and result.task.labels == 9
    assert (result.task.expected, result.task.actual) == (1, 0)


@pytest.mark.parametrize(
    ("samples", "labels", "message"),
    [
        ({"z": X}, None, "no array 'x'"),
        ({"x": X, "z": X}, None, "'z', which is no input"),
        ({"x": X[:0]}, None, "no sample"),
        ({"x": np.float32(1)}, None, "scalar"),
        ({"x": np.where(X > 2.0, np.nan, X)}, None, "NaN or infinity in sample"),
        ({"x": X}, np.zeros(9, int), "9 labels for 10 samples"),
        ({"x": X}, np.zeros((10, 3), int), "fit no output"),
        ({"x": X}, np.zeros(10), "labels are integers"),
        ({"x": X}, np.full(10, 4), "label 4 is beyond the 4 classes"),
        ({"x": X}, np.full(10, -1), "none counts"),
    ],
)
def test_data_that_do_not_fit(samples: dict, labels: np.ndarray | None, message: str) -> None:
    samples = {name: np.asarray(array) for name, array in samples.items()}
    if "NaN" in message:
        samples["x"][3, 1] = np.nan
    with pytest.raises(InputError, match=message):
        evaluate_samples(Fake(lambda x: x), [Fake(lambda x: x)], samples, 4, labels=labels)


def test_an_output_of_another_shape_is_not_compared() -> None:
    last = Fake(lambda x: x[-1:])
    last.manifest = {"last_logits": True}
    with pytest.raises(InputError, match=r"'y' of fake.so is .1, 4.* without --last-logits"):
        evaluate_samples(Fake(lambda x: x), [last], {"x": X}, 4)


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="no float output 'z'; they are y"):
        evaluate_samples(
            Fake(lambda x: x), [Fake(lambda x: x)], {"x": X}, 4,
            labels=np.zeros(10, int), output="z",
        )  # fmt: skip


def test_libraries_of_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="other inputs or outputs"):
        evaluate_samples(
            Fake(lambda x: x), [Fake(lambda x: x), Fake(lambda x: x, output="z")], {"x": X}, 4
        )


def test_a_broken_model_has_no_figures() -> None:
    with pytest.raises(InputError, match="has NaN where"):
        evaluate_samples(Fake(lambda x: x), [Fake(lambda x: x * np.nan)], {"x": X}, 4)


def logits(ids: np.ndarray) -> np.ndarray:
    return np.random.default_rng(int(ids.sum())).normal(size=(1, 4, 7)).astype(np.float32)


def decoder(answer: Callable[[Any], Any]) -> Fake:
    return Fake(answer, "input_ids", "logits")


def test_windows_of_several_models_share_the_float_run() -> None:
    peer = decoder(logits)
    ids = np.arange(13) % 7
    same, other = compare_windows(
        peer, [decoder(logits), decoder(lambda i: -logits(i))], ids, 4, None
    )
    assert peer.runs == len(same) == len(other) == 3
    assert all(w.kl == pytest.approx(0, abs=1e-12) and w.agreement == 1 for w in same)
    assert all(w.kl > 0 for w in other)


@pytest.mark.parametrize("size", [0, 1, 20])
def test_texts_that_are_too_short(size: int) -> None:
    with pytest.raises(InputError, match="do not fill one window"):
        evaluate_text(decoder(logits), [decoder(logits)], np.arange(13), size, None)


def test_fewer_windows_than_are_asked_for() -> None:
    with pytest.raises(InputError, match="has 3 windows of 4 tokens, 5 are asked for"):
        evaluate_text(decoder(logits), [decoder(logits)], np.arange(13) % 7, 4, 5)


def test_models_without_logits_are_refused() -> None:
    with pytest.raises(InputError, match="an output 'logits'"):
        evaluate_text(decoder(logits), [Fake(lambda x: x)], np.arange(13), 4, None)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinity in window 0"):
        evaluate_text(
            decoder(logits), [decoder(lambda i: logits(i) * np.nan)], np.arange(13) % 7, 4, None
        )
