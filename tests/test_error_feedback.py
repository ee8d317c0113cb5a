"""Error feedback against the formula it stands for, and against rounding."""

import numpy as np
import pytest
from abqc.compiler.calibration.column_encoders import ScalarEncoder
from abqc.compiler.calibration.error_feedback import (
    Feedback,
    Settings,
    output_error,
    triangular_inverse,
)
from abqc.compiler.calibration.moments import Excess, Moments
from abqc.dialects import hadamard
from abqc.dialects.formats import parse_scheme, quantize_weight


def correlated(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    mix = rng.standard_normal((k, k)) * np.linspace(0.05, 1, k)
    return (rng.standard_normal((rows, k)) @ mix).astype(np.float32)


def moments_of(x: np.ndarray, float_x: np.ndarray | None = None) -> Moments:
    moments = Moments(x.shape[1])
    for begin in range(0, len(x), 100):
        part = slice(begin, begin + 100)
        moments.add(x[part], None if float_x is None else float_x[part])
    return moments


def textbook(weight: np.ndarray, moments: Moments, encoder: ScalarEncoder, damping: float) -> None:
    """Optimal brain quantization in the fixed order, with the inverse updated column by column."""
    h = moments.own + damping * np.mean(np.diagonal(moments.own)) * np.eye(moments.k)
    order = np.argsort(-np.diagonal(moments.own), kind="stable")
    w, left = weight.astype(np.float64).copy(), list(order)
    while left:
        column = left[0]
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        rounded = encoder.encode(int(column), w[:, column].astype(np.float32))
        error = (w[:, column] - rounded) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]


@pytest.mark.parametrize("scheme", ["w3:g32:sym", "w2:channel:asym", "w4:tensor:sym", "wt:g50:sym"])
def test_blocked_feedback_is_the_textbook_s(scheme: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((7, 150)).astype(np.float32)
    moments = moments_of(correlated(rng, 400, 150))
    fast, slow = (ScalarEncoder(weight, parse_scheme(scheme), None) for _ in range(2))
    Feedback(moments, Settings(damping=0.01, bias=False)).round(weight, fast)
    textbook(weight, moments, slow, 0.01)
    differ = fast.finish().codes != slow.finish().codes
    assert differ.mean() < 0.01  # values that lie between two codes, give or take a rounding


@pytest.mark.parametrize(
    "scheme", ["w4:g32:sym", "w2:g32:asym", "w1:g64:sym", "w2*:channel:sym", "w2v"]
)
def test_feedback_beats_rounding(scheme: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((16, 96)).astype(np.float32)
    moments = moments_of(correlated(rng, 1000, 96))
    parsed = parse_scheme(scheme)
    plain = quantize_weight(weight, parsed, search=True)
    result = Feedback(moments, Settings()).encode(weight, parsed)
    moments = moments.centred()
    after = output_error(weight, result.tensor.dequantize(), moments).sum()
    before = output_error(weight, plain.dequantize(), moments).sum()
    assert after < 0.8 * before
    energy = output_error(weight, np.zeros_like(weight), moments).sum()
    assert result.relative_error == pytest.approx(after / energy, rel=1e-3)


def test_asymmetric_calibration_makes_good_for_drifted_inputs() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    float_x = correlated(rng, 2000, 64)
    x = (0.9 * float_x + 0.05 * rng.standard_normal(float_x.shape)).astype(np.float32)
    moments = moments_of(x, float_x)
    shifted = Feedback(moments, Settings(damping=1e-6, bias=False)).shifted(weight)
    best, *_ = np.linalg.lstsq(x.astype(np.float64), float_x @ weight.T, rcond=None)
    np.testing.assert_allclose(shifted, best.T, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_singular_moments(rows: int) -> None:
    rng = np.random.default_rng(3)
    x = correlated(rng, rows, 64)
    x[:, 5] = 0
    weight = rng.standard_normal((4, 64)).astype(np.float32)
    result = Feedback(moments_of(x), Settings()).encode(weight, parse_scheme("w4:g32:sym"))
    assert np.isfinite(result.tensor.dequantize()).all()
    assert np.abs(result.tensor.dequantize() - weight).max() < 1.5


def test_moments_of_rotated_rows() -> None:
    x = correlated(np.random.default_rng(4), 50, 96)
    np.testing.assert_allclose(
        moments_of(x).rotated(32).own,
        moments_of(hadamard.transform(x, 32)).own,
        rtol=1e-3,
        atol=1e-2,
    )


def test_coordinate_descent_reduces_what_feedback_leaves() -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((16, 96)).astype(np.float32)
    moments = moments_of(correlated(rng, 1000, 96))
    errors = []
    for sweeps in (0, 1, 3):
        feedback = Feedback(moments, Settings(sweeps=sweeps))
        errors.append(feedback.encode(weight, parse_scheme("w2:g32:asym")).relative_error)
    assert errors[0] > 1.01 * errors[1] > errors[2]


def test_a_bias_makes_good_for_the_mean() -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    float_x = correlated(rng, 500, 64) + np.float32(3)
    x = (0.9 * float_x + 0.3).astype(np.float32)
    moments, stream = moments_of(x, float_x), rng.standard_normal((500, 8)).astype(np.float32)
    for excess in (None, Excess(8, 64)):
        if excess is not None:
            moments = moments_of(x)
            excess.add(stream, x)
        result = Feedback(moments, Settings()).encode(weight, parse_scheme("w2:g32:sym"), excess)
        assert result.bias is not None
        given = x @ result.tensor.dequantize().T + result.bias
        wanted = float_x @ weight.T if excess is None else x @ weight.T + stream
        np.testing.assert_allclose(given.mean(axis=0), wanted.mean(axis=0), rtol=1e-3, atol=1e-3)
        # What varies is as near as if there had been no mean to reckon with.
        if excess is None:
            lone = moments_of(x - x.mean(axis=0), float_x - float_x.mean(axis=0))
            same = Feedback(lone, Settings(bias=False)).encode(weight, parse_scheme("w2:g32:sym"))
            assert same.relative_error == pytest.approx(result.relative_error, rel=0.05)


def test_rows_count_for_their_weights() -> None:
    rng = np.random.default_rng(7)
    x, wanted = correlated(rng, 90, 32), correlated(rng, 90, 32)
    weights = rng.integers(1, 4, 90)
    weighed, repeated = Moments(32), Moments(32)
    weighed.add(x, wanted, weights.astype(np.float32))
    repeated.add(np.repeat(x, weights, axis=0), np.repeat(wanted, weights, axis=0))
    assert repeated.drift is not None and weighed.drift is not None
    for own, other in (
        (weighed.mean(), repeated.mean()),
        (weighed.lack, repeated.lack),
        (weighed.own, repeated.own),
        (weighed.drift, repeated.drift),
    ):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-2)
    assert (weighed.rows, weighed.weight) == (90, weights.sum())
    excess, several = Excess(4, 32), Excess(4, 32)
    e = rng.standard_normal((90, 4)).astype(np.float32)
    excess.add(e, x, weights.astype(np.float32))
    several.add(np.repeat(e, weights, axis=0), np.repeat(x, weights, axis=0))
    np.testing.assert_allclose(excess.product, several.product, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(excess.total, several.total, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 64, 65, 200])
def test_the_inverse_of_a_triangle(k: int) -> None:
    upper = np.triu(np.random.default_rng(k).standard_normal((k, k))) / k + np.eye(k)
    inverse = triangular_inverse(upper)
    np.testing.assert_allclose(inverse @ upper, np.eye(k), atol=1e-12)
    np.testing.assert_array_equal(inverse, np.triu(inverse))


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_parts_are_those_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = (int(size) for size in rng.integers(1, 40, 2))
    x, wanted = (rng.standard_normal((28, k)).astype(np.float32) for _ in range(2))
    e, weights = rng.standard_normal((28, n)).astype(np.float32), rng.random(28).astype(np.float32)
    moments, excess = Moments(k), Excess(n, k)
    for rows in np.split(np.arange(28), [7, 8]):
        part, part_excess = Moments(k), Excess(n, k)
        part.add(x[rows], wanted[rows], weights[rows])
        part_excess.add(e[rows], x[rows], weights[rows])
        moments.merge(part)
        excess.merge(part_excess)
    assert moments.rows == 28
    weighed = x * weights[:, None]
    for actual, expected in (
        (moments.weight, weights.sum()),
        (moments.total, weighed.sum(0)),
        (moments.own, weighed.T @ x),
        (moments.lack, ((wanted - x) * weights[:, None]).sum(0)),
        (moments.drift, (wanted - x).T @ weighed),
        (excess.total, (e * weights[:, None]).sum(0)),
        (excess.product, e.T @ weighed),
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
