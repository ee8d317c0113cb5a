"""The buffers of caches, read where they are."""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, memref

from ..infrastructure import defining_op
from ..loops.slices import dynamic_size, is_beginning, static_sizes


def buffer_of(value: ir.Value) -> ir.Value | None:
    """The buffer of a tensor: one of its own, or the beginning of another one's."""
    made = defining_op(value)
    if made is None:
        return None
    if made.name == "bufferization.to_tensor":
        return made.operands[0]
    shape = abq.shape(value)
    if made.name != "tensor.extract_slice" or len(static_sizes(made)) != len(shape):
        return None
    whole = buffer_of(made.operands[0])
    if whole is None or not all(is_beginning(made, axis) for axis in range(len(shape))):
        return None
    type_ = ir.MemRefType(whole.type)
    if not isinstance(type_.layout, ir.StridedLayoutAttr):
        return None
    dynamic = [dynamic_size(made, i) for i, size in enumerate(shape) if size == abq.DYNAMIC]
    return memref.SubViewOp(
        ir.MemRefType.get(shape, type_.element_type, type_.layout), whole, [], dynamic, [],
        [0] * len(shape), shape, [1] * len(shape),
    ).result  # fmt: skip
