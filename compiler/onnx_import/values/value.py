"""A value of the model while it is lowered: element type, dims, and its content where known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from abqc.dialects.mlir import ir

from .constants import Constant, from_array
from .element_types import ElementType
from .symbolic import Dim, static_product

# Shape tensors longer than this are data.
MAX_CONTENT = 4096


@dataclass(frozen=True, eq=False)
class Steps:
    """The grid that all elements of a dequantized tensor lie on: `scale * (code - zero)`.

    The codes are integers of `dtype`; `scale` and `zero` (None: 0) have one element. Products of
    such a tensor with a weight of codes are products of integers.
    """

    dtype: ElementType
    scale: Value
    zero: Value | None


@dataclass(frozen=True, eq=False)
class RoundedRows:
    """What a tensor's rows (the last axis) are rounded from, in the model itself: each row of
    `source` to symmetric codes of `bits` by its largest magnitude."""

    source: Value
    bits: int


@dataclass(eq=False)
class Value:
    """A tensor. At least one of `ssa`, `constant`, `content` and `make` says what is in it.

    `ssa` is a ranked tensor of `dtype.inside()` elements. `content` are the elements of an integer
    or bool tensor in row-major order, as polynomials over the sizes of the inputs: a shape tensor
    is never a tensor of the IR unless something reads it as one (`Builder.tensor`). `make` builds
    the tensor where something reads it. `in_f32` are the elements of an integer tensor as f32,
    rounded, where a product has made them so. `stored` is a tensor of 16-bit floats as it lies in
    memory (STORED_HALVES), where no arithmetic has touched it since it came in: caches and what
    is moved from them stay in 16 bits, and products read them so.
    """

    dtype: ElementType
    dims: tuple[Dim, ...]
    ssa: ir.Value | None = None
    constant: Constant | None = None
    content: tuple[Dim, ...] | None = None
    steps: Steps | None = None
    rounded: RoundedRows | None = None
    make: Callable[[], ir.Value] | None = None
    in_f32: ir.Value | None = None
    stored: Value | None = None
    viewed: Value | None = None  # the tensor that this is a reshape of
    transposed: tuple[Value, tuple[int, ...]] | None = None  # what it permutes the axes of

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Static sizes, None for others."""
        return tuple(dim.value for dim in self.dims)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The sizes of a tensor all of which are static."""
        known = tuple(dim.value for dim in self.dims if dim.value is not None)
        assert len(known) == self.rank, f"{self} has sizes that are not static"
        return known

    @property
    def size(self) -> int | None:
        """The number of elements, where that is static."""
        return static_product(self.dims)

    @property
    def is_constant(self) -> bool:
        return self.as_constant is not None

    @cached_property
    def as_constant(self) -> Constant | None:
        """The value as a constant, content without symbols included."""
        if self.constant is not None or self.content is None:
            return self.constant
        numbers = [dim.value for dim in self.content]
        if None in numbers or None in self.shape:
            return None
        array = np.array(numbers, dtype=object).astype(self.dtype.dtype).reshape(self.static_shape)
        return from_array(array, self.dtype.onnx)

    def numpy(self) -> np.ndarray | None:
        """The elements, if constant."""
        constant = self.as_constant
        return None if constant is None else constant.load()

    @cached_property
    def symbols(self) -> tuple[Dim, ...] | None:
        """The elements as integers, where they are known: `content`, or that of a constant."""
        if self.content is not None:
            return self.content
        constant = self.constant
        if constant is None or constant.size > MAX_CONTENT or self.dtype.is_float:
            return None
        return tuple(Dim.of(int(number)) for number in constant.load().reshape(-1))

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.dims))}]"


@dataclass(eq=False)
class SequenceValue:
    """A sequence whose length is known: `elements` in order (ONNX's SequenceConstruct)."""

    elements: Sequence[Value] = field(default_factory=list)


@dataclass(eq=False)
class OptionalValue:
    """An optional that is known to hold `element`, or nothing."""

    element: Value | SequenceValue | None = None


AnyValue = Value | SequenceValue | OptionalValue


def constant_value(constant: Constant, dtype: ElementType) -> Value:
    dims = tuple(Dim.of(size) for size in constant.shape)
    return Value(dtype, dims, constant=constant)
