"""What a tensor.extract_slice takes of its source, by the source's axes."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .infrastructure import constant_index, defining_op


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
    size = defining_op(dynamic_size(part, axis))
    return (
        size is not None
        and size.name == "tensor.dim"
        and size.operands[0] == source
        and constant_index(size.operands[1]) == axis
    )


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
