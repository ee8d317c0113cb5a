"""Loops that launch kernels become kernels: those that version-loops has prepared.

    scf.for %t = ... { call @pack(%grid, ...); call @product(...); call @gates(...) }
        ->  call @sequence(1, ...)

In the kernel a launch is a loop over the grid of the other one. Loops of one block are independent:
they are one kernel, each for an index of its grid, or, with the attribute `abq.parts`, for as many
as they have iterations, which are as many for all. Equal ones share a kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from abqc.dialects.mlir import arith, func, ir, scf

from .infrastructure import Unit, defining_op, main_function, register, walk
from .kernels.launch import (
    PARTS,
    SEQUENCE,
    SEQUENCE_KERNEL,
    kernel_names,
    launch,
    launched_kernel,
)
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
        grid, parts = index(len(loops)), _parts(loops)
        if parts is not None:
            grid = arith.MulIOp(grid, parts).result
        launch(module, name, grid, arguments)
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
    number, part = _split(entry, loops, inside)
    for at, loop in enumerate(loops):
        place = _place(entry, number, at, len(loops))
        clone = loop.clone(ir.InsertionPoint(place))
        _take(clone, inside, entry)
        if part is not None:
            with ir.InsertionPoint(clone), ir.Location.unknown():
                clone.operands[1] = arith.AddIOp(part, index(1)).result
            clone.operands[0] = part
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


def _parts(loops: Sequence[ir.Operation]) -> ir.Value | None:
    """The iterations of loops whose iterations are grid indices; None for others."""
    if PARTS not in loops[0].attributes:
        return None
    counts = {loop.operands[1] for loop in loops}
    assert len(counts) == 1, "version-loops gives all loops of a block equal parts"
    return counts.pop()


def _split(
    entry: ir.Block, loops: Sequence[ir.Operation], inside: dict[ir.Value, ir.Value]
) -> tuple[ir.Value, ir.Value | None]:
    """The number of the loop of a grid index, and its part, if loops have parts."""
    parts = _parts(loops)
    if parts is None:
        return entry.arguments[0], None
    end = entry.operations[len(entry.operations) - 1]
    with ir.InsertionPoint(end), ir.Location.unknown():
        return (
            arith.DivUIOp(entry.arguments[0], inside[parts]).result,
            arith.RemUIOp(entry.arguments[0], inside[parts]).result,
        )


def _place(entry: ir.Block, number: ir.Value, at: int, count: int) -> ir.Operation:
    """What the loop `at` stands before, which runs where `number` is that."""
    end = entry.operations[len(entry.operations) - 1].operation
    if count == 1:
        return end
    with ir.InsertionPoint(end), ir.Location.unknown():
        own = arith.CmpIOp(arith.CmpIPredicate.eq, number, index(at)).result
        with ir.InsertionPoint(scf.IfOp(own).then_block):
            return scf.YieldOp([]).operation


def _take(clone: ir.Operation, inside: dict[ir.Value, ir.Value], entry: ir.Block) -> None:
    """A loop of the host reads the kernel's arguments, and constants of its own."""
    for name in (SEQUENCE, PARTS):
        if name in clone.attributes:
            del clone.attributes[name]
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
