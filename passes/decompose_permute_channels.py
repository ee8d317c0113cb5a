"""`abq.permute_channels` as a loop that reads elements in their order."""

from __future__ import annotations

import numpy as np
from abqc.dialects import abq
from abqc.dialects.abq_caches import channel_order
from abqc.dialects.mlir import arith, ir, linalg, tensor

from .infrastructure import Unit, register, walk
from .loops.axis_blocks import parallel_loop
from .resolve_dims import index, mixed_sizes


@register
def decompose_permute_channels(module: ir.Operation, unit: Unit) -> None:
    """Rewrite abq.permute_channels as linalg.generic."""
    for op in walk(module, "abq.permute_channels"):
        with ir.InsertionPoint(op), op.location:
            op.results[0].replace_all_uses_with(_loop(op, unit))
        op.erase()


def _loop(op: ir.Operation, unit: Unit) -> ir.Value:
    x = op.operands[0]
    axis, group = (ir.IntegerAttr(op.attributes[name]).value for name in ("axis", "group"))
    orders = np.array(channel_order(op), np.int32)
    symbol = f"abqc.order.{orders.shape}.{orders.tobytes().hex()}"
    if symbol not in unit.store:
        unit.store.add(symbol, orders)
    type_ = ir.RankedTensorType.get(list(orders.shape), ir.IntegerType.get_signless(32))
    table = abq.WeightOp(ir.StringAttr.get(symbol), type_).result

    def body(_: list[ir.Value]) -> ir.Value:
        *lead, column = (linalg.IndexOp(i).result for i in range(len(abq.shape(x))))
        head = arith.DivUIOp(lead[axis], index(group)).result
        head = arith.RemUIOp(head, index(len(orders))).result
        number = tensor.ExtractOp(table, [head, column]).result
        source = arith.IndexCastOp(ir.IndexType.get(), number).result
        return tensor.ExtractOp(x, [*lead, source]).result

    empty = tensor.EmptyOp(mixed_sizes(x), abq.element(x)).result
    return parallel_loop([], [], empty, body)
