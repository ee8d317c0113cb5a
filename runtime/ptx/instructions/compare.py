"""Comparisons (PTX ISA, "Comparison and Selection Instructions")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arithmetic import as_float, flushed, pair_halves
from ..decode import Decoder, Lanewise, Operation, Results, instruction
from ..syntax import Pair
from ..types import TYPES, ScalarType

_PREDICATE = TYPES["pred"]
_ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# Unsigned comparisons, and those of floats that hold where one of the two is NaN.
_LO_HI = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_NAMES = (*_ORDERED, *_LO_HI, *_UNORDERED, "num", "nan")


def comparison(name: str, is_float: bool) -> Callable:
    """The function of a comparison's name; NaN makes the ordered ones of floats false."""
    if not is_float:
        return _ORDERED[_LO_HI.get(name, name)]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a < b) | (a > b)
    if name in _UNORDERED:
        ordered = _ORDERED[_UNORDERED[name]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return _ORDERED[name]


def _decoded(i: Decoder) -> tuple[Callable, Callable | None, ScalarType]:
    """The comparison, what combines it with a predicate, and the sources' type."""
    name = i.need(*_NAMES)
    combine = i.choose(*_COMBINE)
    ftz = i.flag("ftz")
    type = i.rest() and i.rest()[-1]
    if type not in TYPES:
        raise i.error("the type is missing or not supported")
    i.rest().remove(type)
    scalar = TYPES[type]
    if name in ("num", "nan", *_UNORDERED) and not scalar.is_float:
        raise i.error(f".{name} compares floats")
    function = comparison(name, scalar.is_float)
    if scalar.is_float and (ftz or scalar.kind == "bf"):
        compare = function
        element = scalar.element
        function = lambda a, b: compare(  # noqa: E731
            flushed(as_float(a, element), ftz), flushed(as_float(b, element), ftz)
        )
    return function, _COMBINE[combine] if combine else None, scalar


@instruction("setp")
def set_predicate(i: Decoder) -> Operation:
    """`p|q = (a ? b) and c`: q has the negated comparison, combined likewise."""
    compare, combine, type = _decoded(i)
    i.arity(4 if combine else 3)
    target = i.operands[0]
    sources = [i.source(1, type), i.source(2, type)]
    negated = False
    if combine:
        predicate, negated = i.predicate(i.operands[3])
        sources.append(predicate)
    if type.lanes == 2:
        return _of_pairs(i, compare, combine, type, sources, negated)
    if not isinstance(target, Pair):
        result = i.write(target, _PREDICATE)
        if combine is None:
            return Lanewise(compare, result, *sources)
        return Lanewise(
            lambda a, b, c: combine(compare(a, b), ~c if negated else c), result, *sources
        )

    def both(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        holds = np.asarray(compare(a, b))
        if combine is None:
            return holds, ~holds
        c = ~rest[0] if negated else rest[0]
        return combine(holds, c), combine(~holds, c)

    results = (i.write(target.first, _PREDICATE), i.write(target.second, _PREDICATE))
    return Results(both, results, *sources)


def _of_pairs(
    i: Decoder,
    compare: Callable,
    combine: Callable | None,
    type: ScalarType,
    sources: list,
    negated: bool,
) -> Operation:
    """`p|q`: the comparison of the low halves and that of the high ones."""
    target = i.operands[0]
    if not isinstance(target, Pair):
        raise i.error("a comparison of pairs has two results")
    dtype = type.element.dtype

    def halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = pair_halves(a)
        return low.view(dtype), high.view(dtype)

    def both(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, ...]:
        holds = tuple(compare(x, y) for x, y in zip(halves(a), halves(b), strict=True))
        if combine is None:
            return holds
        c = ~rest[0] if negated else rest[0]
        return tuple(combine(h, c) for h in holds)

    results = (i.write(target.first, _PREDICATE), i.write(target.second, _PREDICATE))
    return Results(both, results, *sources)


@instruction("set")
def set_register(i: Decoder) -> Operation:
    """All ones (integers) or 1.0 (floats) where the comparison holds, else 0."""
    target = i.type()
    compare, combine, type = _decoded(i)
    if type.lanes == 2:
        raise i.error("set of packed pairs is not supported")
    i.arity(4 if combine else 3)
    sources = [i.source(1, type), i.source(2, type)]
    negated = False
    if combine:
        predicate, negated = i.predicate(i.operands[3])
        sources.append(predicate)
    true = target.dtype.type(1.0) if target.kind == "f" else ~target.dtype.type(0)
    false = target.dtype.type(0)

    def chosen(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        holds = compare(a, b)
        if combine is not None:
            holds = combine(holds, ~rest[0] if negated else rest[0])
        return np.where(holds, true, false)

    return Lanewise(chosen, i.result(0, target), *sources)


@instruction("testp")
def test_property(i: Decoder) -> Operation:
    """What kind of number a float is."""
    name = i.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    type = i.type()
    i.arity(2)
    tiny = np.finfo(type.dtype).tiny
    functions: dict[str, Callable] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return Lanewise(functions[name], i.result(0, _PREDICATE), i.source(1, type))
