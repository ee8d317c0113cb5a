"""The matmul kernels of strategy `int8`: register tiles of rows by panels of 16 channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...dialects.mlir import ir
from ..builder import INDEX, Builder, Value, buffer, function, vec
from ..isa import Isa
from .dot import Dot
from .int8_layout import PANEL, QUAD, BitPart, RowLayout, WeightLayout, unit_quads

PREFETCH_BYTES = 4096  # how far a single row's kernel fetches ahead in the weights


@dataclass(frozen=True)
class Tile:
    """`rows` x `panels` accumulators, `chains` of each so that latency is hidden."""

    rows: int
    panels: int
    chains: int = 1
    prefetch: bool = False


@dataclass(frozen=True)
class MatmulKernel:
    """One kernel: a grid index does `block` rows x channels, in tiles of `tile(isa)`.

    `accumulators` makes a kernel for tests: y is memref<?xi32> and gets [groups, m, n].
    """

    weight: WeightLayout
    a_highest: int
    block: tuple[int, int]
    rows: int  # at most so many rows in a register tile
    accumulators: bool = False

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        result = buffer("i32" if self.accumulators else "f32")
        arguments = [buffer("i8"), buffer("i8"), buffer("f32"), result, INDEX, INDEX]
        with function(module, isa, name, arguments) as (b, i, q, w, bias, y, m, n):
            body = _Body(b, self, self._tile(isa), q, w, bias, y, m, n)
            body.emit(i)

    def _tile(self, isa: Isa) -> Tile:
        """Accumulators, a quad of weights and an activation must fit the registers."""
        if self.rows == 1:
            return Tile(1, 1, chains=4, prefetch=True)
        per_panel = PANEL // isa.lanes(32)
        panels = 4 if per_panel == 1 else 1
        operands = 2 if isa.dot_u8i8 is None else 1  # even and odd halves
        free = isa.registers - operands * (panels * per_panel + 1) - 2
        return Tile(max(1, min(self.rows, free // (panels * per_panel))), panels)


class _Body:
    """The body of one kernel being emitted."""

    def __init__(
        self,
        b: Builder,
        kernel: MatmulKernel,
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
        self.row = RowLayout(self.reduction)
        value = self.weight.value
        self.dot = Dot(b, kernel.a_highest, value.highest, value.signed)
        self.q, self.w, self.bias, self.y, self.m, self.n = q, w, bias, y, m, n
        self.last_row = m

    def emit(self, i: Value) -> None:
        b = self.b
        block_rows, block_columns = self.kernel.block
        across = (self.n + (block_columns - 1)) // block_columns
        first_row = (i // across) * block_rows
        self.last_row = b.min(first_row + block_rows, self.m)
        all_panels = (self.n + (PANEL - 1)) // PANEL
        first_panel = (i % across) * (block_columns // PANEL)
        last_panel = b.min(first_panel + block_columns // PANEL, all_panels)
        with b.loop(first_panel, last_panel, self.tile.panels) as panels:
            offsets = [
                b.min(panels.i + c, all_panels - 1) * self.weight.panel_bytes
                for c in range(self.tile.panels)
            ]
            with b.loop(first_row, self.last_row, self.tile.rows) as rows:
                self._tile(rows.i, panels.i, offsets)

    def _tile(self, row: Value, panel: Value, w_at: Sequence[Value]) -> None:
        """One register tile. Rows and panels beyond the end repeat the last one, unstored."""
        b = self.b
        q_at = [
            (b.min(row + r, self.m - 1) if r else row) * self.row.row_bytes
            for r in range(self.tile.rows)
        ]
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
        return _rows(segments.results, self.tile.panels)

    def _segment(
        self, q_at: Sequence[Value], w_at: Sequence[Value], group: Value, j: Value
    ) -> list[list[Value]]:
        """acc of segment `j` of a group, exact modulo 2^32 and within int32."""
        b = self.b
        segment = group * self.reduction.segments_per_group + j
        terms = self.reduction.emit_terms(b, group, j)
        products = self._products(q_at, w_at, segment, terms)
        acc = []
        for r, at in enumerate(q_at):
            zero = b.load_as(self.q, at + self.row.zero_offset, "i32")
            acc.append(
                [
                    self._centre(products[r][c], zero, at, w_at[c], group, segment, terms)
                    for c in range(self.tile.panels)
                ]
            )
        return acc

    def _centre(
        self,
        product: Value,
        zero: Value,
        q_at: Value,
        w_at: Value,
        group: Value,
        segment: Value,
        terms: Value,
    ) -> Value:
        """sum (u - za)(mul v - c) = mul (sum uv - za sum v) - c (sum u - terms za).

        Here c = offset + z, u and za are the stored codes and zero point of the activations.
        """
        b, layout, value = self.b, self.weight, self.weight.value
        sums_at = w_at + (segment * layout.sum_bytes + layout.sums_offset)
        sums = b.sext(b.load_as(self.w, sums_at, vec(PANEL, f"i{layout.sum_bits}")), "i32")
        acc = product - b.splat(zero, PANEL) * sums
        if value.mul == 2:
            acc = acc + acc
        if layout.symmetric and value.offset == 0:
            return acc
        row_sum = b.load_as(self.q, q_at + (segment * 4 + self.row.sums_offset), "i32")
        centred = row_sum - b.from_index(terms, "i32") * zero
        if layout.symmetric:
            return acc - b.splat(centred * value.offset, PANEL)
        zeros_at = w_at + (group * PANEL + layout.zeros_offset)
        zeros = b.zext(b.load_as(self.w, zeros_at, vec(PANEL, "i8")), "i32")
        return acc - (zeros + value.offset) * b.splat(centred, PANEL)

    def _products(
        self, q_at: Sequence[Value], w_at: Sequence[Value], segment: Value, terms: Value
    ) -> list[list[Value]]:
        """sum of u * v over a segment, [row][panel]."""
        b, dot, unit = self.b, self.dot, self.reduction.unit
        q_at = [
            at + (segment * self.reduction.segment_pitch + self.row.codes_offset) for at in q_at
        ]
        w_at = [at + segment * self.weight.segment_bytes for at in w_at]
        units = (terms + (unit - 1)) // unit
        registers = len(dot.zero())
        tile = self.tile.rows * self.tile.panels
        carry = [x for _ in range(self.tile.chains * tile) for x in dot.zero()]
        with b.loop(0, units, carry=carry) as loop:
            acc = _rows(loop.args, registers)
            self._unit(
                acc,
                [at + loop.i * unit for at in q_at],
                [at + loop.i * self.weight.unit_bytes for at in w_at],
            )
            loop.carry(*(x for registers in acc for x in registers))
        acc = _rows(loop.results, registers)
        sums = []
        for t in range(tile):
            chains = acc[t::tile]
            total = chains[0]
            for chain in chains[1:]:
                total = [x + y for x, y in zip(total, chain, strict=True)]
            sums.append(dot.join(total))
        return _rows(sums, self.tile.panels)

    def _unit(self, acc: list[list[Value]], q_at: Sequence[Value], w_at: Sequence[Value]) -> None:
        """Add the products of one unit to `acc`, [chain * tile + row * panels + panel]."""
        b, dot, tile = self.b, self.dot, self.tile
        vectors = [self._load_unit(at) for at in w_at]
        for quad in range(unit_quads(self.weight.value.bits)):
            weights = [dot.weights(self._unpack(vectors[c], quad)) for c in range(tile.panels)]
            first = (quad % tile.chains) * tile.rows * tile.panels
            for r in range(tile.rows):
                a = dot.activations(b.load_as(self.q, q_at[r] + quad * QUAD, "i32"))
                for c in range(tile.panels):
                    x = first + r * tile.panels + c
                    acc[x] = dot.accumulate(acc[x], a, weights[c])

    def _load_unit(self, at: Value) -> dict[BitPart, list[Value]]:
        """The vectors of a unit, by part."""
        b, offset = self.b, 0
        vectors: dict[BitPart, list[Value]] = {}
        for part in self.weight.parts:
            count = unit_quads(self.weight.value.bits) // part.quads
            vectors[part] = []
            for _ in range(count):
                if self.tile.prefetch:
                    b.prefetch(self.w, at + (offset + PREFETCH_BYTES))
                vectors[part].append(b.load_as(self.w, at + offset, vec(PANEL, "i32")))
                offset += PANEL * QUAD
        return vectors

    def _unpack(self, vectors: dict[BitPart, list[Value]], quad: int) -> Value:
        """The values of a quad as bytes, vector<16xi32>."""
        values = None
        for part, loaded in vectors.items():
            bits = _move_bits(loaded[quad // part.quads], part, quad % part.quads)
            values = bits if values is None else values | bits
        assert values is not None
        return values

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
        totals = [b.const(0, vec(PANEL, "f32"))] * (self.tile.rows * self.tile.panels)
        with b.loop(0, self.reduction.n_groups, carry=totals) as groups:
            acc = self._group(q_at, w_at, groups.i)
            scales = [self._scales(at, groups.i) for at in w_at]
            flat = [(x, scales[c]) for line in acc for c, x in enumerate(line)]
            groups.carry(
                *(
                    b.fma(b.to_float(x), scale, total)
                    for (x, scale), total in zip(flat, groups.args, strict=True)
                )
            )
        totals = groups.results
        for c in range(self.tile.panels):
            bias = b.load(self.bias, (panel + c) * PANEL, PANEL, self._mask(panel, c))
            for r in range(self.tile.rows):
                scale = b.splat(self._row_scale(q_at[r]), PANEL)
                total = totals[r * self.tile.panels + c]
                self._store(b.fma(scale, total, bias), row, r, panel, c)

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
        """Scales of a group of a panel, vector<16xf32>."""
        b, layout = self.b, self.weight
        at = w_at + (group * layout.scale_bytes + layout.scales_offset)
        if layout.scale_bits == 32:
            return b.load_as(self.w, at, vec(PANEL, "f32"))
        return b.half_to_float(b.load_as(self.w, at, vec(PANEL, "i16")))

    def _row_scale(self, q_at: Value) -> Value:
        return self.b.load_as(self.q, q_at + self.row.scale_offset, "f32")


def _move_bits(vector: Value, part: BitPart, slot: int) -> Value:
    """The bits of quad `slot` of a part's vector, moved to where they stand in the value."""
    if part.bits == 8:
        return vector
    distance = slot * part.bits - part.shift
    moved = vector >> distance if distance > 0 else vector << -distance if distance < 0 else vector
    return moved & (((1 << part.bits) - 1) << part.shift) * 0x01010101


def _rows(values: Sequence[Value], width: int) -> list[list[Value]]:
    return [list(values[i : i + width]) for i in range(0, len(values), width)]
