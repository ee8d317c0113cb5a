"""Loops of the host that work on tensors become kernels of one thread.

What is no linalg and has no kernel of its own (as running sums, selections of the largest and
scatters have) reaches the host function as plain loops over buffers. On a GPU the host cannot touch
those: one thread of the device runs the loop. That is right, but slow for many elements, and so a
note says it.
"""

from __future__ import annotations

from abqc.dialects.mlir import arith, func, ir, nvvm, scf

from .infrastructure import Unit, defining_op, main_function, node_name, register, walk
from .kernels.checks import check_arguments, check_types, checks_of, raise_in_kernel
from .kernels.gpu_math import refuse_functions_of_f64
from .kernels.launch import KERNEL_THREADS, launch
from .kernels.outlining import Library, library_of, unique
from .resolve_dims import index

WARP = 32
NOTE = "runs on one thread of the GPU, because no kernel does it: slow for thousands of elements"

LOOPS = ("scf.for", "scf.while")
_ACCESSES = ("memref.load", "memref.store")


@register
def outline_serial_code(module: ir.Operation, unit: Unit) -> None:
    """Move loops and stores of the host function into kernels of one thread."""
    library = library_of(unit)
    for op in _candidates(main_function(module)):
        if any(inner.name in LOOPS for inner in walk(op)):
            note = {"node": node_name(op) or "", "note": NOTE}
            if note not in unit.notes:
                unit.notes.append(note)
        _outline(module, op, library)


def _candidates(main: ir.Operation) -> list[ir.Operation]:
    """The outermost operations that store to buffers or loop over them, and only do that."""
    found: list[ir.Operation] = []

    def visit(block: ir.Block) -> None:
        for view in block.operations:
            op = view.operation
            if _is_serial_code(op):
                found.append(op)
            elif op.name != "linalg.generic":
                for region in op.regions:
                    for inner in region.blocks:
                        visit(inner)

    for block in main.regions[0].blocks:
        visit(block)
    return found


def _is_serial_code(op: ir.Operation) -> bool:
    if op.name == "memref.store":
        return True
    if op.name not in ("scf.for", "scf.if", "scf.while") or len(op.results):
        return False
    inner = [o.name for o in walk(op)]
    return any(name in _ACCESSES for name in inner) and "func.call" not in inner


def _outline(module: ir.Operation, op: ir.Operation, library: Library) -> None:
    refuse_functions_of_f64(op)
    arguments = _captured(op)
    messages = checks_of(op)
    with ir.InsertionPoint(library.unit.outlined.body), ir.Location.unknown():
        types = [ir.IndexType.get(), *(a.type for a in arguments), *check_types(messages)]
        kernel = func.FuncOp("kernel", ir.FunctionType.get(types, []))
        i32 = ir.IntegerType.get_signless(32)
        kernel.operation.attributes[KERNEL_THREADS] = ir.IntegerAttr.get(i32, WARP)
        entry = kernel.add_entry_block()
        taken = list(entry.arguments)[1:]
        with ir.InsertionPoint(entry):
            zero = arith.ConstantOp(i32, ir.IntegerAttr.get(i32, 0)).result
            first = arith.CmpIOp(arith.CmpIPredicate.eq, nvvm.ThreadIdXOp().result, zero).result
            with ir.InsertionPoint(scf.IfOp(first).then_block):
                _clone(op, dict(zip(arguments, taken, strict=False)))
                scf.YieldOp([])
            func.ReturnOp([])
        raise_in_kernel(kernel.operation, messages, taken[len(arguments) :])
    name = library.adopt(kernel)
    with ir.InsertionPoint(op), op.location:
        checks = check_arguments(module, library.unit, messages)
        launch(module, name, index(1), [*arguments, *checks])
    op.erase()


def _captured(op: ir.Operation) -> list[ir.Value]:
    """Values from outside that `op` uses, constants excepted."""
    inside: set[ir.Value] = set()
    for inner in walk(op):
        inside.update(inner.results)
        for region in inner.regions:
            for block in region.blocks:
                inside.update(block.arguments)
    used = unique([operand for inner in walk(op) for operand in inner.operands])
    return [value for value in used if value not in inside and not _is_constant(value)]


def _is_constant(value: ir.Value) -> bool:
    owner = defining_op(value)
    return owner is not None and owner.name == "arith.constant"


def _clone(op: ir.Operation, known: dict[ir.Value, ir.Value]) -> None:
    """A copy of `op` here, with values of `known` and constants replaced."""
    outside = [v for inner in walk(op) for v in inner.operands if _is_constant(v)]
    own = {result for inner in walk(op) for result in inner.results}
    for value in unique([v for v in outside if v not in own]):
        constant = defining_op(value)
        assert constant is not None
        known[value] = constant.clone().results[0]
    clone = op.clone()
    for inner in walk(clone):
        for i, operand in enumerate(inner.operands):
            if operand in known:
                inner.operands[i] = known[operand]
