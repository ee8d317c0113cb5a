"""No buffer gets a negative size, nor one that only an overflow makes small.

Sizes that depend on data (Range, Pad, Reshape), or on a window larger than its input, can come out
below zero; products of sizes can be more than 64 bits hold. An allocation or a loop must see
neither. So the bytes of a buffer are computed a second time, in f64, where nothing wraps around.
"""

from __future__ import annotations

from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import arith, cf, ir

from .infrastructure import Unit, blame, constant_index, defining_op, register, walk
from .resolve_dims import index

MAX_BYTES = 2**46  # of a tensor; ABQC_MAX_BYTES of the runtime

# Operations whose result is not negative where their operands are not.
MONOTONE = frozenset(
    (
        "arith.addi",
        "arith.ceildivsi",
        "arith.ceildivui",
        "arith.divsi",
        "arith.divui",
        "arith.extsi",
        "arith.floordivsi",
        "arith.index_cast",
        "arith.maxui",
        "arith.minsi",
        "arith.minui",
        "arith.muli",
        "arith.remsi",
        "arith.remui",
    )
)


@register
def check_sizes(module: ir.Operation, unit: Unit) -> None:
    """Check the sizes of memref.alloc that could be negative, and its bytes."""
    checks = _Checks()
    for op in walk(module, "memref.alloc"):
        if len(op.operands):
            with ir.InsertionPoint(op), op.location:
                checks.check(op)


class _Checks:
    """What is known to hold at later allocations of a block, and of blocks inside of it."""

    def __init__(self) -> None:
        self.natural: dict[ir.Value, bool] = {}
        self.checked: dict[ir.Block, set[object]] = {}

    def check(self, alloc: ir.Operation) -> None:
        sizes = list(alloc.operands)
        for size in sizes:
            if not self._is_natural(size) and not self._is_known(alloc, size):
                natural = arith.CmpIOp(arith.CmpIPredicate.sge, size, index(0)).result
                cf.AssertOp(natural, f"{blame(alloc)}: a size is negative")
        fixed = _static_bytes(ir.MemRefType(alloc.results[0].type))
        if fixed == 0 or self._is_known(alloc, (fixed, *sizes)):
            return
        total = _f64(float(fixed))
        for size in sizes:
            total = arith.MulFOp(total, _without_wrapping(size)).result
        fits = arith.CmpFOp(arith.CmpFPredicate.OLE, total, _f64(float(MAX_BYTES))).result
        cf.AssertOp(fits, f"{blame(alloc)}: a tensor would be larger than any memory")

    def _is_known(self, op: ir.Operation, fact: object) -> bool:
        """Whether a fact was checked before `op`; it is known from here on."""
        block: ir.Block | None = op.block
        while block is not None:
            if fact in self.checked.get(block, ()):
                return True
            owner = block.owner
            block = None if owner.operation.name == "func.func" else owner.operation.block
        self.checked.setdefault(op.block, set()).add(fact)
        return False

    def _is_natural(self, size: ir.Value) -> bool:
        if size not in self.natural:
            self.natural[size] = False  # a size that a loop hands round
            self.natural[size] = self._looks_natural(size)
        return self.natural[size]

    def _looks_natural(self, size: ir.Value) -> bool:
        constant = constant_index(size)
        if constant is not None:
            return constant >= 0
        owner = defining_op(size)
        if owner is None:
            return False
        if owner.name == "memref.dim":
            return True
        if owner.name == "arith.maxsi":
            return any(map(self._is_natural, owner.operands))
        if owner.name == "arith.select":
            return all(map(self._is_natural, list(owner.operands)[1:]))
        return owner.name in MONOTONE and all(map(self._is_natural, owner.operands))


def _static_bytes(type_: ir.MemRefType) -> int:
    element = type_.element_type
    bits = 64 if isinstance(element, ir.IndexType) else element.width
    return max(1, bits // 8) * prod(size for size in type_.shape if size != abq.DYNAMIC)


_IN_F64 = {"arith.addi": arith.AddFOp, "arith.subi": arith.SubFOp, "arith.muli": arith.MulFOp}


def _without_wrapping(size: ir.Value) -> ir.Value:
    """A size in f64: its sums and products rounded, but of the magnitude that they ought to be."""
    known: dict[ir.Value, ir.Value] = {}

    def visit(value: ir.Value) -> ir.Value:
        if value not in known:
            owner = defining_op(value)
            if owner is not None and owner.name in _IN_F64:
                known[value] = _IN_F64[owner.name](*map(visit, owner.operands)).result
            elif owner is not None and owner.name == "arith.index_cast":
                known[value] = visit(owner.operands[0])
            else:
                known[value] = _converted(value)
        return known[value]

    return visit(size)


def _converted(value: ir.Value) -> ir.Value:
    constant = constant_index(value)
    if constant is not None:
        return _f64(float(constant))
    if isinstance(value.type, ir.IndexType):
        value = arith.IndexCastOp(ir.IntegerType.get_signless(64), value).result
    return arith.SIToFPOp(ir.F64Type.get(), value).result


def _f64(number: float) -> ir.Value:
    type_ = ir.F64Type.get()
    return arith.ConstantOp(type_, ir.FloatAttr.get(type_, number)).result
