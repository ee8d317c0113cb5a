"""The stages of shared memory, which go round between those who copy and those who multiply.

A stage is *full* when what was copied is there, and *empty* when all have multiplied it. The scheme
is that of CUTLASS's warp-specialized kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from abqc.codegen.builder import Value
from abqc.codegen.strategy import StreamK

from ..builder import GpuBuilder
from ..matmul.schedule import Schedule
from .barriers import BARRIER_BYTES, Barriers, publish_barriers
from .instructions import WARPGROUP_WARPS


class StagedPlan(Protocol):
    """The plan of a kernel whose stages go round."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def consumers(self) -> int:
        """Warpgroups that multiply."""
        ...

    @property
    def role_registers(self) -> tuple[int, int]:
        """Of a thread that copies, and of one that multiplies."""
        ...

    @property
    def stage_bytes(self) -> int: ...

    @property
    def barriers_offset(self) -> int:
        """Of the barriers in shared memory, behind all stages."""
        ...

    # Where blocks share tiles along K (stream_k.py)

    @property
    def turns(self) -> int:
        """Of the K loop, for a whole tile."""
        ...

    @property
    def unit_turns(self) -> int:
        """Turns that one block has together."""
        ...

    @property
    def units(self) -> int:
        """Of a tile, which blocks share."""
        ...

    @property
    def consumer_threads(self) -> int:
        """Those that multiply."""
        ...

    @property
    def stream(self) -> StreamK | None:
        """What blocks that share tiles need; None where they do not."""
        ...


@dataclass(frozen=True)
class Place:
    """A stage of the ring: its number, and the parity of the rounds."""

    stage: Value
    phase: Value

    @property
    def values(self) -> list[Value]:
        return [self.stage, self.phase]


@dataclass(frozen=True)
class Ring:
    """`base` is the address of shared memory (i32)."""

    b: GpuBuilder
    plan: StagedPlan
    base: Value

    @property
    def full(self) -> Barriers:
        stages = self.plan.schedule.stages
        return Barriers(self.b, self.base + self.plan.barriers_offset, stages)

    @property
    def empty(self) -> Barriers:
        stages = self.plan.schedule.stages
        offset = self.plan.barriers_offset + stages * BARRIER_BYTES
        return Barriers(self.b, self.base + offset, stages)

    def initialize(self) -> None:
        """Before anything else, by all threads of the block."""
        b = self.b
        with b.when(b.thread == 0):
            # One thread arrives with the bytes that are counted, and each warp that copies others.
            warps = 0 if self.plan.schedule.boxes else WARPGROUP_WARPS
            self.full.initialize(1 + warps)
            self.empty.initialize(WARPGROUP_WARPS * self.plan.consumers)
            publish_barriers(b)
        b.barrier()

    def first(self) -> Place:
        return Place(self.b.const(0, "i32"), self.b.const(0, "i32"))

    def place(self, values: Sequence[Value]) -> Place:
        stage, phase = values
        return Place(stage, phase)

    def next(self, place: Place) -> Place:
        return next_place(self.b, place, self.plan.schedule.stages)

    def offset(self, place: Place) -> Value:
        """Of a stage's bytes in shared memory."""
        return place.stage * self.plan.stage_bytes


def next_place(b: GpuBuilder, place: Place, stages: int) -> Place:
    """The one behind `place` in a ring of so many stages."""
    following = place.stage + 1
    ends = following == stages
    stage = b.select(ends, b.const(0, "i32"), following)
    return Place(stage, b.select(ends, place.phase ^ 1, place.phase))
