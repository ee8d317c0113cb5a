"""What a matmul on a CPU does under a schedule: tiles, their tails, the traffic of the caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .interface import MatmulFeatures

PANEL = 16
BYTE_UNIT, LOOK_UP_UNIT, PLANE_UNIT = 16, 32, 64  # groups are filled up to so many codes
STREAMS = ("again", "across", "activations")  # names of `streams`
DEFAULT_BLOCK = (128, 64)  # where the features name no schedule
DEFAULT_TILES = dict.fromkeys(("float", "dequantize", "trellis-float", "bf16"), (8, 48))
DEFAULT_TILE = (4, 64)
# Tiles of floats get smaller where rows are left; others compute rows that are not there.
EXACT_ROWS = frozenset({*DEFAULT_TILES, "direct", "bf16-direct"})


@dataclass(frozen=True)
class Tiling:
    """How M and N are cut. `rows` and `columns` are those computed, with what tails waste."""

    tile_m: int
    tile_n: int
    rows: int
    columns: int
    row_tiles: int
    column_tiles: int
    row_blocks: int
    column_blocks: int

    @staticmethod
    def of(f: MatmulFeatures) -> Tiling:
        tile_m, tile_n = f.tile_m, f.tile_n
        block_m, block_n = f.block_m, f.block_n
        if not f.schedule:
            tile_m, tile_n = DEFAULT_TILES.get(f.strategy, DEFAULT_TILE)
            tile_m, (block_m, block_n) = min(tile_m, f.m), DEFAULT_BLOCK
        row_tiles = _tiles(f.m, block_m, tile_m)
        column_tiles = _tiles(f.n, block_n, tile_n)
        return Tiling(
            tile_m,
            tile_n,
            f.m if f.strategy in EXACT_ROWS else row_tiles * tile_m,
            column_tiles * tile_n,
            row_tiles,
            column_tiles,
            math.ceil(f.m / block_m),
            math.ceil(f.n / block_n),
        )

    @property
    def panels(self) -> int:
        return self.tile_n // PANEL

    @property
    def tiles(self) -> int:
        return self.row_tiles * self.column_tiles

    @property
    def blocks(self) -> int:
        return self.row_blocks * self.column_blocks


def _tiles(size: int, block: int, tile: int) -> int:
    """Tiles of all blocks; the last block may lack some."""
    whole, rest = divmod(size, block)
    return whole * math.ceil(block / tile) + math.ceil(rest / tile)


def padded_k(f: MatmulFeatures, unit: int) -> int:
    """K with every group filled up to whole units."""
    return f.groups * math.ceil(math.ceil(f.k / f.groups) / unit) * unit


@dataclass(frozen=True)
class Stream:
    """Bytes that are read again and again, and the bytes that pass between two times."""

    traffic: float
    between: float


def streams(f: MatmulFeatures, tiling: Tiling) -> tuple[Stream, Stream, Stream]:
    """Weights that the rows of a block share; weights that come anew for each row of blocks;
    activations, which every tile of columns reads."""
    row_bytes = f.k * (f.activation_bits if f.activation_bits <= 8 else 32) / 8
    code_bits = 8 if f.decode_once and f.weight_bits < 8 else f.weight_bits
    if f.strategy in EXACT_ROWS:
        code_bits = 32
    tile_bytes = tiling.tile_n * f.k * code_bits / 8
    depth = f.block_k / f.k if 0 < f.block_k < f.k else 1.0
    again = tiling.row_tiles - tiling.row_blocks
    in_block = Stream(
        again * tiling.column_tiles * tile_bytes,
        (tile_bytes + tiling.tile_m * row_bytes) * depth,
    )
    block_rows = math.ceil(f.m / tiling.row_blocks)
    strip = f.weight_bytes / tiling.column_blocks
    between = strip + block_rows * row_bytes if f.by_columns else f.weight_bytes
    across_blocks = Stream((tiling.row_blocks - 1) * f.weight_bytes, between)
    activations = Stream(
        tiling.column_tiles * f.m * row_bytes, block_rows * row_bytes * depth + tile_bytes * depth
    )
    return in_block, across_blocks, activations
