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
TILE = 4  # vectors
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

        begin, several = self._greatest_of_tiles([lowest] * TILE)
        (lanes,) = self._sweep(greater, [several], begin)
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

    def _greatest_of_tiles(self, carried: list[Value]) -> tuple[Value, Value]:
        """The greatest elements, by lanes, of as many tiles as the row has, and where these end:
        vectors that do not wait for each other."""
        b, step = self.b, TILE * LANES
        end = self.begin + self.columns // step * step
        with b.loop(self.begin, end, step, carry=carried) as loop:
            vectors = [b.load(self.x, loop.i + v * LANES, LANES) for v in range(TILE)]
            loop.carry(*(b.max(x, m) for x, m in zip(vectors, loop.args, strict=True)))
        first, *others = loop.results
        for other in others:
            first = b.max(other, first)
        return end, first

    def _sweep(
        self,
        body: Callable[..., list[Value]],
        carried: Sequence[Value],
        begin: Value | None = None,
    ) -> Sequence[Value]:
        """`body(place, mask, *carried)` for vectors of the row, from `begin` on; what the last one
        gives."""
        b, end = self.b, self.begin + self.columns
        rest = self.columns % LANES
        whole = end - rest
        with b.loop(self.begin if begin is None else begin, whole, LANES, carry=carried) as loop:
            loop.carry(*body(loop.i, None, *loop.args))
        done = loop.results

        def last() -> list[Value]:
            return body(whole, b.mask(LANES, rest), *done)

        return b.either(rest != 0, [value.type for value in done], last, lambda: done)
