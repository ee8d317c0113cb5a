"""Normalizations whose rows go into packed rows at once: one launch, and a row is read once.

    NormPackKernel    (i, x, residual, weight, bias, y, sum: memref<?xf32>,
                       q: memref<?xi8>, ..., rows: index, epsilon: f32)
        Rows from i * ROWS on: x' = x + residual, which `sum` gets; of layer norms the mean is taken
        off x'; then y = x' / sqrt(mean of x'^2 + epsilon) * weight + bias, packed in one or several
        ways, a q for each.

Buffers that a spec does not have are left out, y among them where nobody else reads it. The row
stays in a buffer on the stack between the passes over it. Sums are those of 16 lanes, then a tree
over the lanes: every instruction set gives the same bits, and packed rows are what the pack kernels
make of y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.strategy import Kernel
from abqc.dialects.norm_spec import MAX_COLUMNS, NormSpec

from .activations import ROWS, RowsKernel
from .quantize_row import LANES, sweep


def norm_pack_kernel(norm: NormSpec, packs: Sequence[Kernel], *, keeps_row: bool) -> Kernel | None:
    """The kernel of rows that are normalized and then packed as `packs` do; None where rows are too
    long for it, or one of the packs is of another kind."""
    rows = tuple(pack for pack in packs if isinstance(pack, RowsKernel))
    if len(rows) < len(packs) or norm.columns > MAX_COLUMNS:
        return None
    body = NormPackKernel(norm, rows, keeps_row)
    uses = frozenset[str]().union(*(pack.uses for pack in rows))
    return Kernel(body.name, (ROWS,), partial(_emit, body), uses=uses)


def _emit(body: NormPackKernel, module: Any, isa: Any) -> None:
    body.emit(module, isa)


@dataclass(frozen=True)
class NormPackKernel:
    """See the module."""

    norm: NormSpec
    packs: tuple[RowsKernel, ...]
    keeps_row: bool

    @property
    def name(self) -> str:
        row = "_y" if self.keeps_row else ""
        return "_".join([self.norm.name + row, *(pack.name for pack in self.packs)])

    def emit(self, module: Any, isa: Any) -> None:
        names = self.norm.pointers(row=self.keeps_row)
        types = [buffer("f32")] * len(names) + [buffer("i8")] * len(self.packs) + [INDEX, "f32"]
        columns = self.norm.columns
        with function(module, isa, self.name, types) as (b, i, *pointers, rows, epsilon):
            first = i * ROWS
            normalized = b.alloca(columns, "f32")
            writers = [pack.body.writer_of(b, normalized) for pack in self.packs]
            buffers = dict(zip(names, pointers, strict=False))
            with b.loop(first, b.min(first + ROWS, rows)) as loop:
                row = _Row(b, self.norm, buffers, loop.i * columns, normalized)
                row.normalize(epsilon)
                for write, q in zip(writers, pointers[len(names) :], strict=True):
                    write(b.index(0), q, loop.i)


@dataclass(frozen=True)
class _Row:
    """The row of `buffers` that begins at element `begin`, on its way into `normalized`."""

    b: Builder
    norm: NormSpec
    buffers: dict[str, Value]
    begin: Value
    normalized: Value

    def normalize(self, epsilon: Value) -> None:
        b, columns = self.b, float(self.norm.columns)
        total = self._summands()
        if self.norm.kind == "layer":
            total = self._squares_about(total / columns)
        self._scale(b.const(1.0, "f32") / b.sqrt(total / columns + epsilon))

    def _summands(self) -> Value:
        """x + residual, kept where others need it; its sum, or of RMS norms that of its squares."""
        b = self.b

        def add(i: Value, mask: Value | None, total: Value) -> list[Value]:
            x = b.load(self.buffers["x"], self.begin + i, LANES, mask)
            if "residual" in self.buffers:
                x = x + b.load(self.buffers["residual"], self.begin + i, LANES, mask)
            if "sum" in self.buffers:
                b.store(x, self.buffers["sum"], self.begin + i, mask)
            b.store(x, self.normalized, i, mask)
            return [total + (x if self.norm.kind == "layer" else x * x)]

        return self._total(add)

    def _squares_about(self, mean: Value) -> Value:
        """Takes the mean off; the sum of squares."""
        b, means = self.b, self.b.splat(mean, LANES)

        def subtract(i: Value, mask: Value | None, total: Value) -> list[Value]:
            x = b.load(self.normalized, i, LANES, mask) - means
            b.store(x, self.normalized, i, mask)
            if mask is not None:
                x = b.select(mask, x, b.const(0.0, x.type))
            return [total + x * x]

        return self._total(subtract)

    def _scale(self, factor: Value) -> None:
        b, factors = self.b, self.b.splat(factor, LANES)

        def scale(i: Value, mask: Value | None) -> tuple[()]:
            y = b.load(self.normalized, i, LANES, mask) * factors
            if "weight" in self.buffers:
                y = y * b.load(self.buffers["weight"], i, LANES, mask)
            if "bias" in self.buffers:
                y = y + b.load(self.buffers["bias"], i, LANES, mask)
            b.store(y, self.normalized, i, mask)
            if "y" in self.buffers:
                b.store(y, self.buffers["y"], self.begin + i, mask)
            return ()

        self._sweep(scale, [])

    def _total(self, body: Any) -> Value:
        (lanes,) = self._sweep(body, [self.b.const(0.0, vec(LANES, "f32"))])
        while lanes.lanes > 1:
            half = lanes.lanes // 2
            lanes = self.b.slice(lanes, 0, half) + self.b.slice(lanes, half, half)
        return self.b.extract(lanes, 0)

    def _sweep(self, body: Any, carry: list[Value]) -> list[Value]:
        columns = self.norm.columns
        return sweep(self.b, self.b.index(columns), columns % LANES == 0, body, carry)
