"""Schedules of matmul kernels on CPUs: what a strategy leaves open, and the cost model decides.

Results do not depend on a schedule: accumulators of integers are exact, sums of floats have one
order in all schedules of a strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from abqc.codegen.isa import ALL, Isa
from abqc.codegen.strategy import MatmulSpec, MatmulStrategy, Variant

PANEL = 16  # channels side by side in all packed weights
COLUMNS = 64  # of a grid index, by default
GRID_INDICES = 8  # along N that a schedule leaves for threads, if N is large enough

BASE_ISAS = tuple(isa for isa in ALL if isa.extends is None)


@dataclass(frozen=True)
class RowRange:
    """The numbers of rows (M) that one kernel is for, and the one by which it is judged."""

    first: int
    last: int | None
    typical: int

    @property
    def one(self) -> bool:
        return self.last == 1


ONE_ROW, FEW_ROWS, MANY_ROWS = RowRange(1, 1, 1), RowRange(2, 31, 16), RowRange(32, None, 128)
ROW_RANGES = (ONE_ROW, FEW_ROWS, MANY_ROWS)


@dataclass(frozen=True)
class CpuSchedule:
    """How a kernel does a matmul with the registers of one instruction set.

    A tile of `tile_m` rows by `tile_n` columns is accumulated in registers, each number of it in
    `chains` independent sums along K. A grid index does `block_m` rows by `block_n` columns, of
    which the next one does a neighbour: in the same rows, or in the same columns (`by_columns`).
    Weights are fetched `prefetch` tiles ahead (panels), or as many times 2 KiB (weights
    that are read in one stream). With `decode_once` they are unpacked once for all rows of a block,
    `block_k` terms at a time; 0: all of them.
    """

    tile_m: int
    tile_n: int
    chains: int
    block_m: int
    block_n: int
    prefetch: int = 0
    decode_once: bool = False
    block_k: int = 0
    by_columns: bool = False

    @property
    def panels(self) -> int:
        return self.tile_n // PANEL

    @property
    def grid(self) -> tuple[int, int, bool]:
        """What the host launches: the same for all instruction sets."""
        return self.block_m, self.block_n, self.by_columns

    @property
    def grid_name(self) -> str:
        return f"b{self.block_m}x{self.block_n}" + "o" * self.by_columns

    @cached_property
    def tile_name(self) -> str:
        name = f"t{self.tile_m}x{self.tile_n}c{self.chains}p{self.prefetch}"
        return name + "d" * self.decode_once + (f"k{self.block_k}" if self.block_k else "")

    @cached_property
    def name(self) -> str:
        return self.tile_name + self.grid_name


@dataclass(frozen=True)
class KernelSchedule:
    """A kernel's schedule on each instruction set that all kernels have, by the width of its
    registers in bits. All have one grid."""

    by_width: tuple[tuple[int, CpuSchedule], ...]

    def __post_init__(self) -> None:
        assert len({schedule.grid for _, schedule in self.by_width}) == 1

    def on(self, isa: Isa) -> CpuSchedule:
        return dict(self.by_width)[isa.vector_bits]

    @property
    def block(self) -> tuple[int, int]:
        block_m, block_n, _ = self.by_width[0][1].grid
        return block_m, block_n

    @property
    def by_columns(self) -> bool:
        return self.by_width[0][1].by_columns

    @property
    def name(self) -> str:
        """Equal for equal schedules."""
        schedules = [schedule for _, schedule in self.by_width]
        return "_".join([schedules[0].grid_name, *(s.tile_name for s in schedules)])


@dataclass(frozen=True)
class RangeSchedule:
    """What rows from `first` to `last` (None: any number) are done by."""

    first: int
    last: int | None
    schedule: KernelSchedule


class CpuStrategy(MatmulStrategy, Protocol):
    """A strategy whose kernels have schedules. Packed weights and rows do not depend on them."""

    def schedules(self, spec: MatmulSpec, rows: RowRange, isa: Isa) -> tuple[CpuSchedule, ...]:
        """Those that can run, no two equal; the first is the default."""
        ...

    def matmul_kernels(
        self, spec: MatmulSpec, schedules: Sequence[RangeSchedule] | None = None
    ) -> tuple[Variant, ...]:
        """The kernels by ranges of M, by default those of the default schedules."""
        ...


Enumerate = Callable[[MatmulSpec, RowRange, Isa], tuple[CpuSchedule, ...]]


def default_schedules(spec: MatmulSpec, enumerate: Enumerate) -> tuple[RangeSchedule, ...]:
    """The default schedules on all instruction sets."""
    return merged(
        RangeSchedule(
            rows.first,
            rows.last,
            KernelSchedule(
                tuple((isa.vector_bits, enumerate(spec, rows, isa)[0]) for isa in BASE_ISAS)
            ),
        )
        for rows in ROW_RANGES
    )


def merged(ranges: Iterable[RangeSchedule]) -> tuple[RangeSchedule, ...]:
    """Neighbours with one schedule as one range."""
    out: list[RangeSchedule] = []
    for each in ranges:
        if out and out[-1].schedule == each.schedule:
            out[-1] = RangeSchedule(out[-1].first, each.last, each.schedule)
        else:
            out.append(each)
    return tuple(out)


def block_columns(n: int, tile_n: int, wanted: int) -> int:
    """Columns of a grid index: about `wanted`, whole tiles, not so many that threads have nothing
    to do."""
    most = max(4 * PANEL, -(-n // GRID_INDICES))
    return max(1, min(wanted, most) // tile_n) * tile_n


def distinct(schedules: Iterable[CpuSchedule]) -> tuple[CpuSchedule, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(schedules))
