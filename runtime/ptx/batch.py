"""The state of a batch of blocks: registers, special registers, shared and local memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .accesses import Access
from .bulk import BulkGroups
from .errors import LaneFault
from .flights import RegisterFlights
from .lanes import WARP
from .mbarriers import Mbarriers
from .memory import LocalMemory, WindowMemory
from .operands import Slot
from .shared import SharedMemory
from .warpgroup import THREADS as WARPGROUP

if TYPE_CHECKING:
    from .device import Device
    from .program import Program

Dim3 = tuple[int, int, int]
_AXES = ("x", "y", "z")
_LANE_MASKS = {
    "%lanemask_eq": lambda lane: 1 << lane,
    "%lanemask_le": lambda lane: (2 << lane) - 1,
    "%lanemask_lt": lambda lane: (1 << lane) - 1,
    "%lanemask_ge": lambda lane: 0x1_0000_0000 - (1 << lane),
    "%lanemask_gt": lambda lane: 0x1_0000_0000 - (2 << lane),
}
CLOCKS = ("%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi")
SPECIAL_REGISTERS = {
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in _AXES),
    *("%laneid", "%warpid", "%nwarpid", "%smid", "%nsmid", "%gridid"),
    *("%dynamic_smem_size", "%total_smem_size", *_LANE_MASKS, *CLOCKS),
    *(
        f"%{name}.{axis}"
        for name in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
        for axis in _AXES
    ),
    *("%cluster_ctarank", "%cluster_nctarank"),
}
# What `%smid` and `%nsmid` say: blocks are dealt out to as many multiprocessors as an H200 has.
_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its program, extents and memory."""

    device: Device
    program: Program
    grid: Dim3
    block: Dim3
    dynamic_shared: int
    parameters: np.ndarray
    parameter_address: int
    symbols: dict[str, int]

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def padded_threads(self) -> int:
        unit = WARPGROUP if self.program.uses_warpgroups else WARP
        return -(-self.threads // unit) * unit

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def shared_bytes(self) -> int:
        layout = self.program.shared
        return (
            layout.dynamic_offset + self.dynamic_shared
            if self.dynamic_shared
            else layout.static_bytes
        )


class Batch:
    """`blocks` blocks that run together; `start` says which ones."""

    def __init__(self, launch: Launch, blocks: int) -> None:
        self.launch = launch
        self.blocks = blocks
        self.padded = launch.padded_threads
        self.lanes = blocks * self.padded
        self.block_of_lane = np.repeat(np.arange(blocks), self.padded)
        self.thread_of_lane = np.tile(np.arange(self.padded), blocks)
        self.exists = self.thread_of_lane < launch.threads
        self.registers = _registers(launch.program, self.lanes)
        self.flights = RegisterFlights(launch.program.warpgroup_registers, self.lanes // WARPGROUP)
        self.carry = np.zeros(self.lanes, np.bool_)
        self.cluster_arrived = np.zeros(self.lanes, np.bool_)
        self.accesses: list | None = None
        self.line = 0  # of the instruction that accesses memory, for messages about races
        self.first_block = 0
        self.clock = 0
        self._specials: dict[tuple[str, np.dtype], np.ndarray] = {}
        self.global_memory = launch.device.memory
        self.shared: SharedMemory
        self.local: WindowMemory
        self._fresh_memory()
        self.mbarriers = Mbarriers(self)
        self.bulk_groups = BulkGroups(self)

    def start(self, first_block: int) -> None:
        """Makes these the blocks from `first_block` on, at their beginning."""
        self.first_block = first_block
        for (name, _), array in self._specials.items():
            array[...] = self._compute_special(name)
        self.cluster_arrived[:] = False
        self.flights.reset()
        self.shared.restart()
        self.mbarriers.reset()
        self.bulk_groups.reset()
        self.local.reset()

    def _fresh_memory(self) -> None:
        launch = self.launch
        check = launch.device.check_unwritten
        granule = launch.program.shared_granule if launch.device.check_races else None
        self.shared = SharedMemory(launch.shared_bytes, self, check, granule)
        lanes = np.arange(self.lanes)
        self.local = LocalMemory(launch.program.local_bytes, lanes, self.lanes, check)

    @property
    def warps(self) -> int:
        return self.lanes // WARP

    def note_async(
        self,
        space: str,
        addresses: np.ndarray,
        size: int,
        is_write: bool,
        lanes: np.ndarray | int,
    ) -> None:
        """Tells counters, where there are any, of what the asynchronous proxy does for lanes."""
        if self.accesses is not None:
            space = "shared::async" if space == "shared" else space
            named = np.broadcast_to(np.asarray(lanes), addresses.shape)
            self.accesses.append(Access(space, addresses, size, is_write, named))

    # -- what operations read when they are bound

    def address_of(self, space: str, name: str) -> int:
        """The address of a global variable or of the parameters; 0 for windows."""
        if space == "global":
            return self.launch.symbols[name]
        return self.launch.parameter_address if space == "param" else 0

    def special(self, name: str, dtype: np.dtype) -> np.ndarray:
        """A special register as values of a type, kept up to date by `start`."""
        if (name, dtype) not in self._specials:
            self._specials[name, dtype] = np.asarray(self._compute_special(name)).astype(dtype)
        return self._specials[name, dtype]

    def _compute_special(self, name: str) -> np.ndarray | int:
        launch = self.launch
        stem, _, axis = name.partition(".")
        dimension = _AXES.index(axis) if axis else 0
        lane = self.thread_of_lane % WARP
        if stem == "%tid":
            return _coordinate(self.thread_of_lane, launch.block, dimension)
        if stem == "%ctaid":
            return _coordinate(self.first_block + self.block_of_lane, launch.grid, dimension)
        if stem == "%clusterid":
            return _coordinate(self.first_block + self.block_of_lane, launch.grid, dimension)
        if stem in _LANE_MASKS:
            return np.array([_LANE_MASKS[stem](int(k)) for k in range(WARP)], np.uint64)[lane]
        scalars = {
            "%ntid": launch.block[dimension],
            "%nctaid": launch.grid[dimension],
            "%nclusterid": launch.grid[dimension],
            "%cluster_ctaid": 0,
            "%cluster_nctaid": 1,
            "%cluster_ctarank": 0,
            "%cluster_nctarank": 1,
            "%nwarpid": self.padded // WARP,
            "%nsmid": _MULTIPROCESSORS,
            "%gridid": 0,
            "%dynamic_smem_size": launch.dynamic_shared,
            "%total_smem_size": launch.shared_bytes,
        }
        if stem in scalars:
            return scalars[stem]
        if stem == "%laneid":
            return lane
        if stem == "%warpid":
            return self.thread_of_lane // WARP
        return (self.first_block + self.block_of_lane) % _MULTIPROCESSORS

    # -- for messages

    def unfinished(self) -> LaneFault | None:
        """What is in flight although the kernel has ended."""
        flying = self.flights.unfinished()
        if flying is not None:
            lane, line = flying
            return LaneFault("the kernel ends while this wgmma is in flight", lane, line)
        reader = self.bulk_groups.unfinished()
        if reader is not None:
            what = "the kernel ends while this bulk copy may still read shared memory"
            return LaneFault(what, reader, self.bulk_groups.line)
        return None

    def block_and_thread(self, lane: int) -> tuple[Dim3, Dim3]:
        block = self.first_block + lane // self.padded
        return _point(block, self.launch.grid), _point(lane % self.padded, self.launch.block)


def _registers(program: Program, lanes: int) -> list[np.ndarray]:
    """An array for each register, shared as the program says."""
    arrays: dict[int, np.ndarray] = {-1: np.empty(0, np.uint8)}
    for slot, number in zip(program.slots, program.storage, strict=True):
        if number not in arrays:
            arrays[number] = _register(slot, lanes)
    return [arrays[number] for number in program.storage]


def _register(slot: Slot, lanes: int) -> np.ndarray:
    if slot.is_predicate:
        return np.zeros(lanes, np.bool_)
    return np.zeros(lanes, f"u{slot.bits // 8}")


def _coordinate(index: np.ndarray, extents: Dim3, dimension: int) -> np.ndarray:
    for extent in extents[:dimension]:
        index = index // extent
    return index % extents[dimension] if dimension < 2 else index


def _point(index: int, extents: Dim3) -> Dim3:
    x, y, _ = extents
    return index % x, index // x % y, index // (x * y)
