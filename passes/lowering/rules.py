"""What the rules that lower abq operations share: flat buffers, launches, choices by rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from abqc.dialects import abq
from abqc.dialects.mlir import arith, bufferization, ir, memref, scf

from ..infrastructure import Unit, defining_op, main_function
from ..kernels.launch import launch, threads
from ..loops.slices import is_compact
from ..resolve_dims import dimension_or_query, index


class Lowering:
    """What the rules share: buffers of values already lowered, and globals already declared."""

    def __init__(self, module: ir.Operation, unit: Unit) -> None:
        self.module = module
        self.unit = unit
        self.buffers: dict[ir.Value, ir.Value] = {}
        self.limits: dict[Any, Any] = {}  # of masks: MaskLimits (attention.py)
        self.together: list[ir.Operation] = []  # products that wait for the next one

    def constant(self, symbol: str, shape: list[int], element: ir.Type) -> ir.Value:
        """The buffer of a weight, an external symbol of the object file.

        It is numbered, not named: linkers give characters of ONNX names a meaning (`@`).
        """
        type_ = ir.MemRefType.get(shape, element)
        name = self.unit.weight_name(symbol)
        if name not in ir.SymbolTable(self.module):
            with ir.InsertionPoint.at_block_begin(self.module.regions[0].blocks[0]):
                memref.GlobalOp(
                    ir.StringAttr.get(name),
                    ir.TypeAttr.get(type_),
                    sym_visibility=ir.StringAttr.get("public"),
                    constant=True,
                    alignment=64,
                )
        return memref.GetGlobalOp(type_, name).result

    def buffer(self, value: ir.Value) -> ir.Value:
        """The flat buffer of a tensor that is only read."""
        known = self.buffers.get(value)
        if known is not None:
            return known
        tensor_type = ir.RankedTensorType(value.type)
        type_ = ir.MemRefType.get(list(tensor_type.shape), tensor_type.element_type)
        value = contiguous(value)
        return flatten(bufferization.ToBufferOp(type_, value, read_only=True).result)

    def sizes(self, value: ir.Value) -> list[ir.Value]:
        return [dimension_or_query(value, i) for i in range(ir.RankedTensorType(value.type).rank)]

    def allocate(self, length: ir.Value, element: ir.Type) -> ir.Value:
        type_ = ir.MemRefType.get([abq.DYNAMIC], element)
        return memref.AllocOp(type_, [length], [], alignment=64).result

    def allocate_rows(self, rows: ir.Value, packed: ir.Value) -> ir.Value:
        """A buffer for the rows of a tensor of packed bytes."""
        row_bytes = abq.shape(packed)[-1]
        i8 = ir.IntegerType.get_signless(8)
        return self.allocate(arith.MulIOp(rows, index(row_bytes)).result, i8)

    @cached_property
    def threads(self) -> ir.Value:
        """On how many a run launches kernels, known where the function begins (CPUs)."""
        begin = main_function(self.module).regions[0].blocks[0]
        with ir.InsertionPoint.at_block_begin(begin):
            return threads(self.module)

    def launch(
        self,
        kernel: str,
        grid: ir.Value,
        arguments: list[ir.Value],
        *,
        with_next: bool = False,
        by_rows: bool = False,
    ) -> None:
        flat = [dynamic(a) if isinstance(a.type, ir.MemRefType) else a for a in arguments]
        launch(self.module, kernel, grid, flat, with_next=with_next, by_rows=by_rows)

    def finish(
        self, op: ir.Operation, buffer: ir.Value, sizes: list[ir.Value], result: int = 0
    ) -> None:
        """Hand the flat `buffer` back as a tensor that `op` made."""
        type_ = ir.RankedTensorType(op.results[result].type)
        view = unflatten(buffer, list(type_.shape), sizes)
        made = bufferization.ToTensorOp(type_, view, restrict=True, writable=True).result
        op.results[result].replace_all_uses_with(made)


def product(sizes: list[ir.Value]) -> ir.Value:
    total = index(1)
    for size in sizes:
        total = arith.MulIOp(total, size).result
    return total


def ceil_div(value: ir.Value, block: int) -> ir.Value:
    return value if block == 1 else arith.CeilDivUIOp(value, index(block)).result


def contiguous(value: ir.Value) -> ir.Value:
    """The tensor, or a copy of it if its buffer may be a part of a larger one.

    One-shot bufferization would cast such a buffer to a compact one: where the strides are not
    static, it does not see that they differ.
    """
    if not _may_be_strided(value):
        return value
    return bufferization.AllocTensorOp(value.type, [], copy=value).result


def _may_be_strided(value: ir.Value) -> bool:
    op = defining_op(value)
    while op is not None and op.name in _VIEWS:
        op = defining_op(op.operands[0])
    if op is None:
        return False
    if op.name == "tensor.extract_slice":
        return not is_compact(op) or _may_be_strided(op.operands[0])
    if op.name == "bufferization.to_tensor":  # a cache with room to grow
        return isinstance(ir.MemRefType(op.operands[0].type).layout, ir.StridedLayoutAttr)
    return op.name in _CHOICES


_VIEWS = ("tensor.cast", "tensor.collapse_shape", "tensor.expand_shape")
_CHOICES = ("arith.select", "scf.for", "scf.if")


def flatten(buffer: ir.Value) -> ir.Value:
    """A contiguous buffer as one of rank 1."""
    type_ = ir.MemRefType(buffer.type)
    if type_.rank == 1:
        return buffer
    length = 1
    for size in type_.shape:
        length = abq.DYNAMIC if abq.DYNAMIC in (size, length) else length * size
    flat = ir.MemRefType.get([length], type_.element_type)
    if type_.rank == 0:
        return memref.ExpandShapeOp(flat, buffer, [], [], [1]).result
    return memref.CollapseShapeOp(flat, buffer, [list(range(type_.rank))]).result


def unflatten(buffer: ir.Value, shape: list[int], sizes: list[ir.Value]) -> ir.Value:
    """A buffer of rank 1 as one of `shape`; `sizes` has a value for every axis."""
    element = ir.MemRefType(buffer.type).element_type
    known = 1
    for size in shape:
        known = abq.DYNAMIC if abq.DYNAMIC in (size, known) else known * size
    flat = ir.MemRefType.get([known], element)
    if buffer.type != flat:
        buffer = memref.CastOp(flat, buffer).result
    if len(shape) == 1:
        return buffer
    type_ = ir.MemRefType.get(shape, element)
    dynamic = [s for s, size in zip(sizes, shape, strict=True) if size == abq.DYNAMIC]
    return memref.ExpandShapeOp(type_, buffer, [list(range(len(shape)))], dynamic, shape).result


def dynamic(buffer: ir.Value) -> ir.Value:
    """Kernels are shared by sizes: static ones are cast away."""
    type_ = ir.MemRefType(buffer.type)
    if type_.rank != 1 or type_.shape[0] == abq.DYNAMIC:
        return buffer
    return memref.CastOp(ir.MemRefType.get([abq.DYNAMIC], type_.element_type), buffer).result


def static_product(shape: list[int]) -> int | None:
    """The number of elements, None where a size is not known."""
    return None if abq.DYNAMIC in shape else math.prod(shape)


def covering(unit: Unit, variants: Sequence[Any], size: int | None) -> list[Any]:
    """The variants of a kernel for a size (all, where that is not known), now known to the unit."""
    chosen = [v for v in variants if size is None or v.covers(max(size, 1))]
    for variant in chosen:
        unit.kernels[variant.kernel.name] = variant.kernel
    return chosen


def by_rows(
    rows: ir.Value, count: int, limits: list[int], launch: Callable[[int], None], first: int = 0
) -> None:
    """`if rows <= limits[0]: launch(0) else ...`; the last of `count` variants has no limit."""
    if first == count - 1:
        launch(first)
        return
    few = arith.CmpIOp(arith.CmpIPredicate.ule, rows, index(limits[first])).result
    branch = scf.IfOp(few, has_else=True)
    with ir.InsertionPoint(branch.then_block):
        launch(first)
        scf.YieldOp([])
    with ir.InsertionPoint(branch.else_block):
        by_rows(rows, count, limits, launch, first + 1)
        scf.YieldOp([])
