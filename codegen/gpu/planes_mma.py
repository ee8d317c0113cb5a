"""Products of planes: the inside of a block of K of the strategy `planes`."""

from __future__ import annotations

from collections import defaultdict
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
        plan, b = self.plan, self.b
        zeros = [b.const(0, "i32")] * 4
        pairs = plan.bit_tiles * plan.weight_planes
        counts = [[zeros] * pairs for _ in range(plan.token_tiles * plan.warp_tiles)]
        for segment in segments:
            rows = [
                [self._row_fragment(stage, segment, token, bits) for bits in range(plan.bit_tiles)]
                for token in range(plan.token_tiles)
            ]
            for tile in range(plan.warp_tiles):
                for plane in range(plan.weight_planes):
                    weight = self._weight_fragment(stage, segment, tile, plane)
                    for token in range(plan.token_tiles):
                        mine = counts[token * plan.warp_tiles + tile]
                        for bits in range(plan.bit_tiles):
                            pair = bits * plan.weight_planes + plane
                            atom = STEP_ATOM if segment.unit is None else UNIT_ATOM
                            mine[pair] = atom.emit(b, weight, rows[token][bits], mine[pair])
        return [self._weigh(of_tile) for of_tile in counts]

    def _weigh(self, pairs: list[Counts]) -> Counts:
        """The counts of all pairs of planes, each times the value of its two bits."""
        plan, b = self.plan, self.b
        total = [b.const(0, "i32")] * 4
        for bits in range(plan.bit_tiles):
            by_weight = [b.const(0, "i32")] * 4
            for plane, value in enumerate(plan.weight_weights):
                counts = pairs[bits * plan.weight_planes + plane]
                by_weight = [w + c * value for w, c in zip(by_weight, counts, strict=True)]
            for i in range(4):
                total[i] = total[i] + by_weight[i] * self._bit_values[bits][i % 2]
        return total

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
