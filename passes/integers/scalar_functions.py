"""Functions of one number, given as trees (`loops.generics.expression`), computed in f64.

Those whose slope has no bound are left out: square roots, logarithms, reciprocals. Small arguments
matter most to them, of which codes of 8 bits say little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..loops.generics import Tree

F64 = NDArray[np.float64]


def _erf(x: F64) -> F64:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x)


def _round_away(x: F64) -> F64:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "arith.addf": np.add,
    "arith.subf": np.subtract,
    "arith.mulf": np.multiply,
    "arith.divf": np.divide,
    "arith.remf": np.fmod,
    "arith.negf": np.negative,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
    "arith.select": np.where,
    "math.absf": np.abs,
    "math.ceil": np.ceil,
    "math.copysign": np.copysign,
    "math.cos": np.cos,
    "math.erf": _erf,
    "math.exp": np.exp,
    "math.exp2": np.exp2,
    "math.expm1": np.expm1,
    "math.floor": np.floor,
    "math.log1p": np.log1p,
    "math.powf": np.power,
    "math.round": _round_away,
    "math.roundeven": np.rint,
    "math.sin": np.sin,
    "math.tan": np.tan,
    "math.tanh": np.tanh,
}

# Predicates of arith.cmpf, by number: ordered comparisons are false of a NaN, unordered ones true.
_ORDERED: dict[int, Callable[..., Any]] = {
    1: np.equal, 2: np.greater, 3: np.greater_equal, 4: np.less, 5: np.less_equal,
    6: lambda a, b: (a < b) | (a > b),
}  # fmt: skip


def function_of(tree: Tree) -> Callable[[F64], F64] | None:
    """The function of input 0 that a tree is; None where an operation of it is not known, or left
    out."""
    if not _is_known(tree):
        return None
    return lambda x: np.broadcast_to(_evaluate(tree, x), x.shape).astype(np.float64)


def _is_known(tree: Tree) -> bool:
    name, *rest = tree
    if name == "in":
        return bool(rest == [0])
    if name == "const":
        return True
    operands = [part for part in rest if isinstance(part, tuple)]
    words = [part for part in rest if not isinstance(part, tuple)]
    if _is_steep(name, operands):
        return False
    if name == "arith.cmpf":
        known = len(words) == 1 and _predicate(words[0]) is not None
    else:
        known = name in _FUNCTIONS and not words
    return known and all(map(_is_known, operands))


def _is_steep(name: str, operands: list[Tree]) -> bool:
    """A quotient by the input or a multiple of it, or a power below 1."""
    if name == "math.powf":
        return operands[1][0] != "const" or operands[1][1] < 1
    if name != "arith.divf":
        return False
    divisor = operands[1]
    while divisor[0] == "arith.mulf" and any(part[0] == "const" for part in divisor[1:]):
        (divisor,) = [part for part in divisor[1:] if part[0] != "const"] or [("const",)]
    return divisor == ("in", 0)


def _evaluate(tree: Tree, x: F64) -> Any:
    name, *rest = tree
    if name == "in":
        return x
    if name == "const":
        return np.float64(rest[0])
    operands = [_evaluate(part, x) for part in rest if isinstance(part, tuple)]
    if name == "arith.cmpf":
        compare = _predicate(rest[0])
        assert compare is not None
        return compare(*operands)
    return _FUNCTIONS[name](*operands)


def _predicate(word: str) -> Callable[..., Any] | None:
    """Of the text `predicate=3 : i64`."""
    digits = word.removeprefix("predicate=").split(" ")[0]
    number = int(digits) if digits.isdigit() else -1
    if number in _ORDERED:
        return _ORDERED[number]
    unordered = _ORDERED.get(number - 7)
    if unordered is None:
        return None
    return lambda a, b: unordered(a, b) | np.isnan(a) | np.isnan(b)
