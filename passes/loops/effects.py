"""Which operations on buffers may change places."""

from __future__ import annotations

from abqc.dialects.mlir import ir

from ..infrastructure import defining_op, walk
from ..kernels.launch import APPEND
from ..ownership import VIEWS, root

# Operations that touch no elements.
_PURE = frozenset(("memref.alloc", "memref.dim", "memref.get_global", "cf.assert"))


def can_move(loop: ir.Operation, later: ir.Operation) -> bool:
    """Whether the linalg.generic `loop` can stand right before `later`, behind it in its block."""
    block = list(loop.block.operations)
    operations = [op.operation for op in block]
    begin, end = operations.index(loop), operations.index(later)
    assert begin < end
    return not any(conflicts(loop, op) for op in operations[begin + 1 : end])


def read_and_written(loop: ir.Operation) -> tuple[list[ir.Value], list[ir.Value]]:
    """What a linalg.generic on buffers reads, and what it writes."""
    count, _ = ir.DenseI32ArrayAttr(loop.attributes["operandSegmentSizes"])
    operands = list(loop.operands)
    return operands[:count], operands[count:]


def conflicts(loop: ir.Operation, other: ir.Operation) -> bool:
    """Whether the order of a linalg.generic and another operation may matter."""
    if _is_pure(other):
        return False
    touched, written = _touched(other), _written(other)
    mine, made = _touched(loop), _written(loop)
    if not all(map(_is_known, touched | mine)):
        return True
    return bool(made & touched or mine & written)


def _is_pure(op: ir.Operation) -> bool:
    if op.name in VIEWS or op.name in _PURE or op.name.startswith(("arith.", "affine.")):
        return True
    # A cache that grows: its rows so far are moved at most, and stay what they are.
    return op.name == "func.call" and _callee(op).startswith(APPEND)


def _callee(op: ir.Operation) -> str:
    return ir.FlatSymbolRefAttr(op.attributes["callee"]).value


def _roots(values: list[ir.Value]) -> set[ir.Value]:
    return {root(value) for value in values if isinstance(value.type, ir.MemRefType)}


def _touched(op: ir.Operation) -> set[ir.Value]:
    """The buffers that an operation, or one in it, has as operands."""
    return {buffer for inner in walk(op) for buffer in _roots(list(inner.operands))}


def _written(op: ir.Operation) -> set[ir.Value]:
    if op.name == "linalg.generic":
        return _roots(read_and_written(op)[1])
    if op.name == "memref.copy":
        return _roots([op.operands[1]])
    return _touched(op)


def _is_known(buffer: ir.Value) -> bool:
    """Whether a buffer is none of the others: an allocation, a weight, an input, a grown cache."""
    op = defining_op(buffer)
    if op is None:
        return str(buffer.owner.owner.operation.name) == "func.func"
    return op.name in ("memref.alloc", "memref.get_global") or (
        op.name == "func.call" and _callee(op).startswith(APPEND)
    )
