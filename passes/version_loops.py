"""Loops of the host whose steps are short get a second version, for a kernel of its own.

A recurrence launches a few small kernels in every step. In its second version a loop allocates
nothing, and hands nothing from step to step but what lies in buffers that stay where they are:

    cond = as few threads as loops, or parts of their rows, or steps so short that waking others
           costs more than they do, and not so much to do that an interrupted run would have to wait
    result = scf.if cond {
      state, buffers... = alloc; copy(initial, state)
      scf.for { ... } {abq.sequence}          // outline-sequences makes a kernel of it
      yield state
    } else {
      the loop as it was, from a copy of `initial`
    }

Loops that are independent of each other, as the two directions of a layer, share the choice and the
kernel, which runs them side by side. `kernels/loop_version.py` says which loops can have it. Where
rows do not depend on each other, as those of a batch, parts of them run side by side, too
(`kernels/row_parts.py`): more loops for more threads, none of which waits for another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import arith, ir, linalg, memref, scf

from .infrastructure import Unit, defining_op, main_function, register, walk
from .kernels.divide_rows import divide
from .kernels.launch import SEQUENCE, kernel_names, threads
from .kernels.loop_version import LoopVersion, independent, version_of
from .loops.generics import is_identity, maps
from .ownership import in_block, root, uses
from .resolve_dims import index

# Bytes that a step may touch where other threads could help: at 100 GB/s from a cache nearby, what
# a launch on several threads costs (tests/bench/bench_launch.py) is a good part of their time.
SHORT_STEP = 1 << 20

# Rows that a part has at least: fewer leave units idle while weights are read.
LEAST_ROWS = 4

# Steps that run without asking whether the run was interrupted, and the bytes that all of them may
# touch: a tenth of a second to a second or two.
MOST_STEPS = 1 << 16
MOST_BYTES = 1 << 35

ALIGNMENT = 64


@register
def version_loops(module: ir.Operation, unit: Unit) -> None:
    """Loops of short steps get a version for a kernel of its own."""
    if not unit.known_target.has_sequences:
        return
    kernels = kernel_names(module)
    group: list[LoopVersion] = []
    for loop in walk(main_function(module), "scf.for"):
        version = version_of(loop, kernels)
        if version is None:
            continue
        if group and not independent(group, version):
            _build(module, group)
            group = []
        group.append(version)
    _build(module, group)


def _build(module: ir.Operation, group: Sequence[LoopVersion]) -> None:
    """Replace the loops by a choice between both versions, at the place of the last one."""
    if not group:
        return
    results = [result for version in group for result in version.loop.results]
    with ir.InsertionPoint(group[-1].loop), group[-1].loop.location:
        parts = _parts(module, group)
        condition = _condition(module, group, parts)
        choice = scf.IfOp(condition, [r.type for r in results], has_else=True)
    for result, chosen in zip(results, choice.results, strict=True):
        result.replace_all_uses_with(chosen)
    with ir.InsertionPoint(choice.then_block), group[-1].loop.location:
        states = [_states(version.loop) for version in group]
        scf.YieldOp([state for of_loop in states for state in of_loop])
    end = _last(choice.then_block)
    clones, buffers = [], []
    for version, of_loop in zip(group, states, strict=True):
        clones.append(version.loop.clone(ir.InsertionPoint(end)))
        buffers.append(_place_buffers(version, clones[-1], of_loop, clones[0]))
    for clone, of_loop, own in zip(clones, states, buffers, strict=True):
        loop = _drop_arguments(clone, of_loop)
        if parts is None:
            loop.attributes[SEQUENCE] = ir.UnitAttr.get()
        else:
            divide(loop, of_loop, own, parts)
    with ir.InsertionPoint(choice.else_block), group[-1].loop.location:
        states = [_states(version.loop) for version in group]
        scf.YieldOp(results)
    end = _last(choice.else_block)
    for version, of_loop in zip(group, states, strict=True):
        version.loop.move_before(end)
        for number, state in enumerate(of_loop):
            version.loop.operands[3 + number] = state


def _parts(module: ir.Operation, group: Sequence[LoopVersion]) -> ir.Value | None:
    """How many parts the rows of each loop have, at least 1; None where they have none."""
    counts = [version.row_counts[0] for version in group if version.row_counts is not None]
    if len(counts) < len(group):
        return None
    parts = arith.DivUIOp(threads(module), index(len(group))).result
    for rows in counts:
        most = arith.DivUIOp(rows, index(LEAST_ROWS)).result
        parts = arith.MinUIOp(parts, most).result
    return arith.MaxUIOp(parts, index(1)).result


def _condition(
    module: ir.Operation, group: Sequence[LoopVersion], parts: ir.Value | None
) -> ir.Value:
    loops = index(len(group))
    if parts is not None:
        loops = arith.MulIOp(loops, parts).result
    condition = _compare("ule", threads(module), loops)
    short = [_compare("ule", version.work, index(SHORT_STEP)) for version in group]
    condition = arith.OrIOp(condition, _all(short)).result
    few = [check for version in group for check in _are_soon_done(version)]
    same = [_compare("eq", *pair) for version in group for pair in version.sizes]
    if parts is not None:
        same += [_compare("eq", *pair) for version in group for pair in _equal_rows(version)]
    return _all([condition, *few, *same])


def _equal_rows(version: LoopVersion) -> list[tuple[ir.Value, ir.Value]]:
    first, *others = version.row_counts or []
    return [(first, other) for other in others]


def _are_soon_done(version: LoopVersion) -> list[ir.Value]:
    """Whether all steps together are few enough. (Only a number of steps that is too large makes
    the product wrap around.)"""
    steps = _span(version.loop)
    total = arith.MulIOp(steps, version.work).result
    return [_compare("ule", steps, index(MOST_STEPS)), _compare("ule", total, index(MOST_BYTES))]


def _span(loop: ir.Operation) -> ir.Value:
    """At least the number of steps; far more than any number where there are none."""
    lower, upper = list(loop.operands)[:2]
    return arith.SubIOp(upper, lower).result


def _compare(predicate: str, x: ir.Value, y: ir.Value) -> ir.Value:
    return arith.CmpIOp(getattr(arith.CmpIPredicate, predicate), x, y).result


def _all(conditions: Sequence[ir.Value]) -> ir.Value:
    total, *others = conditions
    for condition in others:
        total = arith.AndIOp(total, condition).result
    return total


def _states(loop: ir.Operation) -> list[ir.Value]:
    """Copies of what a loop begins with."""
    states = []
    for initial in list(loop.operands)[3:]:
        type_ = ir.MemRefType(initial.type)
        sizes = [
            memref.DimOp(initial, index(axis)).result
            for axis, size in enumerate(type_.shape)
            if size == ir.ShapedType.get_dynamic_size()
        ]
        states.append(memref.AllocOp(type_, sizes, [], alignment=ALIGNMENT).result)
        memref.CopyOp(initial, states[-1])
    return states


def _place_buffers(
    version: LoopVersion, clone: ir.Operation, states: Sequence[ir.Value], before: ir.Operation
) -> list[ir.Value]:
    """What a step allocates lies in buffers made `before` the loops, which are returned; what it
    hands on ends in the states."""
    buffers = []
    body = clone.regions[0].blocks[0]
    end = _last(body)
    handed = list(zip(list(body.arguments)[1:], list(end.operands), states, strict=True))
    in_place = {value: state for argument, value, state in handed if _can_be_one(argument, value)}
    originals = walk(version.loop, "memref.alloc")
    for original, allocation in zip(originals, walk(clone, "memref.alloc"), strict=True):
        buffer = in_place.get(allocation.results[0])
        if buffer is None:
            sizes = [version.known.outside(size) for size in original.operands]
            with ir.InsertionPoint(before), original.location:
                type_ = ir.MemRefType(allocation.results[0].type)
                buffer = memref.AllocOp(type_, sizes, [], alignment=ALIGNMENT).result
            buffers.append(buffer)
        allocation.results[0].replace_all_uses_with(buffer)
        allocation.erase()
    for (argument, _, state), value in zip(handed, list(end.operands), strict=True):
        if value != state and root(value) != argument:
            with ir.InsertionPoint(end), clone.location:
                memref.CopyOp(value, state)
    return buffers


def _can_be_one(argument: ir.Value, value: ir.Value) -> bool:
    """Whether what a step hands on can lie where it was given the state before: nothing reads that
    any more when the new one is begun, or the loop that makes it reads its own element alone."""
    owner = defining_op(value)
    block = argument.owner
    assert isinstance(block, ir.Block)
    if owner is None or owner.name != "memref.alloc" or owner.block != block:
        return False
    end = _last(block)
    reads = [in_block(op, block) for op, _ in uses(argument)]
    writes = [in_block(op, block) for op, _ in uses(value)]
    if value.type != argument.type or writes.count(end) != 1 or end in reads:
        return False
    together = [op for op in reads if op in writes and op != end]
    if not all(_is_by_element(op, argument, value) for op in together):
        return False
    return all(r == w or r.is_before_in_block(w) for r in reads for w in writes if w != end)


def _is_by_element(op: ir.Operation, argument: ir.Value, value: ir.Value) -> bool:
    """Whether a loop reads of one buffer what it writes of another in the same iteration only."""
    if op.name != "linalg.generic" or "reduction" in linalg.iterators(op):
        return False
    both = (argument, value)
    body = [operand for inner in walk(op) if inner != op for operand in inner.operands]
    if any(root(operand) in both for operand in body):
        return False
    places = [n for n, operand in enumerate(op.operands) if root(operand) in both]
    direct = all(op.operands[n] in both for n in places)
    return direct and all(is_identity(maps(op)[n]) for n in places)


def _drop_arguments(clone: ir.Operation, states: Sequence[ir.Value]) -> ir.Operation:
    """The loop without what it carries, which is in the states."""
    body = clone.regions[0].blocks[0]
    position, *carried = body.arguments
    with ir.InsertionPoint(clone), clone.location:
        made = scf.ForOp(*list(clone.operands)[:3])
        with ir.InsertionPoint(made.body):
            end = scf.YieldOp([]).operation
    position.replace_all_uses_with(made.induction_variable)
    for argument, state in zip(carried, states, strict=True):
        argument.replace_all_uses_with(state)
    for op in list(body.operations)[:-1]:
        op.operation.move_before(end)
    clone.erase()
    return made.operation


def _last(block: ir.Block) -> ir.Operation:
    return block.operations[len(block.operations) - 1].operation
