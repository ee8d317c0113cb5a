"""What a loop carries from one iteration to the next.

A value that the body hands back as it got it is no part of the loop: constants stay constants.
Numbers that are known as polynomials over sizes (counters, lengths) are carried as indices, so that
slices and shapes inside of the body have them. All others are tensors; an axis whose size changes
has a run-time size.

Which it is shows the body only. `Form` is a guess that begins with the least and grows until the
body confirms it: a guess that holds for one iteration by induction holds for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from abqc.dialects.mlir import ir, tensor

from ..values import symbolic
from ..values.element_types import INDEX
from ..values.symbolic import Dim
from ..values.value import Value
from .emit import DYNAMIC, Builder
from .regions import owned
from .scalars import Scalar

MAX_NUMBERS = 16  # a longer list of integers is a tensor


class Kind(Enum):
    FIXED = 0  # the same value in all iterations
    NUMBERS = 1  # indices
    TENSOR = 2


@dataclass(frozen=True)
class Form:
    """How a value is carried. `naturals`: numbers that are surely not negative. `open_axes`: axes
    whose size may change."""

    kind: Kind = Kind.FIXED
    naturals: tuple[bool, ...] = ()
    open_axes: frozenset[int] = frozenset()

    def width(self) -> int:
        """The number of SSA values."""
        return {Kind.FIXED: 0, Kind.NUMBERS: len(self.naturals), Kind.TENSOR: 1}[self.kind]


def widened(form: Form, init: Value, given: Value, returned: Value) -> Form:
    """The form that also holds for an iteration which got `given` and handed back `returned`.

    Types and ranks are equal.
    """
    if form.kind is Kind.FIXED:
        if returned is given or _same_numbers(given, returned):
            return form
        if _are_numbers(init) and _are_numbers(returned) and init.dims == returned.dims:
            assert init.symbols is not None
            form = Form(Kind.NUMBERS, tuple(map(symbolic.is_natural, init.symbols)))
    if form.kind is Kind.NUMBERS and _are_numbers(returned) and returned.dims == init.dims:
        assert returned.symbols is not None
        kept = zip(form.naturals, returned.symbols, strict=True)
        return replace(form, naturals=tuple(n and symbolic.is_natural(x) for n, x in kept))
    before = given.dims if form.kind is Kind.TENSOR else init.dims
    changed = [axis for axis, dim in enumerate(before) if dim != returned.dims[axis]]
    return Form(Kind.TENSOR, open_axes=form.open_axes.union(changed))


def fitting(form: Form, init: Value) -> Form:
    """A form that held for another beginning, as wide as `init` needs it."""
    if form.kind is not Kind.NUMBERS:
        return form
    if not _are_numbers(init) or init.symbols is None or len(init.symbols) != form.width():
        return Form(Kind.TENSOR)
    kept = zip(form.naturals, init.symbols, strict=True)
    return replace(form, naturals=tuple(n and symbolic.is_natural(x) for n, x in kept))


def _are_numbers(value: Value) -> bool:
    symbols = value.symbols
    return symbols is not None and value.rank <= 1 and len(symbols) <= MAX_NUMBERS


def _same_numbers(a: Value, b: Value) -> bool:
    return a.dims == b.dims and _are_numbers(a) and a.symbols == b.symbols


@dataclass(frozen=True)
class Carried:
    """A value that a loop begins with, and the form in which it is carried."""

    init: Value
    form: Form

    def types(self, b: Builder) -> list[ir.Type]:
        if self.form.kind is Kind.NUMBERS:
            return [ir.IndexType.get()] * self.form.width()
        return [self._type()] if self.form.kind is Kind.TENSOR else []

    def _type(self) -> ir.RankedTensorType:
        sizes = [
            DYNAMIC if dim.value is None or axis in self.form.open_axes else dim.value
            for axis, dim in enumerate(self.init.dims)
        ]
        return ir.RankedTensorType.get(sizes, self.init.dtype.inside())

    def operands(self, b: Builder, value: Value) -> list[ir.Value]:
        """`value`, the first or what an iteration returns, as the loop takes it."""
        if self.form.kind is Kind.NUMBERS:
            assert value.symbols is not None
            return [b.index(dim) for dim in value.symbols]
        return [owned(b, value, self._type())] if self.form.kind is Kind.TENSOR else []

    def value(self, b: Builder, ssa: Sequence[ir.Value]) -> Value:
        """The value that arguments or results of the loop stand for."""
        if self.form.kind is Kind.FIXED:
            return self.init
        if self.form.kind is Kind.NUMBERS:
            numbers = [
                b.run_time(Scalar(x, INDEX), natural=natural)
                for x, natural in zip(ssa, self.form.naturals, strict=True)
            ]
            return Value(self.init.dtype, self.init.dims, content=tuple(numbers))
        dims: list[Dim] = list(self.init.dims)
        for axis in sorted(self.form.open_axes):
            dims[axis] = b.run_time(tensor.DimOp(ssa[0], b.index(axis)).result)
        return b.made(ssa[0], self.init.dtype, dims)
