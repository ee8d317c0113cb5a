"""Error feedback against the formula it stands for, and against rounding."""

import numpy as np
import pytest
from abqc.compiler.calibration.column_encoders import ScalarEncoder
from abqc.compiler.calibration.error_feedback import (
    Feedback,
    Settings,
    output_error,
)
from abqc.compiler.calibration.moments import Moments
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
    Feedback(moments, Settings(damping=0.01)).round(weight, fast)
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
    shifted = Feedback(moments, Settings(damping=1e-6)).shifted(weight)
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
