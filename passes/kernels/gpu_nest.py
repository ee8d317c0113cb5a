"""How the loops of one linalg.generic run on a GPU: as points, by warps, or in series.

* points: no reduction; a thread makes one element, neighbouring threads neighbouring elements;
* warp: the reduction runs over the contiguous axis of an input; the lanes of a warp share it and
  combine what they have by shuffles;
* serial: any other reduction; a thread makes one element and loops over the reduction, so that
  neighbouring threads read neighbouring elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from abqc.dialects.mlir import arith, cf, ir
from abqc.errors import CompileError

from ..infrastructure import blame, defining_op
from ..resolve_dims import index
from .loop_nest import Nest, is_contiguous, parallel_in_output_order, preceding_fill, read_nest
from .loop_nest import static_extent as extent_of

THREADS = 256  # of a block
WARP = 32
# Positions are computed in 32 bits, signed ones where lanes go on by WARP.
MAX_LENGTH = (1 << 31) - THREADS
SHORT = 16  # reductions of so few terms are not worth a warp


class Mapping(Enum):
    """What one thread or warp of a kernel makes."""

    POINTS = "points"
    WARP = "warp"
    SERIAL = "serial"

    @property
    def per_block(self) -> int:
        """Elements of the output that one block makes."""
        return THREADS // WARP if self is Mapping.WARP else THREADS


@dataclass(frozen=True)
class Combiner:
    """The operation that joins two partial results of a reduction, and what changes nothing."""

    op: str
    neutral: float | int
    place: int  # of the accumulated value among its operands


_INF = math.inf
# Integers are given as bits of any width: 0, 1, all ones, the sign bit, all but the sign bit.
_NEUTRAL: dict[str, float | str] = {
    "arith.addf": -0.0,
    "arith.mulf": 1.0,
    "arith.maximumf": -_INF,
    "arith.minimumf": _INF,
    "arith.maxnumf": -_INF,
    "arith.minnumf": _INF,
    "arith.addi": "zero",
    "arith.muli": "one",
    "arith.andi": "ones",
    "arith.ori": "zero",
    "arith.xori": "zero",
    "arith.maxsi": "lowest",
    "arith.minsi": "highest",
    "arith.maxui": "zero",
    "arith.minui": "ones",
}


def analyse(op: ir.Operation) -> tuple[Nest, Mapping]:
    """The nest of a generic, its grid in the order of the output, and who makes an element."""
    nest = read_nest(op)
    reductions = [d for d, kind in enumerate(nest.kinds) if kind == "reduction"]
    nest.grid, nest.inner = parallel_in_output_order(nest), reductions
    if not reductions:
        return nest, Mapping.POINTS
    nest.register = True
    nest.fill, nest.init = preceding_fill(nest)
    return nest, Mapping.WARP if _by_warp(nest, reductions) else Mapping.SERIAL


def _by_warp(nest: Nest, reductions: list[int]) -> bool:
    extents = [extent_of(nest, d) for d in reductions]
    short = all(e is not None for e in extents) and math.prod(e or 0 for e in extents) <= SHORT
    return not short and is_contiguous(nest, reductions) and None not in combiners(nest)


def combiners(nest: Nest) -> list[Combiner | None]:
    """How the partial results of each output are joined; None where the body does not say."""
    block = nest.op.regions[0].blocks[0]
    outputs = nest.arguments[len(nest.arguments) - nest.n_outputs :]
    last = list(block.operations)[-1].operation
    return [
        _combiner(argument, value, outputs)
        for argument, value in zip(outputs, last.operands, strict=True)
    ]


def _combiner(argument: ir.Value, value: ir.Value, outputs: list[ir.Value]) -> Combiner | None:
    op = defining_op(value)
    if op is None or op.name not in _NEUTRAL:
        return None
    uses = list(argument.uses)
    if len(uses) != 1 or uses[0].owner.operation != op:
        return None
    others = [u for o in outputs if o != argument for u in o.uses if u.owner.operation == op]
    if others:
        return None
    place = 0 if op.operands[0] == argument else 1
    neutral = _NEUTRAL[op.name]
    if isinstance(neutral, str):
        return Combiner(op.name, _integer(neutral, ir.IntegerType(value.type).width), place)
    return Combiner(op.name, neutral, place)


def _integer(name: str, width: int) -> int:
    return {
        "zero": 0,
        "one": 1 if width > 1 else -1,
        "ones": -1,
        "lowest": -(1 << (width - 1)),
        "highest": (1 << (width - 1)) - 1,
    }[name]


def grid_size(nest: Nest, mapping: Mapping, sizes: dict[int, ir.Value]) -> ir.Value:
    """The number of blocks, on the host, which checks that positions fit 32 bits.

    CompileError where they are known not to.
    """
    total = _product(nest, nest.grid, sizes)
    if mapping is Mapping.WARP:
        _check_length(nest, nest.inner, _product(nest, nest.inner, sizes))
    _check_length(nest, nest.grid, total)
    return arith.CeilDivUIOp(total, index(mapping.per_block)).result


def _product(nest: Nest, dims: list[int], sizes: dict[int, ir.Value]) -> ir.Value:
    total = index(1)
    for dim in dims:
        total = arith.MulIOp(total, sizes[dim]).result
    return total


def _check_length(nest: Nest, dims: list[int], total: ir.Value) -> None:
    """Refuse loops of more than MAX_LENGTH iterations: at once, or at run time."""
    extents = [extent_of(nest, dim) for dim in dims]
    what = f"{blame(nest.op)}: a GPU's kernel makes fewer than 2^31 elements"
    if None not in extents:
        if math.prod(e or 0 for e in extents) > MAX_LENGTH:
            raise CompileError(what, hint="compile for the CPU, or split the tensor")
        return
    short = arith.CmpIOp(arith.CmpIPredicate.ule, total, index(MAX_LENGTH)).result
    cf.AssertOp(short, what)
