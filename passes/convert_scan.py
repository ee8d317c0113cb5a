"""Running sums become `abq.scan`, for targets that have kernels for them.

The front end gives `tm_tensor.scan` with the body `a + b`, whose second result (the totals) it does
not use. Other scans stay, and become loops.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_order import ScanOp
from abqc.dialects.mlir import ir

from .infrastructure import Unit, defining_op, is_used, register, walk

# What codegen/gpu/scan.py has kernels for.
ELEMENTS = ("f16", "bf16", "f32", "f64", "i32", "i64")


@register
def convert_scan(module: ir.Operation, unit: Unit) -> None:
    """Turn tm_tensor.scan of sums into abq.scan."""
    for op in walk(module, "tm_tensor.scan"):
        if not _is_running_sum(op):
            continue
        with ir.InsertionPoint(op), op.location:
            y = ScanOp(op.operands[0], op.attributes["dimension"], op.results[0].type).result
        op.results[0].replace_all_uses_with(y)
        op.erase()


def _is_running_sum(op: ir.Operation) -> bool:
    if is_used(op.results[1]) or op.operands[0].type != op.results[0].type:
        return False
    if not ir.BoolAttr(op.attributes["inclusive"]).value:
        return False
    if str(abq.element(op.operands[0])) not in ELEMENTS:
        return False
    block = op.regions[0].blocks[0]
    combined = defining_op(list(block.operations)[-1].operation.operands[0])
    return (
        combined is not None
        and combined.name in ("arith.addf", "arith.addi")
        and set(combined.operands) == set(block.arguments)
    )
