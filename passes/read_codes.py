"""Convolutions read codes as the model has stored them, where it decodes them for that alone.

    y = (f32(q) - z) * s; abq.quantize(y, s, z)      abq.quantize(q, s, z), which holds codes

That is what quantized models have between two convolutions: what makes the codes can store bytes,
and nothing is rounded a second time. Loops that read y decode the bytes themselves. Codes are
unsigned and of 8 bits, all of which the format has, so that none is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.fixed_point import StaticCodes
from abqc.dialects.mlir import ir, tensor

from .direct_code_conv import code_conv_spec, has_codes
from .infrastructure import Unit, constant_index, defining_op, register, users, walk
from .integers.loops import static_codes
from .loops.axis_blocks import parallel_loop
from .loops.generics import (
    asks_for_indices,
    clone_op,
    float_constant,
    ignores_init,
    inputs,
    is_elementwise,
    is_identity,
    maps,
    yielded,
)
from .resolve_dims import mixed_sizes

LEAST_SCALE = 2.0**-100  # below, products of a code and the scale may be subnormal


@register
def read_codes(module: ir.Operation, unit: Unit) -> None:
    """Give abq.quantize of decoded bytes these bytes, where convolutions of codes read it."""
    if unit.target is None:
        return
    for op in walk(module, "abq.quantize"):
        known, loop = static_codes(op), defining_op(op.opview.x)
        if known is None or loop is None or not _is_taken(op, unit) or not _is_decoding(loop):
            continue
        found = _decoded(loop)
        if found is not None and found.means(known) and _only_loops(loop, op):
            _give(op, loop, found)


def _is_taken(op: ir.Operation, unit: Unit) -> bool:
    """Whether all that reads the codes are convolutions for which the target has kernels."""
    convs = [user.operation for user in users(op.results[0])]
    return bool(convs) and all(
        conv.name == "abq.conv"
        and has_codes(conv)
        and unit.known_target.code_conv(code_conv_spec(conv), node="") is not None
        for conv in convs
    )


def _is_decoding(loop: ir.Operation) -> bool:
    return is_elementwise(loop) and ignores_init(loop) and not asks_for_indices(loop)


@dataclass(frozen=True)
class _Decoded:
    """What a body yields: (f32(code) - zero) * scale."""

    code: ir.Value  # i8
    zero: int
    scale: float

    def means(self, codes: StaticCodes) -> bool:
        """Whether quantizing by these gives the code again."""
        format = codes.scheme.format
        whole = not codes.scheme.symmetric and (format.qmin, format.qmax) == (0, 255)
        same = (self.zero, self.scale) == (codes.zero, codes.scale)
        return whole and same and self.scale >= LEAST_SCALE


def _decoded(loop: ir.Operation) -> _Decoded | None:
    value, scale = yielded(loop), 1.0
    op = defining_op(value)
    if op is not None and op.name == "arith.mulf":
        factor = float_constant(op.operands[1])
        if factor is None:
            return None
        value, scale = op.operands[0], factor
    return _centred(value, scale)


def _centred(value: ir.Value, scale: float) -> _Decoded | None:
    op = defining_op(value)
    if op is None or op.name not in ("arith.uitofp", "arith.sitofp"):
        return None
    made, signed, zero = op.operands[0], op.name == "arith.sitofp", 0
    less = defining_op(made)
    if signed and less is not None and less.name == "arith.subi":
        constant = constant_index(less.operands[1])
        if constant is None:
            return None
        made, zero = less.operands[0], constant
    wider = defining_op(made)
    if wider is not None and wider.name == "arith.extui":
        made, signed = wider.operands[0], False
    byte = isinstance(made.type, ir.IntegerType) and made.type.width == 8
    return _Decoded(made, zero, scale) if byte and not signed else None


def _only_loops(loop: ir.Operation, op: ir.Operation) -> bool:
    """Whether loops, which can decode codes themselves, are all else that reads a result."""
    others = [user.operation for user in users(loop.results[0]) if user.operation != op]
    return all(
        other.name == "tensor.dim" or (other.name == "linalg.generic" and is_elementwise(other))
        for other in others
    )


def _give(op: ir.Operation, loop: ir.Operation, found: _Decoded) -> None:
    result = loop.results[0]
    with ir.InsertionPoint(loop), loop.location:
        codes = _stored(loop, found)
    op.operands[0] = codes
    for other in dict.fromkeys(user.operation for user in users(result)):
        if other.name == "tensor.dim":
            other.operands[0] = codes
            continue
        with ir.InsertionPoint(other), other.location:
            made = _decoded_again(codes, loop, found)
        for i, operand in enumerate(other.operands):
            if operand == result:
                other.operands[i] = made
    loop.erase()


def _decoded_again(codes: ir.Value, loop: ir.Operation, found: _Decoded) -> ir.Value:
    """What a loop has made of codes; it is fused with what reads it."""
    value, block = yielded(loop), loop.regions[0].blocks[0]
    identity = ir.AffineMap.get_identity(len(abq.shape(codes)))
    init = tensor.EmptyOp(mixed_sizes(codes), value.type).result
    return parallel_loop(
        [codes], [identity], init, lambda read: _cloned(value, block, {found.code: read[0]})
    )


def _stored(loop: ir.Operation, found: _Decoded) -> ir.Value:
    """The codes of a loop as a tensor: one that it reads, or what another loop makes."""
    block = loop.regions[0].blocks[0]
    for value, map_, argument in zip(inputs(loop), maps(loop), block.arguments, strict=False):
        if argument == found.code and is_identity(map_):
            return value
    sizes = mixed_sizes(loop.operands[len(loop.operands) - 1])
    init = tensor.EmptyOp(sizes, found.code.type).result
    arguments = list(block.arguments)[:-1]
    return parallel_loop(
        inputs(loop),
        maps(loop)[:-1],
        init,
        lambda elements: _cloned(found.code, block, dict(zip(arguments, elements, strict=True))),
    )


def _cloned(value: ir.Value, block: ir.Block, known: dict[ir.Value, ir.Value]) -> ir.Value:
    """A value of a body, and what makes it, at the insertion point."""
    op = defining_op(value)
    if value in known or op is None or op.block != block:
        return known.get(value, value)
    for operand in op.operands:
        _cloned(operand, block, known)
    clone_op(op, known)
    return known[value]
