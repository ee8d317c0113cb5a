"""Products whose results go into packed rows of 16-bit floats, by a function of their elements.

    q = f16(silu(x Wg) * (x Wu))     one launch: merged products, then the function by tiles

    (those of the merged kernel; q, counters i32 (pointer), number of the first counter)

A tile of all products is made by one block of each. A block adds one to the tile's counter when
what it has written is seen by all; the last one reads the tile of all products and writes that of
q. Which block that is depends on scheduling, what it does does not. Counters are 0 and become 0
again. There is one row of tiles (m is at most a block's rows), whose blocks are in order whatever
the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, type_of, vec
from abqc.codegen.epilogue import apply_epilogue
from abqc.codegen.strategy import Kernel
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.mlir import func, ir

from ..arch import GpuArch
from ..builder import POINTER, THREADS, GpuBuilder
from ..packing.layout import FloatElement, FloatRows
from ..packing.pack import PackKernel
from .merged import MATMUL, REDUCE, Merged, merge, move_into

LANES = 4  # columns that a thread makes at once


@dataclass(frozen=True)
class Gate:
    """What becomes of the products: the body is given an element of each in this `order`; rows of q
    have `columns` of the type `element`."""

    body: Epilogue
    order: tuple[int, ...]
    columns: int
    element: FloatElement

    @property
    def name(self) -> str:
        order = "".join(map(str, self.order))
        return f"{self.body.name}_{order}_{self.element}"


def gate_of(pack: PackKernel, body: Epilogue, order: tuple[int, ...]) -> Gate | None:
    """For the rows of `pack`; None where these are not just rounded to 16 bits."""
    packing = pack.packing
    rows = packing.layout
    if not isinstance(rows, FloatRows) or packing.hadamard_block or packing.blocks is not None:
        return None
    grouped = rows.grouped
    if grouped.padded_k != grouped.k or grouped.k % LANES:
        return None
    return Gate(body, order, grouped.k, rows.element)


def gated(kernel: Kernel, parts: int, gate: Gate, *, reduces: bool) -> Kernel:
    """A matmul without a split, or what `reduces` one, of `parts` products, and the gate."""
    name = f"{kernel.name}_x{parts}_{gate.name}"
    return Kernel(name, kernel.block, partial(_emit, name, kernel, parts, gate, reduces))


def _emit(
    name: str, kernel: Kernel, parts: int, gate: Gate, reduces: bool, module: Any, arch: GpuArch
) -> None:
    operands = REDUCE if reduces else MATMUL
    with module.context, ir.Location.name(name):
        apart = ir.Module.create()
        kernel.emit(apart, arch)
        function = ir.SymbolTable(apart.operation)[kernel.name]
        entry = function.regions[0].blocks[0]
        merged = merge(function, kernel, parts, operands, 1)
        m = Value(entry.arguments[1 + operands.m])
        added = _add_arguments(function, [POINTER, POINTER, "i32"])
        (end,) = (op for op in entry.operations if isinstance(op, func.ReturnOp))
        threads = ir.IntegerAttr(function.attributes[THREADS]).value
        with ir.InsertionPoint(end):
            b = GpuBuilder(arch, threads, 0)
            ys = [Value(own[operands.own.index(operands.y)]) for own in merged.own]
            _Gates(b, kernel, gate, ys, m).emit(merged, *added)
        move_into(module, apart, function, name)


def _add_arguments(function: Any, types: list[str]) -> list[Value]:
    entry = function.regions[0].blocks[0]
    attributes = list(function.arg_attrs)
    added = [Value(entry.add_argument(type_of(text), function.location)) for text in types]
    every = [argument.type for argument in entry.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(every, []))
    none = ir.DictAttr.get({})
    function.arg_attrs = ir.ArrayAttr.get([*attributes, *[none] * len(types)])
    return added


@dataclass(frozen=True)
class _Gates:
    """Emits what the last block of a tile does; `ys` are the results of the products, [m][n]."""

    b: GpuBuilder
    kernel: Kernel
    gate: Gate
    ys: list[Value]
    m: Value

    def emit(self, merged: Merged, q: Value, counters: Value, number: Value) -> None:
        b = self.b
        if len(self.ys) == 1:
            b.barrier()
            self._tile(merged.inside, q)
            return
        counter = b.at(counters, b.wide(number + merged.inside) * 4)
        b.fence()
        b.barrier()
        last = b.const(0, "i32")
        first = [b.const(0, "i32")]

        def count() -> list[Value]:
            before = b.atomic("add", counter, b.const(1, "i32"))
            return [b.select(before == len(self.ys) - 1, b.const(1, "i32"), last)]

        (mine,) = b.either(b.thread == 0, ["i32"], count, lambda: first)
        with b.when(b.barrier_any(mine) != 0):
            b.fence()
            self._tile(merged.inside, q)
            with b.when(b.thread == 0):
                b.store(b.const(0, "i32"), counter)

    def _tile(self, inside: Value, q: Value) -> None:
        """Four columns of a row at a time."""
        b, gate = self.b, self.gate
        block_m, block_n = self.kernel.block
        wide = block_n // LANES
        blocks_n = -(-gate.columns // block_n)
        first_row = inside // blocks_n * block_m
        first_column = inside % blocks_n * block_n
        rows = b.min(self.m - first_row, block_m)
        with b.loop(b.thread, rows * wide, b.threads) as loop:
            row = first_row + loop.i // wide
            column = first_column + loop.i % wide * LANES
            with b.when(column < gate.columns):
                at = b.wide(row) * gate.columns + b.wide(column)
                values = [b.load(y, vec(LANES, "f32"), at * 4) for y in self.ys]
                x, *others = [values[part] for part in gate.order]
                made = apply_epilogue(gate.body, x, others)
                b.store(b.narrow(made, gate.element), q, at * 2)
