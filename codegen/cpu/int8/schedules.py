"""The schedules of strategy `int8`: tiles that fit the registers, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from abqc.codegen.isa import Isa

from ..panels.layout import PANEL, WeightLayout
from ..panels.matmul import prefetch_pays
from ..schedule import COLUMNS, CpuSchedule, RowRange, block_columns, distinct
from .dot import Products

ROWS = 128  # of a grid index, by default
FEW_TILE_ROWS = 4
DECODED_BYTES = 512 << 10  # of a tile's panels, decoded for all of K, on the stack
DECODED_TILE_ROWS = 4  # rows of a tile from which on decoding to memory may pay

# A row's address is in one of 16 general registers: tiles of 12 rows take twice as long (measured).
TILE_ROWS, TILE_PANELS = (2, 3, 4, 6, 8), (1, 2, 3, 4)
MIN_ACCUMULATORS = 4  # of a tile of several rows, in registers: fewer wait for each other
APART_GROUPS = 12  # whose scales may stand apart from the codes of a panel that is one stream
BLOCKS = ((ROWS, COLUMNS, False), (ROWS, COLUMNS, True))


def schedules(
    weight: WeightLayout, a_highest: int, n: int, rows: RowRange, isa: Isa
) -> tuple[CpuSchedule, ...]:
    """Those for `n` channels and activation codes up to `a_highest`, the default first."""
    space = Space(weight, n, isa, Products.of(isa, a_highest, weight.value.highest))
    if rows.one:
        return distinct([space.default_one_row(), *space.one_row()])
    if rows.last is None:
        return distinct([space.default_many_rows(), *space.many_rows()])
    return distinct([space.default_few_rows(), *space.few_rows()])


@dataclass(frozen=True)
class Space:
    """The schedules of an instruction set, which multiplies as `products` say."""

    weight: WeightLayout
    n: int
    isa: Isa
    products: Products

    @property
    def _many_registers(self) -> bool:
        return self.products.kind == "dot" and self.isa.registers >= 32

    def fits(self, rows: int, panels: int, chains: int, *, decode_once: bool = False) -> bool:
        """Whether accumulators, weights, an activation and two constants fit the registers.

        Weights of less than 8 bits that are unpacked in registers count twice, as stored and
        unpacked: without room for both a tile of 24 accumulators takes 1.05 to 1.6 times as long
        (measured). With 16 registers what is stored is loaded again for each of its parts, if there
        are no sums of 16 bits beside the accumulators.
        """
        weight, products = self.weight, self.products
        per_panel = PANEL // self.isa.lanes(32)
        summed = rows + (0 if weight.has_sums or decode_once else 1)
        accumulators = summed * panels * chains * per_panel
        operands = products.operands * (panels * per_panel + 1)
        pairs, constants = 0, 2
        if products.depth > 1:
            pairs, constants = summed * panels * per_panel, 1
        stored = 0
        if weight.value.bits < 8 and not decode_once and (self.isa.registers >= 32 or pairs):
            stored = panels * per_panel
        return accumulators + pairs + operands + stored + constants <= self.isa.registers

    def default_one_row(self) -> CpuSchedule:
        if self._streams:
            return CpuSchedule(1, PANEL, 4, 1, COLUMNS)
        if self._many_registers:
            panels, chains = 4, 2
        else:
            panels, chains = 2 if self.fits(1, 2, 1) else 1, 1
        prefetch = int(prefetch_pays(self.weight, 1, panels))
        return CpuSchedule(1, panels * PANEL, chains, 1, COLUMNS, prefetch)

    @property
    def _streams(self) -> bool:
        """Whether a row is best done a panel at a time, without prefetching: the CPU follows one
        long stream by itself.

        Of the bandwidth of 4 panels with prefetching, on Zen 4, it gets 1.2 to 1.45 of cold weights
        of 3 to 8 bits (K = 576 to 4096, groups of 32 to 128), 0.98 to 1.1 of 1 and 2 bits, where
        decoding is as slow as memory; 0.93 of weights in the L2 cache. Scales that stand apart from
        the codes break the stream, and several panels hide their latency.
        """
        weight = self.weight
        return self._many_registers and (weight.reduction.n_groups == 1 or weight.block_groups > 0)

    def default_few_rows(self) -> CpuSchedule:
        """With 32 registers 4 x 4 accumulators leave room for a quad of 4 panels as it is stored.
        Codes that are unpacked, and what is added up over groups, take registers: two panels.

        Of the time of 4 panels, on Zen 4, two take 0.69 to 1.0 for 4 to 128 rows, groups of 32 and
        128 and one group, 2 to 7 bits.
        """
        panels = 1
        if self._many_registers:
            panels = 4 if self._as_stored else 2
        return self._default(4, panels)

    def default_many_rows(self) -> CpuSchedule:
        """Where nothing is added up over groups, 8 rows share what is unpacked: 0.93 to 0.99 of the
        time of 4 rows of 5 to 7 bits."""
        if self._many_registers and not self._as_stored and self.weight.reduction.n_groups == 1:
            return self._default(8, 2)
        return self.default_few_rows()

    @property
    def _as_stored(self) -> bool:
        """Whether weights are bytes of one group."""
        return self.weight.value.bits == 8 and self.weight.reduction.n_groups == 1

    def _default(self, rows: int, panels: int) -> CpuSchedule:
        while rows > 1 and not self.fits(rows, panels, 1):
            rows -= 1
        prefetch = int(prefetch_pays(self.weight, rows, panels))
        return CpuSchedule(rows, panels * PANEL, 1, ROWS, COLUMNS, prefetch)

    def one_row(self) -> Iterator[CpuSchedule]:
        for panels in (1,) if self._streams else (1, 2, 4):
            for chains in (1, 2, 4):
                if not self.fits(1, panels, chains):
                    continue
                for prefetch in self._prefetches(panels):
                    for wanted in (COLUMNS, 128):
                        columns = block_columns(self.n, panels * PANEL, wanted)
                        yield CpuSchedule(1, panels * PANEL, chains, 1, columns, prefetch)

    def _prefetches(self, panels: int) -> Sequence[int]:
        """Many scales that stand apart break the stream of a panel that nothing fetches ahead."""
        weight = self.weight
        if self._streams:
            return (0,)
        if panels == 1 and weight.reduction.n_groups > APART_GROUPS and not weight.block_groups:
            return (1, 2)
        return (0, 1, 2)

    def few_rows(self) -> Iterator[CpuSchedule]:
        """One block has all rows. Tiles have few rows too: those beyond the last one cost as
        much. Decoding once pays where tiles are small else, or make sums of weights."""
        decoding = not (self._many_registers and self.weight.has_sums)
        for tile_m, panels in self._tiles(FEW_TILE_ROWS, decode_once=decoding):
            tile_n = panels * PANEL
            columns = block_columns(self.n, tile_n, COLUMNS)
            if self.fits(tile_m, panels, 1):
                for prefetch in (0, 1):
                    yield CpuSchedule(tile_m, tile_n, 1, ROWS, columns, prefetch)
            if decoding and self._decoding_pays(tile_m, tile_n):
                yield CpuSchedule(tile_m, tile_n, 1, ROWS, columns, 1, decode_once=True)

    def many_rows(self) -> Iterator[CpuSchedule]:
        for tile_m, panels in self._tiles(ROWS, decode_once=True):
            tile_n = panels * PANEL
            for block_m, wanted, by_columns in BLOCKS:
                columns = block_columns(self.n, tile_n, wanted)
                for decode_once, prefetch in ((False, 0), (False, 1), (True, 1)):
                    if decode_once and not self._decoding_pays(tile_m, tile_n):
                        continue
                    if not decode_once and not self.fits(tile_m, panels, 1):
                        continue
                    yield CpuSchedule(
                        tile_m,
                        tile_n,
                        1,
                        block_m,
                        columns,
                        prefetch,
                        decode_once,
                        by_columns=by_columns,
                    )

    def _tiles(self, most: int, *, decode_once: bool = False) -> Iterator[tuple[int, int]]:
        """Rows and panels of tiles of at most `most` rows that fit and hide latency."""
        per_panel = PANEL // self.isa.lanes(32)
        for rows in TILE_ROWS:
            for panels in TILE_PANELS:
                enough = rows * panels * per_panel >= MIN_ACCUMULATORS
                if rows <= most and enough and self.fits(rows, panels, 1, decode_once=decode_once):
                    yield rows, panels

    def _decoding_pays(self, tile_m: int, tile_n: int) -> bool:
        """Whether weights decoded once for a block may be better than for each tile."""
        value, operands = self.weight.value, self.products.operands
        as_stored = value.bits == 8 and value.indexed is None and operands == 1
        small = self.weight.reduction.padded_k * tile_n * operands <= DECODED_BYTES
        rows = DECODED_TILE_ROWS - (1 if self.products.depth > 1 else 0)  # fewer fit
        return small and not as_stored and tile_m >= rows
