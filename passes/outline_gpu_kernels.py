"""What is still linalg becomes GPU kernels: `linalg.generic` on buffers -> kernel + launch."""

from __future__ import annotations

from abqc.dialects.mlir import func, ir

from .gpu_body import GpuBody
from .gpu_nest import THREADS, Mapping, analyse, grid_size
from .infrastructure import Unit, constant_index, register, walk
from .launch import launch
from .loop_nest import Nest, loop_sizes
from .outlining import (
    Library,
    captured_values,
    copy_to_generic,
    inline_scalar_inputs,
    reduces,
    unique,
)

THREADS_ATTRIBUTE = "abq.threads"


@register
def outline_gpu_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a kernel for blocks of threads."""
    if unit.outlined is None:
        unit.outlined = ir.Module.create()
    library = Library(unit)
    for op in walk(module, "memref.copy"):
        copy_to_generic(op)
    for op in walk(module, "linalg.generic"):
        inline_scalar_inputs(op)
    for op in filter(reduces, walk(module, "linalg.generic")):
        _outline(module, op, library)
    # What is left are no reductions, nor fills that a reduction has taken over.
    for op in walk(module, "linalg.generic"):
        _outline(module, op, library)


def _outline(module: ir.Operation, op: ir.Operation, library: Library) -> None:
    nest, mapping = analyse(op)
    captured = captured_values(op)
    buffers = unique(nest.operands + [v for v in captured if isinstance(v.type, ir.MemRefType)])
    scalars = [v for v in captured if not isinstance(v.type, ir.MemRefType)]
    with ir.InsertionPoint(op), op.location:
        sizes = loop_sizes(nest)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        dynamic = [s for s in extents if constant_index(s) is None]
        arguments = unique([*buffers, *scalars, *dynamic])
        name = library.adopt(_emit(nest, mapping, arguments, extents, library))
        launch(module, name, grid_size(nest, mapping, sizes), arguments)
    if nest.fill is not None:
        nest.fill.erase()
    op.erase()


def _emit(
    nest: Nest,
    mapping: Mapping,
    arguments: list[ir.Value],
    extents: list[ir.Value],
    library: Library,
) -> func.FuncOp:
    types = [ir.IndexType.get(), *(a.type for a in arguments)]
    with ir.InsertionPoint(library.unit.outlined.body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        i32 = ir.IntegerType.get_signless(32)
        kernel.operation.attributes[THREADS_ATTRIBUTE] = ir.IntegerAttr.get(i32, THREADS)
        entry = kernel.add_entry_block()
        inside = dict(zip(arguments, list(entry.arguments)[1:], strict=True))
        with ir.InsertionPoint(entry):
            GpuBody(nest, mapping, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
    return kernel
