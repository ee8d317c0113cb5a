"""Products of planes: the inside of a block of K of the strategy `planes`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from abqc.codegen.builder import Value

from ..atoms import ATOMS, MmaAtom
from ..builder import GpuBuilder
from ..magic import MAGIC_BITS
from .chain import Chain, Pair, PairsByPower
from .layout import TILE_BYTES, UNIT_BYTES
from .plan import FORM, MMA_COLUMNS, PlanesPlan, Segment

STEP_ATOM = ATOMS[FORM]
UNIT_ATOM = MmaAtom("b1", 16, 8, 128)  # native wherever the former is (BMMA.168128)

Counts = list[Value]  # the four accumulators of an MMA
Units = list[list[Value]]  # registers of each unit: two of A, or one of B
StepWords = dict[tuple[int, ...], list[Value]]  # by step, and what a register belongs to
RowUnits = dict[tuple[int, int], Units]  # by token tile and bit tile
WHOLE = 0xFFFFFFFF


@dataclass
class PlaneProducts:
    """A warp's products. `token_warp`, `tile_warp` and `k_warp` are its place in the block."""

    plan: PlanesPlan
    b: GpuBuilder
    token_warp: Value
    tile_warp: Value
    k_warp: Value

    def block(self, stage: Value) -> Iterator[tuple[int, int, list[Counts]]]:
        """The block of K in the stage at `stage`: (group, tile of weight columns, sums of every
        token tile) for each group and tile. They are of products weighted by planes, still apart by
        bits that different MMA columns hold, and begin at MAGIC_BITS where the plan says so."""
        plan = self.plan
        for groups in plan.groups_by_steps:
            steps = sorted({segment.step for segments in groups.values() for segment in segments})
            rows: StepWords = {
                (step, token, bits): self._row_words(stage, step, token, bits)
                for step in steps
                for token in range(plan.token_tiles)
                for bits in range(plan.bit_tiles)
            }
            for tile in range(plan.warp_tiles):
                weights: StepWords = {
                    (step, plane): self._weight_words(stage, step, tile, plane)
                    for step in steps
                    for plane in range(plan.weight_planes)
                }
                for group, segments in groups.items():
                    yield group, tile, self._tile(*self._units(segments, weights, rows))

    def _units(
        self, segments: list[Segment], weights: StepWords, rows: StepWords
    ) -> tuple[list[Units], RowUnits]:
        """The registers of segments: [plane][unit] of A, and by token tile and bit tile of B."""
        plan = self.plan
        by_plane: list[Units] = [[] for _ in range(plan.weight_planes)]
        by_tile: RowUnits = {}
        for segment in segments:
            units = (0, 1) if segment.unit is None else (segment.unit,)
            for plane in range(plan.weight_planes):
                words = weights[segment.step, plane]
                by_plane[plane] += [words[2 * unit : 2 * unit + 2] for unit in units]
            for token in range(plan.token_tiles):
                for bits in range(plan.bit_tiles):
                    words = [rows[segment.step, token, bits][unit] for unit in units]
                    if segment.mask != WHOLE:
                        words = [word & segment.mask for word in words]
                    by_tile.setdefault((token, bits), []).extend([word] for word in words)
        return by_plane, by_tile

    def _tile(self, weights: list[Units], rows: RowUnits) -> list[Counts]:
        """Sums of one tile of weight columns, of every token tile."""
        plan = self.plan
        start = MAGIC_BITS if plan.by_magic else 0
        by_chain = [self._chain(chain, weights, rows, start) for chain in plan.chains]
        if plan.bits == 1:
            return by_chain[0]
        totals = [self._constants(0)] * plan.token_tiles
        for of_chain, values in zip(by_chain, self._bit_values, strict=True):
            totals = [
                _add_scaled(total, counts, values * 2)
                for total, counts in zip(totals, of_chain, strict=True)
            ]
        return totals

    def _chain(
        self, chain: Chain, weights: list[Units], rows: RowUnits, start: int
    ) -> list[Counts]:
        """`start` plus the products of pairs of planes, each weighted by a power of two: Horner's
        rule, so that a count is doubled once for every power, however many planes have it. What is
        to be subtracted is summed first."""
        taken = self._powers(chain.negative, weights, rows) if chain.negative else None
        at, *_ = chain.powers
        assert start % (1 << at) == 0
        totals = [self._constants(start >> at)] * self.plan.token_tiles
        for power in chain.powers:
            totals, at = _doubled(totals, at - power), power
            if taken is not None and power == chain.settled:
                part = _doubled(taken, chain.low - power)
                totals = [_subtract(a, c) for a, c in zip(totals, part, strict=True)]
            totals = self._multiply(chain.positive.get(power, ()), weights, rows, totals)
        return totals

    def _powers(self, pairs: PairsByPower, weights: list[Units], rows: RowUnits) -> list[Counts]:
        """The sum of all pairs, over two to the least power."""
        totals, at = [self._constants(0)] * self.plan.token_tiles, max(pairs)
        for power in sorted(pairs, reverse=True):
            totals, at = _doubled(totals, at - power), power
            totals = self._multiply(pairs[power], weights, rows, totals)
        return totals

    def _multiply(
        self, pairs: Sequence[Pair], weights: list[Units], rows: RowUnits, totals: list[Counts]
    ) -> list[Counts]:
        """Add the products of pairs (plane, bit tile) of one power: two units of a step by one
        MMA."""
        result, count = list(totals), len(weights[0])
        for plane, bits in pairs:
            for first in range(0, count, 2):
                units = range(first, min(first + 2, count))
                a = [register for unit in units for register in weights[plane][unit]]
                atom = STEP_ATOM if len(units) == 2 else UNIT_ATOM
                for token in range(self.plan.token_tiles):
                    x = [register for unit in units for register in rows[token, bits][unit]]
                    result[token] = atom.emit(self.b, a, x, result[token])
        return result

    def _constants(self, value: int) -> Counts:
        return [self.b.const(value, "i32")] * 4

    @cached_property
    def _bit_values(self) -> list[list[Value | int]]:
        """[bit tile][j]: the value of the bit in MMA column 2 t + j; 0 where there is none."""
        plan, b = self.plan, self.b
        values: list[list[Value | int]] = []
        for tile in range(plan.bit_tiles):
            first = tile * plan.bits
            if plan.bits == 2:
                values.append([self._value(first + j) for j in range(2)])
                continue
            of_tile: list[Value | int] = []
            for j in range(2):
                place = (b.lane & 3) * 2 + j & (plan.bits - 1)
                value = b.const(0, "i32")
                for bit in range(j, plan.bits, 2):
                    value = b.select(place == bit, b.const(self._value(first + bit), "i32"), value)
                of_tile.append(value)
            values.append(of_tile)
        return values

    def _value(self, bit: int) -> int:
        weights = self.plan.row_weights
        return weights[bit] if bit < len(weights) else 0

    # Fragments

    def _weight_words(self, stage: Value, step: int, tile: int, plane: int) -> list[Value]:
        """A of a step: 16 columns of the weight, two registers of each unit."""
        plan, b = self.plan, self.b
        place = (tile * plan.block_steps + step) * plan.weight_planes + plane
        return b.lanes_of(b.load(self._weight_base(stage), "vector<4xi32>", place * TILE_BYTES))

    def _weight_base(self, stage: Value) -> Value:
        plan = self.plan
        tiles = self.tile_warp * (plan.warp_tiles * plan.block_steps)
        steps = tiles + self.k_warp * plan.warp_steps
        return self.b.at(stage, steps * plan.weight.step_bytes + self.b.lane * 16)

    def _row_words(self, stage: Value, step: int, token: int, bits: int) -> list[Value]:
        """B of a step: eight pairs of token and bit, a register of each unit."""
        at = self._row_at(step, bits) + self.plan.weight_stage_bytes
        row = self.b.at(self.b.at(stage, at), token * MMA_COLUMNS * UNIT_BYTES)
        return self.b.load_matrices(row, 2)

    def _row_at(self, step: int, bits: int) -> Value:
        """Where the lane's matrix row begins in a step's units of the warp's first tokens."""
        plan, b = self.plan, self.b
        column = b.lane & 7
        token, bit = column // plan.bits, column % plan.bits
        plane = b.min(bit + bits * plan.bits, plan.row_planes - 1)
        unit = (b.lane >> 3) & 1  # of the step; the first one where one is loaded
        units = self.k_warp * (2 * plan.warp_steps) + unit
        piece = units * plan.row_planes + plane
        token = self.token_warp * plan.warp_tokens + token
        return plan.row_pieces.place(token, piece, 2 * step * plan.row_planes) * UNIT_BYTES


def _doubled(totals: list[Counts], times: int) -> list[Counts]:
    return [[value << times for value in counts] for counts in totals] if times else totals


def _subtract(totals: Counts, counts: Counts) -> Counts:
    return [t - c for t, c in zip(totals, counts, strict=True)]


def _add_scaled(totals: Counts, counts: Counts, values: Sequence[Value | int]) -> Counts:
    return [t + c * v for t, c, v in zip(totals, counts, values, strict=True)]
