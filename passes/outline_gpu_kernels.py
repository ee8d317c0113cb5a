"""What is still linalg becomes GPU kernels: `linalg.generic` on buffers -> kernel + launch."""

from __future__ import annotations

from abqc.dialects.mlir import func, ir

from .infrastructure import Unit, register
from .kernels.checks import check_arguments, check_types, checks_of, raise_in_kernel
from .kernels.gpu_body import GpuBody
from .kernels.gpu_math import refuse_functions_of_f64
from .kernels.gpu_nest import THREADS, Mapping, analyse, grid_size
from .kernels.launch import KERNEL_THREADS, launch
from .kernels.loop_nest import Nest, loop_sizes
from .kernels.outlining import Library, arguments_of, outline_all


@register
def outline_gpu_kernels(module: ir.Operation, unit: Unit) -> None:
    """Move every linalg.generic and memref.copy into a kernel for blocks of threads."""
    outline_all(module, unit, _outline)


def _outline(module: ir.Operation, op: ir.Operation, library: Library) -> None:
    refuse_functions_of_f64(op)
    nest, mapping = analyse(op)
    with ir.InsertionPoint(op), op.location:
        sizes = loop_sizes(nest)
        extents = [sizes[d] for d in range(len(nest.kinds))]
        arguments = arguments_of(nest, extents)
        name = library.adopt(_emit(nest, mapping, arguments, extents, library))
        checks = check_arguments(module, library.unit, checks_of(op))
        launch(module, name, grid_size(nest, mapping, sizes), [*arguments, *checks])
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
    messages = checks_of(nest.op)
    types = [ir.IndexType.get(), *(a.type for a in arguments), *check_types(messages)]
    with ir.InsertionPoint(library.unit.outlined.body), ir.Location.unknown():
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        i32 = ir.IntegerType.get_signless(32)
        kernel.operation.attributes[KERNEL_THREADS] = ir.IntegerAttr.get(i32, THREADS)
        entry = kernel.add_entry_block()
        taken = list(entry.arguments)[1:]
        inside = dict(zip(arguments, taken, strict=False))
        with ir.InsertionPoint(entry):
            GpuBody(nest, mapping, inside, entry.arguments[0], extents).emit()
            func.ReturnOp([])
        raise_in_kernel(kernel.operation, messages, taken[len(arguments) :])
    return kernel
