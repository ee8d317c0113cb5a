"""Images times numbers of their channels become products with weights times these numbers.

    conv(x * s, w)    s for each channel of a sample    conv(x, w * s), weights for each sample

So squeeze-and-excitation blocks gate: an image is neither read nor written for it. A convolution of
windows of one element is taken whose weights are fewer than the image that it reads, so far as that
is known.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from abqc.dialects import abq
from abqc.dialects.abq_conv import conv_spec
from abqc.dialects.mlir import ir, tensor

from .infrastructure import Unit, defining_op, register, users, walk
from .loops.axis_blocks import clone_body, parallel_loop
from .loops.generics import (
    asks_for_indices,
    dims,
    ignores_init,
    inputs,
    is_elementwise,
    is_identity,
    maps,
    yielded,
)
from .resolve_dims import dimension_or_query, expand_shape

MANY_OUTPUTS = 128  # of a convolution of images whose size is not known


@register
def scale_weights(module: ir.Operation, unit: Unit) -> None:
    """Move factors of channels from what convolutions read to their weights."""
    if unit.target is None:
        return
    for conv in walk(module, "abq.direct_conv"):
        loop = defining_op(conv.opview.planes)
        number = None if loop is None else _image(loop)
        spec = replace(conv_spec(conv.opview), weights_by_sample=True)
        able = unit.known_target.direct_conv(spec) is not None and _has_few_weights(conv)
        if loop is None or number is None or not able or loop.block != conv.block:
            continue
        if all(user.operation == conv for user in users(loop.results[0])):
            _rewrite(conv, loop, number)


def _image(loop: ir.Operation) -> int | None:
    """Which input of an elementwise loop is multiplied by what all others give, which have one
    element for each channel of a sample at most."""
    alike = is_elementwise(loop) and ignores_init(loop) and not asks_for_indices(loop)
    if not alike or len(abq.shape(loop.results[0])) != 4:
        return None
    product = defining_op(yielded(loop))
    if product is None or product.name != "arith.mulf":
        return None
    arguments = list(loop.regions[0].blocks[0].arguments)
    factors = [arguments.index(v) for v in product.operands if v in arguments]
    whole = [i for i in factors if is_identity(maps(loop)[i])]
    others = [i for i in range(len(inputs(loop))) if i not in whole]
    if len(whole) != 1 or not all(set(dims(maps(loop)[i]) or [9]) <= {0, 1} for i in others):
        return None
    alone = len(list(arguments[whole[0]].uses)) == 1
    return whole[0] if alone and inputs(loop)[whole[0]].type == loop.results[0].type else None


def _has_few_weights(conv: ir.Operation) -> bool:
    view = conv.opview
    spec = conv_spec(view)
    plain = spec.groups == 1 and prod(spec.window) == 1 and not spec.winograd
    size = abq.shape(view.planes)[2:]
    pixels = MANY_OUTPUTS if abq.DYNAMIC in size else prod(size)
    floats = isinstance(abq.element(view.w), ir.F32Type) and len(abq.shape(view.w)) == 1
    return plain and floats and spec.outputs <= pixels


def _rewrite(conv: ir.Operation, loop: ir.Operation, number: int) -> None:
    view, spec, image = conv.opview, conv_spec(conv.opview), inputs(loop)[number]
    with ir.InsertionPoint(conv), conv.location:
        conv.operands[1] = _weights(view.w, spec.blocks, spec.channels, loop, number)
    conv.operands[0] = image
    loop.erase()


def _weights(w: ir.Value, blocks: int, channels: int, loop: ir.Operation, number: int) -> ir.Value:
    """[samples, blocks * channels * outputs of a block]: `w` times what the loop multiplies by."""
    others = [i for i in range(len(inputs(loop))) if i != number]
    block = abq.shape(w)[0] // (blocks * channels)
    samples = dimension_or_query(inputs(loop)[number], 0)
    static = abq.shape(inputs(loop)[number])[0]
    size = samples if static == abq.DYNAMIC else static
    d = [ir.AffineDimExpr.get(i) for i in range(4)]  # sample, block, channel, output
    reads = [
        ir.AffineMap.get(4, 0, [_of_weights(each) for each in maps(loop)[i].results])
        for i in others
    ]
    cut = expand_shape(w, [[0, 1, 2]], [blocks, channels, block])
    init = tensor.EmptyOp([size, blocks, channels, block], abq.element(w)).result
    scaled = parallel_loop(
        [cut, *(inputs(loop)[i] for i in others)],
        [ir.AffineMap.get(4, 0, d[1:]), *reads],
        init,
        lambda elements: clone_body(loop, _in_order(elements, number)),
    )
    type_ = ir.RankedTensorType.get([static, blocks * channels * block], abq.element(w))
    return tensor.CollapseShapeOp(type_, scaled, [[0], [1, 2, 3]]).result


def _of_weights(place: ir.AffineExpr) -> ir.AffineExpr:
    """Where a sample's or channel's index is among the loops over weights."""
    if isinstance(place, ir.AffineDimExpr):
        return ir.AffineDimExpr.get({0: 0, 1: 2}[place.position])
    return place


def _in_order(elements: list[ir.Value], number: int) -> list[ir.Value]:
    """The first one put where the loop has the image."""
    first, *rest = elements
    return [*rest[:number], first, *rest[number:]]
