"""Fixed-point arithmetic between codes, against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from abqc.dialects import fixed_point
from abqc.dialects.fixed_point import MAX_BIAS, StaticCodes
from abqc.dialects.formats import parse_scheme
from abqc.passes.integers.scalar_functions import function_of
from hypothesis import given
from hypothesis import strategies as st

FACTORS = st.floats(2.0**-70, 2.0**28, allow_nan=False)
INTEGERS = st.integers(-(1 << 31), (1 << 31) - 1)


def codes(scale: float, zero: int, text: str = "a8:tensor") -> StaticCodes:
    return StaticCodes(parse_scheme(text), float(np.float32(scale)), zero)


@given(FACTORS)
def test_multipliers_are_the_nearest_of_31_bits(factor: float) -> None:
    found = fixed_point.fixed_point(factor)
    multiplier, shift = int(found.multiplier[0]), int(found.shift[0])
    assert 1 <= shift <= 62
    assert (1 << 30 <= multiplier < 1 << 31) or (shift == 62 and multiplier < 1 << 31)
    error = abs(Fraction(multiplier, 1 << shift) - Fraction(factor))
    assert error <= Fraction(1, 1 << shift + 1) or error / Fraction(factor) <= Fraction(1, 1 << 31)


@pytest.mark.parametrize("factor", [2.0**29, np.inf, np.nan])
def test_factors_without_a_multiplier(factor: float) -> None:
    with pytest.raises(ValueError, match="no fixed-point multiplier"):
        fixed_point.fixed_point(factor)


@given(INTEGERS, st.integers(-MAX_BIAS, MAX_BIAS), FACTORS)
def test_accumulators_are_rounded_once(acc: int, bias: int, factor: float) -> None:
    y, found = codes(1, 100), fixed_point.fixed_point(factor)
    exact = Fraction((acc + bias) * int(found.multiplier[0]), 1 << int(found.shift[0]))
    expected = min(max(floor(exact + Fraction(1, 2)) + 100, 0), 255)
    assert fixed_point.requantize(np.array([acc]), np.array([bias]), found, y) == expected


@given(st.integers(0, 255), st.integers(0, 255), st.booleans())
def test_sums_and_products_are_within_half_a_code(a: int, b: int, subtract: bool) -> None:
    of_a, of_b, y = codes(0.031, 17), codes(0.0007, 200), codes(0.05, 90)
    x, z = of_a.value(np.array(a)), of_b.value(np.array(b))
    total = fixed_point.add(np.array(a), of_a, np.array(b), of_b, y, subtract=subtract)
    exact = np.clip((x - z if subtract else x + z) / y.scale + y.zero, 0, 255)
    assert abs(total - exact) <= 0.5 + 1e-6
    y = codes(0.0003, 90)
    product = fixed_point.multiply(np.array(a), of_a, np.array(b), of_b, y)
    assert abs(product - np.clip(x * z / y.scale + y.zero, 0, 255)) <= 0.5 + 1e-6


@given(st.integers(-(1 << 29), 1 << 29), st.integers(1, 1 << 22), st.floats(1e-3, 100))
def test_quotients_are_rounded_once(total: int, count: int, factor: float) -> None:
    y, found = codes(1, 3), fixed_point.fixed_point(factor)
    if found.shift[0] > fixed_point.MAX_DIVIDED_SHIFT:
        return
    exact = Fraction(total * int(found.multiplier[0]), count << int(found.shift[0]))
    expected = min(max(floor(exact + Fraction(1, 2)) + 3, 0), 255)
    assert fixed_point.divide(np.array(total), count, found, y) == expected


@pytest.mark.parametrize("text", ["a8:tensor", "a8:tensor:sym", "a4:tensor"])
def test_tables_have_an_entry_for_each_byte(text: str) -> None:
    x, y = codes(0.05, 0 if text.endswith("sym") else 7, text), codes(0.01, 40)
    table = fixed_point.table(np.tanh, x, y)
    every = np.arange(x.low, x.high + 1)
    expected = np.clip(np.rint(np.tanh(x.value(every)) / y.scale) + 40, 0, 255)
    np.testing.assert_array_equal(table[every & 255].view(np.uint8), expected)
    undefined = fixed_point.table(lambda v: np.log(v), x, y).view(np.uint8)
    assert undefined[(x.zero - 1) & 255] == 0  # a NaN


def test_a_bias_beyond_the_accumulators_is_an_offset_of_codes() -> None:
    y = codes(0.5, 10)
    bias, units = np.array([1.0, -40.0, 1e30]), np.array([0.25, 1e-12, 1.0])
    added, offset = fixed_point.bias_codes(bias, units, y)
    assert added.tolist() == [4, 0, 0]
    assert offset.tolist() == [0, -80, MAX_BIAS]


def test_trees_are_functions() -> None:
    x = np.array([-2.0, 0.0, 3.0])
    nan_or_less = ("arith.cmpf", "predicate=11 : i64", ("in", 0), ("const", 0.0))
    trees = [
        (("math.erf", ("in", 0)), [-0.9953222650189527, 0.0, 0.9999779095030014]),
        (("arith.select", nan_or_less, ("const", 5.0), ("in", 0)), [5.0, 0.0, 3.0]),
        (("const", 2.0), [2.0, 2.0, 2.0]),
    ]
    for tree, expected in trees:
        function = function_of(tree)
        assert function is not None
        np.testing.assert_allclose(function(x), expected)
    assert function_of(("arith.addf", ("in", 0), ("in", 1))) is None
    assert function_of(("math.unknown", ("in", 0))) is None


@pytest.mark.parametrize(
    "tree",
    [
        ("math.rsqrt", ("in", 0)),
        ("arith.divf", ("const", 1.0), ("arith.mulf", ("const", 2.0), ("in", 0))),
        ("math.powf", ("in", 0), ("const", 0.5)),
        ("math.powf", ("const", 2.0), ("in", 0)),
    ],
)
def test_functions_of_unbounded_slope_are_none(tree: tuple[object, ...]) -> None:
    assert function_of(tree) is None
    assert function_of(("math.powf", ("in", 0), ("const", 3.0))) is not None
