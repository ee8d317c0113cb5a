"""What is still linalg becomes grid functions: `linalg.generic` on buffers -> kernel + launch.

`loop_nest` decides which loops become the grid, `loop_body` emits the rest. Kernels that are equal
up to their names are one kernel: thirty layers share it, and those that differ in sizes of the grid
alone (`kernels/sizes.py`).
"""

from __future__ import annotations

from abqc.dialects.mlir import func, ir

from .infrastructure import Unit, register
from .kernels.checks import check_arguments, check_types, checks_of, raise_in_kernel
from .kernels.launch import launch, launch_one_of
from .kernels.loop_body import Body
from .kernels.loop_nest import Nest, analyse, grid_size, grid_work, loop_sizes
from .kernels.outlining import Library, arguments_of, outline_all
from .kernels.sizes import loosen_sizes
from .kernels.streamed import StreamedBody, is_large, mark_streamed, streams


@register
def outline_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a grid function of its own."""
    outline_all(module, unit, _outline)


def _outline(module: ir.Operation, op: ir.Operation, library: Library) -> None:
    nest = analyse(op)
    streamed = streams(nest)
    with ir.InsertionPoint(op), op.location:
        loosen_sizes(nest)
        sizes = loop_sizes(nest)
        grid = grid_size(nest, sizes)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        arguments = arguments_of(nest, extents)
        checks = check_arguments(module, library.unit, checks_of(op))
        operands = [*arguments, *checks, grid_work(nest, sizes)]

        def run(body: type[Body]) -> None:
            name = library.adopt(_emit(nest, arguments, extents, library, body))
            launch(module, name, grid, operands)

        around = is_large(nest, sizes) if streamed is None else streamed
        launch_one_of(around, lambda: run(StreamedBody), lambda: run(Body))
    if nest.fill is not None:
        nest.fill.erase()
    op.erase()


def _emit(
    nest: Nest,
    arguments: list[ir.Value],
    extents: list[ir.Value],
    library: Library,
    body_type: type[Body],
) -> func.FuncOp:
    index_type = ir.IndexType.get()
    messages = checks_of(nest.op)
    checks = check_types(messages)
    types = [index_type, *(a.type for a in arguments), *checks, index_type]
    body = library.unit.outlined.body
    with ir.InsertionPoint(body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        entry = kernel.add_entry_block()
        taken = list(entry.arguments)[1:-1]
        inside = dict(zip(arguments, taken, strict=False))
        with ir.InsertionPoint(entry):
            body_type(nest, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
        if body_type is StreamedBody:
            mark_streamed(kernel)
        raise_in_kernel(kernel.operation, messages, taken[len(arguments) :])
    return kernel
