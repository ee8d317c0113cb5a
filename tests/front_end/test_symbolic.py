"""Sizes as polynomials: equal texts mean equal numbers, simplifications keep the value."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from abqc.compiler.onnx_import.building.regions import made_after
from abqc.compiler.onnx_import.values import symbolic
from abqc.compiler.onnx_import.values.symbolic import Dim, Named, parse_dim
from hypothesis import given
from hypothesis import strategies as st

NAMES = [Named(name) for name in ("a", "b", "past")]

# Pairs of a Dim and the function of the sizes that it must be.
Pair = tuple[Dim, Callable[[dict], int]]


def _operation(name: str, left: Pair, right: Pair) -> Pair:
    (x, f), (y, g) = left, right
    table: dict[str, tuple[Callable, Callable]] = {
        "+": (lambda p, q: p + q, lambda p, q: p + q),
        "-": (lambda p, q: p - q, lambda p, q: p - q),
        "*": (lambda p, q: p * q, lambda p, q: p * q),
        "//": (lambda p, q: p // q, lambda p, q: p // q if q else 0),
        "%": (lambda p, q: p % q, lambda p, q: p - (p // q if q else 0) * q),
        "min": (symbolic.minimum, min),
        "max": (symbolic.maximum, max),
        "eq": (symbolic.is_equal, lambda p, q: int(p == q)),
        "lt": (symbolic.is_less, lambda p, q: int(p < q)),
        "and": (lambda p, q: symbolic.call("and", p, q), lambda p, q: int(bool(p and q))),
        "or": (lambda p, q: symbolic.call("or", p, q), lambda p, q: int(bool(p or q))),
        "truncdiv": (symbolic.truncdiv, symbolic.FUNCTIONS["truncdiv"]),
    }
    build, meaning = table[name]
    return build(x, y), lambda sizes: meaning(f(sizes), g(sizes))


OPERATIONS = ["+", "-", "*", "//", "%", "min", "max", "eq", "lt", "and", "or", "truncdiv"]

leaves: st.SearchStrategy[Pair] = st.one_of(
    st.integers(-4, 9).map(lambda n: (Dim.of(n), lambda sizes: n)),
    st.sampled_from(NAMES).map(lambda name: (Dim.of(name), lambda sizes: sizes[name])),
)
pairs = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(OPERATIONS), inner, inner).map(
        lambda each: _operation(*each)
    ),
    max_leaves=8,
)
sizes = st.fixed_dictionaries({name: st.integers(0, 7) for name in NAMES})


@given(pairs, sizes)
def test_simplified_expressions_keep_their_value(pair: Pair, values: dict) -> None:
    dim, meaning = pair
    # Exact quotients of polynomials are taken before sizes are known to be other than 0.
    if 0 in values.values():
        return
    assert symbolic.evaluate(dim, values) == meaning(values)


@given(pairs, pairs, sizes)
def test_what_is_decided_holds_for_all_sizes(left: Pair, right: Pair, values: dict) -> None:
    x, y = (symbolic.evaluate(dim, values) for dim, _ in (left, right))
    equal, less = symbolic.equal(left[0], right[0]), symbolic.less(left[0], right[0])
    assert equal is None or equal == (x == y)
    assert less is None or less == (x < y)
    if symbolic.is_natural(left[0]):
        assert x >= 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("batch", "batch"),
        ("past + seq", "past + seq"),
        ("seq + past", "past + seq"),
        ("2*n", "2*n"),
        ("floor(n/2)", "floor(n/2)"),
        ("unk__12", "unk__12"),
    ],
)
def test_names_of_sizes(text: str, expected: str) -> None:
    assert str(parse_dim(text)) == expected


def test_convolution_sizes_are_one_expression() -> None:
    h = Dim.of(Named("h"))
    assert (h * 2 + 1 - 3) // 2 + 1 == h
    assert str((h - 1) // 2 + 1) == "floordiv(h + 1, 2)"


def test_broadcast_of_sizes() -> None:
    h = Dim.of(Named("h"))
    assert symbolic.call("broadcast", h, symbolic.ONE) == h
    assert symbolic.call("broadcast", Dim.of(5), h) == Dim.of(5)
    assert (
        symbolic.evaluate(
            symbolic.call("broadcast", h, Dim.of(Named("a"))), {Named("h"): 1, Named("a"): 4}
        )
        == 4
    )


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_conditions_of_numbers_are_truths(number: int) -> None:
    a, n = Dim.of(Named("a")), Dim.of(3)
    conditions = [
        *(
            symbolic.call(function, *pair)
            for function in ("and", "or")
            for pair in ((a, n), (a, a))
        ),
        symbolic.call("or", symbolic.ZERO, a),
        symbolic.negated(symbolic.negated(a)),
    ]
    truth = int(number != 0)
    found = [symbolic.evaluate(condition, {Named("a"): number}) for condition in conditions]
    assert found == [truth, truth, 1, truth, truth, truth]


def test_sizes_made_of_each_other_stay_small() -> None:
    """Layers whose sizes are broadcast with those of the layer before, as in a decoder."""
    h, n = Dim.of(Named("h")), Dim.of(Named("n"))
    size = h
    for _ in range(60):
        size = symbolic.call("broadcast", size + n, size)
    assert len(str(size)) < 1000
    assert symbolic.is_natural(size) and symbolic.mentions(size, Named("n"))
    assert not made_after(size, 0)
    swapped = symbolic.replaced(size, {Named("n"): h}.get)
    assert not symbolic.mentions(swapped, Named("n"))
    again = h
    for _ in range(60):
        again = symbolic.call("broadcast", again + n, again)
    assert again == size and hash(again) == hash(size)


def test_products_of_long_sums_are_not_multiplied_out() -> None:
    """A number of elements whose factors no run before knows, as of a padded tensor reshaped."""
    names = [Named(f"n{i}") for i in range(12)]
    size, expected = symbolic.ONE, 1
    for i, (a, b) in enumerate(pairwise(names)):
        size = size * (Dim.of(a) + symbolic.maximum(Dim.of(b) - 3, symbolic.ZERO) + 1)
        expected *= i + max(i - 2, 0) + 1
    assert len(size.terms) <= symbolic.MAX_TERMS
    assert symbolic.evaluate(size, {name: i for i, name in enumerate(names)}) == expected
    assert not symbolic.mentions(symbolic.replaced(size, {names[3]: symbolic.ONE}.get), names[3])
