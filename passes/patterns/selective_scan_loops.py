"""Loops that are selective scans: `scf.for` with the state and the rows as its arguments."""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import constant_index, defining_op, node_name, users, walk
from ..loops.elements import Element, Index, Number, Symbol, element, opened, origin
from ..loops.slices import is_size
from .emit_selective_scan import (
    STEP,
    emit_scan,
    has_kernel,
    is_constant,
    replace_value,
    row_axes,
    size_of,
    state_axes,
    transposed,
)
from .selective_scan import Step, depends_on_step, match_step, symbols_of

# What a loop's body may hold besides checks: operations without effects.
PURE = ("arith.", "math.", "tensor.", "linalg.", "abq.weight", "bufferization.alloc_tensor")


def convert_loop(op: ir.Operation) -> None:
    loop = _loop_of(op)
    if loop is None or not _has_only_harmless_checks(loop):
        return
    row = Element(loop.row, (Index(), Index("row0"), Index("row1")))
    step = match_step(row)
    if step is None or not _carries_state(loop, step):
        return
    at = {loop.counter: Index(STEP)}
    step = step.with_operands(step.mapped(lambda operand: operand.at(at)))
    if not depends_on_step(step, STEP) or not all(_is_outside(e.value, op) for e in step.operands):
        return
    _replace_loop(loop, step)


@dataclass(frozen=True)
class _Loop:
    """A loop with a state and one row for each step; both by the number of their argument."""

    op: ir.Operation
    state: int
    rows: int
    row: ir.Value  # what an iteration inserts, its first axis of size 1

    @property
    def body(self) -> ir.Block:
        return self.op.regions[0].blocks[0]

    @property
    def counter(self) -> ir.Value:
        return self.body.arguments[0]

    @property
    def yielded(self) -> list[ir.Value]:
        return list(list(self.body.operations)[-1].operation.operands)


def _loop_of(op: ir.Operation) -> _Loop | None:
    """From 0 in steps of 1, with two arguments, one of which collects rows."""
    if constant_index(op.operands[0]) != 0 or constant_index(op.operands[2]) != 1:
        return None
    block = op.regions[0].blocks[0]
    yielded = list(list(block.operations)[-1].operation.operands)
    if len(yielded) != 2:
        return None
    for rows in (0, 1):
        insert = defining_op(yielded[rows])
        if insert is not None and _collects(op, insert, rows):
            return _Loop(op, 1 - rows, rows, insert.operands[0])
    return None


def _collects(op: ir.Operation, insert: ir.Operation, rows: int) -> bool:
    """Whether an iteration puts one whole row of rank 2 at its own number, and reads no others."""
    block = op.regions[0].blocks[0]
    collected = block.arguments[1 + rows]
    if insert.name != "tensor.insert_slice" or insert.operands[1] != collected:
        return False
    if [user.operation for user in users(collected)] != [insert]:
        return False
    offsets = list(ir.DenseI64ArrayAttr(insert.attributes["static_offsets"]))
    strides = list(ir.DenseI64ArrayAttr(insert.attributes["static_strides"]))
    sizes = list(ir.DenseI64ArrayAttr(insert.attributes["static_sizes"]))
    if offsets != [abq.DYNAMIC, 0, 0] or strides != [1, 1, 1] or sizes[0] != 1:
        return False
    given = list(insert.operands)[2:]
    if given[0] != block.arguments[0] or abq.shape(insert.operands[0])[0] != 1:
        return False
    whole = abq.shape(collected)[1:]
    init = op.operands[3 + rows]
    dynamic = iter(given[1:])
    for axis, (size, all_) in enumerate(zip(sizes[1:], whole, strict=True), 1):
        if size != all_ or (size == abq.DYNAMIC and not _is_size(next(dynamic), init, axis)):
            return False
    return True


def _is_size(value: ir.Value, tensor_: ir.Value, axis: int) -> bool:
    return value == size_of(tensor_, axis) or is_size(value, tensor_, axis)


def _has_only_harmless_checks(loop: _Loop) -> bool:
    """Whether the body has no effects, but checks that the number of a step is in range."""
    for op in walk(loop.op)[1:]:
        if op.name == "cf.assert":
            if op.parent != loop.op or not _surely_holds(op.operands[0], loop):
                return False
        elif op.name not in ("scf.yield", "linalg.yield") and not op.name.startswith(PURE):
            return False
    return True


def _surely_holds(condition: ir.Value, loop: _Loop) -> bool:
    """Whether it says no more than 0 <= step < steps."""
    op = defining_op(condition)
    if op is None:
        return False
    if op.name == "arith.andi":
        return all(_surely_holds(part, loop) for part in op.operands)
    if op.name != "arith.cmpi" or op.operands[0] != loop.counter:
        return False
    predicate = ir.IntegerAttr(op.attributes["predicate"]).value
    below = op.operands[1] == loop.op.operands[1] and predicate in (2, 6)  # slt, ult
    return below or (predicate == 5 and constant_index(op.operands[1]) == 0)  # sge


def _carries_state(loop: _Loop, step: Step) -> bool:
    """Whether the state of a step is that of the one before."""
    after = origin(element(loop.yielded[loop.state], "i", "j", "k"))
    if after.value != step.after.value or symbols_of(after) != ["i", "j", "k"]:
        return False
    if any(index.offset for index in (*after.index, *step.after.index)):
        return False
    by_axis = dict(zip(symbols_of(after), step.after.index, strict=True))
    return step.before == element(loop.body.arguments[1 + loop.state], "i", "j", "k").at(by_axis)


def _is_outside(value: ir.Value, loop: ir.Operation) -> bool:
    """Whether a tensor is made before the loop, or can be: a constant."""
    op = defining_op(value)
    block = value.owner if op is None else op.block
    return is_constant(value) or block == loop.block


def _replace_loop(loop: _Loop, step: Step) -> None:
    op = loop.op
    init = op.operands[3 + loop.state]
    order = [index.symbol for index in step.before.index]
    if not has_kernel(init, order, step):
        return
    with ir.InsertionPoint(op), op.location:
        sizes: dict[Symbol | None, int | ir.Value] = {
            symbol: size_of(init, axis) for axis, symbol in enumerate(order)
        }
        sizes[STEP] = _constant_or(op.operands[1])
        first = None if _is_zero(init) else transposed(init, order, state_axes(step))
        y, state = emit_scan(step, sizes, first, node_name(op) or "")
        y = transposed(y, row_axes(step), [STEP, "row0", "row1"])
        state = transposed(state, state_axes(step), order)
        replace_value(op.results[loop.rows], y)
        replace_value(op.results[loop.state], state)
    op.erase()


def _constant_or(value: ir.Value) -> int | ir.Value:
    constant = constant_index(value)
    return value if constant is None else constant


def _is_zero(init: ir.Value) -> bool:
    made = origin(element(init, "i", "j", "k"))
    return opened(made) == Number(0.0)
