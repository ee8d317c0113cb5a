"""Copies of one stage of a tile kernel from global to shared memory, 16 bytes at a time.

With `cp.async` a copy is under way while the block computes. Without (sm_75) a thread loads into
registers before it computes, and stores afterwards: `begin` and `finish` hide which it is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from abqc.codegen.builder import Value, vec
from abqc.codegen.gpu.layout import copy_pieces
from abqc.dialects.mlir import ir

from ..builder import GpuBuilder
from ..weights.layout import WARP_LOAD_BYTES
from ..weights.pointers import PackedWeight
from .plan import PIECE_BYTES, TilePlan


@dataclass(frozen=True)
class Piece:
    """16 bytes that this thread copies in every stage.

    `along_k` is its offset in a stage's bytes of one row or tile; pieces at or beyond `end` of all
    stages are zeros (None: there are none), and so are those of rows of which `exists` does not
    hold: by `cp.async` nothing is read for them. `present`: whether this thread has this piece at
    all.
    """

    source: Value
    shared: Value
    along_k: Value
    step: int  # bytes of a stage in `source`
    end: int | None
    present: Value | None
    exists: Value | None = None


class StageCopies:
    """This thread's copies for every stage of a block."""

    def __init__(
        self,
        b: GpuBuilder,
        plan: TilePlan,
        rows: Value,
        weight: PackedWeight,
        first_row: Value,
        first_tile: Value,
        m: Value,
    ) -> None:
        """`first_row`, `first_tile`: the block's. Tiles beyond the last repeat it."""
        self.b = b
        self.plan = plan
        self.pieces = [
            *self._row_pieces(rows, first_row, m),
            *self._weight_pieces(weight, first_tile),
        ]

    def _row_pieces(self, rows: Value, first_row: Value, m: Value) -> list[Piece]:
        b, plan = self.b, self.plan
        per_row = plan.stage_row_bytes // PIECE_BYTES
        threads, block_m = plan.schedule.threads, plan.schedule.block_m
        tail = plan.code_bytes % plan.stage_row_bytes != 0
        pieces = []
        first_shared: Value | None = None
        for turn in range(copy_pieces(block_m, per_row, threads).values):
            number = b.thread + turn * threads
            row, along_k = number // per_row, number % per_row * PIECE_BYTES
            step = turn * threads // per_row * plan.pitch
            # Where turns are whole periods of the swizzle apart, one address serves them all.
            apart = threads % per_row == 0 and step % plan.swizzle.period == 0
            if first_shared is not None and apart:
                shared = first_shared + step
            else:
                shared = swizzled(plan, row * plan.pitch + along_k)
            first_shared = shared if first_shared is None else first_shared
            source_row = b.min(first_row + row, m - 1)
            source = b.at(b.at(rows, b.wide(source_row) * plan.row_bytes), along_k)
            pieces.append(
                Piece(
                    source,
                    shared,
                    along_k,
                    plan.stage_row_bytes,
                    plan.code_bytes if tail else None,
                    self._present(number, block_m * per_row, turn),
                    first_row + row < m,
                )
            )
        return pieces

    def _weight_pieces(self, weight: PackedWeight, first_tile: Value) -> list[Piece]:
        b, plan = self.b, self.plan
        per_tile = plan.stage_tile_bytes // PIECE_BYTES
        threads, tiles = plan.schedule.threads, plan.block_tiles
        tail = plan.weights.chunks % plan.stage_chunks != 0
        pieces = []
        for turn in range(copy_pieces(tiles, per_tile, threads).values):
            number = b.thread + turn * threads
            tile, along_k = number // per_tile, number % per_tile * PIECE_BYTES
            source_tile = b.min(first_tile + tile, weight.tiles - 1)
            pieces.append(
                Piece(
                    b.at(weight.tile(source_tile), along_k),
                    number * PIECE_BYTES + plan.rows_bytes,
                    along_k,
                    plan.stage_tile_bytes,
                    plan.weights.tile_bytes if tail else None,
                    self._present(number, tiles * per_tile, turn),
                )
            )
        return pieces

    def _present(self, number: Value, count: int, turn: int) -> Value | None:
        threads = self.plan.schedule.threads
        return None if (turn + 1) * threads <= count else number < count

    # A stage

    @property
    def loaded_type(self) -> ir.Type:
        """The type of what `begin` returns for each piece, where copies go through registers."""
        return vec(PIECE_BYTES // 4, "i32")

    def begin(self, iteration: Value, stage: Value) -> list[Value]:
        """Start to copy what turn `iteration` needs to the buffer at byte `stage`.

        Returns what `finish` needs.
        """
        if not self.b.arch.cp_async:
            return [self._load(piece, iteration) for piece in self.pieces]
        for piece in self.pieces:
            with self._where(piece):
                target = self.b.at(self.b.shared, stage + piece.shared)
                source = self.b.at(piece.source, iteration * piece.step)
                self.b.copy_async(target, source, PIECE_BYTES, self._valid(piece, iteration))
        return []

    def finish(self, loaded: list[Value], stage: Value) -> None:
        """Store what `begin` has loaded."""
        for piece, value in zip(self.pieces, loaded, strict=False):
            with self._where(piece):
                self.b.store(value, self.b.at(self.b.shared, stage + piece.shared))

    def _load(self, piece: Piece, iteration: Value) -> Value:
        b, words = self.b, self.loaded_type
        valid = self._inside(piece, iteration)
        if piece.present is not None:
            valid = piece.present if valid is None else piece.present & valid

        def load() -> Value:
            return b.load(b.at(piece.source, iteration * piece.step), words, cache="nc")

        if valid is None:
            return load()
        return b.either(valid, [words], lambda: [load()], lambda: [b.const(0, words)])[0]

    def _where(self, piece: Piece) -> AbstractContextManager[None]:
        return nullcontext() if piece.present is None else self.b.when(piece.present)

    def _inside(self, piece: Piece, iteration: Value) -> Value | None:
        """Whether the piece is before the end of K; None where all are."""
        if piece.end is None:
            return None
        return iteration * piece.step + piece.along_k < piece.end

    def _valid(self, piece: Piece, iteration: Value) -> Value | None:
        """How many of the piece's bytes exist; the others are zeros."""
        valid = self._inside(piece, iteration)
        if piece.exists is not None:
            valid = piece.exists if valid is None else piece.exists & valid
        if valid is None:
            return None
        return self.b.select(valid, self.b.const(PIECE_BYTES, "i32"), 0)


def swizzled(plan: TilePlan, offset: Value) -> Value:
    """A byte offset in the rows of a stage, after the swizzle."""
    swizzle = plan.swizzle
    return offset ^ ((offset & swizzle.source_mask) >> swizzle.shift)


class StageReads:
    """Addresses from which this lane reads a stage: `ldmatrix` of rows, words of weights."""

    def __init__(self, b: GpuBuilder, plan: TilePlan, warp_m: Value, warp_n: Value) -> None:
        self.b = b
        self.plan = plan
        lane = b.lane
        # Matrices of an ldmatrix x4 in the order of A's registers: 8 rows, the 8 rows below, then
        # the same rows 16 bytes further on (test_gpu_tile checks it against the atom's layout).
        row = warp_m * (plan.row_blocks * 16) + (lane & 15)
        offset = row * plan.pitch
        turned = (offset & plan.swizzle.source_mask) >> plan.swizzle.shift
        self._row = offset
        self._column = ((lane >> 4) << 4) ^ turned
        per_warp = plan.warp_tiles * plan.stage_tile_bytes
        self._words = warp_n * per_warp + lane * PIECE_BYTES + plan.rows_bytes

    def rows(self, stage: Value, row_block: int, k_step: int) -> list[Value]:
        """A's fragment: 4 registers of 16 rows and the 32 bytes of K from 32 * `k_step` on."""
        address = self._row + (self._column ^ (32 * k_step)) + stage
        at = self.b.at(self.b.at(self.b.shared, address), row_block * 16 * self.plan.pitch)
        return self.b.load_matrices(at, 4)

    def words(self, stage: Value, tile: int, chunk: int) -> list[Value]:
        """This lane's words of a chunk of one of the warp's tiles."""
        layout = self.plan.weights
        base = self.b.at(self.b.shared, self._words + stage)
        offset = tile * self.plan.stage_tile_bytes + chunk * layout.chunk_bytes
        words: list[Value] = []
        for load in range(layout.chunk_loads):
            at = offset + load * WARP_LOAD_BYTES
            words += self.b.lanes_of(self.b.load(base, vec(4, "i32"), at))
        return words
