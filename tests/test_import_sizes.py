"""Sizes as polynomials, and how reshapes are matched with them."""

from __future__ import annotations

from itertools import permutations

import pytest
from abqc.compiler.onnx_import import polynomials
from abqc.compiler.onnx_import.dims import resolve_dims
from abqc.compiler.onnx_import.polynomials import Polynomial, constant
from abqc.compiler.onnx_import.reshapes import match
from abqc.dialects.mlir import ir, make_context
from hypothesis import given
from hypothesis import strategies as st

B: Polynomial = {(0,): 1}
S: Polynomial = {(1,): 1}


def times(*factors: Polynomial | int) -> Polynomial:
    return polynomials.product(constant(f) if isinstance(f, int) else f for f in factors)


def value(polynomial: Polynomial, point: tuple[int, ...]) -> int:
    total = 0
    for atoms, coefficient in polynomial.items():
        for atom in atoms:
            coefficient *= point[atom]
        total += coefficient
    return total


MONOMIALS = st.lists(st.integers(0, 2), max_size=3).map(lambda atoms: tuple(sorted(atoms)))
POLYNOMIALS = st.dictionaries(MONOMIALS, st.integers(-9, 9).filter(bool), max_size=4)
POINTS = st.tuples(*[st.integers(-5, 5)] * 3)


@given(POLYNOMIALS, POLYNOMIALS, POINTS)
def test_arithmetic_agrees_with_numbers(a: Polynomial, b: Polynomial, at: tuple[int, ...]) -> None:
    assert value(polynomials.add(a, b), at) == value(a, at) + value(b, at)
    assert value(polynomials.add(a, b, -1), at) == value(a, at) - value(b, at)
    assert value(polynomials.multiply(a, b), at) == value(a, at) * value(b, at)


@given(POLYNOMIALS, MONOMIALS, st.integers(1, 9))
def test_division_undoes_multiplication(a: Polynomial, atoms: tuple[int, ...], factor: int) -> None:
    b = {atoms: factor}
    assert polynomials.divide(polynomials.multiply(a, b), b) == a


def test_division_with_a_rest_is_none() -> None:
    assert polynomials.divide(times(3, S), constant(2)) is None
    assert polynomials.divide(S, B) is None
    assert polynomials.divide(S, polynomials.add(B, S)) is None


@pytest.mark.parametrize(
    ("old", "new", "groups"),
    [
        ([B, S, times(576)], [B, S, times(9), times(64)], [([0], [0]), ([1], [1]), ([2], [2, 3])]),
        (
            [B, times(9), S, times(64)],
            [B, times(3), times(3, S), times(64)],
            [([0], [0]), ([1, 2], [1, 2]), ([3], [3])],
        ),
        ([times(2), B, S], [times(2, B, S)], [([0, 1, 2], [0])]),
        ([B, times(1)], [B], [([0, 1], [0])]),
        ([B], [B, times(1), times(1)], [([0], [0, 1, 2])]),
        ([B, S], [S, B], [([0, 1], [0, 1])]),
        ([B, S], [B, B], None),
        ([B], [times(2), S], None),
    ],
)
def test_reshapes_are_matched(
    old: list[Polynomial], new: list[Polynomial], groups: list[tuple[list[int], list[int]]] | None
) -> None:
    assert match(old, new) == groups


def test_every_axis_is_in_one_group() -> None:
    for shape in permutations([B, S, times(6), times(1)]):
        groups = match(list(shape), [times(2), times(3, B), S])
        if groups is not None:
            assert [axis for before, _ in groups for axis in before] == [0, 1, 2, 3]
            assert [axis for _, after in groups for axis in after] == [0, 1, 2]


RESHAPE = """
func.func @main(%x: tensor<?x?x8xf32>, %m: tensor<?xf32>) -> (tensor<?x2x4xf32>, i1) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %c2 = arith.constant 2 : i64
  %c4 = arith.constant 4 : i64
  %b = tensor.dim %x, %c0 : tensor<?x?x8xf32>
  %s = tensor.dim %x, %c1 : tensor<?x?x8xf32>
  %n = tensor.dim %m, %c0 : tensor<?xf32>
  %bi = arith.index_cast %b : index to i64
  %si = arith.index_cast %s : index to i64
  %bs = arith.muli %bi, %si : i64
  %shape = tensor.from_elements %bs, %c2, %c4 : tensor<3xi64>
  %y = tensor.reshape %x(%shape) : (tensor<?x?x8xf32>, tensor<3xi64>) -> tensor<?x2x4xf32>
  %equal = arith.cmpi eq, %n, %s : index
  return %y, %equal : tensor<?x2x4xf32>, i1
}
"""


def resolved(symbols: list[list[str]]) -> str:
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(RESHAPE)
        resolve_dims(module, symbols, ["x", "m"])
        assert module.operation.verify()
        return str(module)


def test_reshape_becomes_views_in_ir() -> None:
    text = resolved([["", "", ""], [""]])
    assert "tensor.reshape" not in text
    assert "tensor.collapse_shape %arg0 [[0, 1], [2]]" in text
    assert "tensor.expand_shape" in text
    assert "arith.cmpi eq" in text  # nothing says that the sizes are equal


def test_inputs_that_share_a_size_are_compared_once() -> None:
    text = resolved([["batch", "seq", ""], ["seq"]])
    assert "axis 0 of input 'm' must be 'seq' as in 'x'" in text
    assert text.count("cf.assert") == 1
    assert "return %expanded, %true" in text


def test_names_that_are_no_names_say_nothing() -> None:
    assert "cf.assert" not in resolved([["?", "?", ""], ["?"]])
