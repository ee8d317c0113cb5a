"""The schedules of strategy `bitplane`: tiles of counts that fit the registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from abqc.codegen.isa import Isa

from ..schedule import COLUMNS, CpuSchedule, RowRange, block_columns, distinct
from .layout import PANEL, WeightLayout
from .matmul import prefetch_pays

HALF = 8  # channels of a vector of words
HALVES = PANEL // HALF
ROWS = 48  # of a grid index, by default
MAX_TILE_ROWS, MAX_TILE_PANELS = 6, 2  # by default
TILE_ROWS, TILE_PANELS = (1, 2, 3, 4, 6, 8), (1, 2, 4)
BLOCKS = ((ROWS, COLUMNS, False), (96, COLUMNS, False), (ROWS, 128, False), (ROWS, COLUMNS, True))


@dataclass(frozen=True)
class Tiles:
    """The schedules that fit the registers: an accumulator for each diagonal of 8 channels of a
    row, and some registers to work."""

    weight: WeightLayout
    diagonals: int
    isa: Isa

    @property
    def vectors(self) -> int:
        """Accumulators of 8 channels in the registers."""
        return (self.isa.registers - 6) * self.isa.vector_bits // 512

    def schedules(self, n: int, rows: RowRange) -> tuple[CpuSchedule, ...]:
        """Those for `n` channels, the default first."""
        if rows.one:
            return distinct([self.default_one_row(), *self.one_row(n)])
        others = self.many_rows(n) if rows.last is None else self.few_rows(rows, n)
        return distinct([self.default_rows(), *others])

    def fits(self, rows: int, panels: int) -> bool:
        summed = rows * self.diagonals + (0 if self.weight.has_sums else self.weight.value.bits)
        return summed * panels * HALVES <= self.vectors

    def default_one_row(self) -> CpuSchedule:
        """Panels hide the latency of each other's groups; one long group needs no help."""
        per_row = HALVES * self.diagonals
        panels = self.vectors // per_row if self.weight.reduction.n_groups > 1 else 1
        panels = max(1, min(COLUMNS // PANEL, panels))
        panels = 2 if panels == 3 else panels  # a divisor of a block's
        return self._tile(1, panels, 1, COLUMNS)

    def default_rows(self) -> CpuSchedule:
        per_row = HALVES * self.diagonals
        panels = MAX_TILE_PANELS if self.vectors >= 2 * MAX_TILE_PANELS * per_row else 1
        rows = max(1, min(MAX_TILE_ROWS, self.vectors // (panels * per_row)))
        return self._tile(rows, panels, ROWS, COLUMNS)

    def one_row(self, n: int) -> Iterator[CpuSchedule]:
        for panels in (panels for panels in TILE_PANELS if self.fits(1, panels)):
            for prefetch in (0, 1, 2):
                for wanted in (COLUMNS, 128):
                    columns = block_columns(n, panels * PANEL, wanted)
                    yield CpuSchedule(1, panels * PANEL, 1, 1, columns, prefetch)

    def few_rows(self, rows: RowRange, n: int) -> Iterator[CpuSchedule]:
        for height, panels in self._fitting(rows.typical):
            for prefetch in (0, 1):
                columns = block_columns(n, panels * PANEL, COLUMNS)
                yield CpuSchedule(height, panels * PANEL, 1, ROWS, columns, prefetch)

    def many_rows(self, n: int) -> Iterator[CpuSchedule]:
        for height, panels in self._fitting(ROWS):
            for block_m, wanted, by_columns in BLOCKS:
                columns = block_columns(n, panels * PANEL, wanted)
                yield self._tile(height, panels, block_m, columns, by_columns)

    def _fitting(self, most: int) -> list[tuple[int, int]]:
        return [
            (rows, panels)
            for rows in TILE_ROWS
            for panels in TILE_PANELS
            if rows <= most and self.fits(rows, panels)
        ]

    def _tile(
        self, rows: int, panels: int, block_m: int, block_n: int, by_columns: bool = False
    ) -> CpuSchedule:
        prefetch = int(prefetch_pays(self.weight, rows, panels))
        return CpuSchedule(
            rows, panels * PANEL, 1, block_m, block_n, prefetch, by_columns=by_columns
        )
