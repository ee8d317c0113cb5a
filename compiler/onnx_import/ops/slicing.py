"""Slice: parts of a tensor, from `start` to before `end` in steps of `step` along each axis.

And UnfoldTensor: all slices of one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import slice_axes
from ..registry import MICROSOFT, Node, lowers
from ..values import symbolic
from ..values.constants import Constant
from ..values.symbolic import ONE, ZERO, Dim
from ..values.value import Value, constant_value
from .shape import run_time_axes

# From this size on a number says "to the end", as exporters write it: the largest of 32 bits is one
# of them. Real axes are shorter, which is checked.
ENDLESS = (1 << 31) - 1


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
    parts = list(zip(starts, ends, steps, strict=True))
    for axis, part in enumerate(by_axis(node, x.rank, axes, parts)):
        for here, (start, end, step) in part:
            node.b.require(symbolic.negated(symbolic.is_equal(step, ZERO)), "a step is 0")
            begin, size = bounds(node.b, x.dims[axis], start, end, step)
            begins[axis] = symbolic.select(here, begin, begins[axis])
            sizes[axis] = symbolic.select(here, size, sizes[axis])
            strides[axis] = symbolic.select(here, step, strides[axis])
    return strided(node.b, x, begins, sizes, strides)


def by_axis(
    node: Node, rank: int, axes: Sequence[Dim], parts: Sequence[tuple[Dim, ...]]
) -> list[list[tuple[Dim, tuple[Dim, ...]]]]:
    """For every axis of a tensor the parts that may be meant for it, each with the condition.

    `parts` are the settings of `axes`, one each. Where an axis is known, the condition is 1.
    """
    found: list[list[tuple[Dim, tuple[Dim, ...]]]] = [[] for _ in range(rank)]
    for wanted, part in zip(axes, parts, strict=True):
        number = wanted.value
        if number is None:
            for axis, flag in enumerate(run_time_axes(node, [wanted], rank)):
                found[axis].append((flag, part))
            continue
        axis = node.counted(number, rank)
        if found[axis]:
            raise node.error(f"axes {', '.join(map(str, axes))} name one twice")
        found[axis].append((ONE, part))
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
        part = elements.reshape(x.static_shape)[_slices(known)]
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


@lowers("UnfoldTensor", domain=MICROSOFT)
def unfold_tensor(node: Node) -> Value:
    """All slices of `size` elements along `dim`, one every `step`; a new last axis has theirs."""
    x, b = node.input(0), node.b
    axis, size, step = node.axis("dim", x.rank, -1), node.int("size"), node.int("step", 1)
    if size < 1 or step < 1:
        raise node.error(f"its slices have {size} elements, one every {step}")
    length = x.dims[axis]
    b.require(symbolic.negated(symbolic.is_less(length, Dim.of(size))),
              f"slices of {size} are longer than axis {axis} of {x}")  # fmt: skip
    source = Value(x.dtype, x.dims, ssa=b.tensor(x))
    dims = [*x.dims[:axis], (length - size) // step + 1, *x.dims[axis + 1 :], Dim.of(size)]

    def body(at: list[Scalar]) -> Scalar:
        *places, offset = at
        places[axis] = places[axis] * step + offset
        return b.read(source, places)

    return b.tabulate(dims, x.dtype, body)
