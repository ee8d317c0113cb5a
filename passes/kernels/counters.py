"""Counters in memory that are 0 between launches.

Each context has its own, `abqc_rt_counters` says where, and each operation that takes some has
`COUNTERS_EACH` of them for itself: its launches in one run come one after the other. Kernels leave
them as they have found them.
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


@dataclass(frozen=True)
class Counters:
    """The buffer of all counters, i32, and the number of the first that may be taken."""

    buffer: ir.Value
    first: int


def counters_of(module: ir.Operation, op: ir.Operation) -> Counters:
    """The counters of `op`, which is one of `TAKES` and still in the module."""
    ops = [other for other in walk(module) if other.name in TAKES]
    i32 = ir.IntegerType.get_signless(32)
    type_ = ir.MemRefType.get([len(ops) * COUNTERS_EACH], i32)
    if COUNTERS not in ir.SymbolTable(module):
        with ir.InsertionPoint.at_block_begin(module.regions[0].blocks[0]), ir.Location.unknown():
            visibility = ir.StringAttr.get("public")
            memref.GlobalOp(
                ir.StringAttr.get(COUNTERS), ir.TypeAttr.get(type_), sym_visibility=visibility
            )
    return Counters(memref.GetGlobalOp(type_, COUNTERS).result, ops.index(op) * COUNTERS_EACH)
