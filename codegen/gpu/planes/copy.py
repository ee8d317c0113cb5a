"""Copies of a block's operands to shared memory, for kernels of the strategy `planes`.

A stage holds a block of K:

    weights   [tiles][steps][planes][lanes 32][16 bytes]     as in global memory
    rows      [units][planes][tokens][16 bytes]              swizzled (row_pieces.py)
    records   [tiles][groups][record]                        where a block of K is whole groups
    sums      [tokens][groups] i32                           likewise, if packed rows have them

Tokens beyond the last one are zeros, of which nothing is read: what all blocks read comes from few
lines of L2, and waits for its turn there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..builder import GpuBuilder
from .layout import UNIT_BYTES
from .operands import PlaneOperands
from .plan import PlanesPlan
from .row_sums import copy_row_sums, pieces_of

PIECE = 16  # bytes of a copy


@dataclass(frozen=True)
class PlaneCopies:
    """Copies for the block whose first token and tile are given."""

    plan: PlanesPlan
    b: GpuBuilder
    operands: PlaneOperands
    first_token: Value
    first_tile: Value

    def copy(self, k_block: Value, stage: Value) -> None:
        """Start the copies of a block of K to the stage at pointer `stage`."""
        self._weights(k_block, stage)
        plan, b = self.plan, self.b
        self._rows(k_block, b.at(stage, plan.weight_stage_bytes))
        if plan.block_groups:
            self._records(k_block, b.at(stage, plan.records_offset))
            if plan.rows.has_sums:
                target = b.at(stage, plan.row_sums_offset)
                copy_row_sums(self.operands, b.thread, b.threads, self.first_token, k_block, target)

    def _weights(self, k_block: Value, stage: Value) -> None:
        plan, b = self.plan, self.b
        per_step = plan.weight.step_bytes // PIECE
        per_tile = plan.block_steps * per_step
        begin = b.wide(k_block) * (plan.block_steps * plan.weight.step_bytes)
        for piece in self._pieces(plan.block_tiles * per_tile):
            tile, inside = piece // per_tile, piece % per_tile
            source = b.at(self.operands.tile(self.first_tile + tile), begin)
            step = k_block * plan.block_steps + inside // per_step
            self._piece(stage, piece, source, inside * PIECE, step)

    def _rows(self, k_block: Value, stage: Value) -> None:
        """Neighbouring threads copy neighbouring pieces of a row."""
        plan = self.plan
        pieces = plan.row_pieces
        begin = k_block * (pieces.per_token * UNIT_BYTES)
        for piece in self._pieces(pieces.tokens * pieces.per_token):
            token, inside = piece // pieces.per_token, piece % pieces.per_token
            source = self.operands.row(self.first_token + token)
            step = k_block * plan.block_steps + inside // (2 * plan.row_planes)
            place = pieces.place(token, inside)
            there = self._exists(token)
            self._piece(stage, place, source, begin + inside * UNIT_BYTES, step, there)

    def _exists(self, token: Value) -> Value:
        """Whether there is a token `token` of the block."""
        return self.first_token + token < self.operands.m

    def _records(self, k_block: Value, stage: Value) -> None:
        """Those of groups behind the last one are that one's."""
        plan, b = self.plan, self.b
        per_record = plan.weight.record_bytes // PIECE
        per_tile = plan.block_groups * per_record
        last = plan.weight.grouped.groups - 1
        for piece in self._pieces(plan.block_tiles * per_tile):
            tile, inside = piece // per_tile, piece % per_tile
            group = b.min(k_block * plan.block_groups + inside // per_record, last)
            at = group * plan.weight.record_bytes + inside % per_record * PIECE
            source = b.at(self.operands.records(self.first_tile + tile), at)
            b.copy_async(b.at(stage, piece * PIECE), source)

    def _pieces(self, count: int) -> Iterator[Value]:
        return pieces_of(self.b, self.b.thread, self.b.threads, count)

    def _piece(
        self,
        stage: Value,
        to: Value,
        source: Value,
        at: Value,
        step: Value,
        exists: Value | None = None,
    ) -> None:
        """Copy one piece; zeros where `step` is beyond the last one, or where it does not exist."""
        b = self.b
        target = b.at(stage, to * PIECE)
        if self.plan.ragged:
            there = step < self.plan.weight.steps
            exists = there if exists is None else exists & there
            at = b.select(there, at, 0)
        size = None if exists is None else b.select(exists, b.const(PIECE, "i32"), 0)
        b.copy_async(target, b.at(source, at), PIECE, size)
