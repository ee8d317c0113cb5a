"""What the copying warpgroup does: stages of both operands from global to shared memory.

Weights are contiguous, a run for each tile: bulk copies. Rows are copied 16 bytes at a time, to
where the swizzle of wgmma's descriptors has them: `cp.async`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from abqc.codegen.builder import Value

from ..arch import WARP
from ..tiles.plan import PIECE_BYTES
from .context import WgmmaContext, anew
from .plan import PRODUCERS
from .producer import StageProducer
from .ring import Place, Ring


@dataclass(frozen=True)
class RowPiece:
    """16 bytes that a thread copies in every stage: where from (`offset` + `more` bytes behind the
    first row) and where to; where some threads have no piece, whether this one has. The row exists
    if there are `down` rows among the `rows_left`."""

    rows_left: Value
    down: int
    offset: Value
    more: int
    shared: Value
    along_k: Value
    present: Value | None


class WeightCopies(StageProducer):
    """A copying thread's part of the weights of a block's stages."""

    def __init__(self, ring: Ring, context: WgmmaContext) -> None:
        """Tiles beyond the last repeat it."""
        super().__init__(ring)
        self.plan = context.plan
        self.weight, self.first_tile = context.weight, context.first_tile

    def copy_weights(self, turn: Value, place: Place) -> None:
        """A lane of the first warp for each tile."""
        b, plan, full = self.b, self.plan, self.ring.full
        with b.when(self.thread == 0):
            full.expect(place.stage, plan.counted_bytes)
        with b.when(self.thread < plan.block_tiles):
            tile = b.min(self.first_tile + self.thread, self.weight.tiles - 1)
            source = self.weight.tile(tile)
            size = plan.stage_tile_bytes
            target = self.ring.base + self.ring.offset(place) + plan.rows_bytes
            target = target + self.thread * size
            total, turns = plan.weights.tile_bytes, plan.iterations
            self.copy_run(turn, place, target, source, size, total, turns)


class StageCopies(WeightCopies):
    """A copying thread's part of a block's stages."""

    def __init__(self, ring: Ring, context: WgmmaContext) -> None:
        """Rows beyond the last are zeros."""
        super().__init__(ring, context)
        b, first_row = self.b, context.first_row
        self.rows = b.at(context.rows, b.wide(first_row) * self.plan.row_bytes)
        self.pieces = self._row_pieces(context.m - 1 - first_row)

    def _row_pieces(self, last_row: Value) -> list[RowPiece]:
        """`last_row` of the matrix, counted from the block's first one."""
        plan = self.plan
        per_row, per_atom = plan.stage_row_bytes // PIECE_BYTES, plan.atom_bytes // PIECE_BYTES
        count = plan.schedule.block_m * per_row
        step = PRODUCERS // per_row  # rows between a thread's pieces, where it is a whole number
        regular = PRODUCERS % per_row == 0 and step * plan.atom_bytes % plan.swizzle.period == 0
        pieces: list[RowPiece] = []
        for turn in range(plan.pieces):
            number = self.thread + turn * PRODUCERS
            if regular and pieces:
                first = pieces[0]
                offset, more = first.offset, turn * step * plan.row_bytes
                rows_left = first.rows_left
                shared, along_k = first.shared + turn * step * plan.atom_bytes, first.along_k
            else:
                row, along, more = number // per_row, number % per_row, 0
                rows_left = last_row - row
                along_k = along * PIECE_BYTES
                offset = row * plan.row_bytes + along_k
                inside = row * plan.atom_bytes + along % per_atom * PIECE_BYTES
                swizzle = plan.swizzle
                inside = inside ^ ((inside & swizzle.source_mask) >> swizzle.shift)
                shared = inside + along // per_atom * (plan.schedule.block_m * plan.atom_bytes)
            whole = (turn + 1) * PRODUCERS <= count
            present = None if whole else number < count
            down = turn * step if more else 0
            pieces.append(RowPiece(rows_left, down, offset, more, shared, along_k, present))
        return pieces

    def copy_rows(self, turn: Value, place: Place) -> None:
        b, plan = self.b, self.plan
        source = b.at(self.rows, b.wide(turn * plan.stage_row_bytes))
        target = b.at(b.shared, self.ring.offset(place))
        left: Value | None = None
        for piece in self.pieces:
            # Compared anew for every stage: as many results as pieces would take registers.
            if left is None or not piece.down:
                left = anew(b, piece.rows_left)
            with self._where(piece):
                from_ = b.at(b.at(source, b.wide(piece.offset)), piece.more)
                to = b.at(target, piece.shared)
                b.copy_async(to, from_, PIECE_BYTES, self._valid(piece, left, turn))

    def _valid(self, piece: RowPiece, left: Value, turn: Value) -> Value:
        """How many of the piece's bytes exist; the others are zeros, and not read: as many blocks
        as wait for one row would wait for one slice of L2."""
        b, plan = self.b, self.plan
        exists = left >= piece.down
        if plan.code_bytes % plan.stage_row_bytes:
            exists = exists & (turn * plan.stage_row_bytes + piece.along_k < plan.code_bytes)
        return b.select(exists, b.const(PIECE_BYTES, "i32"), 0)

    def _where(self, piece: RowPiece) -> AbstractContextManager[None]:
        return nullcontext() if piece.present is None else self.b.when(piece.present)


assert PRODUCERS % WARP == 0
