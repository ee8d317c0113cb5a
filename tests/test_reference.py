"""The numpy reference of the quantized operations, against golden vectors and plain loops."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from abqc.dialects import reference
from abqc.dialects.formats import (
    QuantizedTensor,
    parse_scheme,
    quantize_activation,
    quantize_weight,
)
from abqc.dialects.reference import ConvGeometry
from hypothesis import given
from hypothesis import strategies as st

NUMERICS = json.loads((Path(__file__).parent / "golden" / "numerics.json").read_text())
f32s = st.floats(-(2.0**60), 2.0**60, width=32)


def weight_of(case: dict[str, Any]) -> QuantizedTensor:
    scheme = parse_scheme(case["weight"])
    zero = None if scheme.symmetric else np.array(case["zero_w"], np.uint8)
    codes = np.array(case["codes_w"], scheme.format.dtype)
    return QuantizedTensor(codes, np.array(case["scale_w"], np.float16), zero, scheme)


@pytest.mark.parametrize(
    "case", NUMERICS["matmuls"], ids=lambda case: f"{case['weight']} {case['activation']}"
)
def test_golden_matmuls(case: dict[str, Any]) -> None:
    weight, activation = weight_of(case), parse_scheme(case["activation"])
    codes = np.array(case["codes_a"], activation.format.dtype)
    scale = np.array(case["scale_a"], np.float32)
    zero = np.array(case["zero_a"], np.int32)
    bias = np.array(case["bias"], np.float32)
    acc = reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)
    np.testing.assert_array_equal(acc, case["acc"])
    y = reference.matmul(codes, scale, zero, weight, bias)
    assert y.dtype == np.float32
    exact = np.array(case["y"])
    if weight.scheme.granularity == "channel":
        np.testing.assert_array_equal(y.astype(np.float64), exact)
    else:
        np.testing.assert_array_equal(y, exact.astype(np.float32))
        allowed = reference.tolerance(acc, scale, weight.scale, bias)
        assert (allowed > 0).all() and (np.abs(y - exact) <= allowed).all()


@given(f32s, f32s, f32s)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    y = reference.fma(*(np.array([v], np.float32) for v in (a, b, c)))[0]
    below, above = np.nextafter(y, np.float32(-np.inf)), np.nextafter(y, np.float32(np.inf))
    if np.isfinite(y):
        distance = abs(Fraction(float(y)) - exact)
        for neighbour in (below, above):
            if np.isfinite(neighbour):
                assert distance <= abs(Fraction(float(neighbour)) - exact)


def test_fma_does_not_round_twice() -> None:
    """(1 + 2^-12)^2 lies half way between two f32; a tiny addend, lost in f64, decides."""
    a = np.array([1 + 2.0**-12], np.float32)
    low, high = 1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23
    for tiny, expected in ((2.0**-80, high), (0.0, low), (-(2.0**-80), low)):
        assert reference.fma(a, a, np.array([tiny], np.float32))[0] == expected


def test_long_sums_are_exact() -> None:
    k = 70_000
    codes_a = np.full((1, k), 255, np.uint8)
    codes_w = np.full((1, k), -128, np.int8)
    acc = reference.accumulate(codes_a, None, codes_w, None, parse_scheme("w8"))
    assert acc[0, 0, 0] == -255 * 128 * k


@pytest.mark.parametrize("w", ["w4:g5", "w3:g4:asym", "w8", "w1:g6", "w2*", "wt:channel"])
@pytest.mark.parametrize("a", ["a8", "a4:sym", "a1:sym", "a1:asym"])
def test_matmul_is_the_product_of_the_values(w: str, a: str) -> None:
    rng = np.random.default_rng(0)
    weight = quantize_weight(rng.standard_normal((5, 17)).astype(np.float32), parse_scheme(w))
    x = rng.standard_normal((4, 17)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    codes, scale, zero = quantize_activation(x, parse_scheme(a))
    values = (codes.astype(np.float64) - zero[:, None]) * scale[:, None]
    expected = values @ weight.dequantize().astype(np.float64).T + bias
    np.testing.assert_allclose(
        reference.matmul(codes, scale, zero, weight, bias), expected, atol=1e-5
    )
    expected = x @ weight.dequantize().T + bias
    np.testing.assert_allclose(reference.matmul_float(x, weight, bias), expected, atol=1e-5)


def test_a_broken_row_is_nan_and_the_others_are_not() -> None:
    rng = np.random.default_rng(1)
    weight = quantize_weight(np.eye(4, 6, dtype=np.float32), parse_scheme("w4:g3"))
    x = rng.standard_normal((3, 6)).astype(np.float32)
    x[1, 2] = np.inf
    y = reference.matmul(*quantize_activation(x, parse_scheme("a8")), weight)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("text", ["w8:channel", "w4:g3:asym"])
def test_gather(text: str) -> None:
    table = quantize_weight(
        np.random.default_rng(2).standard_normal((9, 7)).astype(np.float32), parse_scheme(text)
    )
    indices = np.array([[0, 8, 3], [3, 3, 1]])
    np.testing.assert_array_equal(reference.gather(table, indices), table.dequantize()[indices])


GEOMETRIES = [
    ConvGeometry((3,), (2,), (1,), (1, 0)),
    ConvGeometry((3, 2), (1, 2), (2, 1), (1, 0, 2, 1)),
    ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups=2),
    ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), groups=4),
    ConvGeometry((2, 1, 2), (1, 1, 1), (1, 1, 1), (0, 0, 0, 0, 0, 1)),
]


def convolve(x: np.ndarray, w: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """ONNX Conv by its definition, in f64, tap by tap."""
    rank = len(geometry.window)
    pads = [(geometry.pads[i], geometry.pads[i + rank]) for i in range(rank)]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    out = geometry.output_shape(x.shape[2:])
    y = np.zeros((len(x), len(w), *out))
    step_in, step_out = w.shape[1], len(w) // geometry.groups
    for o in range(len(w)):
        first = o // step_out * step_in
        for position in np.ndindex(*out):
            for tap in np.ndindex(*geometry.window):
                at = tuple(
                    p * s + t * d
                    for p, s, t, d in zip(
                        position, geometry.strides, tap, geometry.dilations, strict=True
                    )
                )
                pixels = padded[(slice(None), slice(first, first + step_in), *at)]
                y[(slice(None), o, *position)] += pixels @ w[(o, slice(None), *tap)]
    return y


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("w", ["w4:g5", "w8:asym"])
@pytest.mark.parametrize("a", ["a8:image", "a1:image:sym"])
def test_conv(geometry: ConvGeometry, w: str, a: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 4, *(6, 5, 4)[: len(geometry.window)])).astype(np.float32)
    shape = (8, 4 // geometry.groups, *geometry.window)
    weight = quantize_weight(rng.standard_normal(shape).astype(np.float32), parse_scheme(w))
    bias = rng.standard_normal(8).astype(np.float32)
    codes, scale, zero = quantize_activation(x.reshape(2, -1), parse_scheme(a))
    y = reference.conv(codes.reshape(x.shape), scale, zero, weight, geometry, bias)
    values = ((codes.astype(np.float64) - zero[:, None]) * scale[:, None]).reshape(x.shape)
    expected = convolve(values, weight.dequantize().reshape(shape), geometry)
    expected += bias.reshape(-1, *(1,) * len(geometry.window))
    np.testing.assert_allclose(y, expected, atol=1e-4)
