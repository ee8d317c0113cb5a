"""Stages of kernels of planes by wgmma: what the copying warpgroup brings to shared memory.

Codes and records of a tile are contiguous: bulk copies. Rows are copied as they are packed, 16
bytes at a time, but so that these of eight rows are one behind the other: eight lanes write all
banks, and the four pieces of a row that a warp has at once are two whole sectors of memory. What a
stage lacks behind the end of K is left as it was in weights, of which rows are zeros then.
"""

from __future__ import annotations

from abqc.codegen.builder import Value

from ..wgmma.context import anew
from ..wgmma.plan import PRODUCERS
from ..wgmma.producer import StageProducer
from ..wgmma.ring import Place, Ring
from .layout import UNIT_BYTES
from .operands import PlaneOperands
from .row_sums import copy_row_sums
from .wgmma_plan import OCTET, QUAD, WgmmaPlanesPlan


class PlaneStageCopies(StageProducer):
    """A copying thread's part of a block's stages."""

    def __init__(
        self,
        ring: Ring,
        plan: WgmmaPlanesPlan,
        operands: PlaneOperands,
        first_row: Value,
        first_tile: Value,
    ) -> None:
        super().__init__(ring)
        self.plan, self.operands = plan, operands
        self.first_row, self.first_tile = first_row, first_tile
        b = self.b
        warp, lane = self.thread // 32, b.lane
        self.row = warp % plan.octet_warps * OCTET + lane % OCTET  # the first one, in the block
        self.piece = warp // plan.octet_warps * QUAD + lane // OCTET  # of a row's stage
        row_bytes = plan.rows.row_bytes
        rows = b.at(operands.rows, b.wide(first_row) * row_bytes)
        self.source = b.at(rows, b.wide(self.row * row_bytes + self.piece * UNIT_BYTES))
        self.target = self.piece * plan.piece_pitch + self.row * UNIT_BYTES
        self.rows_left = operands.m - first_row - self.row

    # Weights

    def copy_weights(self, turn: Value, place: Place) -> None:
        """A lane of the first warp for each tile."""
        b, plan, full = self.b, self.plan, self.ring.full
        stage_bytes = plan.tile_stage_bytes + plan.tile_records_bytes
        with b.when(self.thread == 0):
            full.expect(place.stage, stage_bytes * plan.block_tiles)
        with b.when(self.thread < plan.block_tiles):
            tile = self.first_tile + self.thread
            stage = self.ring.base + self.ring.offset(place)
            target = stage + plan.weights_offset + self.thread * plan.tile_stage_bytes
            source = self.operands.tile(tile)
            turns = plan.k_blocks
            size, total = plan.tile_stage_bytes, plan.weight.tile_bytes
            self.copy_run(turn, place, target, source, size, total, turns)
            if plan.block_groups:
                size, total = plan.tile_records_bytes, plan.groups * plan.weight.record_bytes
                target = stage + plan.records_offset + self.thread * size
                source = self.operands.records(tile)
                self.copy_run(turn, place, target, source, size, total, turns)

    # Rows

    def copy_rows(self, turn: Value, place: Place) -> None:
        b, plan = self.b, self.plan
        stage_bytes = plan.row_pieces_per_stage * UNIT_BYTES
        source = b.at(self.source, b.wide(turn * stage_bytes))
        stage = self.ring.offset(place)
        target = b.at(b.shared, stage + self.target)
        left = anew(b, self.rows_left)
        along = self.piece * UNIT_BYTES + turn * stage_bytes
        for down in range(0, plan.octets, plan.octet_warps):
            exists = left > down * OCTET
            from_ = b.at(source, down * OCTET * plan.rows.row_bytes)
            for further in range(0, plan.quads, plan.quad_warps):
                pieces = further * QUAD
                there = exists
                if plan.ragged:
                    there = exists & (along + pieces * UNIT_BYTES < plan.rows.code_bytes)
                valid = b.select(there, b.const(UNIT_BYTES, "i32"), 0)
                to = b.at(target, pieces * plan.piece_pitch + down * OCTET * UNIT_BYTES)
                piece = b.at(from_, pieces * UNIT_BYTES)
                if further + plan.quad_warps <= plan.quads:
                    b.copy_async(to, piece, UNIT_BYTES, valid)
                else:
                    with b.when(self.piece + pieces < plan.row_pieces_per_stage):
                        b.copy_async(to, piece, UNIT_BYTES, valid)
        if plan.row_sum_stage_bytes:
            target = b.at(b.shared, stage + plan.row_sums_offset)
            copy_row_sums(self.operands, self.thread, PRODUCERS, self.first_row, turn, target)
