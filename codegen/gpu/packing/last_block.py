"""Kernels whose last block packs the rows that all of their blocks have made.

    (those of the kernel, q, counters i32 (pointer), number of the counter, rows i32)
                                                              grid as the kernel's

The counter is 0 and becomes 0 again: a block adds one to it when what it has written is seen by
all; the one that finds all others done reads the rows and packs them, one after another, with the
bytes that `pack` gives. Which block that is depends on scheduling, what it does does not. For a few
rows, such as those of a decoding step: others are packed faster by blocks of their own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, type_of
from abqc.codegen.strategy import Kernel
from abqc.dialects.mlir import func, ir, nvvm

from ..arch import WARP, GpuArch
from ..builder import POINTER, SHARED, THREADS, GpuBuilder, declare_shared
from ..matmul.merged import move_into
from ..rows.threads import CHUNK, Chunk, Place, Row, RowSweep, RowThreads, load_four, span_positions
from .pack import PackKernel
from .row import PackRow, RowPacking

MAX_HELD = 16  # chunks of a warp: 64 registers of a thread


def with_pack(kernel: Kernel, threads: int, rows: int, pack: PackKernel) -> Kernel | None:
    """`kernel`, of blocks of so many threads, which writes rows of f32 to its argument number
    `rows`; None where a block's registers do not hold such a row, or rows are rotated."""
    packing, warps = pack.packing, threads // WARP
    held = -(-packing.writer.positions // (CHUNK * warps))
    if packing.hadamard_block or packing.stored or held > MAX_HELD or warps & (warps - 1):
        return None
    packing = replace(packing, threads=RowThreads(warps, 1, held, 1))
    name = f"{kernel.name}_{pack.name}"
    return Kernel(name, kernel.block, partial(_emit, name, kernel, threads, rows, packing))


def _emit(
    name: str,
    kernel: Kernel,
    threads: int,
    rows: int,
    packing: RowPacking,
    module: Any,
    arch: GpuArch,
) -> None:
    with module.context, ir.Location.name(name):
        apart = ir.Module.create()
        kernel.emit(apart, arch)
        function = ir.SymbolTable(apart.operation)[kernel.name]
        assert ir.IntegerAttr(function.attributes[THREADS]).value == threads
        _append(function, apart, rows, packing, arch)
        move_into(module, apart, function, name)


def _append(
    function: Any, module: ir.Module, rows: int, packing: RowPacking, arch: GpuArch
) -> None:
    """Have the last block of `function` pack."""
    entry = function.regions[0].blocks[0]
    y = Value(entry.arguments[1 + rows])
    pointer, i32 = type_of(POINTER), type_of("i32")
    more = [pointer, pointer, i32, i32]
    added = [Value(entry.add_argument(type_, function.location)) for type_ in more]
    every = [argument.type for argument in entry.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(every, []))
    noalias = ir.DictAttr.get({"llvm.noalias": ir.UnitAttr.get()})
    function.arg_attrs = ir.ArrayAttr.get(
        [*function.arg_attrs, noalias, ir.DictAttr.get({}), *[ir.DictAttr.get({})] * 2]
    )
    shared = ir.IntegerAttr(function.attributes[SHARED]).value
    shared = max(shared, packing.scratch_bytes, 16)
    declare_shared(module)
    function.attributes[SHARED] = ir.IntegerAttr.get(i32, shared)
    (end,) = (op for op in entry.operations if isinstance(op, func.ReturnOp))
    with ir.InsertionPoint(end):
        b = GpuBuilder(arch, packing.threads.threads, shared)
        q, counters, number, count = added
        counter = b.at(counters, b.wide(number) * 4)
        _pack_in_last_block(b, packing, y, q, counter, count)


def _pack_in_last_block(
    b: GpuBuilder, packing: RowPacking, y: Value, q: Value, counter: Value, count: Value
) -> None:
    b.fence()
    b.barrier()
    with b.when(b.thread == 0):
        b.store(b.atomic("add", counter, b.const(1, "i32")), b.shared)
    b.barrier()
    before = b.load(b.shared, "i32")
    b.barrier()  # others use the word now
    blocks = Value(nvvm.GridDimXOp().result)
    with b.when(before == blocks - 1):
        b.fence()
        with b.loop(0, count, 1) as loop:
            _pack_row(b, packing, y, q, loop.i)
            b.barrier()
        with b.when(b.thread == 0):
            b.store(b.const(0, "i32"), counter)


def _pack_row(b: GpuBuilder, packing: RowPacking, y: Value, q: Value, index: Value) -> None:
    shape, place = packing.shape, Place.of(b, packing.threads)
    row = Row(index, b.const(1, "i1"))
    x = row.at(b, y, 4 * shape.k)

    def load(begin: Value) -> list[Chunk]:
        positions = span_positions(b, shape, place, begin)
        return [load_four(b, shape, x, shape.elements(b, p)) for p in positions]

    body = PackRow(packing, b, place, row, row.at(b, q, packing.layout.row_bytes), 0)
    sweep = RowSweep(b, shape, place, load)
    body.run(sweep, body.measure(sweep))
