"""What is still linalg becomes GPU kernels: `linalg.generic` on buffers -> kernel + launch.

Loops that `merge-loops` has marked are one kernel, whose grid has the blocks of each, one after
another.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects.mlir import arith, func, ir, scf

from .infrastructure import Unit, register
from .kernels.checks import check_arguments, check_types, checks_of, raise_in_kernel
from .kernels.gpu_body import GpuBody
from .kernels.gpu_math import refuse_functions_of_f64
from .kernels.gpu_nest import THREADS, Mapping, analyse, grid_size
from .kernels.launch import KERNEL_THREADS, WITH_NEXT, launch
from .kernels.loop_nest import Nest, loop_sizes
from .kernels.outlining import Library, arguments_of, outline_all, unique
from .resolve_dims import index


@register
def outline_gpu_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a kernel for blocks of threads."""
    outline_all(module, unit, _outline)


def _outline(module: ir.Operation, op: ir.Operation, library: Library) -> None:
    """The kernel of a loop, or of all that are launched with it, at the last one of these."""
    refuse_functions_of_f64(op)
    library.together.append(op)
    if WITH_NEXT in op.attributes:
        return
    ops, library.together = library.together, []
    parts: list[_Part] = []
    with ir.InsertionPoint(op), op.location:
        begin = index(0)
        for each in ops:
            nest, mapping = analyse(each)
            sizes = loop_sizes(nest)
            parts.append(_Part(nest, mapping, [sizes[d] for d in range(len(nest.kinds))], begin))
            begin = arith.AddIOp(begin, grid_size(nest, mapping, sizes)).result
        arguments = unique([a for part in parts for a in arguments_of(part.nest, part.extents)])
        begins = [part.begin for part in parts[1:]]
        name = library.adopt(_emit(parts, arguments, library))
        checks = check_arguments(module, library.unit, checks_of(op))
        launch(module, name, begin, [*arguments, *begins, *checks])
    for part in parts:
        if part.nest.fill is not None:
            part.nest.fill.erase()
        part.nest.op.erase()


@dataclass(frozen=True)
class _Part:
    """A loop of a kernel: its sizes, and the blocks of the grid before its own, on the host."""

    nest: Nest
    mapping: Mapping
    extents: list[ir.Value]
    begin: ir.Value


def _emit(parts: list[_Part], arguments: list[ir.Value], library: Library) -> func.FuncOp:
    messages = checks_of(parts[-1].nest.op)
    indices = [ir.IndexType.get()] * (len(parts) - 1)
    values = [argument.type for argument in arguments]
    types = [ir.IndexType.get(), *values, *indices, *check_types(messages)]
    with ir.InsertionPoint(library.unit.outlined.body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        i32 = ir.IntegerType.get_signless(32)
        kernel.operation.attributes[KERNEL_THREADS] = ir.IntegerAttr.get(i32, THREADS)
        entry = kernel.add_entry_block()
        block, *taken = entry.arguments
        inside = dict(zip(arguments, taken, strict=False))
        with ir.InsertionPoint(entry):
            _emit_parts(parts, inside, block, taken[len(arguments) :])
            func.ReturnOp([])
        raise_in_kernel(kernel.operation, messages, taken[len(arguments) + len(indices) :])
    return kernel


def _emit_parts(
    parts: list[_Part],
    inside: dict[ir.Value, ir.Value],
    block: ir.Value,
    begins: list[ir.Value],
) -> None:
    """The first part where the second one has not begun, else the others."""
    first, *others = parts
    if not others:
        GpuBody(first.nest, first.mapping, inside, block, first.extents).emit()
        return
    before = arith.CmpIOp(arith.CmpIPredicate.ult, block, begins[0]).result
    branches = scf.IfOp(before, has_else=True)
    with ir.InsertionPoint(branches.then_block):
        GpuBody(first.nest, first.mapping, inside, block, first.extents).emit()
        scf.YieldOp([])
    with ir.InsertionPoint(branches.else_block):
        rest = arith.SubIOp(block, begins[0]).result
        relative = [arith.SubIOp(begin, begins[0]).result for begin in begins[1:]]
        _emit_parts(others, inside, rest, relative)
        scf.YieldOp([])
