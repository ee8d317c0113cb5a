"""Selective scans whose steps follow one another, their rows concatenated: traced Python loops."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import node_name
from ..loops.elements import Element, Index, Number, Symbol, opened
from .emit_selective_scan import (
    STEP,
    emit_scan,
    has_kernel,
    replace_value,
    row_axes,
    size_of,
    state_axes,
    taken,
    transposed,
)
from .selective_scan import Step, depends_on_step, match_step


def convert_steps(concat: ir.Operation) -> None:
    """Rows of rank 2 that are concatenated, of steps each of which takes the state of the last."""
    axis = ir.IntegerAttr(concat.attributes["dim"]).value
    pieces = list(concat.operands)
    if len(pieces) < 2 or any(_is_no_row(piece, axis) for piece in pieces):
        return
    last = _step_of(pieces[-1], axis)
    if last is None:
        return
    count = len(pieces)
    general = last.mapped(lambda e: _at_step(e, count - 1))
    if not depends_on_step(last.with_operands(general), STEP):
        return
    first = last
    for number in reversed(range(count - 1)):
        step = _step_of(pieces[number], axis)
        here = {STEP: Index(None, number)}
        if step is None or step.after != first.before or step.roles != last.roles:
            return
        if step.operands != tuple(e.at(here) for e in general):
            return
        first = step
    _replace_steps(concat, axis, first, last.with_operands(general))


def _is_no_row(piece: ir.Value, axis: int) -> bool:
    return len(abq.shape(piece)) != 3 or abq.shape(piece)[axis] != 1


def _step_of(piece: ir.Value, axis: int) -> Step | None:
    """The step whose row is `piece`, with the sum's symbol called n."""
    index = [Index("row0"), Index("row1")]
    index.insert(axis, Index())
    step = match_step(Element(piece, tuple(index)))
    return None if step is None else step.renamed("n")


def _at_step(value: Element, number: int) -> Element:
    """With the symbol of steps where the index is the constant `number`."""
    index = [Index(STEP) if i == Index(None, number) else i for i in value.index]
    return Element(value.value, tuple(index))


def _replace_steps(concat: ir.Operation, axis: int, first: Step, general: Step) -> None:
    before, after = first.before, general.after
    order = [index.symbol for index in before.index]
    if not has_kernel(before.value, order, general):
        return
    with ir.InsertionPoint(concat), concat.location:
        sizes: dict[Symbol | None, int | ir.Value] = {
            symbol: size_of(before.value, at) for at, symbol in enumerate(order)
        }
        sizes[STEP] = len(concat.operands)
        zeros = opened(before) == Number(0.0)
        initial = None if zeros else taken(before, state_axes(general), sizes)
        y, state = emit_scan(general, sizes, initial, node_name(concat) or "")
        rows = ["row0", "row1"]
        rows.insert(axis, STEP)
        replace_value(concat.results[0], transposed(y, row_axes(general), rows))
        # A state with an axis of its own of size 1 is left to the steps, where somebody reads it.
        if all(index.symbol is not None and index.offset == 0 for index in after.index):
            kept = [index.symbol for index in after.index]
            state = transposed(state, state_axes(general), kept)
            _replace_later_uses(after.value, state, concat)
    concat.erase()


def _replace_later_uses(old: ir.Value, new: ir.Value, op: ir.Operation) -> None:
    """Let what comes behind `op` in its block read `new`."""
    later = False
    for other in op.block.operations:
        if other.operation == op:
            later = True
        elif later:
            for number, operand in enumerate(other.operation.operands):
                if operand == old:
                    other.operation.operands[number] = new
