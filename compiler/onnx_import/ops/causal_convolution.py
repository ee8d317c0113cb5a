"""CausalConvWithState: a depthwise convolution over time that carries the last columns along.

ONNX has it from opset 27 on; onnxruntime's adds dilations, channels in the last axes, and states of
several positions.
"""

from __future__ import annotations

from ..building.scalars import Scalar
from ..building.shaping import concat, pad, reshape, slice_axis, transpose
from ..parts.sliding import Windows
from ..registry import MICROSOFT, Node, lowers
from ..values.element_types import INDEX
from ..values.symbolic import ZERO, Dim, product
from ..values.value import Value
from .convolution import convolve

# Attributes that onnxruntime's CUDA kernel alone knows, and the number that changes nothing.
_OF_CUDA = {
    "ndim": 1, "state_update_capacity": 0, "state_channels_last": -1, "state_length": 0,
    "input_channel_offset": 0, "input_channels": 0,
}  # fmt: skip


@lowers("CausalConvWithState")
@lowers("CausalConvWithState", domain=MICROSOFT)
def causal_conv_with_state(node: Node) -> list[Value | None]:
    """Inputs: x [B, C, L], weights [C, 1, K], bias [C], past [B, C, S], S = (K - 1) * dilation.

    Outputs: y, of x's shape, whose column t sees x up to column t and the past before it; and the
    last S columns of past and x. With `channels_last` x is [B, L, C...] and the states
    [B, S, C...]; with a `state_window` of W, states have a first axis: one for each of the last W
    columns, 0 where there is none.
    """
    for name, default in _OF_CUDA.items():
        value = node.int(name, default)
        if value != default:
            raise node.error(f"attribute '{name}' is {value}, expected {default}")
    given, w = node.input(0), node.input(1)
    channels, taps = w.shape[0], w.shape[-1]
    if w.rank != 3 or channels is None or not taps:
        raise node.error(f"its weights are {w}, expected [C, 1, K] of static sizes, not 0")
    dilation = node.int("dilation", 1)
    if dilation < 1:
        raise node.error(f"attribute 'dilation' is {dilation}, expected a positive number")
    layout = _Layout(node, given)
    x, length = layout.first(given), layout.length
    reach = (taps - 1) * dilation
    past = _past(node, layout, reach)
    whole = x if past is None else concat(node.b, [past, x], 2)
    begin = reach if past is None else 0
    windows = Windows(
        whole.dims[2:], (taps,), (1,), (dilation,), (Dim.of(begin),), (ZERO,), (length,)
    )
    y = convolve(node, whole, w, node.optional(2), windows, channels)
    if node.choice("activation", "none", "silu", "swish") != "none":
        y = node.b.elementwise([y], y.dtype, lambda v: v * v.sigmoid())
    if not node.wants(1):
        return [layout.back(y)]
    seen = pad(node.b, whole, [0, 0, begin], [0, 0, 0])  # [B, C, S + L]
    return [layout.back(y), layout.back(_present(node, seen, length, reach))]


class _Layout:
    """Where the channels are: in axis 1, or in all axes from 2 on."""

    def __init__(self, node: Node, x: Value) -> None:
        self.b = node.b
        self.last = bool(node.int("channels_last", 0))
        if x.rank < 3 or (x.rank > 3 and not self.last):
            raise node.error(f"its input is {x}, expected three axes")
        self.length = x.dims[1 if self.last else 2]
        self.channels = x.dims[2:]

    def first(self, x: Value) -> Value:
        """[B, L, C...] as [B, C, L]."""
        if not self.last:
            return x
        flat = reshape(self.b, x, [*x.dims[:2], product(x.dims[2:])])
        return transpose(self.b, flat, [0, 2, 1])

    def back(self, x: Value) -> Value:
        """[..., C, L] as the model has it."""
        if not self.last:
            return x
        turned = transpose(self.b, x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
        return reshape(self.b, turned, [*turned.dims[:-1], *self.channels])


def _past(node: Node, layout: _Layout, reach: int) -> Value | None:
    """The columns before the first, [B, C, S]."""
    b, past = node.b, node.optional(3)
    if past is None:
        return None
    if _window(node):
        newest = slice_axis(b, past, 0, _window(node) - 1, 1)
        past = reshape(b, newest, past.dims[1:])
    past = layout.first(past)
    if past.rank != 3:
        raise node.error(f"its past_state is {node.input(3)}: its axes do not fit those of x")
    b.require_equal(past.dims[2], Dim.of(reach), f"past_state must have {reach} columns")
    return b.made(b.tensor(past), past.dtype, (*past.dims[:2], reach))


def _window(node: Node) -> int:
    size = node.int("state_window", 0)
    if not 0 <= size <= 8:
        raise node.error(f"attribute 'state_window' is {size}, expected 0 to 8")
    return size


def _present(node: Node, seen: Value, length: Dim, reach: int) -> Value:
    """The state behind x: the last columns of `seen`; or those behind each of its last columns."""
    b, count = node.b, _window(node)
    if not count:
        return slice_axis(b, seen, 2, length, reach)
    source = Value(seen.dtype, seen.dims, ssa=b.tensor(seen))
    behind = b.scalar(length - (count - 1))  # columns of x that the first state has seen

    def body(at: list[Scalar]) -> Scalar:
        slot, sample, channel, column = at
        begin = behind + slot.cast(INDEX)
        some = begin > 0
        value = b.read(source, [sample, channel, some.select(begin, 0) + column])
        return some.select(value, 0)

    return b.tabulate([Dim.of(count), *seen.dims[:2], Dim.of(reach)], seen.dtype, body)
