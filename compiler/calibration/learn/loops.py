"""`linalg.generic` on whole arrays: a loop is an axis, and operands are broadcast along others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import defining_op
from abqc.passes.loops.generics import iterators, maps, yielded

from .scalars import as_type

Array = Any
# How a loop that is no parallel one may combine what it has with what comes.
_REDUCTIONS = {
    "arith.addf": "sum",
    "arith.addi": "sum",
    "arith.mulf": "prod",
    "arith.maximumf": "amax",
    "arith.minimumf": "amin",
}


@dataclass(frozen=True)
class Axes:
    """What an indexing map reads: for every axis of the operand a loop, or None for index 0."""

    loops: tuple[int | None, ...]
    rank: int

    @staticmethod
    def of(map_: ir.AffineMap) -> Axes | None:
        """None for a map that is more than loops, each once, and zeros."""
        found: list[int | None] = []
        for result in map_.results:
            if isinstance(result, ir.AffineDimExpr):
                found.append(ir.AffineDimExpr(result).position)
            elif (
                isinstance(result, ir.AffineConstantExpr)
                and ir.AffineConstantExpr(result).value == 0
            ):
                found.append(None)
            else:
                return None
        read = [loop for loop in found if loop is not None]
        return Axes(tuple(found), map_.n_dims) if len(set(read)) == len(read) else None

    def spread(self, x: Array, xp: Any) -> Array:
        """The operand with an axis for each loop, of size 1 where it does not depend on it."""
        x = x[tuple(0 if loop is None else slice(None) for loop in self.loops)]
        read = [loop for loop in self.loops if loop is not None]
        ordered = sorted(read)
        x = xp.moveaxis(x, tuple(range(len(read))), tuple(ordered.index(loop) for loop in read))
        return x[tuple(slice(None) if d in read else None for d in range(self.rank))]

    def gather(self, x: Array, shape: Sequence[int], xp: Any) -> Array:
        """The result of this map, of `shape`, from its values along the loops that it reads."""
        read = [loop for loop in self.loops if loop is not None]
        ordered = sorted(read)
        x = xp.moveaxis(x, tuple(ordered.index(loop) for loop in read), tuple(range(len(read))))
        x = x[tuple(None if loop is None else slice(None) for loop in self.loops)]
        return xp.broadcast_to(x, tuple(shape))

    def sizes(self, x: Array) -> dict[int, int]:
        """Of the loops that it reads."""
        pairs = zip(self.loops, x.shape, strict=True)
        return {loop: int(size) for loop, size in pairs if loop is not None}


@dataclass(frozen=True)
class Loops:
    """A `linalg.generic` with one result. `reduction`: the name of what combines along loops that
    are not parallel, None where all are."""

    operands: tuple[Axes, ...]  # the result's last
    reduced: tuple[int, ...]
    reduction: str | None

    @staticmethod
    def of(op: ir.Operation) -> Loops | None:
        """None for one that is not known."""
        axes = [Axes.of(map_) for map_ in maps(op)]
        known = tuple(each for each in axes if each is not None)
        if len(op.results) != 1 or len(known) != len(axes):
            return None
        reduced = tuple(d for d, kind in enumerate(iterators(op)) if kind == "reduction")
        if not reduced:
            return Loops(known, (), None)
        return Loops(known, reduced, _REDUCTIONS[name]) if (name := _combines(op)) else None

    def run(
        self, operands: Sequence[Array], body: Callable[[list[Array], list[int]], Any], xp: Any
    ) -> Array:
        """`body` maps operands with an axis for each loop, and the sizes of these, to what is
        yielded, or, in a reduction, to what is combined with the result so far."""
        sizes: dict[int, int] = {}
        for axes, operand in zip(self.operands, operands, strict=True):
            sizes |= axes.sizes(operand)
        shape = [sizes[d] for d in range(self.operands[0].rank)]
        spread = [a.spread(x, xp) for a, x in zip(self.operands, operands, strict=True)]
        initial, result = operands[-1], self.operands[-1]
        value = as_type(body(spread, shape), initial.dtype, xp)
        if self.reduction is None:
            return result.gather(value, initial.shape, xp)
        value = xp.broadcast_to(value, tuple(shape))
        combined = getattr(xp, self.reduction)(value, axis=self.reduced)
        return _COMBINE[self.reduction](result.gather(combined, initial.shape, xp), initial, xp)


_COMBINE: dict[str, Callable[[Array, Array, Any], Array]] = {
    "sum": lambda a, b, xp: a + b,
    "prod": lambda a, b, xp: a * b,
    "amax": lambda a, b, xp: xp.maximum(a, b),
    "amin": lambda a, b, xp: xp.minimum(a, b),
}


def reduced_value(op: ir.Operation) -> ir.Value:
    """What the body of a reduction combines with the result so far."""
    last = defining_op(yielded(op))
    assert last is not None
    return next(operand for operand in last.operands if operand != _accumulator(op))


def _accumulator(op: ir.Operation) -> ir.Value:
    arguments = op.regions[0].blocks[0].arguments
    return arguments[len(arguments) - 1]


def _combines(op: ir.Operation) -> str | None:
    """The operation that combines the result so far with what does not depend on it."""
    last, accumulator = defining_op(yielded(op)), _accumulator(op)
    if last is None or last.name not in _REDUCTIONS or len(list(accumulator.uses)) != 1:
        return None
    return last.name if accumulator in list(last.operands) else None
