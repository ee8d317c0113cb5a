"""Who frees a buffer: the block that holds its one owner.

An allocation owns its buffer. A loop or a branch takes a buffer over where it is handed one that
nothing reads afterwards, and hands one on where each of its ways out does so: then its argument, or
its result, is the owner. Buffers are seen through views (subview, cast, expand, collapse) only; one
that gets away otherwise (`func.return`, a yield of what others read) has no owner here and lives to
the end of the run.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir

from .infrastructure import defining_op, walk

VIEWS = frozenset(
    (
        "memref.cast",
        "memref.collapse_shape",
        "memref.expand_shape",
        "memref.memory_space_cast",
        "memref.reinterpret_cast",
        "memref.reshape",
        "memref.subview",
        "memref.transpose",
        "memref.view",
    )
)
ESCAPES = frozenset(("func.return", "scf.yield", "scf.condition", "cf.br", "cf.cond_br", "scf.for",
                     "scf.while"))  # fmt: skip

Use = tuple[ir.Operation, int]  # an operation and the number of an operand


class Owners:
    """`values` own their buffers; `moved` says at which use one hands its buffer on."""

    def __init__(self, module: ir.Operation) -> None:
        self.values: dict[ir.Value, None] = {}
        for op in walk(module, "memref.alloc"):
            self.values[op.results[0]] = None
        rules = {"scf.if": self._if, "scf.for": self._for, "scf.while": self._while}
        for op in reversed(walk(module)):  # those inside before those around them
            if op.name in rules:
                rules[op.name](op)

    def frees(self) -> list[ir.Value]:
        """The owners that hand their buffer to nobody."""
        return [value for value in self.values if not escapes(value)]

    # What takes over and hands on

    def _if(self, op: ir.Operation) -> None:
        yields = [_terminator(region.blocks[0]) for region in op.regions if len(region.blocks)]
        for k, result in enumerate(op.results):
            if _is_buffer(result) and all(self._hands_on(y, k, y.block) for y in yields):
                self.values[result] = None

    def _for(self, op: ir.Operation) -> None:
        block = op.regions[0].blocks[0]
        yield_ = _terminator(block)
        for k, result in enumerate(op.results):
            argument = block.arguments[k + 1]
            if (
                _is_buffer(result)
                and self._hands_on(op, k + 3, op.block)
                and self._goes_round(argument, yield_, k)
            ):
                self.values[argument] = self.values[result] = None

    def _while(self, op: ir.Operation) -> None:
        before, after = (region.blocks[0] for region in op.regions)
        condition, yield_ = _terminator(before), _terminator(after)
        for p, result in enumerate(op.results):
            if not _is_buffer(result):
                continue
            source = root(condition.operands[p + 1])
            passed = [j for j, argument in enumerate(before.arguments) if argument == source]
            if not passed or escapes(source) != [(condition, p + 1)]:
                continue
            (j,), argument = passed, after.arguments[p]
            if self._hands_on(op, j, op.block) and self._goes_round(argument, yield_, j):
                self.values[argument] = self.values[result] = None

    def _hands_on(self, op: ir.Operation, number: int, block: ir.Block) -> bool:
        """Whether an operand is the whole and only way out for a buffer owned in `block`."""
        source = root(op.operands[number])
        return (
            source in self.values
            and _block_of(source) == block
            and escapes(source) == [(op, number)]
            and not _used_after(source, op)
        )

    def _goes_round(self, argument: ir.Value, yield_: ir.Operation, k: int) -> bool:
        """Whether an iteration gives its buffer back, or keeps it and yields another one."""
        if root(yield_.operands[k]) == argument:
            return escapes(argument) == [(yield_, k)]
        return not escapes(argument) and self._hands_on(yield_, k, yield_.block)


def root(value: ir.Value) -> ir.Value:
    """What a view is of."""
    op = defining_op(value)
    while op is not None and op.name in VIEWS:
        value = op.operands[0]
        op = defining_op(value)
    return value


def uses(value: ir.Value) -> list[Use]:
    """The uses of a buffer, those through views included."""
    found, pending = [], [value]
    while pending:
        for use in pending.pop().uses:
            op = use.owner.operation
            if op.name in VIEWS:
                pending.append(op.results[0])
            else:
                found.append((op, use.operand_number))
    return found


def escapes(value: ir.Value) -> list[Use]:
    """The uses after which a buffer may have another name."""
    return [
        (op, number)
        for op, number in uses(value)
        if op.name in ESCAPES or any(map(_is_buffer, op.results))
    ]


def last_use(value: ir.Value) -> ir.Operation | None:
    """The last operation of the owner's block in or under which its buffer is used.

    None for an argument that is not used at all.
    """
    block = _block_of(value)
    last = defining_op(value)
    for op, _ in uses(value):
        outer = in_block(op, block)
        if last is None or last.is_before_in_block(outer):
            last = outer
    return last


def _used_after(value: ir.Value, op: ir.Operation) -> bool:
    last = last_use(value)
    return last is not None and last != op


def _is_buffer(value: ir.Value) -> bool:
    return isinstance(value.type, ir.MemRefType)


def _terminator(block: ir.Block) -> ir.Operation:
    return list(block.operations)[-1].operation


def _block_of(value: ir.Value) -> ir.Block:
    owner = value.owner
    return owner if isinstance(owner, ir.Block) else owner.operation.block


def in_block(op: ir.Operation, block: ir.Block) -> ir.Operation:
    """The ancestor of `op` that stands in `block`."""
    while op.block != block:
        op = op.block.owner.operation
    return op
