"""Which loops of the host can run in a kernel, and what their steps cost.

Their steps launch kernels and run loops over buffers whose sizes every step agrees on. What a step
allocates ends with it or is handed to the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, walk
from ..ownership import in_block, root, uses
from .invariants import Invariants
from .launch import launched_kernel
from .row_parts import find_rows

MOST_LAUNCHES = 32  # of a step; all of them are compiled into the kernel

# What a step costs in bytes read from a cache nearby.
LEAST_ROWS = 2  # of a product: multiplying a row takes half as long as reading the weights
ELEMENT_BYTES = 8  # of a loop: one read, one written

_LAUNCHES = frozenset(("func.call", "linalg.generic", "memref.copy"))
_OTHERS = frozenset(("linalg.generic", "scf.if", "scf.yield"))


@dataclass(frozen=True)
class LoopVersion:
    """A loop that can run in a kernel.

    `sizes` are pairs that must be equal: of what it carries, when it begins and after a step.
    `work` is about how many bytes a step touches. Both are known before the loop. `row_counts`:
    where they are equal, parts of as many rows can run side by side; None where they cannot.
    """

    loop: ir.Operation
    known: Invariants
    sizes: Sequence[tuple[ir.Value, ir.Value]]
    work: ir.Value
    row_counts: Sequence[ir.Value] | None


def version_of(loop: ir.Operation, kernels: frozenset[str]) -> LoopVersion | None:
    """What a second version of an scf.for needs; None where it cannot have one."""
    operations = [op for op in walk(loop) if op != loop and not _is_in_generic(op, loop)]
    launches = [op for op in operations if op.name in _LAUNCHES]
    if not all(_can_be_in_a_kernel(op, kernels) for op in operations):
        return None
    if not 1 < len(launches) <= MOST_LAUNCHES or not _carries_buffers(loop):
        return None
    known = Invariants(loop)
    for allocation in walk(loop, "memref.alloc"):
        if any(known.outside(size) is None for size in allocation.operands):
            return None
    sizes, work = _carried_sizes(loop, known), _work(known, launches)
    if sizes is None or work is None:
        return None
    return LoopVersion(loop, known, sizes, work, _row_counts(loop, known))


def independent(group: Sequence[LoopVersion], other: LoopVersion) -> bool:
    """Whether a later loop and those of a group, moved to its place, can run side by side."""
    block, place = other.loop.block, other.loop
    own = _buffers(other.loop)
    for version in group:
        loop, buffers = version.loop, _buffers(version.loop)
        if loop.block != block or buffers & own:
            return False
        readers = [in_block(use.owner.operation, block) for r in loop.results for use in r.uses]
        if not all(place.is_before_in_block(op) for op in readers):
            return False
        touching = [_in_block(op, block) for b in buffers for op, _ in uses(b)]
        between = [op for op in touching if op is not None and loop.is_before_in_block(op)]
        if any(op.is_before_in_block(place) and op.name != "memref.dim" for op in between):
            return False
    return True


def _in_block(op: ir.Operation, block: ir.Block) -> ir.Operation | None:
    """The ancestor of `op` that stands in `block`, or itself; None where it is elsewhere."""
    while op.block != block:
        op = op.block.owner.operation
        if op.name == "func.func":
            return None
    return op


def _buffers(loop: ir.Operation) -> set[ir.Value]:
    """The buffers from outside that a loop touches, weights left out."""
    inside = {result for op in walk(loop) if op != loop for result in op.results}
    arguments = set(loop.regions[0].blocks[0].arguments)
    operands = {o for op in walk(loop) for o in op.operands if isinstance(o.type, ir.MemRefType)}
    roots = {root(o) for o in operands} - inside - arguments
    return {r for r in roots if _symbol(r) is None}


def _is_in_generic(op: ir.Operation, loop: ir.Operation) -> bool:
    parent = op.block.owner.operation
    while parent != loop and parent.name != "linalg.generic":
        parent = parent.block.owner.operation
    return parent != loop


def _can_be_in_a_kernel(op: ir.Operation, kernels: frozenset[str]) -> bool:
    if op.name == "func.call":
        return launched_kernel(op, kernels) is not None
    if op.name == "scf.if" and any(isinstance(r.type, ir.MemRefType) for r in op.results):
        return False
    return op.name in _OTHERS or op.name.startswith(("arith.", "memref."))


def _carries_buffers(loop: ir.Operation) -> bool:
    """Whether all that a loop carries are whole buffers, which a step hands on as it got them, or
    which it has allocated."""
    block = loop.regions[0].blocks[0]
    yielded = block.operations[len(block.operations) - 1].operation.operands
    for argument, value in zip(list(block.arguments)[1:], yielded, strict=True):
        if not isinstance(argument.type, ir.MemRefType):
            return False
        type_, source = ir.MemRefType(argument.type), root(value)
        if ir.MemRefType.get(type_.shape, type_.element_type) != type_:
            return False
        owner = defining_op(source)
        made = owner is not None and owner.name == "memref.alloc" and owner.block == block
        if source != argument and not made:
            return False
    return True


def _carried_sizes(loop: ir.Operation, known: Invariants) -> list[tuple[ir.Value, ir.Value]] | None:
    block = loop.regions[0].blocks[0]
    yielded = block.operations[len(block.operations) - 1].operation.operands
    pairs = []
    for argument, value in zip(list(block.arguments)[1:], yielded, strict=True):
        for axis, size in enumerate(ir.MemRefType(argument.type).shape):
            if size != ir.ShapedType.get_dynamic_size():
                continue
            before, after = known.size(argument, axis), known.size(value, axis)
            if before is None or after is None:
                return None
            pairs.append((before, after))
    return pairs


def _row_counts(loop: ir.Operation, known: Invariants) -> list[ir.Value] | None:
    """What has to be the number of rows, the first one of a state; None where no rows are found."""
    states = list(loop.regions[0].blocks[0].arguments)[1:]
    made = [op.results[0] for op in walk(loop, "memref.alloc")]
    rows = find_rows(loop, states, made) if states else None
    if rows is None:
        return None
    counts = [known.size(state, 0) for state in states] + [known.outside(v) for v in rows.claims]
    found = [count for count in counts if count is not None]
    return found if len(found) == len(counts) else None


def _work(known: Invariants, launches: Sequence[ir.Operation]) -> ir.Value | None:
    """Weights for as many rows as there are, and the elements of everything else."""
    products: dict[str, tuple[int, ir.Value]] = {}
    counts: list[ir.Value | None] = []
    for op in launches:
        weights = [found for operand in op.operands if (found := _weight(operand))]
        if op.name == "func.call" and weights:
            rows = op.operands[len(op.operands) - 2]  # of a product's arguments
            products |= {symbol: (size, rows) for symbol, size in weights}
            continue
        buffers = [o for o in op.operands if isinstance(o.type, ir.MemRefType)]
        counts += [known.elements(buffer) for buffer in buffers]
    terms = []
    for count in counts:
        if count is None:
            return None
        terms.append(known.product([count, known.number(ELEMENT_BYTES)]))
    for size, rows in products.values():
        count = known.outside(rows) if isinstance(rows.type, ir.IndexType) else None
        if count is None:
            return None
        terms.append(known.product([known.number(size), known.at_least(count, LEAST_ROWS)]))
    return known.sum(terms)


def _weight(value: ir.Value) -> tuple[str, int] | None:
    """The symbol of a weight and its bytes; None for other values."""
    source = root(value) if isinstance(value.type, ir.MemRefType) else value
    symbol = _symbol(source)
    if symbol is None:
        return None
    type_ = ir.MemRefType(source.type)
    return symbol, prod(type_.shape) * type_.element_type.width // 8


def _symbol(value: ir.Value) -> str | None:
    owner = defining_op(value)
    if owner is None or owner.name != "memref.get_global":
        return None
    return ir.FlatSymbolRefAttr(owner.attributes["name"]).value
