"""Loops that launch kernels become kernels: those that version-loops has prepared.

    scf.for %t = ... { call @pack(%grid, ...); call @product(...); call @gates(...) }
        ->  call @sequence(1, ...)

In the kernel a launch is a loop over the grid of the other one. Loops of one block are independent:
they are one kernel, each for an index of its grid. Equal ones share a kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from abqc.dialects.mlir import arith, func, ir, scf

from .infrastructure import Unit, defining_op, main_function, register, walk
from .kernels.launch import SEQUENCE, SEQUENCE_KERNEL, kernel_names, launch, launched_kernel
from .kernels.outlining import captured_values, unique
from .resolve_dims import index

NAME = "sequence"  # of the function while its kernel has no name


@register
def outline_sequences(module: ir.Operation, unit: Unit) -> None:
    """Make a kernel of the loops that are marked as sequences, and launch it."""
    groups: dict[ir.Block, list[ir.Operation]] = {}
    for loop in walk(main_function(module), "scf.for"):
        if SEQUENCE in loop.attributes:
            groups.setdefault(loop.block, []).append(loop)
    for loops in groups.values():
        _outline(module, loops, unit)


def _outline(module: ir.Operation, loops: Sequence[ir.Operation], unit: Unit) -> None:
    for loop in loops:
        for op in walk(loop, "memref.get_global"):
            op.move_before(loop)
    bounds = [v for loop in loops for v in loop.operands if not _is_constant(v)]
    arguments = unique([*bounds, *(v for loop in loops for v in captured_values(loop))])
    launched = _launched(loops, kernel_names(module))
    text = _text(loops, arguments, launched, unit)
    name = f"{SEQUENCE_KERNEL}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in unit.kernels:
        by_hand = [kernel for k in launched if (kernel := unit.kernels[k]) is not None]
        named = text.replace(f"@{NAME}(", f"@{name}(")
        unit.kernels[name] = unit.known_target.sequence(name, named, by_hand)
    with ir.InsertionPoint(loops[-1]), loops[-1].location:
        launch(module, name, index(len(loops)), arguments)
    for loop in loops:
        loop.erase()


def _launched(loops: Sequence[ir.Operation], kernels: frozenset[str]) -> list[str]:
    """The kernels that loops launch, each once."""
    calls = [op for loop in loops for op in walk(loop, "func.call")]
    names = (launched_kernel(op, kernels) for op in calls)
    return list(dict.fromkeys(name for name in names if name is not None))


def _text(
    loops: Sequence[ir.Operation],
    arguments: Sequence[ir.Value],
    launched: Sequence[str],
    unit: Unit,
) -> str:
    """A module with the loops as a function, and the kernels that it calls: those that loops over
    elements became, and declarations of the others."""
    made = ir.Module.create()
    with ir.InsertionPoint(made.body), ir.Location.unknown():
        types = [ir.IndexType.get(), *(a.type for a in arguments)]
        function = func.FuncOp(NAME, ir.FunctionType.get(types, []))
        entry = function.add_entry_block()
        with ir.InsertionPoint(entry):
            func.ReturnOp([])
    inside = dict(zip(arguments, list(entry.arguments)[1:], strict=True))
    for number, loop in enumerate(loops):
        place = _place(entry, number, len(loops))
        _take(loop.clone(ir.InsertionPoint(place)), inside, entry)
    called: dict[str, list[ir.Type]] = {}
    for op in walk(function.operation, "func.call"):
        called[ir.FlatSymbolRefAttr(op.attributes["callee"]).value] = [o.type for o in op.operands]
        _call_for_every_index(op)
    outlined = _functions(unit)
    for name in launched:
        if unit.kernels[name] is None:
            made.body.append(outlined[name].clone())
            continue
        with ir.InsertionPoint(made.body), ir.Location.unknown():
            func.FuncOp(name, ir.FunctionType.get(called[name], []), visibility="private")
    return made.operation.get_asm(use_local_scope=True)


def _place(entry: ir.Block, number: int, count: int) -> ir.Operation:
    """What the loop of a grid index stands before."""
    end = entry.operations[len(entry.operations) - 1].operation
    if count == 1:
        return end
    with ir.InsertionPoint(end), ir.Location.unknown():
        own = arith.CmpIOp(arith.CmpIPredicate.eq, entry.arguments[0], index(number)).result
        with ir.InsertionPoint(scf.IfOp(own).then_block):
            return scf.YieldOp([]).operation


def _take(clone: ir.Operation, inside: dict[ir.Value, ir.Value], entry: ir.Block) -> None:
    """A loop of the host reads the kernel's arguments, and constants of its own."""
    del clone.attributes[SEQUENCE]
    own = {result for op in walk(clone) for result in op.results}
    for op in walk(clone):
        for number, operand in enumerate(op.operands):
            if operand not in inside and operand not in own and _is_constant(operand):
                constant = defining_op(operand)
                assert constant is not None
                begin = ir.InsertionPoint.at_block_begin(entry)
                inside[operand] = constant.clone(begin).results[0]
            if operand in inside:
                op.operands[number] = inside[operand]


def _call_for_every_index(op: ir.Operation) -> None:
    grid, *others = op.operands
    with ir.InsertionPoint(op), op.location:
        loop = scf.ForOp(index(0), grid, index(1))
        with ir.InsertionPoint(loop.body):
            func.CallOp([], op.attributes["callee"], [loop.induction_variable, *others])
            scf.YieldOp([])
    op.erase()


def _functions(unit: Unit) -> dict[str, ir.Operation]:
    return {
        ir.StringAttr(op.attributes["sym_name"]).value: op.operation
        for op in unit.outlined.body.operations
    }


def _is_constant(value: ir.Value) -> bool:
    owner = defining_op(value)
    return owner is not None and owner.name == "arith.constant"
