"""`abq.pack` and `abq.fused_pack` become one launch each."""

from __future__ import annotations

from typing import Any

from abqc.dialects.abq_conv import epilogue_inputs
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.mlir import arith, ir, scf

from ..infrastructure import Unit
from ..kernels.counters import counters_of
from ..loops.epilogues import body_of
from ..resolve_dims import dimension_or_query, index
from .matmul import Gate, launch_products
from .rules import Lowering, ceil_div, product


def fused_pack_kernel(unit: Unit, op: ir.Operation) -> Any | None:
    """The target's kernel of an `abq.fused_pack`; None where it has none."""
    return unit.known_target.fused_pack(*_pack_and_body(unit, op))


def _pack_and_body(unit: Unit, op: ir.Operation) -> tuple[Any, Epilogue]:
    """The kernel that packs rows, and what makes these."""
    pack = unit.kernels[ir.StringAttr(op.attributes["kernel"]).value]
    reads: list[Any] = [ir.StringAttr(read).value for read in ir.ArrayAttr(op.attributes["reads"])]
    return pack, body_of(op.regions[0].blocks[0], reads)


def _shared_pack(low: Lowering, op: ir.Operation) -> Any | None:
    """What packs a few rows by several blocks each; None where the target has no such kernel."""
    if not low.unit.known_target.objects.on_device:
        return None
    pack, body = _pack_and_body(low.unit, op)
    shared = low.unit.device_target.shared_pack(pack, body)
    if shared is not None:
        low.unit.kernels[shared.kernel.name] = shared.kernel
    return shared


def lower_pack(low: Lowering, op: ir.Operation) -> None:
    """With scales of their own for each row, or for several."""
    view = op.opview
    kernel = low.unit.kernels[ir.StringAttr(view.kernel).value]
    *lead, _ = low.sizes(view.x)
    rows = product(lead)
    packed = low.allocate_rows(rows, op.results[0])
    x = low.buffer(view.x)
    grid = ceil_div(rows, kernel.block[0])
    if view.x_scale is None:
        low.launch(kernel.name, grid, [x, packed, rows], by_rows=True)
    else:
        samples = dimension_or_query(view.x_scale, 0)
        shared = arith.CeilDivUIOp(rows, arith.MaxUIOp(samples, index(1)).result).result
        scale, zero = low.buffer(view.x_scale), low.buffer(view.x_zero)
        low.launch(kernel.name, grid, [x, scale, zero, packed, rows, shared])
    low.buffers[op.results[0]] = packed


def lower_fused_pack(low: Lowering, op: ir.Operation) -> None:
    """Likewise; the rows are made first, of products that are launched with it or of others."""
    view = op.opview
    kernel = fused_pack_kernel(low.unit, op)
    assert kernel is not None, "fuse-pack asks the target before"
    low.unit.kernels[kernel.name] = kernel
    *lead, _ = low.sizes(view.x)
    rows = product(lead)
    packed = low.allocate_rows(rows, op.results[0])
    values = [view.x, *epilogue_inputs(view)]

    def launch(operands: list[ir.Value]) -> None:
        shared = _shared_pack(low, op)
        if shared is None:
            launch_alone(operands)
            return
        few = arith.CmpIOp(arith.CmpIPredicate.ule, rows, index(shared.max_rows)).result
        branches = scf.IfOp(few, has_else=True)
        with ir.InsertionPoint(branches.then_block):
            counters = counters_of(low.module, op)
            arguments = [*operands, packed, counters.buffer, index(counters.first)]
            low.launch(shared.kernel.name, product([rows, index(shared.parts)]), arguments)
            scf.YieldOp([])
        with ir.InsertionPoint(branches.else_block):
            launch_alone(operands)
            scf.YieldOp([])

    def launch_alone(operands: list[ir.Value]) -> None:
        grid = ceil_div(rows, kernel.block[0])
        low.launch(kernel.name, grid, [*operands, packed, rows], by_rows=True)

    products, low.together = low.together, []
    if products:
        places = [[each.results[0] for each in products].index(value) for value in values]
        gate = Gate(op, packed, lambda results: launch([results[place] for place in places]))
        launch_products(low, products, gate)
    else:
        launch([low.buffer(value) for value in values])
    low.buffers[op.results[0]] = packed
