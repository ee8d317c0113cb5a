"""Matmul kernels of the strategy `planes`: the loop over K, and what becomes of its sums.

matmul        (q, w, bias f32, y f32, m, n)
split matmul  (q, w, bias f32, workspace, m, n)     i32 sums of planes' products, or with several
                                                    groups f32 sums over groups
reduce        (workspace, q, w, bias f32, y f32, m, n)      matmul/reduction.py, with `finisher`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from abqc.codegen.builder import Value, vec

from ..arch import WARP, GpuArch
from ..builder import POINTER, WEIGHT, GpuBuilder, kernel
from ..matmul.grid_block import grid_block
from ..matmul.reduction import Finish, Finisher
from ..rolled_loops import keep_rolled, unknown
from .copy import PlaneCopies
from .layout import HALVES, TILE_COLUMNS
from .mma import Counts, PlaneProducts
from .operands import PlaneOperands
from .plan import MMA_COLUMNS, PlanesPlan

Sums = list[Value]
RowSums = list[list[Value | None]]  # of tokens, [token tile][token]; None where rows have none


def emit_matmul(module: Any, arch: GpuArch, name: str, plan: PlanesPlan) -> None:
    """The matmul, or its part of a split."""
    schedule = plan.schedule
    arguments = [POINTER, WEIGHT, WEIGHT, POINTER, "i32", "i32"]
    with kernel(
        module,
        arch,
        name,
        arguments,
        threads=schedule.threads,
        shared=plan.shared_bytes,
        blocks=1,
    ) as (b, block, rows, weight, bias, target, m, n):
        operands = PlaneOperands(plan, b, rows, weight, bias, m, n)
        operands.prepare()
        block_m, block_n, split = grid_block(b, block, schedule, plan.group_m, m, n)
        _prefetch(operands, block_n, split)
        if schedule.split == 1:  # else the reduction adds the bias
            operands.prefetch_bias(block_n * schedule.block_n + b.thread % schedule.block_n)
        b.wait()
        body = PlanesBody(plan, b, operands, target, block_m, block_n, split)
        body.finish(body.main_loop())


def _prefetch(operands: PlaneOperands, block_n: Value, split: Value) -> None:
    """What the block reads first of each tile of columns; a thread has one."""
    plan, b = operands.plan, operands.b
    block_bytes = plan.block_steps * plan.weight.step_bytes
    begin = split * plan.split_blocks * block_bytes
    end = b.min(begin + plan.split_blocks * block_bytes, b.const(plan.weight.tile_bytes, "i32"))
    with b.when((b.thread < plan.block_tiles) & (begin < end)):
        tile = operands.tile(block_n * plan.block_tiles + b.thread)
        b.prefetch(b.at(tile, begin), end - begin)


@dataclass
class PlanesBody:
    """One block of the result, [block_m tokens][block_n columns]."""

    plan: PlanesPlan
    b: GpuBuilder
    operands: PlaneOperands
    target: Value
    block_m: Value
    block_n: Value
    split: Value

    def __post_init__(self) -> None:
        plan, b, schedule = self.plan, self.b, self.plan.schedule
        warp = b.warp
        self.token_warp = warp % schedule.warps_m
        self.tile_warp = warp // schedule.warps_m % schedule.warps_n
        self.k_warp = warp // (schedule.warps_m * schedule.warps_n)
        first_token = self.block_m * schedule.block_m
        first_tile = self.block_n * plan.block_tiles
        self.copies = PlaneCopies(plan, b, self.operands, first_token, first_tile)
        place = (self.token_warp, self.tile_warp, self.k_warp)
        self.products = PlaneProducts(plan, b, *place)
        self._place_results(first_token, first_tile)
        self.row_zeros = [] if plan.one_group else self._row_zeros()

    def _row_zeros(self) -> list[list[Value | int]]:
        """What `corrected` or `corrected_float` needs of the tokens, [token tile][token]."""
        zero = self.operands.minus_zero if self.plan.by_magic else self.operands.row_zero
        return [[zero(token) for token in tokens] for tokens in self.tokens]

    def _place_results(self, first_token: Value, first_tile: Value) -> None:
        """Tokens and columns of the lane's results."""
        plan, b = self.plan, self.b
        token = first_token + self.token_warp * plan.warp_tokens
        pair = (b.lane & 3) * 2  # the lane's first MMA column
        token = token + pair // plan.bits
        self.tokens = [
            [token + (tile * MMA_COLUMNS + i) for i in range(plan.lane_tokens)]
            for tile in range(plan.token_tiles)
        ]
        column = (first_tile + self.tile_warp * plan.warp_tiles) * TILE_COLUMNS + (b.lane >> 2)
        self.columns = [
            [column + (tile * TILE_COLUMNS + 8 * half) for half in range(2)]
            for tile in range(plan.warp_tiles)
        ]

    # The loop

    def main_loop(self) -> Sums:
        """Sums over the block's part of K, as `results` lists them: i32, without corrections, for
        one group, and f32 for several."""
        plan, b = self.plan, self.b
        begin = self.split * plan.split_blocks
        end, n = b.min(begin + plan.split_blocks, plan.k_blocks), self.operands.n
        # n is no negative number, but LLVM does not know how many turns there are.
        end = unknown(end, n) if plan.few_blocks else end - (n >> 31)
        stages = plan.schedule.stages
        for i in range(stages - 1):
            self._prefetch(begin + i, end, b.const(i, "i32"))
        with b.loop(begin, end, carry=[b.const(0, "i32"), *self._start()]) as loop:
            keep_rolled(loop)
            slot, *values = loop.args
            b.wait_copies(stages - 2)
            b.barrier()
            free = b.select(slot == 0, b.const(stages - 1, "i32"), slot - 1)
            self._prefetch(loop.i + (stages - 1), end, free)
            sums = self._step(loop.i, self._stage(slot), values)
            following = b.select(slot == stages - 1, b.const(0, "i32"), slot + 1)
            loop.carry(following, *sums)
        b.wait_copies(0)
        b.barrier()
        return self._end(loop.results[1:])

    def _stage(self, slot: Value) -> Value:
        return self.b.at(self.b.shared, slot * self.plan.stage_bytes)

    def _prefetch(self, k_block: Value, end: Value, slot: Value) -> None:
        with self.b.when(k_block < end):
            self.copies.copy(k_block, self._stage(slot))
        self.b.commit_copies()

    def _start(self) -> Sums:
        """What the loop carries: results, and counts of a group that several blocks share."""
        plan, b = self.plan, self.b
        totals = [] if plan.whole_groups else [b.const(0, "i32")] * self._counts
        return totals if plan.one_group else [*self._zeros(), *totals]

    @property
    def _counts(self) -> int:
        return 4 * self.plan.token_tiles * self.plan.warp_tiles

    def _zeros(self) -> Sums:
        return [self.b.const(0.0, "f32")] * self.plan.lane_values

    def _first_group(self, k_block: Value) -> Value:
        """The first of the warp's groups in a block of K, where they are whole."""
        plan = self.plan
        return (k_block * plan.schedule.warps_k + self.k_warp) * plan.warp_groups

    def _step(self, k_block: Value, stage: Value, carry: Sequence[Value]) -> Sums:
        plan, b = self.plan, self.b
        if plan.one_group:
            return self._counted(stage, carry)
        if plan.whole_groups:
            return self._scaled_groups(k_block, stage, carry)
        values = plan.lane_values
        results, totals = list(carry[:values]), self._counted(stage, carry[values:])
        group = k_block // plan.blocks_per_group
        last = (k_block + 1) % plan.blocks_per_group == 0
        if plan.k_blocks % plan.blocks_per_group:
            last = last | (k_block == plan.k_blocks - 1)
        types = ["f32"] * values + ["i32"] * self._counts
        zeros = [b.const(0, "i32")] * self._counts

        def ended() -> Sums:
            scaled, tiles, sums = list(results), plan.warp_tiles, self._row_sums(group)
            for tile in range(tiles):
                counts = [totals[4 * i : 4 * i + 4] for i in range(tile, len(totals) // 4, tiles)]
                records = self.operands.records(self._tile(tile))
                record = b.at(records, group * plan.weight.record_bytes)
                scaled = self._scaled_tile(scaled, group, tile, counts, record, sums)
            return [*scaled, *zeros]

        return b.either(last, types, ended, lambda: [*results, *totals])

    def _counted(self, stage: Value, totals: Sequence[Value]) -> Sums:
        """The totals [token tile][tile][4] and those of a block of K in one group."""
        result, tiles = list(totals), self.plan.warp_tiles
        for _, tile, by_token in self.products.block(stage):
            for token, counts in enumerate(by_token):
                at = 4 * (token * tiles + tile)
                result[at : at + 4] = [t + c for t, c in zip(result[at:], counts, strict=False)]
        return result

    def _scaled_groups(self, k_block: Value, stage: Value, results: Sequence[Value]) -> Sums:
        """The results and those of a block of K, which is whole groups."""
        plan, b, scaled = self.plan, self.b, list(results)
        first = self._first_group(k_block)
        pitch = plan.block_groups * plan.weight.record_bytes
        mine = self.tile_warp * (plan.warp_tiles * pitch)
        mine = mine + self.k_warp * (plan.warp_groups * plan.weight.record_bytes)
        records = b.at(b.at(stage, plan.records_offset), mine)
        sums: dict[int, RowSums] = {}
        for i, tile, by_token in self.products.block(stage):
            if i not in sums:
                sums[i] = self._staged_row_sums(stage, i)
            record = b.at(records, tile * pitch + i * plan.weight.record_bytes)
            scaled = self._scaled_tile(scaled, first + i, tile, by_token, record, sums[i])
        return scaled

    def _staged_row_sums(self, stage: Value, group: int) -> RowSums:
        """Of the lane's tokens, in one of the warp's groups of a block of K."""
        plan, b = self.plan, self.b
        if not plan.rows.has_sums:
            return [[None] * plan.lane_tokens] * plan.token_tiles
        pitch = 4 * plan.block_groups
        mine = (self.tokens[0][0] - self.block_m * plan.schedule.block_m) * pitch
        begin = b.at(b.at(stage, plan.row_sums_offset), mine + self.k_warp * (4 * plan.warp_groups))
        together = 2 if plan.warp_groups % 2 == 0 else 1  # groups of a load

        def load(token: int) -> Value:
            at = token * pitch + group // together * together * 4
            return b.lanes_of(b.load(begin, vec(together, "i32"), at))[group % together]

        return [
            [load(tile * MMA_COLUMNS + i) for i in range(plan.lane_tokens)]
            for tile in range(plan.token_tiles)
        ]

    def _row_sums(self, group: Value) -> RowSums:
        """The same, from memory."""
        plan = self.plan
        if not plan.rows.has_sums:
            return [[None] * plan.lane_tokens] * plan.token_tiles
        return [[self.operands.row_sum(token, group) for token in tokens] for tokens in self.tokens]

    def _tile(self, tile: int) -> Value:
        """The number of one of the warp's tiles of weight columns."""
        first = self.block_n * self.plan.block_tiles + self.tile_warp * self.plan.warp_tiles
        return first + tile

    def _end(self, carry: Sequence[Value]) -> Sums:
        return (
            self._over_bits(carry) if self.plan.one_group else list(carry[: self.plan.lane_values])
        )

    # Sums

    def _over_bits(self, counts: Sequence[Value]) -> Sums:
        """Counts of MMA columns, [token tile][tile][half][j], added up by tokens: as `results`."""
        plan, b = self.plan, self.b
        if plan.bits == 1:
            return list(counts)
        sums = [counts[i] + counts[i + 1] for i in range(0, len(counts), 2)]
        return [b.warp_sum(value, plan.bits // 2) for value in sums]

    @property
    def _beyond(self) -> bool:
        """Whether blocks of K reach beyond the last group."""
        plan = self.plan
        return plan.k_blocks * plan.schedule.block_k > plan.groups * plan.group_pitch

    def _scaled_tile(
        self,
        results: Sums,
        group: Value,
        tile: int,
        by_token: Sequence[Counts],
        record: Value,
        row_sums: RowSums,
    ) -> Sums:
        """results + scale * accumulators of a group and a tile of columns, of every token tile."""
        plan, b, operands = self.plan, self.b, self.operands
        made, per_column = list(results), plan.lane_tokens
        factors = operands.factors(record, b.lane >> 2, count=HALVES)
        exists = group < plan.groups
        for token_tile, counts in enumerate(by_token):
            zeros, sums = self.row_zeros[token_tile], row_sums[token_tile]
            at = (token_tile * plan.warp_tiles + tile) * HALVES * per_column
            for number, total in enumerate(self._over_bits(counts)):
                half, i = divmod(number, per_column)
                how = (total, zeros[i], sums[i], factors, half)
                if plan.by_magic:
                    acc = operands.corrected_float(*how)
                else:
                    acc = b.to_float(operands.corrected(*how))
                before = results[at + number]
                more = b.fma(factors.scales[half], acc, before)
                made[at + number] = b.select(exists, more, before) if self._beyond else more
        return made

    def results(self) -> list[tuple[Value, Value]]:
        """(token, column) of the lane's results: [token tile][tile][half][token]."""
        return [
            (token, column)
            for tokens in self.tokens
            for columns in self.columns
            for column in columns
            for token in tokens
        ]

    # Results

    def finish(self, sums: Sums) -> None:
        """Add up what warps have apart, and store."""
        b, plan = self.b, self.plan
        if plan.schedule.warps_k > 1:
            sums = self._meet(sums)
        mine = self.k_warp == 0
        if plan.bits > 2:  # several lanes have one result
            mine = mine & ((b.lane & (plan.bits // 2 - 1)) == 0)
        with b.when(mine):
            for (token, column), value in zip(self.results(), sums, strict=True):
                with b.when((token < self.operands.m) & (column < self.operands.n)):
                    self._store(token, column, value)

    def _meet(self, sums: Sums) -> Sums:
        """The sums of the warps along K, added in order; right in the first of them."""
        b, schedule = self.b, self.plan.schedule
        peers = schedule.warps_m * schedule.warps_n * WARP
        peer = b.thread % peers
        pitch = 4 * peers * len(sums)
        with b.when(self.k_warp > 0):
            for i, value in enumerate(sums):
                at = (self.k_warp - 1) * pitch + (peer + i * peers) * 4
                b.store(value, b.shared, at)
        b.barrier()
        for other in range(schedule.warps_k - 1):
            at = peer * 4 + other * pitch
            sums = [
                value + b.load(b.shared, value.type, at + i * peers * 4)
                for i, value in enumerate(sums)
            ]
        return sums

    def _store(self, token: Value, column: Value, value: Value) -> None:
        b, operands = self.b, self.operands
        line = b.wide(token)
        if self.plan.schedule.split > 1:
            line = line + b.wide(self.split) * b.wide(operands.m)
        else:
            value = operands.scaled(value, token, column)
        b.store(value, self.target, (line * b.wide(operands.n) + b.wide(column)) * 4)


def finisher(plan: PlanesPlan) -> Finisher:
    """How the sums of a split become y."""

    def of(b: GpuBuilder, q: Value, w: Value, bias: Value, m: Value, n: Value) -> Finish:
        operands = PlaneOperands(plan, b, q, w, bias, m, n)
        operands.prepare()
        return operands.scaled

    return of
