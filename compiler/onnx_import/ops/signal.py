"""Signals: Fourier transforms and what belongs to them. Windows are ONNX's own definitions."""

from __future__ import annotations

from ..building.joining import either
from ..building.scalars import Scalar, const
from ..building.shaping import pad, reshape, slice_axis, transpose, unsqueeze
from ..parts.fourier import half, transformed
from ..registry import Node, lowers
from ..values import symbolic
from ..values.element_types import F32, F64, INDEX, ElementType
from ..values.symbolic import ONE, ZERO, Dim, product
from ..values.value import Value


@lowers("DFT")
def dft(node: Node) -> Value:
    x = node.input(0)
    if x.rank < 2 or not x.dtype.is_float:
        raise node.error(f"its input must be floats, with real and imaginary parts last, not {x}")
    if node.version < 20:
        return _along(node, x, _checked(node, node.int("axis", 1), x.rank))
    axis = _number(node, 2)
    number = -2 if axis is None else axis.value
    if number is not None:
        return _along(node, x, _checked(node, number, x.rank))
    assert axis is not None
    made = Value(x.dtype, x.dims, ssa=node.b.tensor(x))
    possible = [i for i in range(x.rank - 1) if _length(node, x, i).value != 0]
    if not possible:
        raise node.error(f"{x} has no axis that can be transformed")
    return _along_one_of(node, made, axis, possible)


def _checked(node: Node, axis: int, rank: int) -> int:
    counted = node.counted(axis, rank)
    if counted == rank - 1:
        raise node.error("the last axis has real and imaginary parts: it is not transformed")
    return counted


def _along_one_of(node: Node, x: Value, axis: Dim, possible: list[int]) -> Value:
    """Along an axis that a run knows, which must be one of `possible`."""
    *others, last = possible
    is_last = _is_one_of(axis, (last, last - x.rank))
    if not others:
        node.b.require(is_last, f"the axis is out of range for {x}")
        return _along(node, x, last)
    (result,) = either(
        node,
        is_last,
        lambda: [_along(node, x, last)],
        lambda: [_along_one_of(node, x, axis, others)],
    )
    assert isinstance(result, Value)
    return result


def _length(node: Node, x: Value, axis: int) -> Dim:
    """The length of the transform: given, or that of the axis."""
    given = _number(node, 1)
    if given is not None:
        return given
    own = x.dims[axis]
    return (own - 1) * 2 if node.int("inverse", 0) and node.int("onesided", 0) else own


def _is_one_of(dim: Dim, numbers: tuple[int, int]) -> Dim:
    return symbolic.call("or", *(symbolic.is_equal(dim, Dim.of(n)) for n in numbers))


def _along(node: Node, x: Value, axis: int) -> Value:
    """The transform along `axis`, not negative, that the attributes of DFT describe."""
    return transform_along(
        node, x, axis, _length(node, x, axis),
        inverse=bool(node.int("inverse", 0)), one_sided=bool(node.int("onesided", 0)),
    )  # fmt: skip


def transform_along(
    node: Node, x: Value, axis: int, length: Dim, *, inverse: bool, one_sided: bool
) -> Value:
    """The transform along `axis` of x, whose last axis has real and imaginary parts.

    `one_sided`: the first half of the frequencies, which those of a real signal are given by. An
    inverse transform is divided by its length.
    """
    b = node.b
    from_half = inverse and one_sided
    b.require(symbolic.is_less(ZERO, length), "the length of the transform must be positive")
    parts = _parts(node, x, axis, real_only=one_sided and not inverse)
    parts = _fitted(node, parts, half(length) if from_half else length)
    rows = product(parts.dims[:-2])
    flat = reshape(b, parts, [rows, *parts.dims[-2:]])
    if from_half:
        flat = _mirrored(node, flat, length)
    result = transformed(b, flat, 1 if inverse else -1)
    if inverse:
        scale = b.scalar(length).cast(result.dtype)
        result = b.elementwise([result], result.dtype, lambda v: v / scale)
    if from_half:
        result = slice_axis(b, result, 1, 0, 1)
    if one_sided and not inverse:
        result = slice_axis(b, result, 2, 0, half(length))
    whole = reshape(b, result, [*parts.dims[:-2], *result.dims[1:]])
    return _back(node, whole, axis, x.dtype)


def _parts(node: Node, x: Value, axis: int, *, real_only: bool) -> Value:
    """[..., parts, n] of a signal [..., n, ..., parts], of f32 or f64 elements."""
    b = node.b
    dtype = F64 if x.dtype is F64 else F32
    wide = Value(dtype, x.dims, ssa=b.tensor(x))
    count = x.dims[-1]
    if count.value not in (None, 1, 2):
        raise node.error(f"the last axis of {x} must be 1 or 2, real and imaginary parts")
    order = [i for i in range(x.rank - 1) if i != axis]
    if real_only:
        b.require_equal(count, ONE, "a one-sided transform takes real signals")
        wide = slice_axis(b, wide, x.rank - 1, 0, 1)
    elif count.value is None:
        wide = _complex(node, wide, count)
    return transpose(b, wide, [*order, x.rank - 1, axis])


def _complex(node: Node, x: Value, count: Dim) -> Value:
    """Both parts of a signal of which only a run knows whether it has an imaginary one."""
    b = node.b
    last = x.rank - 1
    inside = symbolic.call("or", symbolic.is_equal(count, ONE), symbolic.is_equal(count, Dim.of(2)))
    b.require(inside, f"the last axis of {x} must be 1 or 2, real and imaginary parts")
    single = b.truth(symbolic.is_equal(count, ONE))

    def body(indices: list[Scalar]) -> Scalar:
        *lead, part = indices
        value = b.read(x, [*lead, single.select(const(0, INDEX), part)])
        return (single & (part == 1)).select(value.like(0), value)

    return b.tabulate([*x.dims[:last], Dim.of(2)], x.dtype, body)


def _fitted(node: Node, x: Value, length: Dim) -> Value:
    """Cut, or lengthened by zeros, along the last axis."""
    own = x.dims[-1]
    if own == length:
        return x
    kept = symbolic.minimum(own, length)
    cut = slice_axis(node.b, x, x.rank - 1, 0, kept)
    zeros = [0] * (x.rank - 1)
    return pad(node.b, cut, [*zeros, 0], [*zeros, length - kept])


def _mirrored(node: Node, x: Value, length: Dim) -> Value:
    """All frequencies of a real signal from the first half: the others are their conjugates."""
    b = node.b
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    known, total = b.scalar(x.dims[2]), b.scalar(length)
    single = x.dims[1] == ONE

    def body(indices: list[Scalar]) -> Scalar:
        row, part, k = indices
        given = k < known
        value = b.read(
            source, [row, const(0, INDEX) if single else part, given.select(k, total - k)]
        )
        if single:
            return (part == 0).select(value, value.like(0))
        return (given | (part == 0)).select(value, -value)

    return b.tabulate([x.dims[0], Dim.of(2), length], x.dtype, body)


def _back(node: Node, x: Value, axis: int, dtype: ElementType) -> Value:
    """[..., parts, n] with n at `axis` and the parts last, as `dtype`."""
    last = x.rank - 1
    order = list(range(last - 1))
    order.insert(axis, last)
    result = transpose(node.b, x, [*order, last - 1])
    return Value(dtype, result.dims, ssa=node.b.tensor(result))


@lowers("STFT")
def stft(node: Node) -> Value:
    """Transforms of windows of a signal [batch, length, 1 or 2], one every `frame_step`.

    A real signal without its last axis is taken too, as exporters write it for onnxruntime.
    """
    b, x, window = node.b, node.input(0), node.optional(2)
    if x.rank == 2:
        x = unsqueeze(b, x, [2])
    if x.rank != 3:
        raise node.error(f"its signal must have three axes, it is {x}")
    step = _number(node, 1)
    length = _number(node, 3)
    if step is None:
        raise node.error("frame_step is missing")
    if length is None:
        length = window.dims[0] if window is not None else x.dims[1]
    one_sided = bool(node.int("onesided", 1))
    b.require(symbolic.is_less(ZERO, step), "frame_step must be positive")
    b.require(symbolic.is_less(ZERO, length), "frame_length must be positive")
    if window is not None:
        b.require_equal(window.dims[0], length, "the window must be as long as a frame")
    parts = _parts(node, x, 1, real_only=one_sided)  # batch, parts, length
    frames = symbolic.maximum((x.dims[1] - length) // step + 1, ZERO)
    cut = _framed(node, parts, frames, step, length, window)
    flat = reshape(b, cut, [product(cut.dims[:2]), *cut.dims[2:]])
    result = transformed(b, flat, -1)
    if one_sided:
        result = slice_axis(b, result, 2, 0, half(length))
    whole = reshape(b, result, [*cut.dims[:2], *result.dims[1:]])
    return _back(node, whole, 2, x.dtype)


def _framed(
    node: Node, x: Value, frames: Dim, step: Dim, length: Dim, window: Value | None
) -> Value:
    """[batch, frames, parts, length]."""
    b = node.b
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    weights = None
    if window is not None:
        weights = Value(x.dtype, window.dims, ssa=b.tensor(window))
    hop = b.scalar(step)

    def body(indices: list[Scalar]) -> Scalar:
        batch, frame, part, at = indices
        value = b.read(source, [batch, part, frame * hop + at])
        return value if weights is None else value * b.read(weights, [at])

    return b.tabulate([x.dims[0], frames, x.dims[1], length], x.dtype, body)


@lowers("MelWeightMatrix")
def mel_weight_matrix(node: Node) -> Value:
    """Triangles over the frequencies of a transform, [dft_length // 2 + 1, num_mel_bins]."""
    b = node.b
    bins, length, rate = (_needed(node, i) for i in range(3))
    dtype = node.type_of("output_datatype", 1)
    low, high = (b.item(_scalar(node, i)).cast(F64) for i in (3, 4))
    low_mel, high_mel = _mel(low), _mel(high)
    step = (high_mel - low_mel) / b.scalar(bins + 2).cast(F64)
    samples, rate_ = b.scalar(length + 1).cast(F64), b.scalar(rate).cast(F64)

    def frequency(number: Scalar) -> Scalar:
        """The transform's frequency at which triangle `number` - 1 has its top."""
        hertz = (const(10.0, F64).power((number.cast(F64) * step + low_mel) / 2595.0) - 1.0) * 700.0
        return (samples * hertz / rate_).floor()

    edges = b.tabulate([bins + 2], F64, lambda at: frequency(at[0]))

    def body(indices: list[Scalar]) -> Scalar:
        at = indices[0].cast(F64)
        left, top, right = (b.read(edges, [indices[1] + i]) for i in range(3))
        rising = ((at >= left) & (at <= top)).select((at - left) / (top - left), at.like(0))
        rising = (top == left).select((at == top).select(at.like(1), at.like(0)), rising)
        falling = ((at >= top) & (at < right)).select((right - at) / (right - top), rising)
        return falling.cast(dtype)

    return b.tabulate([half(length), bins], dtype, body)


def _number(node: Node, i: int) -> Dim | None:
    """The one integer that input `i` is, read by the run where nothing else knows it."""
    return node.b.integers(_scalar(node, i))[0] if node.given(i) else None


def _needed(node: Node, i: int) -> Dim:
    dim = _number(node, i)
    if dim is None:
        raise node.error(f"input {i} is missing")
    return dim


def _scalar(node: Node, i: int) -> Value:
    return reshape(node.b, node.input(i), [])


def _mel(hertz: Scalar) -> Scalar:
    return (hertz / 700.0 + 1.0).log() * (2595.0 / 2.302585092994046)
