"""Kernels that are loops written here, on flat buffers: what no linalg op says.

Selections and scatters go along an axis in order and keep what they have found in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abqc.dialects.mlir import arith, func, ir, memref, scf

from ..kernels.launch import launch
from ..kernels.outlining import library_of
from ..resolve_dims import index
from .rules import Lowering, dynamic

# `emit(number, arguments)`: what one index of the grid does.
Emit = Callable[[ir.Value, list[ir.Value]], None]


def run_loops(
    low: Lowering, arguments: Sequence[ir.Value], grid: ir.Value, work: ir.Value, emit: Emit
) -> None:
    """Launch a kernel made by `emit` for each 0 <= i < `grid`.

    `arguments` are flat buffers and scalars. `work`: how many elements an index of the grid
    touches, from which the runtime chooses the number of threads. For a GPU a loop of the host is
    made, which `outline-serial-code` moves to the device.
    """
    given = [dynamic(a) if isinstance(a.type, ir.MemRefType) else a for a in arguments]
    if low.unit.known_target.objects.on_device:
        loop(index(0), grid, lambda number: emit(number, given))
        return
    library = library_of(low.unit)
    types = [ir.IndexType.get(), *(a.type for a in given), ir.IndexType.get()]
    with ir.InsertionPoint(low.unit.outlined.body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        with ir.InsertionPoint(entry):
            number, *inside = list(entry.arguments)[:-1]
            emit(number, inside)
            func.ReturnOp([])
    launch(low.module, library.adopt(kernel), grid, [*given, work])


def loop(
    begin: ir.Value,
    end: ir.Value,
    body: Callable[[ir.Value], None],
    *,
    backwards: bool = False,
) -> None:
    """`body` of begin, begin + 1, ... or of end - 1, end - 2, ..., for begin <= i < end."""
    turns = scf.ForOp(begin, end, index(1))
    with ir.InsertionPoint(turns.body):
        at = turns.induction_variable
        if backwards:
            last = arith.SubIOp(arith.AddIOp(begin, end).result, index(1)).result
            at = arith.SubIOp(last, at).result
        body(at)
        scf.YieldOp([])


def when(condition: ir.Value, body: Callable[[], None]) -> None:
    with ir.InsertionPoint(scf.IfOp(condition).then_block):
        body()
        scf.YieldOp([])


def add(a: ir.Value, b: ir.Value) -> ir.Value:
    return arith.AddIOp(a, b).result


def multiply(a: ir.Value, b: ir.Value) -> ir.Value:
    return arith.MulIOp(a, b).result


def below(a: ir.Value, b: ir.Value) -> ir.Value:
    """Whether `a < b`; a negative number counts as a large one."""
    return arith.CmpIOp(arith.CmpIPredicate.ult, a, b).result


def load(buffer: ir.Value, at: ir.Value) -> ir.Value:
    return memref.LoadOp(buffer, [at]).result


def store(value: ir.Value, buffer: ir.Value, at: ir.Value) -> None:
    memref.StoreOp(value, buffer, [at])
