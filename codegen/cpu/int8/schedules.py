"""The schedules of strategy `int8`: tiles that fit the registers, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator

from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, WeightLayout
from ..panels.matmul import prefetch_pays
from ..schedule import COLUMNS, CpuSchedule, RowRange, block_columns, distinct

ROWS = 128  # of a grid index, by default
FEW_TILE_ROWS = 4
DECODED_BYTES = 512 << 10  # of a tile's panels, decoded for all of K, on the stack
DECODED_TILE_ROWS = 4  # rows of a tile from which on decoding to memory may pay

# A row's address is in one of 16 general registers: tiles of 12 rows take twice as long (measured).
TILE_ROWS, TILE_PANELS = (2, 3, 4, 6, 8), (1, 2, 3, 4)
MIN_ACCUMULATORS = 4  # of a tile of several rows, in registers: fewer wait for each other
BLOCKS = ((ROWS, COLUMNS, False), (ROWS, COLUMNS, True))


def schedules(weight: WeightLayout, n: int, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
    """Those for `n` channels, the default first."""
    if rows.one:
        return distinct([_default_one_row(weight, isa), *_one_row(weight, n, isa)])
    few = rows.last is not None
    others = _few_rows(weight, n, isa) if few else _many_rows(weight, n, isa)
    return distinct([_default_rows(weight, isa), *others])


def fits(weight: WeightLayout, rows: int, panels: int, chains: int, isa: Isa) -> bool:
    """Whether accumulators, weights, an activation and two constants fit the registers.

    Weights of less than 8 bits count twice, as stored and unpacked: without room for both a tile of
    24 accumulators takes 1.05 to 1.6 times as long (measured). With 16 registers what is stored is
    loaded again for each of its parts, in any case.
    """
    per_panel = PANEL // isa.lanes(32)
    operands = 1 if isa.dot_u8i8 else 2  # or even and odd halves of a quad
    summed = rows + (0 if weight.has_sums else 1)
    accumulators = summed * panels * chains * per_panel
    stored = panels * per_panel if weight.value.bits < 8 and isa.registers >= 32 else 0
    return accumulators + operands * (panels * per_panel + 1) + stored + 2 <= isa.registers


def _default_one_row(weight: WeightLayout, isa: Isa) -> CpuSchedule:
    """With 32 registers, one group and K = 4096 a panel at a time gets all of the memory's
    bandwidth on Zen 4 (32 GB/s of 4 to 7 bits), if nothing is prefetched: the CPU follows one long
    stream by itself. Four panels at once get 0.77 to 0.98 of it. Ends of groups break the stream,
    and several panels hide their latency."""
    if isa.dot_u8i8 and isa.registers >= 32:
        if weight.reduction.n_groups == 1:
            return CpuSchedule(1, PANEL, 4, 1, COLUMNS)
        panels, chains = 4, 2
    else:
        panels, chains = 2, 1
    prefetch = int(prefetch_pays(weight, 1, panels))
    return CpuSchedule(1, panels * PANEL, chains, 1, COLUMNS, prefetch)


def _default_rows(weight: WeightLayout, isa: Isa) -> CpuSchedule:
    """With 32 registers 4 x 4 accumulators leave room for a quad of 4 panels, as stored too."""
    rows, panels = 4, 4 if isa.dot_u8i8 and isa.registers >= 32 else 1
    while rows > 1 and not fits(weight, rows, panels, 1, isa):
        rows -= 1
    prefetch = int(prefetch_pays(weight, rows, panels))
    return CpuSchedule(rows, panels * PANEL, 1, ROWS, COLUMNS, prefetch)


def _one_row(weight: WeightLayout, n: int, isa: Isa) -> Iterator[CpuSchedule]:
    for panels in (1, 2, 4):
        for chains in (1, 2, 4):
            if not fits(weight, 1, panels, chains, isa):
                continue
            for prefetch in (0, 1, 2):
                for wanted in (COLUMNS, 128):
                    columns = block_columns(n, panels * PANEL, wanted)
                    yield CpuSchedule(1, panels * PANEL, chains, 1, columns, prefetch)


def _tiles(weight: WeightLayout, most: int, isa: Isa) -> Iterator[tuple[int, int, int]]:
    """Rows, panels and chains of tiles of at most `most` rows that fit and hide latency."""
    per_panel = PANEL // isa.lanes(32)
    for rows in TILE_ROWS:
        for panels in TILE_PANELS:
            enough = rows * panels * per_panel >= MIN_ACCUMULATORS
            if rows <= most and enough and fits(weight, rows, panels, 1, isa):
                yield rows, panels, 1


def _few_rows(weight: WeightLayout, n: int, isa: Isa) -> Iterator[CpuSchedule]:
    """One block has all rows. Tiles have few rows too: those beyond the last one cost as much."""
    for tile_m, panels, chains in _tiles(weight, FEW_TILE_ROWS, isa):
        tile_n = panels * PANEL
        for prefetch in (0, 1):
            columns = block_columns(n, tile_n, COLUMNS)
            yield CpuSchedule(tile_m, tile_n, chains, ROWS, columns, prefetch)


def _many_rows(weight: WeightLayout, n: int, isa: Isa) -> Iterator[CpuSchedule]:
    for tile_m, panels, chains in _tiles(weight, ROWS, isa):
        tile_n = panels * PANEL
        for block_m, wanted, by_columns in BLOCKS:
            columns = block_columns(n, tile_n, wanted)
            for decode_once, prefetch in ((False, 0), (False, 1), (True, 1)):
                if decode_once and not _decoding_pays(weight, tile_m, tile_n):
                    continue
                if not prefetch and prefetch_pays(weight, tile_m, panels):
                    continue
                yield CpuSchedule(
                    tile_m,
                    tile_n,
                    chains,
                    block_m,
                    columns,
                    prefetch,
                    decode_once,
                    by_columns=by_columns,
                )


def _decoding_pays(weight: WeightLayout, tile_m: int, tile_n: int) -> bool:
    """Whether weights decoded once for a block may be better than for each tile."""
    stored_as_bytes = weight.value.bits == 8 and weight.value.indexed is None
    small = weight.reduction.padded_k * tile_n <= DECODED_BYTES
    return small and not stored_as_bytes and tile_m >= DECODED_TILE_ROWS
