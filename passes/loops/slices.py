"""What a tensor.extract_slice takes of its source, by the source's axes."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..infrastructure import constant_index, defining_op


def static_sizes(part: ir.Operation) -> list[int]:
    """`DYNAMIC` where a size is a value."""
    return _static(part, "sizes")


def _static(part: ir.Operation, name: str) -> list[int]:
    return list(ir.DenseI64ArrayAttr(part.attributes[f"static_{name}"]))


def dynamic_size(part: ir.Operation, axis: int) -> ir.Value:
    """The operand that is the size along an axis, where it is not static."""
    before = _static(part, "offsets").count(abq.DYNAMIC)
    before += static_sizes(part)[:axis].count(abq.DYNAMIC)
    return part.operands[1 + before]


def offset(part: ir.Operation, axis: int) -> int | None:
    """Where it begins along an axis; None where that is a value."""
    static = _static(part, "offsets")[axis]
    return None if static == abq.DYNAMIC else static


def has_steps(part: ir.Operation) -> bool:
    """Whether it leaves elements out, or may."""
    return any(stride != 1 for stride in _static(part, "strides"))


def is_beginning(part: ir.Operation, axis: int) -> bool:
    """Whether it takes the first elements along an axis."""
    return _static(part, "offsets")[axis] == 0 and _static(part, "strides")[axis] == 1


def is_whole(part: ir.Operation, axis: int, source: ir.Value) -> bool:
    """Whether it is known to take all along an axis of a tensor of the shape of `source`."""
    if not is_beginning(part, axis):
        return False
    static = static_sizes(part)[axis]
    if static != abq.DYNAMIC:
        return static == abq.shape(source)[axis]
    return is_size(dynamic_size(part, axis), source, axis)


def is_size(value: ir.Value, source: ir.Value, axis: int) -> bool:
    """Whether `value` is known to be the size of an axis of `source` that is not static."""
    if abq.shape(source)[axis] != abq.DYNAMIC:
        return False
    query = defining_op(value)
    if query is not None and query.name == "tensor.dim" and query.operands[0] == source:
        return constant_index(query.operands[1]) == axis
    made = defining_op(source)
    if made is None or not made.name.startswith("linalg.") or len(made.results) != 1:
        return False
    empty = defining_op(made.operands[len(made.operands) - 1])
    if empty is None or empty.name != "tensor.empty":
        return False
    return empty.operands[abq.shape(source)[:axis].count(abq.DYNAMIC)] == value


def is_compact(part: ir.Operation) -> bool:
    """Whether its elements are known to be neighbours in a compact source: from some axis on it
    takes all, and of the axes before that one a single element, but for the last of these."""
    source = part.operands[0]
    sizes, strides = static_sizes(part), _static(part, "strides")
    axes = list(range(len(sizes)))
    while axes and is_whole(part, axes[-1], source):
        axes.pop()
    if axes and strides[axes[-1]] != 1 and sizes[axes[-1]] != 1:
        return False
    return all(sizes[axis] == 1 for axis in axes[:-1])
