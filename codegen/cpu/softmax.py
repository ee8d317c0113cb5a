"""Softmax over rows.

    softmax (i, x: memref<?xf32>, y: memref<?xf32>, columns)                 grid = rows

Three sweeps over a row: its greatest element; exp(x - greatest), kept in y, and its sum; the
quotient. A row is read from memory once and written once while it fits the cache with its result.
The last argument is also what one grid index touches (passes/kernels/launch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..isa import Isa
from ..strategy import Kernel
from .attention.online import MINUS_INFINITY, across
from .exponential import exp_of_negative

LANES = 16
NAME = "softmax"


def softmax_kernel() -> Kernel:
    """A grid index a row, of any length. See the file's head."""
    return Kernel(NAME, (1,), _emit)


def _emit(module: Any, isa: Isa) -> None:
    floats = buffer("f32")
    with function(module, isa, NAME, [floats, floats, INDEX]) as (b, i, x, y, columns):
        _Row(b, x, y, i * columns, columns).emit()


@dataclass(frozen=True)
class _Row:
    """The row of `columns` elements from element `begin` on."""

    b: Builder
    x: Value
    y: Value
    begin: Value
    columns: Value

    def emit(self) -> None:
        b, floats = self.b, vec(LANES, "f32")
        # A NaN does not count here: it makes the sum one.
        lowest, zeros = b.const(MINUS_INFINITY, floats), b.const(0.0, floats)

        def greater(at: Value, mask: Value | None, greatest: Value) -> list[Value]:
            x = b.load(self.x, at, LANES, mask)
            return [b.max(x if mask is None else b.select(mask, x, lowest), greatest)]

        (lanes,) = self._sweep(greater, [lowest])
        greatest = b.splat(across(b, lanes, b.max), LANES)

        def add(at: Value, mask: Value | None, total: Value) -> list[Value]:
            power = exp_of_negative(b, b.load(self.x, at, LANES, mask) - greatest)
            b.store(power, self.y, at, mask)
            return [total + (power if mask is None else b.select(mask, power, zeros))]

        (lanes,) = self._sweep(add, [zeros])
        # At least 1: the greatest element's own.
        factor = b.const(1.0, "f32") / across(b, lanes, lambda one, other: one + other)
        factors = b.splat(factor, LANES)

        def scale(at: Value, mask: Value | None) -> list[Value]:
            b.store(b.load(self.y, at, LANES, mask) * factors, self.y, at, mask)
            return []

        self._sweep(scale, [])

    def _sweep(self, body: Callable[..., list[Value]], carried: Sequence[Value]) -> Sequence[Value]:
        """`body(place, mask, *carried)` for vectors of the row; what the last one gives."""
        b, end = self.b, self.begin + self.columns
        rest = self.columns % LANES
        whole = end - rest
        with b.loop(self.begin, whole, LANES, carry=carried) as loop:
            loop.carry(*body(loop.i, None, *loop.args))
        done = loop.results

        def last() -> list[Value]:
            return body(whole, b.mask(LANES, rest), *done)

        return b.either(rest != 0, [value.type for value in done], last, lambda: done)
