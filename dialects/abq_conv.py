"""Operations of the abq dialect that convolutions and pools become on CPUs.

(No postponed annotations here: the bindings read them as Python objects.)
"""

from dataclasses import replace
from math import prod
from typing import Any

from .abq import (
    Abq,
    Tensor,
    TensorResult,
    VerifiedOperation,
    _agree,
    _require,
    element,
    is_packed,
    shape,
)
from .bf16_conv_spec import PAIR, Bf16ConvSpec
from .conv_spec import ConvSpec
from .element_types import text_of
from .epilogue import MADE, READ
from .mlir import ext, ir
from .pool_spec import PoolSpec

__all__ = [
    "EPILOGUE_INPUTS",
    "CodeConvOp",
    "DirectConvOp",
    "MaxPoolOp",
    "PackPlanesOp",
    "PairPlanesOp",
    "PolyphaseOp",
    "YieldOp",
    "conv_spec",
    "epilogue_inputs",
    "epilogue_maps",
    "in_bf16",
    "pool_spec",
]

Index = ext.Operand[ir.IndexType]


class YieldOp(Abq.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends the region of an operation and says what an element becomes."""

    value: ext.Operand[Any]


class PolyphaseOp(VerifiedOperation, name="polyphase", traits=[ext.Pure]):
    """Images with zeros around them as the polyphase components that strides cut them into: the
    first ny x nx of them, `phases`.

    `x` is B x C x H x W, the result B x (C * ny * nx) x `rows` x `pitch`:

        result[b, (c * ny + py) * nx + px, r, q] = x[b, c, r * sy + py - top, q * sx + px - left]

    and zero where that is outside of the image. A convolution with these strides reads neighbours
    in the result where outputs are neighbours.
    """

    x: Tensor
    rows: Index
    pitch: Index
    strides: Any  # array<i64: sy, sx>
    phases: Any  # array<i64: ny, nx>
    before: Any  # array<i64: top, left>
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        x, y = shape(op.x), shape(op.result)
        (ny, nx), before = (list(ir.DenseI64ArrayAttr(op.attributes[n])) for n in _PHASES)
        _require(len(x) == len(y) == 4 and len(before) == 2, "images and planes have rank 4")
        _require(_agree(x[0], y[0]), "x and the result have the same samples")
        _require(
            y[1] == x[1] * ny * nx, f"{x[1]} channels in {ny} x {nx} phases, not {y[1]} planes"
        )


_PHASES = ("phases", "before")


class PairPlanesOp(VerifiedOperation, name="pair_planes", traits=[ext.Pure]):
    """Images as polyphase components (`polyphase`) of pairs of channels, rounded to bf16.

    The channels are in `groups`; `flat` is 1 where planes lie as the image does, without zeros
    around it. The result is B x (groups * pairs * phases) x `rows` x `pitch` of
    i32, whose lower half is the bf16 of the first channel of a pair; the second one of the last
    pair of a group is zero where its channels are odd.
    """

    x: Tensor
    rows: Index
    pitch: Index
    strides: Any  # array<i64: sy, sx>
    phases: Any  # array<i64: ny, nx>
    before: Any  # array<i64: top, left>
    groups: ir.IntegerAttr
    flat: ir.IntegerAttr
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        x, y, groups = shape(op.x), shape(op.result), ir.IntegerAttr(op.groups).value
        (ny, nx), before = (list(ir.DenseI64ArrayAttr(op.attributes[n])) for n in _PHASES)
        _require(len(x) == len(y) == 4 and len(before) == 2, "images and planes have rank 4")
        _require(_agree(x[0], y[0]), "x and the result have the same samples")
        _require(x[1] % groups == 0, f"{x[1]} channels are not {groups} equal groups")
        pairs = groups * -(-x[1] // groups // PAIR)
        phases = f"{ny} x {nx} phases"
        _require(y[1] == pairs * ny * nx, f"{pairs} pairs in {phases}, not {y[1]} planes")
        flat = bool(ir.IntegerAttr(op.flat).value)
        _require(not flat or (ny == nx == 1 and not any(before)), "flat planes have no zeros")


# The operands that an epilogue has: IRDL would give all of a variadic group one type.
EPILOGUE_INPUTS = ("first", "second", "third", "fourth")


class DirectConvOp(
    VerifiedOperation, name="direct_conv", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]
):
    """A convolution of images, B x N x `height` x `width`, by a kernel that reads planes of them.

    `planes` are B x (C * phases) x rows x pitch: the image with its zeros, cut into phases by the
    strides (`polyphase`), in bf16 those of pairs of channels (`pair_planes`). `w` is what
    `ConvSpec.pack_weight` makes of the weight. A result of rank 3, B x N x `width`, has one row.

    `w` of rank 2 has weights for each sample (`scale-weights`).

    Where kernels put the zeros around it (`ConvSpec.reads_images`) `planes` is the image as it is,
    and `before` says how many rows and columns of zeros are before it; elsewhere these are 0.

    `epilogue`, where it has a block, says what an element becomes: an f32 or a byte of itself, an
    f32, and of an element of each of `first` to `fourth`, f32 or i8 or i32, which `maps` finds by
    the indices of the result.
    """

    planes: Tensor
    w: Tensor
    bias: Tensor
    height: Index
    width: Index
    groups: ir.IntegerAttr
    window: Any  # array<i64> of two, as are strides and dilations
    strides: Any
    dilations: Any
    before: Any
    result: TensorResult
    epilogue: ext.Region
    maps: ir.ArrayAttr = ext.attribute(default_factory=lambda: ir.ArrayAttr.get([]))
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None
    fourth: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        planes, y = shape(op.planes), shape(op.result)
        _require(len(planes) == 4 and len(y) in (3, 4), "planes have rank 4, the result 3 or 4")
        _require(len(shape(op.w)) in (1, 2), "w is packed, for all or for each sample")
        _require(shape(op.bias) == [y[1]], f"bias must have {y[1]} elements")
        _check_epilogue(op)


def _check_epilogue(op: Any) -> None:
    y = shape(op.result)
    inputs, maps, blocks = epilogue_inputs(op), epilogue_maps(op), list(op.regions[0].blocks)
    _require(len(inputs) == len(maps), "a map for every input of the epilogue")
    _require(bool(blocks) or not inputs, "inputs belong to an epilogue")
    for value, map_ in zip(inputs, maps, strict=True):
        _require(text_of(element(value)) in READ, "an epilogue reads f32, i8 or i32")
        fits = map_.n_dims == len(y) and len(map_.results) == len(shape(value))
        _require(fits, "a map leads from indices of the result to those of an input")
    if blocks:
        _require(len(blocks[0].arguments) == 1 + len(inputs), "an argument for each input")
        _require(text_of(element(op.result)) in MADE, "an epilogue makes f32 or i8")


def conv_spec(op: Any) -> ConvSpec:
    """Of a direct_conv (its view)."""
    groups, n = ir.IntegerAttr(op.groups).value, shape(op.result)[1]
    window, strides, dilations, before = (
        tuple(ir.DenseI64ArrayAttr(op.attributes[name]))
        for name in ("window", "strides", "dilations", "before")
    )
    planes = shape(op.planes)[1]
    made = Bf16ConvSpec if in_bf16(op.planes) else ConvSpec
    of_image = made(
        groups,
        n // groups,
        planes // groups,
        window,
        strides,
        dilations,
        before,
        weights_by_sample=len(shape(op.w)) == 2,
    )
    if of_image.reads_images:
        return of_image
    channels = planes // (prod(of_image.phases) * groups)
    return replace(of_image, channels=channels * (PAIR if in_bf16(op.planes) else 1))


def in_bf16(planes: ir.Value) -> bool:
    """Whether planes are of pairs of channels."""
    return isinstance(element(planes), ir.IntegerType)


def epilogue_inputs(op: Any) -> list[ir.Value]:
    """What the epilogue of a convolution (its view) reads besides the result."""
    values = [getattr(op, name) for name in EPILOGUE_INPUTS]
    return [value for value in values if value is not None]


def epilogue_maps(op: Any) -> list[ir.AffineMap]:
    return [ir.AffineMapAttr(map_).value for map_ in ir.ArrayAttr(op.attributes["maps"])]


class MaxPoolOp(VerifiedOperation, name="max_pool", traits=[ext.Pure]):
    """The largest element of every window of images, B x C x `height` x `width`:

        result[b, c, r, q] = max over y, x of
            x[b, c, r * sy + y * dy - top, q * sx + x * dx - left]

    where that is in the image, -inf where no element of a window is; NaN where one is NaN.
    """

    x: Tensor
    height: Index
    width: Index
    window: Any  # array<i64> of two, as are the others
    strides: Any
    dilations: Any
    before: Any  # top, left
    result: TensorResult

    @staticmethod
    def check(op: Any) -> None:
        x, y = shape(op.x), shape(op.result)
        _require(len(x) == len(y) == 4, "images have rank 4")
        _require(_agree(x[0], y[0]) and _agree(x[1], y[1]), "an image for each image")


def pool_spec(op: Any) -> PoolSpec:
    """Of a max_pool (its view)."""
    window, strides, dilations = (
        tuple(ir.DenseI64ArrayAttr(op.attributes[name]))
        for name in ("window", "strides", "dilations")
    )
    return PoolSpec(window, strides, dilations)


class PackPlanesOp(Abq.Operation, name="pack_planes", traits=[ext.Pure]):
    """Images to planes of codes, quantized on the way, by one `kernel`.

    `x` is B x C x spatial, floats or stored codes, of B x C x `height` x `width`. Around it come
    `top` rows, `left` columns, and what fills planes of `rows` x `pitch`. The result is a sample's
    bytes, [B, ?], of `!abq.packed<layout>`. With `gate`, B x C, channels are multiplied first.
    """

    x: Tensor
    x_scale: Tensor
    x_zero: Tensor
    height: ext.Operand[ir.IndexType]
    width: ext.Operand[ir.IndexType]
    rows: ext.Operand[ir.IndexType]
    pitch: ext.Operand[ir.IndexType]
    kernel: ir.StringAttr
    channels: ir.IntegerAttr
    top: ir.IntegerAttr
    left: ir.IntegerAttr
    phases: ir.IntegerAttr
    result: TensorResult
    gate: Tensor | None = None


class CodeConvOp(
    VerifiedOperation, name="code_conv", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]
):
    """A convolution of codes, B x N x spatial, by a kernel that reads planes of `rows` x `pitch`
    (`abq.pack_planes`); `height` x `width` are outputs.

    `w` is what the kernel's layout makes of the weight. A result of i32 holds accumulators; others
    are f32, or what an `epilogue` makes, as `abq.direct_conv` has it.
    """

    planes: Tensor
    w: Tensor
    bias: Tensor
    rows: ext.Operand[ir.IndexType]
    pitch: ext.Operand[ir.IndexType]
    height: ext.Operand[ir.IndexType]
    width: ext.Operand[ir.IndexType]
    kernel: ir.StringAttr
    node: ir.StringAttr
    result: TensorResult
    epilogue: ext.Region
    maps: ir.ArrayAttr = ext.attribute(default_factory=lambda: ir.ArrayAttr.get([]))
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None
    fourth: Tensor | None = None

    @staticmethod
    def check(op: Any) -> None:
        y = shape(op.result)
        _require(is_packed(op.planes) and is_packed(op.w), "planes and w are packed")
        _require(len(y) in (3, 4), "the result has one or two spatial axes")
        _require(shape(op.bias) == [y[1]], f"bias must have {y[1]} elements")
        _check_epilogue(op)
