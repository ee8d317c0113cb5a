"""What is still linalg becomes grid functions: `linalg.generic` on buffers -> kernel + launch.

`loop_nest` decides which loops become the grid, `loop_body` emits the rest. Kernels that are equal
up to their names are one kernel: thirty layers share it.
"""

from __future__ import annotations

from abqc.dialects.mlir import func, ir

from .infrastructure import Unit, constant_index, register, walk
from .launch import launch
from .loop_body import Body
from .loop_nest import Nest, analyse, grid_size, grid_work, loop_sizes
from .outlining import (
    Library,
    captured_values,
    copy_to_generic,
    inline_scalar_inputs,
    reduces,
    unique,
)


@register
def outline_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a grid function of its own."""
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
    nest = analyse(op)
    captured = captured_values(op)
    buffers = unique(nest.operands + [v for v in captured if isinstance(v.type, ir.MemRefType)])
    scalars = [v for v in captured if not isinstance(v.type, ir.MemRefType)]
    with ir.InsertionPoint(op), op.location:
        sizes = loop_sizes(nest)
        grid = grid_size(nest, sizes)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        dynamic = [s for s in extents if constant_index(s) is None]
        arguments = unique([*buffers, *scalars, *dynamic])
        kernel = _emit(nest, arguments, extents, library)
        name = library.adopt(kernel)
        launch(module, name, grid, [*arguments, grid_work(nest, sizes)])
    if nest.fill is not None:
        nest.fill.erase()
    op.erase()


def _emit(
    nest: Nest, arguments: list[ir.Value], extents: list[ir.Value], library: Library
) -> func.FuncOp:
    index_type = ir.IndexType.get()
    types = [index_type, *(a.type for a in arguments), index_type]
    body = library.unit.outlined.body
    with ir.InsertionPoint(body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        inside = dict(zip(arguments, list(entry.arguments)[1:-1], strict=True))
        with ir.InsertionPoint(entry):
            Body(nest, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
    return kernel
