"""Slice: parts of a tensor, from `start` to before `end` in steps of `step` along each axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .. import symbolic
from ..constants import Constant
from ..emit import Builder
from ..registry import Node, lowers
from ..shaping import slice_axes
from ..symbolic import ONE, ZERO, Dim
from ..values import Value, constant_value

# From this size on a number says "to the end", as exporters write it: the largest of 32 bits is one
# of them. Real axes are shorter, which is checked.
ENDLESS = (1 << 31) - 1

Part = tuple[Dim, Dim, Dim]  # start, end and step


@lowers("Slice")
def lower_slice(node: Node) -> Value:
    x = node.input(0)
    starts, ends = _numbers(node, "starts", 1), _numbers(node, "ends", 2)
    if starts is None or ends is None:
        raise node.error("it needs starts and ends")
    axes = _numbers(node, "axes", 3) or [Dim.of(axis) for axis in range(len(starts))]
    steps = node.dims_of(4) or [ONE] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise node.error("starts, ends, axes and steps differ in number")
    begins, sizes, strides = [ZERO] * x.rank, list(x.dims), [ONE] * x.rank
    for axis, part in enumerate(_by_axis(node, x, axes, zip(starts, ends, steps, strict=True))):
        if part is not None:
            start, end, step = part
            node.b.require(symbolic.negated(symbolic.is_equal(step, ZERO)), "a step is 0")
            begins[axis], sizes[axis] = bounds(node.b, x.dims[axis], start, end, step)
            strides[axis] = step
    return strided(node.b, x, begins, sizes, strides)


def _by_axis(node: Node, x: Value, axes: Sequence[Dim], parts: Iterable[Part]) -> list[Part | None]:
    """Start, end and step along every axis; None where nothing is cut."""
    found: list[Part | None] = [None] * x.rank
    for wanted, part in zip(axes, parts, strict=True):
        number = wanted.value
        if number is not None:
            axis = node.counted(number, x.rank)
            if found[axis] is not None:
                raise node.error(f"axes {list(map(str, axes))} name one twice")
            found[axis] = part
            continue
        low, high = Dim.of(-x.rank - 1), Dim.of(x.rank)
        inside = symbolic.call("and", symbolic.is_less(low, wanted), symbolic.is_less(wanted, high))
        node.b.require(inside, f"an axis is out of range for a tensor of rank {x.rank}")
        for axis, size in enumerate(x.dims):
            here = symbolic.call(
                "or",
                symbolic.is_equal(wanted, Dim.of(axis)),
                symbolic.is_equal(wanted, Dim.of(axis - x.rank)),
            )
            start, end, step = part
            before = found[axis] or (ZERO, size, ONE)
            found[axis] = (
                symbolic.select(here, start, before[0]),
                symbolic.select(here, end, before[1]),
                symbolic.select(here, step, before[2]),
            )
    return found


def _numbers(node: Node, name: str, i: int) -> list[Dim] | None:
    if node.has(name):
        return [Dim.of(number) for number in node.ints(name)]
    return node.dims_of(i)


def bounds(b: Builder, size: Dim, start: Dim, end: Dim, step: Dim) -> tuple[Dim, Dim]:
    """The first place and the number of places that a slice of an axis takes.

    ONNX clamps both ends to the axis: to [0, size] for steps forward, for steps backward `start` to
    [0, size - 1] and `end` to [-1, size - 1].
    """
    forward = symbolic.negated(symbolic.is_less(step, ZERO))
    first, last = _counted(b, size, start), _counted(b, size, end)
    begin = symbolic.select(
        forward,
        symbolic.clamp(first, 0, size),
        symbolic.minimum(symbolic.maximum(first, ZERO), size - 1),
    )
    stop = symbolic.select(
        forward,
        symbolic.clamp(last, 0, size),
        symbolic.minimum(symbolic.maximum(last, Dim.of(-1)), size - 1),
    )
    return begin, symbolic.maximum(symbolic.ceildiv(stop - begin, step), ZERO)


def _counted(b: Builder, size: Dim, place: Dim) -> Dim:
    """A place counted from the front; what lies surely outside of the axis just outside of it."""
    number = place.value
    if number is None:
        negative = symbolic.is_less(place, ZERO)
        return symbolic.select(negative, place + size, place)
    if abs(number) >= ENDLESS:
        b.require(symbolic.negated(symbolic.is_less(Dim.of(ENDLESS), size)), "an axis is too long")
        return size if number > 0 else Dim.of(-1)
    return place + size if number < 0 else place


def strided(
    b: Builder, x: Value, begins: Sequence[Dim], sizes: Sequence[Dim], steps: Sequence[Dim]
) -> Value:
    """`x[begin + i * step]` for i < size along every axis, all places within x."""
    known = [(b.value, n.value, s.value) for b, n, s in zip(begins, sizes, steps, strict=True)]
    static = all(None not in numbers for numbers in known)
    if static and x.content is not None and None not in x.shape:
        elements = np.empty(len(x.content), dtype=object)
        elements[:] = x.content
        part = elements.reshape(x.shape)[_slices(known)]
        return Value(x.dtype, tuple(sizes), content=tuple(part.reshape(-1)))
    if static and x.constant is not None:
        return constant_value(part_of(x.constant, _slices(known)), x.dtype)
    strides = [step.value for step in steps]
    if all(stride is not None for stride in strides) and ZERO not in sizes:
        return slice_axes(b, x, begins, sizes, strides)  # type: ignore[arg-type]
    if ZERO in sizes:
        return Value(x.dtype, tuple(sizes), ssa=b.empty(x.dtype, sizes))
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    first, stride = [b.scalar(begin) for begin in begins], [b.scalar(step) for step in steps]
    return b.tabulate(
        sizes,
        x.dtype,
        lambda indices: b.read(
            source, [f + i * s for f, i, s in zip(first, indices, stride, strict=True)]
        ),
    )


def _slices(known: Sequence[tuple]) -> tuple[slice, ...]:
    slices = []
    for begin, size, step in known:
        stop = begin + size * step
        slices.append(slice(begin, stop if stop >= 0 else None, step) if size else slice(0, 0))
    return tuple(slices)


def part_of(constant: Constant, slices: tuple[slice, ...]) -> Constant:
    """A part of a constant, read when it is asked for."""
    load = constant.load
    shape = tuple(
        len(range(*part.indices(size))) for part, size in zip(slices, constant.shape, strict=True)
    )
    return Constant(shape, constant.elem_type, lambda: load()[slices])
