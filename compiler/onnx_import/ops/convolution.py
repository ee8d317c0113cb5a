"""Convolutions. Constant weights of f32 make an `abq.conv`, which recipes quantize; all others
are products of patches, in the type of the operands."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from ..building.emit import Builder
from ..building.shaping import pad, reshape, transpose
from ..parts.affine import product_operand
from ..parts.sliding import Windows, explicit_pads, padded, patches, windows_of
from ..parts.transposed_weights import as_channels
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.element_types import F32
from ..values.symbolic import ONE, Dim, product
from ..values.value import Value
from .matmul import batched


@lowers("Conv")
def conv(node: Node) -> Value:
    x, w, bias = node.input(0), with_window(node, node.input(1)), node.optional(2)
    return convolve(node, x, w, bias, conv_windows(node, x, w), node.int("group", 1))


def with_window(node: Node, w: Value) -> Value:
    """Weights whose window is open in their type: it is that of `kernel_shape`, or the run ends."""
    kernel = node.ints("kernel_shape", None)
    if kernel is None or len(kernel) != w.rank - 2 or None not in w.shape[2:]:
        return w
    for size, wanted in zip(w.dims[2:], kernel, strict=True):
        node.b.require_equal(size, Dim.of(wanted), f"the window of {w} is not {kernel}")
    return node.b.made(node.b.tensor(w), w.dtype, (*w.dims[:2], *kernel))


def conv_windows(node: Node, x: Value, w: Value) -> Windows:
    """The windows of a convolution of `x` with `w`, O x C/groups x window."""
    kernel = [size for size in w.shape[2:] if size is not None]
    if w.rank < 3 or len(kernel) < w.rank - 2:
        raise node.error(f"its weights are {w}: expected three axes or more and a static window")
    given = node.ints("kernel_shape", None)
    if given is not None and given != kernel:
        raise node.error(f"attribute 'kernel_shape' is {given}, the weights are {w}")
    return windows_of(node, x, kernel)


def convolve(
    node: Node, x: Value, w: Value, bias: Value | None, windows: Windows, groups: int
) -> Value:
    """B x O x outs; x and w are of one type, in which the products are summed."""
    if x.dtype != w.dtype:
        raise node.error(f"its inputs differ in type: {x.dtype.name} and {w.dtype.name}")
    if groups < 1 or any(size is not None and size % groups for size in (x.shape[1], w.shape[0])):
        raise node.error(f"{x} cannot be convolved with {w} in {groups} groups")
    node.b.require_equal(
        x.dims[1], w.dims[1] * groups, f"the channels of {x} and {w} in {groups} groups differ"
    )
    x = _of_channels(node.b, x, w.dims[1] * groups)
    if w.constant is not None and x.dtype.inside() == F32.inside() and w.size:
        return _with_weight(node, x, w, bias, windows, groups)
    return add_bias(node.b, _by_patches(node.b, x, w, windows, groups), bias)


def _of_channels(b: Builder, x: Value, channels: Dim) -> Value:
    """`x`, whose channels only a run knows, with those that its weights say it has."""
    if x.dims[1].is_static or not channels.is_static:
        return x
    known = b.made(b.tensor(x), x.dtype, (x.dims[0], channels, *x.dims[2:]))
    known.steps = x.steps
    return known


def add_bias(b: Builder, y: Value, bias: Value | None) -> Value:
    """Plus one number for each channel."""
    if bias is None:
        return y
    wide = reshape(b, bias, [bias.dims[0], *[ONE] * (y.rank - 2)])
    return b.elementwise([y, wide], y.dtype, lambda v, w: v + w)


def _with_weight(
    node: Node, x: Value, w: Value, bias: Value | None, windows: Windows, groups: int
) -> Value:
    """One `abq.conv`. Padding that only a run knows is done before it."""
    b = node.b
    assert w.constant is not None
    pads = windows.static_pads
    if pads is None:
        steps = x.steps  # which have 0 among them
        x, pads = padded(b, x, windows, 0), [0] * (2 * windows.rank)
        x.steps = steps
    weight = node.weight(w.constant, "conv")
    fused = bias is not None and bias.constant is not None
    dims = (x.dims[0], w.dims[0], *windows.outs)
    operand, scales = product_operand(b, x, w.constant)
    ssa = abq.ConvOp(
        operand, weight, ir.StringAttr.get(node.name),
        ir.DenseI64ArrayAttr.get(windows.strides), ir.DenseI64ArrayAttr.get(windows.dilations),
        ir.DenseI64ArrayAttr.get(pads), ir.IntegerAttr.get(ir.IntegerType.get_signless(64), groups),
        b.type(x.dtype, dims), bias=b.tensor(bias) if fused and bias is not None else None,
        **scales,
    ).result  # fmt: skip
    return add_bias(b, Value(x.dtype, dims, ssa=ssa), None if fused else bias)


def _by_patches(b: Builder, x: Value, w: Value, windows: Windows, groups: int) -> Value:
    return multiply_patches(b, patches(b, x, windows), w, windows, groups)


def multiply_patches(b: Builder, seen: Value, w: Value, windows: Windows, groups: int) -> Value:
    """B x O x outs of patches, B x C x window x outs, and weights, O x C/groups x window."""
    inner = w.dims[1] * windows.count
    rows = w.dims[0] // groups
    left = reshape(b, w, [ONE, Dim.of(groups), rows, inner])
    batch, places = seen.dims[0], product(windows.outs)
    right = reshape(b, seen, [batch, Dim.of(groups), inner, places])
    return reshape(b, batched(b, left, right), [batch, w.dims[0], *windows.outs])


# The transpose of a convolution: every element of x adds a window of weights to the result.
#
# Element q * stride + r of the whole result is the sum over j of x[q - j] w[j * stride + r]: for
# every r a convolution of stride 1 with every stride-th weight. So x is convolved once, with the
# weights of all r side by side as channels, and these are then interleaved: no product with a zero
# between elements of x, and recipes quantize it as they do Conv.


@lowers("ConvTranspose")
def conv_transpose(node: Node) -> Value:
    return _conv_transpose(node, node.optional(2))


@lowers("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def conv_transpose_with_dynamic_pads(node: Node) -> Value:
    """Its pads are input 2, its bias input 3."""
    rank = node.input(0).rank - 2
    pads = node.integers_of(2, 2 * rank) if node.given(2) else [symbolic.ZERO] * 2 * rank
    return _conv_transpose(node, node.optional(3), pads)


def _conv_transpose(node: Node, bias: Value | None, pads: Sequence[Dim] | None = None) -> Value:
    """`pads`: begins, then ends, where they are no attribute."""
    x, w = node.input(0), node.input(1)
    rank, groups = x.rank - 2, node.int("group", 1)
    kernel = [size for size in w.shape[2:] if size is not None]
    if rank < 1 or len(kernel) != rank or w.rank != x.rank:
        raise node.error(f"{x} does not go with weights {w}, whose window must be static")
    channels = w.shape[0]
    if groups < 1 or channels is None or channels % groups or w.shape[1] is None:
        raise node.error(f"its weights {w} do not fall into {groups} groups")
    node.b.require_equal(x.dims[1], w.dims[0], f"the channels of {x} and {w} differ")
    plan = _Transposed(node, x, kernel, pads)
    return plan.lower(w, bias, groups)


class _Transposed:
    """Sizes of a transposed convolution, one for each spatial axis."""

    def __init__(
        self, node: Node, x: Value, kernel: Sequence[int], pads: Sequence[Dim] | None
    ) -> None:
        rank = len(kernel)
        self.node, self.x, self.kernel, self.rank = node, x, list(kernel), rank
        self.strides = node.ints("strides", []) or [1] * rank
        self.dilations = node.ints("dilations", []) or [1] * rank
        self.added = node.ints("output_padding", []) or [0] * rank
        for values in (self.strides, self.dilations, self.added):
            if len(values) != rank or min(values) < 0:
                raise node.error(f"an attribute is {values}, expected {rank} numbers")
        self.reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        # Weights of one remainder: every stride-th.
        self.taps = [-(-r // s) for r, s in zip(self.reach, self.strides, strict=True)]
        self.begins, self.outs = self._extent(pads)

    def _extent(self, pads: Sequence[Dim] | None) -> tuple[list[Dim], list[Dim]]:
        """What is cut off at the beginning, and the sizes of the result."""
        node, sizes = self.node, self.x.dims[2:]
        mode = node.choice("auto_pad", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
        wanted = node.ints("output_shape", None)
        whole = [
            (size - 1) * stride + added + reach
            for size, stride, added, reach in zip(
                sizes, self.strides, self.added, self.reach, strict=True
            )
        ]
        if wanted is None and not mode.startswith("SAME"):
            given = pads or [Dim.of(p) for part in explicit_pads(node, self.rank) for p in part]
            low, high = given[: self.rank], given[self.rank :]
            if mode == "VALID":
                low = high = [symbolic.ZERO] * self.rank
            outs = [w - p - q for w, p, q in zip(whole, low, high, strict=True)]
            return list(low), outs
        if wanted is not None:
            outs = [Dim.of(size) for size in wanted[-self.rank :]]
        else:
            outs = [size * stride for size, stride in zip(sizes, self.strides, strict=True)]
        begins = []
        for size, out in zip(whole, outs, strict=True):
            total = symbolic.maximum(size - out, symbolic.ZERO)
            half = total // 2
            begins.append(half if mode == "SAME_UPPER" else total - half)
        return begins, outs

    def lower(self, w: Value, bias: Value | None, groups: int) -> Value:
        node, x, b = self.node, self.x, self.node.b
        weights = as_channels(b, w, groups, self.strides, self.dilations, self.taps)
        pads = tuple(Dim.of(taps - 1) for taps in self.taps)
        outs = tuple(size + taps - 1 for size, taps in zip(x.dims[2:], self.taps, strict=True))
        ones = (1,) * self.rank
        windows = Windows(x.dims[2:], tuple(self.taps), ones, ones, pads, pads, outs)
        y = convolve(node, x, weights, None, windows, groups)
        y = self._interleaved(y, outs)
        zeros = [symbolic.ZERO] * 2
        ends = [
            out + begin - size
            for size, begin, out in zip(y.dims[2:], self.begins, self.outs, strict=True)
        ]
        y = pad(b, y, [*zeros, *(-begin for begin in self.begins)], [*zeros, *ends], 0)
        return add_bias(b, y, bias)

    def _interleaved(self, y: Value, outs: Sequence[Dim]) -> Value:
        """[B, M * strides, Q...] -> [B, M, Q0 * stride0, ...]"""
        b, rank = self.node.b, self.rank
        strides = [Dim.of(stride) for stride in self.strides]
        channels = y.dims[1] // prod(self.strides)
        y = reshape(b, y, [y.dims[0], channels, *strides, *outs])
        order = [0, 1, *(axis for i in range(rank) for axis in (2 + rank + i, 2 + i))]
        y = transpose(b, y, order)
        merged = [out * stride for out, stride in zip(outs, strides, strict=True)]
        return reshape(b, y, [y.dims[0], channels, *merged])
