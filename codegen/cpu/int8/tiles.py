"""Products of strategy `int8` for many rows, on tile registers (AMX).

For two panels of 16 channels, group by group and at most CHUNK terms at a time:

    decode    the weights to bytes, in the order in which the packed rows have them: [k / 4][16][4]
    multiply  rows by panels in 2 x 2 accumulators of 16 x 16
    centre    as without tiles: zero points, offsets, scales, 4 rows at a time

What is decoded serves all rows of a grid index; bytes are multiplied where they are, if segments
are multiples of the tiles' depth. Else the weights behind a segment are zeros. Rows are read as
they are packed. A grid index with few rows does without tiles: decoding would be most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from abqc.codegen.builder import Value, vec
from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, RowLayout
from ..panels.matmul import PanelBody, Segment, Tile
from ..panels.reduction import Reduction
from .kernels import ONES, Int8Body, Int8Kernel
from .layout import QUAD, value_quads
from .tile_registers import HEIGHT, ROW_BYTES, A, B, C, Tiles, tiles

PANELS = 2
FEW_ROWS = 4  # that are not worth decoding for
CHUNK = 2048  # terms that are decoded at once: two panels of them are 64 KB
ACCUMULATOR_BYTES = PANELS * PANEL * 4  # of one row


@dataclass(frozen=True)
class Depth:
    """How segments are cut for tiles: `steps` of `depth` terms, of which `chunk` are decoded at
    once. `chunk` is a multiple of units and steps where segments have several."""

    depth: int
    chunk: int

    @staticmethod
    def of(reduction: Reduction, row: RowLayout) -> Depth:
        """As deep as needed for the fewest steps; no row is read beyond its end."""
        size = reduction.segment_size
        depths = [depth for depth in range(4, 65, 4) if _stays_inside(depth, reduction, row)]
        depth = min(depths, key=lambda depth: (-(-size // depth), depth))
        if reduction.segment_pitch <= CHUNK:
            return Depth(depth, max(reduction.segment_pitch, -(-size // depth) * depth))
        both = lcm(reduction.unit, depth)
        return Depth(depth, CHUNK // both * both)


def _stays_inside(depth: int, reduction: Reduction, row: RowLayout) -> bool:
    end = row.row_bytes - row.codes_offset
    for first, last in reduction.bounds():
        begin = reduction.index_of(first) * reduction.segment_pitch
        if first < last and begin + -(-(last - first) // depth) * depth > end:
            return False
    return True


@dataclass(frozen=True)
class Weights:
    """Where bytes [k / 4][16][4] of each panel begin in a buffer."""

    buffer: Value
    at: list[Value]


@dataclass(frozen=True)
class TiledKernel(Int8Kernel):
    """Takes tile registers where there are some, for groups of one segment."""

    @property
    def uses(self) -> frozenset[str]:
        return super().uses | {"tiles"}

    def body(self, isa: Isa) -> type[PanelBody]:
        return TiledBody if isa.tiles else super().body(isa)

    def tile(self, isa: Isa) -> Tile:
        tile = super().tile(isa)
        return Tile(4, PANELS, prefetch=tile.prefetch) if isa.tiles else tile


class TiledBody(Int8Body):
    """See the module."""

    def emit(self, i: Value) -> None:
        b = self.b
        cut = Depth.of(self.reduction, self.row)
        self.depth, self.chunk = cut.depth, cut.chunk
        rows = self.kernel.schedule.block[0]
        if not self.direct:
            self.decoded = b.alloca(PANELS * self.groups_at_once * self.chunk * PANEL, "i8")
        self.accumulators = b.alloca(rows * ACCUMULATOR_BYTES, "i8")
        self.sums = b.alloca(self.groups_at_once * PANELS * PANEL * 4, "i8")
        self.totals = b.alloca(rows * ACCUMULATOR_BYTES, "i8")
        self.first_row, first_panel, last_panel, all_panels = self.block(i)
        few = self.last_row - self.first_row <= FEW_ROWS
        with b.when(few):
            kernel = self.kernel
            tile = Int8Kernel.tile(kernel, b.isa)
            Int8Body(b, kernel, tile, self.q, self.w, self.bias, self.y, self.m, self.n).emit(i)
        with b.when(few ^ 1):
            self.height = b.min(self.m, HEIGHT)
            self.tiles: Tiles = tiles(b, self.height, self.depth)
            with b.loop(first_panel, last_panel, PANELS) as panels:
                w_at = self.panels_at(panels.i, all_panels)
                self._panels(panels.i, w_at)
            self.tiles.release()

    @property
    def direct(self) -> bool:
        """Whether weights are multiplied where they are."""
        value = self.weight.value
        return value.bits == 8 and self.weight.has_sums and self.reduction.divides(self.depth)

    def _panels(self, panel: Value, w_at: list[Value]) -> None:
        if self.reduction.n_groups > 1:
            self._groups(panel, w_at)
        elif self.reduction.segment_pitch <= CHUNK:
            self._one_chunk(panel, w_at)
        else:
            self._chunks(panel, w_at)

    def _one_chunk(self, panel: Value, w_at: list[Value]) -> None:
        """One group, of which all terms are decoded at once."""
        b, zero = self.b, self.b.index(0)
        terms = b.index(self.reduction.k)
        weights = self._decode(w_at, zero, zero, terms, zero)
        with b.loop(self.first_row, self.last_row, 2 * HEIGHT) as rows:
            self._multiply(rows.i, rows.i, self._codes(zero, zero), terms, weights)
            self._finish(rows.i, rows.i, panel, w_at, zero, zero, terms)

    def _chunks(self, panel: Value, w_at: list[Value]) -> None:
        """One group of several chunks; accumulators of all rows wait for the next one."""
        b, zero = self.b, self.b.index(0)
        terms = b.index(self.reduction.k)
        self._clear(self.accumulators)
        with b.loop(0, terms, self.chunk) as chunks:
            some = b.min(terms - chunks.i, self.chunk)
            weights = self._decode(w_at, zero, chunks.i, some, zero)
            with b.loop(self.first_row, self.last_row, 2 * HEIGHT) as rows:
                codes_at = self._codes(zero, chunks.i)
                self._multiply(rows.i, self.first_row, codes_at, some, weights, continues=True)
        with b.loop(self.first_row, self.last_row, 2 * HEIGHT) as rows:
            self._finish(rows.i, self.first_row, panel, w_at, zero, zero, terms)

    def _groups(self, panel: Value, w_at: list[Value]) -> None:
        """As many groups as make a chunk are decoded at once, and 32 rows see all of them."""
        b, zero, at_once = self.b, self.b.index(0), self.groups_at_once
        if not self.kernel.accumulators:
            self._clear(self.totals)
        with b.loop(0, self.reduction.n_groups, at_once) as chunks:
            count = b.min(self.reduction.n_groups - chunks.i, at_once)
            with b.loop(0, count) as groups:
                group = chunks.i + groups.i
                terms = self.reduction.emit_terms(b, group, zero)
                self._decode(w_at, group, zero, terms, groups.i)
            with (
                b.loop(self.first_row, self.last_row, 2 * HEIGHT) as rows,
                b.loop(0, count) as groups,
            ):
                group = chunks.i + groups.i
                terms = self.reduction.emit_terms(b, group, zero)
                weights = self._weights(w_at, group, zero, groups.i)
                self._multiply(rows.i, rows.i, self._codes(group, zero), terms, weights)
                self._finish(rows.i, rows.i, panel, w_at, group, groups.i, terms)
        if not self.kernel.accumulators:
            with b.loop(self.first_row, self.last_row, self.tile.rows) as rows:
                totals = self._loaded(self.totals, self._lines(rows.i, self.first_row), "f32")
                self._store_totals(totals, rows.i, panel, self._rows_at(rows.i))

    @property
    def groups_at_once(self) -> int:
        return max(1, CHUNK // self.chunk) if self.reduction.n_groups > 1 else 1

    def _codes(self, segment: Value, begin: Value) -> Value:
        """Where in a packed row term `begin` of a segment is."""
        return segment * self.row.segment_bytes + self.row.codes_offset + begin

    def _clear(self, scratch: Value) -> None:
        """Zeros for all rows, and for those of the last tile that are no rows."""
        b = self.b
        rows = (self.last_row - self.first_row + (HEIGHT - 1)) // HEIGHT * HEIGHT
        with b.loop(0, rows * ACCUMULATOR_BYTES, ROW_BYTES) as lines:
            b.store_as(b.const(0, vec(PANEL, "i32")), scratch, lines.i)

    def _weights(self, w_at: list[Value], segment: Value, begin: Value, place: Value) -> Weights:
        """Where the bytes of both panels are from term `begin` of a segment on: the weights
        themselves, or what is decoded to a `place` of the scratch."""
        if self.direct:
            offset = self.weight.codes_at(segment) + begin * PANEL
            return Weights(self.w, [at + offset for at in w_at])
        first = [place * PANELS + c for c in range(PANELS)]
        return Weights(self.decoded, [at * (self.chunk * PANEL) for at in first])

    def _decode(
        self, w_at: list[Value], segment: Value, begin: Value, terms: Value, place: Value
    ) -> Weights:
        """`terms` weights of both panels from term `begin` of a segment on as bytes, and zeros up
        to the end of a step; where the layout has no sums, those of the bytes."""
        b, dot, unit = self.b, self.dot, self.reduction.unit
        weights = self._weights(w_at, segment, begin, place)
        if self.direct:
            return weights
        units = (terms + (unit - 1)) // unit
        summed = not self.weight.has_sums
        carry = [x for _ in range(PANELS) for x in dot.zero()] if summed else []
        ones = dot.activations(b.const(ONES, "i32")) if summed else ()
        with b.loop(0, units, carry=carry) as loop:
            quads = self.quads(w_at, segment, begin // unit + loop.i)
            registers = len(carry) // PANELS
            sums = [list(loop.args[c * registers : (c + 1) * registers]) for c in range(PANELS)]
            for quad in range(value_quads(self.weight.value)):
                at = (loop.i * unit + quad * QUAD) * PANEL
                for c in range(PANELS):
                    decoded = quads(c, quad)
                    b.store_as(decoded, weights.buffer, weights.at[c] + at)
                    if summed:
                        sums[c] = dot.accumulate(sums[c], ones, dot.weights(decoded))
            if summed:
                loop.carry(*(x for part in sums for x in part))
        if summed:
            registers = len(carry) // PANELS
            for c in range(PANELS):
                joined = dot.join(list(loop.results[c * registers : (c + 1) * registers]))
                b.store_as(joined, self.sums, self._sums_at(place, c))
        end = (terms + (self.depth - 1)) // self.depth * self.depth
        with b.loop(units * unit, end, QUAD) as quads_behind:
            for c in range(PANELS):
                zeros = b.const(0, vec(PANEL, "i32"))
                b.store_as(zeros, weights.buffer, weights.at[c] + quads_behind.i * PANEL)
        return weights

    def _sums_at(self, place: Value, c: int) -> Value:
        return (place * PANELS + c) * (PANEL * 4)

    def _multiply(
        self,
        row: Value,
        base: Value,
        codes_at: Value,
        terms: Value,
        weights: Weights,
        *,
        continues: bool = False,
    ) -> None:
        """Products of up to 32 rows with both panels, to the accumulators, whose first row is
        `base`; added to them where it `continues`."""
        both = self.last_row - row > HEIGHT
        for condition, count in ((both, 2), (both ^ 1, 1)):
            with self.b.when(condition):
                self._multiply_rows(row, base, count, codes_at, terms, weights, continues)

    def _multiply_rows(
        self,
        row: Value,
        base: Value,
        count: int,
        codes_at: Value,
        terms: Value,
        weights: Weights,
        continues: bool,
    ) -> None:
        b, unit = self.b, self.tiles
        starts = [self._start(row + t * HEIGHT) for t in range(count)]
        q_at = [start * self.row.row_bytes + codes_at for start in starts]
        c_at = [
            (row - base + t * HEIGHT) * ACCUMULATOR_BYTES + c * ROW_BYTES
            for t in range(count)
            for c in range(PANELS)
        ]
        for register, at in zip(C, c_at, strict=False):
            if continues:
                unit.load(register, self.accumulators, at, ACCUMULATOR_BYTES)
            else:
                unit.zero(register)
        with b.loop(0, terms, self.depth) as steps:
            for c in range(PANELS):
                at = weights.at[c] + steps.i * PANEL
                unit.load(B[c], weights.buffer, at, ROW_BYTES)
            for t in range(count):
                unit.load(A[t], self.q, q_at[t] + steps.i, self.row.row_bytes)
                for c in range(PANELS):
                    unit.dot(C[t * PANELS + c], A[t], B[c])
        for register, at in zip(C, c_at, strict=False):
            unit.store(register, self.accumulators, at, ACCUMULATOR_BYTES)

    def _start(self, row: Value) -> Value:
        """The first row of the tile that has row `row` on: it may not reach beyond the last one."""
        return self.b.min(row, self.m - self.height)

    def _lines(self, row: Value, first: Value) -> list[Value]:
        """Rows of the scratch that has row `first` at its begin, clamped to the last one."""
        b = self.b
        return [b.min(row + r, self.last_row - 1) - first for r in range(self.tile.rows)]

    def _loaded(self, scratch: Value, lines: list[Value], element: str) -> list[list[Value]]:
        return [
            [
                self.b.load_as(scratch, at * ACCUMULATOR_BYTES + c * PANEL * 4, vec(PANEL, element))
                for c in range(PANELS)
            ]
            for at in lines
        ]

    def _finish(
        self,
        first: Value,
        base: Value,
        panel: Value,
        w_at: list[Value],
        group: Value,
        place: Value,
        terms: Value,
    ) -> None:
        """What follows the products of up to 32 rows from `first` on; see `_multiply`."""
        b = self.b
        last = b.min(first + 2 * HEIGHT, self.last_row)
        with b.loop(first, last, self.tile.rows) as rows:
            row, q_at = rows.i, self._rows_at(rows.i)
            lines = []
            for r in range(self.tile.rows):
                clamped = b.min(row + r, self.last_row - 1)
                tile = first + (clamped - first) // HEIGHT * HEIGHT
                lines.append(tile - base + clamped - self._start(tile))
            products = self._loaded(self.accumulators, lines, "i32")
            sums: list[Value] = []
            if not self.weight.has_sums:
                sums = [
                    b.load_as(self.sums, self._sums_at(place, c), vec(PANEL, "i32"))
                    for c in range(PANELS)
                ]
            acc = self._centre_tile(products, sums, Segment(q_at, w_at, group, group, terms))
            if self.reduction.n_groups == 1:
                self._store_one_group(acc, row, panel, q_at, w_at)
            elif self.kernel.accumulators:
                self._store_accumulators(acc, row, panel, group)
            else:
                self._add_to_totals(acc, row, w_at, group)

    def _add_to_totals(
        self, acc: list[list[Value]], row: Value, w_at: list[Value], group: Value
    ) -> None:
        b = self.b
        lines = self._lines(row, self.first_row)
        totals = self._add_group(self._loaded(self.totals, lines, "f32"), acc, w_at, group)
        for r, line in enumerate(totals):
            with b.when(row + r < self.last_row):
                for c, total in enumerate(line):
                    at = (row + r - self.first_row) * ACCUMULATOR_BYTES + c * PANEL * 4
                    b.store_as(total, self.totals, at)
