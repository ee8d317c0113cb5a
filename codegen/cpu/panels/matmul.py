"""Matmul kernels over panels: register tiles, zero points, scales, bias and ragged edges.

A strategy adds how the codes of a tile are multiplied (`PanelBody.products`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.dialects.mlir import ir

from ..grid_block import grid_block
from ..schedule import KernelSchedule
from .layout import PANEL, RowLayout, WeightLayout
from .scales import load_scales

T = TypeVar("T")

PREFETCHED_BYTES = 128 << 10  # panels of a tile of bytes, at most
PAGE_BYTES = 4096
PAGES_AHEAD = 16 << 10  # bytes


@dataclass(frozen=True)
class Tile:
    """`rows` x `panels` accumulators, `chains` of each so that latency is hidden; weights are
    fetched `prefetch` tiles ahead."""

    rows: int
    panels: int
    chains: int = 1
    prefetch: int = 0


@dataclass(frozen=True)
class Segment:
    """A segment of a tile: where its packed rows and its panels are, its group, its number of all
    segments and how many terms it has."""

    q_at: Sequence[Value]
    w_at: Sequence[Value]
    group: Value
    number: Value
    terms: Value


def prefetch_pays(weight: WeightLayout, rows: int, panels: int) -> bool:
    """Whether fetching the next tile's weights is the default.

    Panels are short streams to the prefetchers of CPUs, and decoding is slow ones. Of the time
    without, on Zen 4, a row takes 0.70 where K = 576 and 4 bits, 0.72 to 0.85 where K = 4096
    and 3 bits or fewer; 4 rows of 4 bits 0.77. Long panels that are decoded as fast as they
    come lose by it: 1.1 for a row of 4 bits and K = 4096, 1.15 for 4 rows of 8.
    """
    fast_bits = 4 if rows == 1 else 8
    return weight.value.bits < fast_bits or panels * weight.panel_bytes <= PREFETCHED_BYTES


@dataclass(frozen=True)
class PanelKernel:
    """One kernel: a grid index does `schedule.block` rows x channels, in register tiles.

    With `accumulators`, y is memref<?xi32> and gets acc [groups, m, n]; no scale and bias counts.
    """

    weight: WeightLayout
    row: RowLayout
    schedule: KernelSchedule
    accumulators: bool

    def body(self, isa: Isa) -> type[PanelBody]:
        raise NotImplementedError

    def tile(self, isa: Isa) -> Tile:
        schedule = self.schedule.on(isa)
        return Tile(schedule.tile_m, schedule.panels, schedule.chains, schedule.prefetch)

    @property
    def uses(self) -> frozenset[str]:
        """What its body is another one with (`isa.Use`)."""
        return frozenset()

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        result = buffer("i32" if self.accumulators else "f32")
        arguments = [buffer("i8"), buffer("i8"), buffer("f32"), result, INDEX, INDEX]
        with function(module, isa, name, arguments) as (b, i, q, w, bias, y, m, n):
            self.body(isa)(b, self, self.tile(isa), q, w, bias, y, m, n).emit(i)


class PanelBody:
    """The body of one kernel being emitted.

    A strategy's subclass has `products`; everything around it is the same for all.
    """

    def __init__(
        self,
        b: Builder,
        kernel: PanelKernel,
        tile: Tile,
        q: Value,
        w: Value,
        bias: Value,
        y: Value,
        m: Value,
        n: Value,
    ) -> None:
        self.b = b
        self.kernel = kernel
        self.tile = tile
        self.weight = kernel.weight
        self.reduction = kernel.weight.reduction
        self.row = kernel.row
        self.q, self.w, self.bias, self.y, self.m, self.n = q, w, bias, y, m, n
        self.last_row = m

    def emit(self, i: Value) -> None:
        b = self.b
        first_row, first_panel, last_panel, all_panels = self.block(i)
        with b.loop(first_panel, last_panel, self.tile.panels) as panels:
            w_at = self.panels_at(panels.i, all_panels)
            if self.tile.rows == self.tile.panels == 1 and not self.tile.prefetch:
                self._touch_pages(w_at[0])
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, panels.i, w_at)

    def _touch_pages(self, at: Value) -> None:
        """Fetch a line of each page that a stream of short panels comes to soon.

        CPUs prefetch within a page, and wait for the translation of the next one's address. Of the
        time without, on Zen 4, a row of K = 576 and 1536 takes 0.9 to 0.97 with 4 and 8 bits, if
        pages have 4 KiB, and no more if they are huge; long panels, whose pages would be asked for
        all at once, 1.05 to 1.1.
        """
        if self.weight.panel_bytes > 2 * PAGES_AHEAD:
            return
        for page in range(0, self.weight.panel_bytes, PAGE_BYTES):
            self.b.prefetch(self.w, at + (PAGES_AHEAD + page), locality=2)

    def block(self, i: Value) -> tuple[Value, Value, Value, Value]:
        """What grid index `i` does: its first row, its first panel and the one behind its last,
        and how many panels there are. `last_row` is set."""
        b = self.b
        rows, columns = grid_block(b, self.kernel.schedule, i, self.m, self.n)
        first_row, self.last_row = rows
        all_panels = (self.n + (PANEL - 1)) // PANEL
        last_panel = (columns[1] + (PANEL - 1)) // PANEL
        return first_row, columns[0] // PANEL, last_panel, all_panels

    def panels_at(self, panel: Value, all_panels: Value) -> list[Value]:
        """Where the panels of a tile are; those beyond the end repeat the last one."""
        b = self.b
        return [
            b.min(panel + c, all_panels - 1) * self.weight.panel_bytes
            for c in range(self.tile.panels)
        ]

    def prefetch_next(self, at: Value) -> None:
        """Where the schedule says so, fetch the line of a later tile's panels that lies where byte
        `at` does in this one's."""
        if self.tile.prefetch:
            self._prefetch(at, self.tile.prefetch)

    def _prefetch_group(self, at: Value) -> None:
        """Likewise, for what a panel has by groups: its streams are the shortest, always fetched.

        Of the time without, on Zen 4, a row of K = 4096 takes 0.84 to 0.92 with 1 to 4 bits.
        """
        if self.weight.block_groups:
            self.prefetch_next(at)
        elif self.reduction.n_groups > 1:
            self._prefetch(at, max(1, self.tile.prefetch))

    def _prefetch(self, at: Value, tiles: int) -> None:
        ahead = tiles * self.tile.panels * self.weight.panel_bytes
        self.b.prefetch(self.w, at + ahead, locality=2)

    def _rows_at(self, row: Value) -> list[Value]:
        """Where the packed rows of a tile are; rows beyond the end repeat the last one."""
        b = self.b
        return [
            (b.min(row + r, self.m - 1) if r else row) * self.row.row_bytes
            for r in range(self.tile.rows)
        ]

    def _tile(self, row: Value, panel: Value, w_at: Sequence[Value]) -> None:
        """One register tile. Rows and panels beyond the end repeat the last one, unstored."""
        b = self.b
        q_at = self._rows_at(row)
        if self.reduction.n_groups == 1:
            group = b.index(0)
            acc = self._group(q_at, w_at, group)
            self._store_one_group(acc, row, panel, q_at, w_at)
        elif self.kernel.accumulators:
            with b.loop(0, self.reduction.n_groups) as groups:
                acc = self._group(q_at, w_at, groups.i)
                self._store_accumulators(acc, row, panel, groups.i)
        else:
            self._store_groups(row, panel, q_at, w_at)

    # Exact accumulators

    def _group(
        self, q_at: Sequence[Value], w_at: Sequence[Value], group: Value
    ) -> list[list[Value]]:
        """acc of one group, [row][panel], vector<16xi32>, or <16xi64> where int32 is too small."""
        b = self.b
        per_group = self.reduction.segments_per_group
        if per_group == 1:
            return self._segment(q_at, w_at, group, b.index(0))
        total = [b.const(0, vec(PANEL, "i64"))] * (self.tile.rows * self.tile.panels)
        with b.loop(0, per_group, carry=total) as segments:
            acc = self._segment(q_at, w_at, group, segments.i)
            flat = [b.sext(x, "i64") for row in acc for x in row]
            segments.carry(*(t + x for t, x in zip(segments.args, flat, strict=True)))
        return split(segments.results, self.tile.panels)

    def _segment(
        self, q_at: Sequence[Value], w_at: Sequence[Value], group: Value, j: Value
    ) -> list[list[Value]]:
        """acc of segment `j` of a group, exact modulo 2^32 and within int32."""
        number = group * self.reduction.segments_per_group + j
        terms = self.reduction.emit_terms(self.b, group, j)
        return self._products_of(Segment(q_at, w_at, group, number, terms))

    def _products_of(self, at: Segment) -> list[list[Value]]:
        """A tile's products, offsets and zero points taken out."""
        *products, sums = [*self.products(at.q_at, at.w_at, at.number, at.terms), []]
        if not self.weight.has_sums:
            *products, sums = products
        return self._centre_tile(products, sums, at)

    def _centre_tile(
        self, products: list[list[Value]], sums: list[Value], at: Segment
    ) -> list[list[Value]]:
        """Offsets and zero points taken out of a tile's products; `sums` of v, where not stored."""
        b = self.b
        sums = sums or [self._stored_sums(w, at.number) for w in at.w_at]
        acc = []
        for r, q in enumerate(at.q_at):
            zero = b.load_as(self.q, q + self.row.zero_offset, "i32")
            acc.append(
                [
                    self._centre(products[r][c], sums[c], zero, r, c, at)
                    for c in range(self.tile.panels)
                ]
            )
        return acc

    def _centre(
        self, product: Value, sums: Value, zero: Value, r: int, c: int, at: Segment
    ) -> Value:
        """sum (u - za)(mul v - c) = mul (sum uv - za sum v) - c (sum u - terms za).

        Here c = offset + z, u and za are the stored codes and zero point of the activations.
        """
        b, layout, value = self.b, self.weight, self.weight.value
        acc = product - b.splat(zero, PANEL) * sums
        if value.mul == 2:
            acc = acc + acc
        if layout.symmetric and value.offset == 0:
            return acc
        row_sum = b.load_as(self.q, at.q_at[r] + (at.number * 4 + self.row.sums_offset), "i32")
        centred = row_sum - b.from_index(at.terms, "i32") * zero
        if layout.symmetric:
            return acc - b.splat(centred * value.offset, PANEL)
        return acc - (self._zeros(at.w_at[c], at.group) + value.offset) * b.splat(centred, PANEL)

    def _zeros(self, w_at: Value, group: Value) -> Value:
        """Zero points of a group of a panel, vector<16xi32>."""
        at = w_at + self.weight.zeros_at(group)
        return self.b.zext(self.b.load_as(self.w, at, vec(PANEL, "i8")), "i32")

    def _stored_sums(self, w_at: Value, segment: Value) -> Value:
        """sum of v over a segment of a panel, vector<16xi32>."""
        b, layout = self.b, self.weight
        at = w_at + layout.sums_at(segment)
        self._prefetch_group(at)
        return b.sext(b.load_as(self.w, at, vec(PANEL, f"i{layout.sum_bits}")), "i32")

    @property
    def product_rows(self) -> int:
        """Rows of `products`: a row of ones makes the sums of v that are not stored."""
        return self.tile.rows + (0 if self.weight.has_sums else 1)

    def products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over the `terms` elements of a segment, [row][panel] vector<16xi32>.

        Where the layout has no sums, a last row has u = 1 everywhere.
        """
        raise NotImplementedError

    # Results

    def _store_one_group(
        self,
        acc: list[list[Value]],
        row: Value,
        panel: Value,
        q_at: Sequence[Value],
        w_at: Sequence[Value],
    ) -> None:
        """y = fma(s_a * s_w, float(acc), bias)."""
        b = self.b
        if self.kernel.accumulators:
            self._store_accumulators(acc, row, panel, b.index(0))
            return
        for c in range(self.tile.panels):
            scale_w = self._scales(w_at[c], b.index(0))
            bias = b.load(self.bias, (panel + c) * PANEL, PANEL, self._mask(panel, c))
            for r in range(self.tile.rows):
                scale = b.splat(self._row_scale(q_at[r]), PANEL) * scale_w
                self._store(b.fma(scale, b.to_float(acc[r][c]), bias), row, r, panel, c)

    def _store_groups(
        self, row: Value, panel: Value, q_at: Sequence[Value], w_at: Sequence[Value]
    ) -> None:
        """y = fma(s_a, sum over groups of s_w * float(acc), bias)."""
        b = self.b
        start = [b.const(0, vec(PANEL, "f32"))] * (self.tile.rows * self.tile.panels)
        with b.loop(0, self.reduction.n_groups, carry=start) as groups:
            acc = self._group(q_at, w_at, groups.i)
            totals = self._add_group(split(groups.args, self.tile.panels), acc, w_at, groups.i)
            groups.carry(*(total for line in totals for total in line))
        self._store_totals(split(groups.results, self.tile.panels), row, panel, q_at)

    def _add_group(
        self,
        totals: list[list[Value]],
        acc: list[list[Value]],
        w_at: Sequence[Value],
        group: Value,
    ) -> list[list[Value]]:
        """totals + s_w * float(acc)."""
        b = self.b
        scales = [self._scales(at, group) for at in w_at]
        return [
            [b.fma(b.to_float(acc[r][c]), scales[c], total) for c, total in enumerate(line)]
            for r, line in enumerate(totals)
        ]

    def _store_totals(
        self, totals: list[list[Value]], row: Value, panel: Value, q_at: Sequence[Value]
    ) -> None:
        """y = fma(s_a, totals, bias)."""
        b = self.b
        for c in range(self.tile.panels):
            bias = b.load(self.bias, (panel + c) * PANEL, PANEL, self._mask(panel, c))
            for r in range(self.tile.rows):
                scale = b.splat(self._row_scale(q_at[r]), PANEL)
                self._store(b.fma(scale, totals[r][c], bias), row, r, panel, c)

    def _store_accumulators(
        self, acc: list[list[Value]], row: Value, panel: Value, group: Value
    ) -> None:
        for r in range(self.tile.rows):
            for c in range(self.tile.panels):
                self._store(acc[r][c], row, r, panel, c, group * self.m)

    def _store(
        self,
        value: Value,
        row: Value,
        r: int,
        panel: Value,
        c: int,
        above: Value | int = 0,
    ) -> None:
        """Store 16 channels of row `row + r` (below `above` rows) where they exist."""
        b = self.b
        with b.when(row + r < self.last_row):
            at = (row + r + above) * self.n + (panel + c) * PANEL
            b.store(value, self.y, at, self._mask(panel, c))

    def _mask(self, panel: Value, c: int) -> Value:
        """Which channels of a panel exist."""
        return self.b.mask(PANEL, self.n - (panel + c) * PANEL)

    def _scales(self, w_at: Value, group: Value) -> Value:
        """Scales of a group of a panel's integers, vector<16xf32>."""
        layout = self.weight
        at = w_at + layout.scales_at(group)
        self._prefetch_group(at)
        whole = w_at + layout.tensor_scale_offset
        scales = load_scales(self.b, self.w, at, layout.scale, PANEL, whole)
        indexed = layout.value.indexed
        return scales if indexed is None else scales * indexed.unit

    def _row_scale(self, q_at: Value) -> Value:
        return self.b.load_as(self.q, q_at + self.row.scale_offset, "f32")


def split(values: Sequence[T], width: int) -> list[list[T]]:
    """Runs of `width` values."""
    return [list(values[i : i + width]) for i in range(0, len(values), width)]
