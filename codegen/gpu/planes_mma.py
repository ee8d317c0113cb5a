"""Products of planes: the inside of a block of K of the strategy `planes`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..builder import Value
from .atoms import ATOMS, MmaAtom
from .builder import GpuBuilder
from .planes_layout import TILE_BYTES, UNIT_BYTES
from .planes_plan import FORM, MMA_COLUMNS, PlanesPlan, Segment

STEP_ATOM = ATOMS[FORM]
UNIT_ATOM = MmaAtom("b1", 16, 8, 128)  # native wherever the former is (BMMA.168128)

Counts = list[Value]  # the four accumulators of an MMA
WHOLE = 0xFFFFFFFF


@dataclass
class PlaneProducts:
    """A warp's products. `token_warp`, `tile_warp` and `k_warp` are its place in the block."""

    plan: PlanesPlan
    b: GpuBuilder
    token_warp: Value
    tile_warp: Value
    k_warp: Value

    def block(self, stage: Value) -> list[list[Counts]]:
        """The block of K in the stage at `stage`: sums of products, weighted by planes, still apart
        by bits that different MMA columns hold: [group][token tile * tiles + tile]."""
        plan = self.plan
        by_group: dict[int, list[Segment]] = defaultdict(list)
        for segment in plan.segments():
            by_group[segment.group].append(segment)
        return [self._group(stage, segments) for _, segments in sorted(by_group.items())]

    def _group(self, stage: Value, segments: list[Segment]) -> list[Counts]:
        """One group's sums. The counts of a pair of planes are finished, weighed and added before
        the next pair's begin, so that few of them are alive."""
        plan = self.plan
        rows = {
            (token, bits): [self._row_fragment(stage, s, token, bits) for s in segments]
            for token in range(plan.token_tiles)
            for bits in range(plan.bit_tiles)
        }
        totals = {}
        for tile in range(plan.warp_tiles):
            by_rows = {key: self._zeros() for key in rows}
            for plane, value in enumerate(plan.weight_weights):
                weights = [self._weight_fragment(stage, s, tile, plane) for s in segments]
                for key, fragments in rows.items():
                    counts = self._count(segments, weights, fragments)
                    by_rows[key] = _add_scaled(by_rows[key], counts, [value] * 4)
            for token in range(plan.token_tiles):
                total = self._zeros()
                for bits, values in enumerate(self._bit_values):
                    total = _add_scaled(total, by_rows[token, bits], values * 2)
                totals[token, tile] = total
        return [
            totals[token, tile]
            for token in range(plan.token_tiles)
            for tile in range(plan.warp_tiles)
        ]

    def _zeros(self) -> Counts:
        return [self.b.const(0, "i32")] * 4

    def _count(
        self, segments: list[Segment], weights: list[list[Value]], rows: list[list[Value]]
    ) -> Counts:
        """The ones of all products of two planes' bits in a group."""
        counts = self._zeros()
        for segment, weight, row in zip(segments, weights, rows, strict=True):
            atom = STEP_ATOM if segment.unit is None else UNIT_ATOM
            counts = atom.emit(self.b, weight, row, counts)
        return counts

    @cached_property
    def _bit_values(self) -> list[list[Value | int]]:
        """[bit tile][j]: the value of the bit in MMA column 2 t + j; 0 where there is none."""
        plan, b = self.plan, self.b
        values: list[list[Value | int]] = []
        for tile in range(plan.bit_tiles):
            first = tile * plan.bits
            if plan.bits <= 2:
                values.append([self._value(first + j % plan.bits) for j in range(2)])
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

    def _weight_fragment(
        self, stage: Value, segment: Segment, tile: int, plane: int
    ) -> list[Value]:
        """Registers of A: 16 columns of the weight."""
        plan, b = self.plan, self.b
        place = (tile * plan.block_steps + segment.step) * plan.weight_planes + plane
        words = b.lanes_of(b.load(self._weight_base(stage), "vector<4xi32>", place * TILE_BYTES))
        return words if segment.unit is None else words[2 * segment.unit : 2 * segment.unit + 2]

    def _weight_base(self, stage: Value) -> Value:
        plan = self.plan
        tiles = self.tile_warp * (plan.warp_tiles * plan.block_steps)
        steps = tiles + self.k_warp * plan.warp_steps
        return self.b.at(stage, steps * plan.weight.step_bytes + self.b.lane * 16)

    def _row_fragment(self, stage: Value, segment: Segment, token: int, bits: int) -> list[Value]:
        """Registers of B: eight pairs of token and bit, one unit each."""
        plan, b = self.plan, self.b
        base = self._row_base(stage, bits)
        step = segment.step * 2 * self._unit_stride + token * MMA_COLUMNS * UNIT_BYTES
        if segment.unit is None:
            return b.load_matrices(b.at(base, step), 2)
        words = b.load_matrices(b.at(base, step + segment.unit * self._unit_stride), 1)
        if segment.mask != WHOLE and plan.group_pitch < 128:
            words = [word & segment.mask for word in words]
        return words

    @property
    def _unit_stride(self) -> int:
        return self.plan.rows.unit_bytes * self.plan.schedule.block_m

    def _row_base(self, stage: Value, bits: int) -> Value:
        """Where the lane's matrix row begins, in the warp's first unit of its first tokens."""
        plan, b = self.plan, self.b
        column = b.lane & 7
        token, bit = column // plan.bits, column % plan.bits
        plane = b.min(bit + bits * plan.bits, plan.row_planes - 1)
        unit = (b.lane >> 3) & 1  # of the step; the first one where one is loaded
        units = self.k_warp * (2 * plan.warp_steps) + unit
        place = plane * plan.schedule.block_m + self.token_warp * plan.warp_tokens + token
        at = units * self._unit_stride + place * UNIT_BYTES
        return b.at(stage, at + plan.weight_stage_bytes)


def _add_scaled(totals: Counts, counts: Counts, values: Sequence[Value | int]) -> Counts:
    return [t + c * v for t, c, v in zip(totals, counts, values, strict=True)]
