"""Matmul kernels of the strategy `planes`: the loop over K, and what becomes of its sums.

matmul        (q, w, bias f32, y f32, m, n)
split matmul  (q, w, bias f32, workspace, m, n)     i32 sums of planes' products, or with several
                                                    groups f32 sums over groups
reduce        (workspace, q, w, bias f32, y f32, m, n)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..builder import Value
from .arch import WARP, GpuArch
from .builder import POINTER, GpuBuilder, kernel
from .planes_copy import PlaneCopies
from .planes_layout import TILE_COLUMNS
from .planes_mma import Counts, PlaneProducts
from .planes_operands import Factors, PlaneOperands
from .planes_plan import MMA_COLUMNS, PlanesPlan

Sums = list[Value]

EARLY_FACTORS = 48  # registers that may hold factors while a block's codes are under way


def emit_matmul(module: Any, arch: GpuArch, name: str, plan: PlanesPlan) -> None:
    """The matmul, or its part of a split."""
    schedule = plan.schedule
    arguments = [POINTER, POINTER, POINTER, POINTER, "i32", "i32"]
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
        blocks_n = b.ceil_div(n, schedule.block_n)
        blocks_m = b.ceil_div(m, schedule.block_m)
        block_n, rest = block % blocks_n, block // blocks_n
        split = rest // blocks_m if schedule.split > 1 else b.const(0, "i32")
        block_m = rest % blocks_m if schedule.split > 1 else rest
        body = PlanesBody(plan, b, operands, target, block_m, block_n, split)
        body.finish(body.main_loop())


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
        end = self._unknown(b.min(begin + plan.split_blocks, plan.k_blocks))
        stages = plan.schedule.stages
        for i in range(stages - 1):
            self._prefetch(begin + i, end, b.const(i, "i32"))
        carry = [b.const(0, "i32"), *self._start()]
        with b.loop(begin, end, carry=carry) as loop:
            slot = loop.args[0]
            early = self._early_factors(loop.i)
            b.wait_copies(stages - 2)
            b.barrier()
            free = b.select(slot == 0, b.const(stages - 1, "i32"), slot - 1)
            self._prefetch(loop.i + (stages - 1), end, free)
            sums = self._step(loop.i, self._stage(slot), loop.args[1:], early)
            following = b.select(slot == stages - 1, b.const(0, "i32"), slot + 1)
            loop.carry(following, *sums)
        b.wait_copies(0)
        b.barrier()
        return self._end(loop.results[1:])

    def _unknown(self, value: Value) -> Value:
        """`value`, of which compilers shall know nothing (n is no negative number): they would
        unroll the loop, whose body is large as it is, and run out of registers."""
        return value - (self.operands.n >> 31)

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

    def _early_factors(self, k_block: Value) -> list[Factors]:
        """Factors of the block's groups, asked for while its codes are under way; none where they
        would take many registers."""
        plan = self.plan
        if not plan.whole_groups:
            return []
        each = 2 * plan.warp_tiles * (1 + plan.weight.has_sums + plan.weight.has_zeros)
        each += plan.token_tiles * plan.lane_tokens * plan.rows.has_sums
        if plan.warp_groups * each > EARLY_FACTORS:
            return []
        first = self._first_group(k_block)
        return [self._factors(first + i) for i in range(plan.warp_groups)]

    def _step(
        self, k_block: Value, stage: Value, carry: Sequence[Value], early: list[Factors]
    ) -> Sums:
        plan, b = self.plan, self.b
        by_group = self.products.block(stage)
        if plan.one_group:
            return _add(carry, by_group[0])
        if plan.whole_groups:
            first = self._first_group(k_block)
            results = list(carry)
            for i, counts in enumerate(by_group):
                group = first + i
                factors = early[i] if early else self._factors(group)
                results = self._scaled_group(results, group, _flat(counts), factors)
            return results
        values = plan.lane_values
        results, totals = list(carry[:values]), _add(carry[values:], by_group[0])
        group = k_block // plan.blocks_per_group
        last = (k_block + 1) % plan.blocks_per_group == 0
        last = (
            last
            if plan.k_blocks % plan.blocks_per_group == 0
            else (last | (k_block == plan.k_blocks - 1))
        )
        types = ["f32"] * values + ["i32"] * self._counts
        nothing = [b.const(0, "i32")] * self._counts
        return b.either(
            last,
            types,
            lambda: [
                *self._scaled_group(results, group, totals, self._factors(group)),
                *nothing,
            ],
            lambda: [*results, *totals],
        )

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

    def _factors(self, group: Value) -> Factors:
        """Of all rows and columns of the lane."""
        operands = self.operands
        rows = [operands.row(token) for tokens in self.tokens for token in tokens]
        columns = [operands.column(column) for pair in self.columns for column in pair]
        return operands.factors(self._existing(group), rows, columns)

    def _existing(self, group: Value) -> Value:
        return self.b.min(group, self.plan.groups - 1) if self._beyond else group

    @property
    def _beyond(self) -> bool:
        """Whether blocks of K reach beyond the last group."""
        plan = self.plan
        return plan.k_blocks * plan.schedule.block_k > plan.groups * plan.group_pitch

    def _scaled_group(
        self, results: Sums, group: Value, counts: Sequence[Value], factors: Factors
    ) -> Sums:
        """results + scale * the group's accumulators."""
        plan, b = self.plan, self.b
        per_column, columns = plan.lane_tokens, 2 * plan.warp_tiles
        out = []
        for number, ((token, _), result, total) in enumerate(
            zip(self.results(), results, self._over_bits(counts), strict=True)
        ):
            j = number // per_column % columns
            i = number // (per_column * columns) * per_column + number % per_column
            acc = self.operands.corrected(total, self.operands.row(token), factors, i, j)
            more = b.fma(factors.scales[j], b.to_float(acc), result)
            out.append(b.select(group < plan.groups, more, result) if self._beyond else more)
        return out

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
            value = operands.scaled(value, operands.row(token), column)
        b.store(value, self.target, (line * b.wide(operands.n) + b.wide(column)) * 4)


def _flat(counts: Sequence[Counts]) -> list[Value]:
    return [value for of_tile in counts for value in of_tile]


def _add(totals: Sequence[Value], counts: Sequence[Counts]) -> list[Value]:
    return [t + c for t, c in zip(totals, _flat(counts), strict=True)]


def emit_reduce(module: Any, arch: GpuArch, name: str, plan: PlanesPlan) -> None:
    """The parts of a split added in order, corrected and scaled: one result a thread."""
    threads, schedule = 128, plan.schedule
    arguments = [POINTER, POINTER, POINTER, POINTER, POINTER, "i32", "i32"]
    with kernel(module, arch, name, arguments, threads=threads) as (
        b,
        block,
        workspace,
        rows,
        weight,
        bias,
        y,
        m,
        n,
    ):
        operands = PlaneOperands(plan, b, rows, weight, bias, m, n)
        blocks_n = b.ceil_div(n, schedule.block_n)
        first_token = block // blocks_n * schedule.block_m
        first_column = block % blocks_n * schedule.block_n
        element = "i32" if plan.one_group else "f32"
        plane = b.wide(m) * b.wide(n) * 4
        with b.loop(b.thread, schedule.block_m * schedule.block_n, threads) as loop:
            token = first_token + loop.i // schedule.block_n
            column = first_column + loop.i % schedule.block_n
            with b.when((token < m) & (column < n)):
                at = (b.wide(token) * b.wide(n) + b.wide(column)) * 4
                here = b.at(workspace, at)
                total = b.load(here, element)
                for _ in range(schedule.split - 1):
                    here = b.at(here, plane)
                    total = total + b.load(here, element)
                b.store(operands.scaled(total, operands.row(token), column), y, at)
