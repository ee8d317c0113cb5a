"""`Layout`: a nested shape and, in the same nesting, strides.

A layout of shape ((2, 4), 8) is called with a coordinate of that nesting, with one number per mode,
or with one number for all: numbers unfold with the leftmost mode running fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

IntTuple: TypeAlias = "int | tuple[IntTuple, ...]"


class LayoutError(ValueError):
    """A layout that cannot be, or a coordinate that it does not have."""


def flatten(x: IntTuple) -> tuple[int, ...]:
    """The leaves, left to right."""
    if isinstance(x, int):
        return (x,)
    return tuple(leaf for part in x for leaf in flatten(part))


def product(x: IntTuple) -> int:
    return math.prod(flatten(x))


def _same_nesting(a: IntTuple, b: IntTuple) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int)
    return len(a) == len(b) and all(_same_nesting(x, y) for x, y in zip(a, b, strict=True))


def _offset(coordinate: IntTuple, shape: IntTuple, stride: IntTuple) -> int:
    if isinstance(shape, int) or isinstance(stride, int):
        if not (isinstance(coordinate, int) and isinstance(stride, int)):
            raise LayoutError(f"coordinate {coordinate} is nested deeper than shape {shape}")
        return coordinate * stride
    if isinstance(coordinate, int):
        coordinate = unfold(coordinate, shape)
    assert isinstance(coordinate, tuple)
    if len(coordinate) != len(shape):
        raise LayoutError(f"coordinate {coordinate} does not fit shape {shape}")
    return sum(_offset(*mode) for mode in zip(coordinate, shape, stride, strict=True))


def unfold(index: int, shape: IntTuple) -> IntTuple:
    """The coordinate of `index`, nested as `shape`; the last mode takes what is left over."""
    if isinstance(shape, int):
        return index
    coordinate = []
    for part in shape[:-1]:
        coordinate.append(unfold(index % product(part), part))
        index //= product(part)
    return (*coordinate, unfold(index, shape[-1]))


@dataclass(frozen=True)
class Layout:
    """The function coordinate -> sum of coordinate * stride over `shape`."""

    shape: IntTuple
    stride: IntTuple

    def __post_init__(self) -> None:
        if not _same_nesting(self.shape, self.stride):
            raise LayoutError(f"shape {self.shape} and stride {self.stride} are nested differently")
        if any(size < 1 for size in flatten(self.shape)):
            raise LayoutError(f"shape {self.shape} has an empty mode")

    def __call__(self, *coordinate: IntTuple) -> int:
        whole = coordinate[0] if len(coordinate) == 1 else coordinate
        return _offset(whole, self.shape, self.stride)

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return product(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape) if isinstance(self.shape, tuple) else 1

    def __getitem__(self, mode: int) -> Layout:
        if isinstance(self.shape, int) or isinstance(self.stride, int):
            if mode not in (0, -1):
                raise IndexError(f"{self} has one mode")
            return self
        return Layout(self.shape[mode], self.stride[mode])

    def __str__(self) -> str:
        return f"{_text(self.shape)}:{_text(self.stride)}"


def _text(x: IntTuple) -> str:
    return str(x) if isinstance(x, int) else "(" + ",".join(_text(part) for part in x) + ")"
