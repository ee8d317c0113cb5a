"""Counters in memory that are 0 between launches.

Each context has its own, `abqc_rt_counters` says where, and each operation that takes some has them
for itself: its launches in one run come one after the other. Kernels leave them as they have found
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects.mlir import ir, memref

from ..infrastructure import walk

# The name of all counters in the host module; the runtime knows where they are
# (codegen/host/llvm.py).
COUNTERS = "abqc_counters"
COUNTERS_EACH = 1024

TAKES = ("abq.attention", "abq.attention_pack", "abq.fused_pack")
# Of others: how many they take; of all: the number of the first.
COUNT, FIRST = "counters", "first_counter"


@dataclass(frozen=True)
class Counters:
    """The buffer of all counters, i32, and the number of the first that may be taken."""

    buffer: ir.Value
    first: int


def counters_of(module: ir.Operation, op: ir.Operation) -> Counters:
    """The counters of `op`, which takes some and is in the module when somebody asks first."""
    if COUNTERS not in ir.SymbolTable(module):
        _declare(module)
    type_ = _declared(module)
    first = ir.IntegerAttr(op.attributes[FIRST]).value
    return Counters(memref.GetGlobalOp(type_, COUNTERS).result, first)


def _declare(module: ir.Operation) -> None:
    """Give all operations theirs."""
    total, i64 = 0, ir.IntegerType.get_signless(64, module.context)
    for op in walk(module):
        count = COUNTERS_EACH if op.name in TAKES else 0
        if COUNT in op.attributes:
            count = ir.IntegerAttr(op.attributes[COUNT]).value
        if count:
            op.attributes[FIRST] = ir.IntegerAttr.get(i64, total)
            total += count
    type_ = ir.MemRefType.get([total], ir.IntegerType.get_signless(32))
    with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), ir.Location.unknown():
        visibility = ir.StringAttr.get("public")
        memref.GlobalOp(
            ir.StringAttr.get(COUNTERS), ir.TypeAttr.get(type_), sym_visibility=visibility
        )


def _declared(module: ir.Operation) -> ir.Type:
    op = ir.SymbolTable(module)[COUNTERS]
    return ir.TypeAttr(op.operation.attributes["type"]).value
