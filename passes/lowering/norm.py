"""`abq.norm`, `abq.norm_pack` and `abq.softmax` become one launch each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import arith, ir
from abqc.dialects.norm_spec import NormSpec

from ..infrastructure import Unit, is_used
from .rules import Lowering, ceil_div, product


def norm_pack_kernel(unit: Unit, norm: ir.Operation, packs: Sequence[str]) -> Any | None:
    """The target's kernel for an `abq.norm` or `abq.norm_pack` with these packing kernels; None
    where it has none."""
    kernels = [unit.kernels[name] for name in packs]
    keeps_row = is_used(norm.results[0])
    return unit.known_target.norm_pack(kernels, _spec(norm), keeps_row=keeps_row)


def lower_norm(low: Lowering, op: ir.Operation) -> None:
    """Operands that are absent, and a sum that nobody reads, are no arguments of the kernel."""
    _launch(low, op, low.unit.device_target.norm(_spec(op)), [op.opview.result])


def lower_norm_pack(low: Lowering, op: ir.Operation) -> None:
    """Nor is a normalized row that nobody reads as it is."""
    view = op.opview
    names = [ir.StringAttr(name).value for name in ir.ArrayAttr(view.kernels)]
    kernel = norm_pack_kernel(low.unit, op, names)
    assert kernel is not None, "fuse-norm-pack asks the target before"
    row = [view.result] if is_used(view.result) else []
    _launch(low, op, kernel, row, abq.packs_of(view))


def _launch(
    low: Lowering,
    op: ir.Operation,
    kernel: Any,
    row: Sequence[ir.Value],
    packed: Sequence[ir.Value] = (),
) -> None:
    """Launch `kernel`, which writes `row` (the normalized one, or nothing) and packs."""
    view = op.opview
    low.unit.kernels[kernel.name] = kernel
    sizes = low.sizes(view.x)
    rows = product(sizes[:-1])
    operands = [view.x, view.residual, view.weight, view.bias]
    arguments = [low.buffer(value) for value in operands if value is not None]
    written = [*row, view.sum] if is_used(view.sum) else row
    results = [low.allocate(product(sizes), ir.F32Type.get()) for _ in written]
    packs = [low.allocate_rows(rows, value) for value in packed]
    epsilon = arith.ConstantOp(ir.F32Type.get(), op.attributes["epsilon"]).result
    grid = ceil_div(rows, kernel.block[0])
    low.launch(kernel.name, grid, [*arguments, *results, *packs, rows, epsilon])
    for value, buffer in zip(written, results, strict=True):
        low.finish(op, buffer, sizes, ir.OpResult(value).result_number)
    for value, buffer in zip(packed, packs, strict=True):
        low.buffers[value] = buffer


def _spec(op: ir.Operation) -> NormSpec:
    view = op.opview
    return NormSpec(
        ir.StringAttr(view.kind).value,
        abq.shape(view.x)[-1],
        weight=view.weight is not None,
        bias=view.bias is not None,
        residual=view.residual is not None,
        keeps_sum=is_used(view.sum),
    )


def lower_softmax(low: Lowering, op: ir.Operation) -> None:
    """A grid index a row."""
    x = op.opview.x
    kernel = low.unit.known_target.softmax()
    low.unit.kernels[kernel.name] = kernel
    sizes = low.sizes(x)
    y = low.allocate(product(sizes), ir.F32Type.get())
    low.launch(kernel.name, product(sizes[:-1]), [low.buffer(x), y, sizes[-1]])
    low.finish(op, y, sizes)
