"""The accuracy figures, against their definitions; and the inputs made for benchmarks."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import numpy as np
import pytest
from abqc.compiler.bench import interleave, report, to_json
from abqc.compiler.evaluation import metrics as evaluate
from abqc.compiler.feeds import make_feeds, resolve_shapes
from abqc.errors import InputError
from abqc.runtime.tensor_spec import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("batch", "seq"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "past + seq"))
POSITIONS = TensorSpec("position_ids", "int64", ("batch", "seq"))
PAST = TensorSpec("past_key_values.0.key", "float32", ("batch", 3, "past", 64))
DECODER = (IDS, MASK, POSITIONS, PAST)


def test_cosine_is_per_vector() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[2.0, 0.0], [1.0, -1.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    assert evaluate.cosine(a, b) == pytest.approx([1, 0, 1, 0])


def test_top1_agreement_counts_vectors() -> None:
    a = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    b = np.array([[0, 2], [0, 2], [1, 3], [3, 1]])
    assert evaluate.top1_agreement(a, b) == 0.75


def test_relative_error_is_of_the_range() -> None:
    assert evaluate.relative_error(np.array([-1.0, 3.0]), np.array([-1.0, 3.2])) == pytest.approx(
        0.05
    )
    assert evaluate.relative_error(np.full(3, 2.0), np.full(3, 2.5)) == pytest.approx(0.25)
    assert evaluate.relative_error(np.zeros((0, 2)), np.zeros((0, 2))) == 0


def test_log_sum_exp_survives_large_logits() -> None:
    logits = np.array([[1e4, 1e4, -np.inf], [0.0, -1e4, -1e4]])
    assert evaluate.log_sum_exp(logits) == pytest.approx([1e4 + log(2), 0])


def test_logits_that_both_models_mask_count_nothing() -> None:
    p, q = np.array([[0.0, 0.0, -np.inf]] * 2), np.array([[0.0, 1.0, -np.inf]] * 2)
    window = evaluate.window_likelihood(p, q, np.array([0, 1]))
    exact = 0.5 * log(0.5 * (1 + exp(1))) + 0.5 * log(0.5 * (1 + exp(-1)))
    assert window.kl == pytest.approx(exact, rel=1e-6)


def test_a_model_is_at_no_distance_from_itself_or_a_shift_of_it() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 5, (40, 3000)).astype(np.float32)
    ids = rng.integers(0, 3000, 40)
    same = evaluate.window_likelihood(logits, logits, ids)
    assert same.kl == 0 and same.nll_actual == same.nll_expected and same.agreement == 1
    shifted = evaluate.window_likelihood(logits, logits + np.float32(3), ids)
    assert shifted.kl == pytest.approx(0, abs=2e-6)
    assert shifted.nll_actual == pytest.approx(shifted.nll_expected, abs=2e-6)


def test_windows_do_not_overlap() -> None:
    assert evaluate.split_windows(np.arange(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert evaluate.split_windows(np.arange(11), 3, limit=1).tolist() == [[0, 1, 2]]
    assert evaluate.split_windows(np.arange(2), 3).shape == (0, 3)


def test_uniform_model_has_perplexity_of_its_vocabulary() -> None:
    ids = np.array([3, 1, 4, 1])
    window = evaluate.window_likelihood(np.zeros((4, 7)), np.zeros((4, 7)), ids)
    result = evaluate.summarize([window, window])
    assert result.perplexity_expected == pytest.approx(7)
    assert (result.nll_difference, result.standard_error, result.kl) == (0, 0, 0)
    assert (result.windows, result.tokens) == (2, 6)


def test_likelihood_of_a_window_by_hand() -> None:
    p = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
    q = np.log(np.array([[0.9, 0.1], [0.5, 0.5]]))
    window = evaluate.window_likelihood(p, q, np.array([0, 1]))
    assert window.nll_expected == pytest.approx(-log(0.5))
    assert window.nll_actual == pytest.approx(-log(0.1))
    assert window.kl == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1))


def test_standard_error_is_of_the_paired_difference() -> None:
    windows = [
        evaluate.WindowLikelihood(10, nll_expected=nll, nll_actual=nll + delta, kl=0, agreement=1)
        for nll, delta in ((1.0, 0.1), (5.0, 0.3))
    ]
    result = evaluate.summarize(windows)
    assert result.nll_difference == pytest.approx(0.2)
    assert result.standard_error == pytest.approx(0.1)
    assert result.perplexity_actual == pytest.approx(exp(3.2))
    assert evaluate.summarize(windows[:1]).standard_error is None


def test_hidden_positions_do_not_count() -> None:
    expected = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    actual = np.array([[[1.0, 0.0], [-1.0, 0.0]]])
    shown, everything = evaluate.OutputTotals("y"), evaluate.OutputTotals("y")
    shown.add(expected, actual, np.array([[1, 0]]))
    everything.add(expected, actual, None)
    assert (shown.result().vectors, shown.result().cosine, shown.result().error) == (1, 1, 0)
    assert (everything.result().vectors, everything.result().cosine) == (2, 0)
    assert everything.result().worst == -1


def test_outputs_add_up_over_runs() -> None:
    totals = evaluate.OutputTotals("y")
    totals.add(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]]), None)
    totals.add(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), None)
    result = totals.result()
    assert (result.vectors, result.worst) == (3, 0)
    assert result.top1 == result.cosine == pytest.approx(2 / 3)


def test_negative_labels_never_count() -> None:
    scores = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])
    assert evaluate.label_hits(scores, np.array([1, 1, -100])) == 1


def test_a_window_in_chunks_is_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    p, q, ids = rng.normal(size=(9, 5)), rng.normal(size=(9, 5)), rng.integers(0, 5, 9)
    whole = evaluate.window_likelihood(p, q, ids)
    monkeypatch.setattr(evaluate, "CHUNK_TOKENS", 3)
    parts = evaluate.window_likelihood(p, q, ids)
    assert parts.tokens == whole.tokens == 8
    assert (parts.nll_actual, parts.kl) == pytest.approx((whole.nll_actual, whole.kl))
    assert parts.agreement == whole.agreement


def test_shapes_follow_from_symbols() -> None:
    shapes = resolve_shapes(DECODER, {"input_ids": (1, 5), "past_*": (1, 3, 7, 64)})
    assert shapes == {
        "input_ids": (1, 5),
        "attention_mask": (1, 12),
        "position_ids": (1, 5),
        "past_key_values.0.key": (1, 3, 7, 64),
    }


def test_caches_are_empty_unless_given() -> None:
    shapes = resolve_shapes(DECODER, {"input_ids": (2, 5)})
    assert shapes["past_key_values.0.key"] == (2, 3, 0, 64)
    assert shapes["attention_mask"] == (2, 5)


def test_nameless_caches_are_empty_too() -> None:
    nameless = [IDS, TensorSpec("past.0.key", "float32", (None, 3, None, 64))]
    shapes = resolve_shapes(nameless, {"input_ids": (2, 5)})
    assert shapes["past.0.key"] == (2, 3, 0, 64)


def test_nameless_sizes_are_taken_from_an_input_alike() -> None:
    nameless = [TensorSpec(name, "int64", (None, None)) for name in ("input_ids", "attention_mask")]
    assert resolve_shapes(nameless, {"input_ids": (1, 8)})["attention_mask"] == (1, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--shape input_ids=NxN"),
        ({"ids": (1, 2)}, "matches no input"),
        ({"input_ids": (1,)}, "1 sizes, the input has 2"),
        ({"input_ids": (1, 5), "past_*": (1, 4, 0, 64)}, "fixes 3"),
    ],
)
def test_shapes_that_do_not_fit(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        resolve_shapes(DECODER, given)


def test_feeds_go_by_type_and_name() -> None:
    shapes = resolve_shapes(DECODER, {"input_ids": (1, 5), "past_*": (1, 3, 7, 64)})
    feeds = make_feeds(DECODER, shapes, vocabulary=11)
    assert feeds["input_ids"].max() < 11
    assert feeds["attention_mask"].tolist() == [[1] * 12]
    assert feeds["position_ids"].tolist() == [[7, 8, 9, 10, 11]]
    assert {name: array.dtype.name for name, array in feeds.items()} == {
        spec.name: spec.dtype for spec in DECODER
    }


def test_timings_are_interleaved_and_reported() -> None:
    calls: list[str] = []
    timing = interleave(lambda: calls.append("own"), lambda: calls.append("peer"), seconds=0)
    assert timing.own and timing.peer
    changes = sum(a != b for a, b in pairwise(calls))
    assert changes >= 5
    result = report(timing, device="cpu", threads=2, shapes={"x": (1, 128)})
    assert result["ratio"] == pytest.approx(result["median_ms"] / result["peer_median_ms"])
    assert result["shapes"] == {"x": [1, 128]}
    assert to_json({"ratio": 0.123456789, "threads": 2}) == '{"ratio": 0.12346, "threads": 2}'


def test_a_report_without_a_peer_has_no_ratio() -> None:
    result = report(interleave(lambda: None, None, 0), device="cpu", threads=1, shapes={})
    assert set(result) == {"median_ms", "device", "threads", "shapes", "runs"}
