"""Schedules of products in f32, and the kernels that strategies make of them.

Tiles are the largest ones that fit the registers (`tile.TILE_ROWS`). Left open are the block of a
grid index, the piece of K that is done at once, and how far ahead one row's weights are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant

from ..schedule import CpuSchedule, KernelSchedule, RangeSchedule, RowRange, distinct
from .tile import COLUMN_BLOCK, ONE_ROW_COLUMNS, PANEL, largest_tile

PREFETCH_BYTES = 2048  # a step of `CpuSchedule.prefetch`
ORDERS = (False, True)


@dataclass(frozen=True)
class FloatSchedules:
    """The schedules of a strategy. One row: columns of a grid index, and how far ahead weights are
    fetched; more: rows of a grid index, terms of a piece of K. The first of each is the default.

    `chains` are the independent sums of one row; `decodes`: a piece of weights is decoded once for
    all rows of a grid index.
    """

    chains: int
    decodes: bool
    prefetches: tuple[int, ...]
    row_blocks: tuple[int, ...]
    depths: tuple[int, ...]
    columns: tuple[int, ...] = (ONE_ROW_COLUMNS, 64, 128)

    def __call__(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        """See `CpuStrategy.schedules`."""
        if rows.one:
            return distinct(
                CpuSchedule(1, PANEL, self.chains, 1, columns, prefetch)
                for prefetch in self.prefetches
                for columns in self.columns
            )
        tile_m, panels = largest_tile(isa)
        return distinct(
            CpuSchedule(
                tile_m,
                panels * PANEL,
                1,
                block_m,
                COLUMN_BLOCK,
                decode_once=self.decodes,
                block_k=depth,
                by_columns=by_columns,
            )
            for by_columns in (ORDERS if rows.last is None else ORDERS[:1])
            for depth in self.depths
            for block_m in (self.row_blocks if rows.last is None else self.row_blocks[:1])
        )


def row_variants(
    name: str,
    schedules: Sequence[RangeSchedule],
    emit_one: Callable[..., None],
    emit_many: Callable[..., None],
    *details: object,
    uses: frozenset[str] = frozenset(),
) -> tuple[Variant, ...]:
    """A kernel for each range of rows: `emit_one` for a range of one row, else `emit_many`.

    They are emitted by `emit(kernel's name, kernel's schedule, *details, module, isa)`; `uses` as
    in `Kernel`.
    """

    def kernel(schedule: KernelSchedule, emit: Callable[..., None]) -> Kernel:
        full_name = f"{name}_{schedule.name}"
        emit = partial(emit, full_name, schedule, *details)
        return Kernel(full_name, schedule.block, emit, uses=uses, by_columns=schedule.by_columns)

    return tuple(
        Variant(kernel(s.schedule, emit_one if s.last == 1 else emit_many), s.first, s.last)
        for s in schedules
    )
