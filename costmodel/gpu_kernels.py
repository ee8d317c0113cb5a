"""The roofline of a GPU kernel: waves of blocks, each as slow as its busiest resource.

A wave is as many blocks as fit on all SMs at once; registers, shared memory, threads and the limit
of blocks decide how many. Within a wave the units of the busiest SM, the memories and the latency
of the loads overlap, so the slowest decides; waves, prologues and launches add up. The weights are
cold: they come from DRAM, and from L2 when blocks read them again.

Williams, Waterman, Patterson: "Roofline" (CACM 2009); latency hiding is Little's law (Volkov,
"Understanding Latency Hiding on GPUs", 2016).

All candidates of a choice are judged at once, in numpy: a number of theirs is an array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompileError
from .gpu_shared_tiles import SharedTiles
from .hardware_gpu import Gpu
from .interface import KernelFeatures

Numbers = NDArray[Any]  # of each kernel

WARP = 32
UNITS = {
    "b1": "b1_ops",
    "s8": "s8_ops",
    "f16": "f16_ops",
    "wgmma_b1": "wgmma_b1_ops",
    "wgmma_s8": "wgmma_s8_ops",
    "wgmma_f16": "wgmma_f16_ops",
    "f32": "f32_ops",
    "dp4a": "dp4a_ops",
    "alu": "alu_ops",
    "issue": "issued",
    "special": "special_ops",
    "shared": "shared_traffic",
}
TENSOR_UNITS = ("b1", "s8", "f16")
WGMMA_UNITS = ("wgmma_b1", "wgmma_s8", "wgmma_f16")

# An MMA takes about 33 cycles and a scheduler can start one every 8: four schedulers are busy with
# 16 independent ones. Other instructions take 4 to 6 cycles; 8 warps with some independent
# instructions each keep the four schedulers busy.
MMAS_IN_FLIGHT = 16
WARPS_IN_FLIGHT = 8
ACCUMULATORS = 16 * 8  # of one MMA
EFFICIENCY = 0.6  # of a unit's rate that a loop reaches, as instructions wait for each other
# Of the shorter of MMAs and other instructions: a warp waits for its MMAs where a group ends, and
# few warps share a scheduler.
ALTERNATING = 0.7
PORT_EFFICIENCY = 0.85  # of the port of an SM to L2
LOADED_LATENCY = 3.5  # of a memory under load, over that of an idle one: 1.1 us on an H200
STEP_CYCLES = 100  # of one stage of a tile: wait, barrier, ldmatrix (33), dependent MMA (33)
START_CYCLES = 1500  # of a block: its arguments, its addresses, its epilogue
NEXT_CYCLES = 700  # of the next tile of a block that stays: addresses, epilogue; its data are there
# Registers of a thread before it is assembled. ptxas gives tile kernels of s8 with 16, 32 and 64
# accumulators a thread 64 to 100, 124 to 143 and 168 to 255: fragments and decoded weights ahead.
BASE_REGISTERS, REGISTERS_PER_ACCUMULATOR = 40, 2.5
L1_SHARE = 0.25  # of an SM's memory that is left to L1
L2_SHARE = 0.75  # of L2 that one kernel's operands keep
SERIAL = 0.05  # of the work of faster resources, which does not overlap with the slowest
# Of wgmma's rate that warpgroups reach that decode in turns; of that, one that is alone on an SM:
# while it decodes and waits, nothing is multiplied.
WGMMA_EFFICIENCY, ALONE = 0.85, 0.65
WARPGROUP = 4 * WARP
# From so many rows of a block on, the part of the rate: measured on an H200, A in shared memory.
WGMMA_PART = {
    "wgmma_b1": {8: 0.22, 16: 0.41, 32: 0.67, 64: 1.0},
    "wgmma_s8": {8: 0.23, 16: 0.42, 32: 0.70, 64: 0.99, 128: 1.0},
    "wgmma_f16": {8: 0.27, 16: 0.48, 32: 0.74, 64: 0.96, 96: 0.98, 128: 1.0},  # 96: between
}
BOUNDS = {unit: f"{unit} tensor-core" for unit in (*TENSOR_UNITS, *WGMMA_UNITS)} | {
    "f32": "FMA",
    "dp4a": "dp4a",
    "alu": "integer",
    "issue": "issue",
    "special": "special-function",
    "shared": "shared-memory",
}
NUMBERS = (
    *("m", "n", "k", "block_m", "block_n", "block_k", "blocks", "threads"),
    *("weight_bytes", "activation_bytes", "written_bytes", "bytes_in_flight", "workspace_bytes"),
    *("warps_k", "split", "registers", "shared_bytes", "launches", "persistent", "group_m"),
    "shared_by",
    *UNITS.values(),
)
OCCUPANCY_LIMITS = ("blocks", "threads", "registers", "shared memory")


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel an SM runs at once, and what limits them."""

    blocks: int
    limit: str

    @staticmethod
    def of(f: KernelFeatures, gpu: Gpu) -> Occupancy:
        """CompileError where not even one block fits."""
        return GpuKernels.of([f], gpu).occupancy_of(0)


@dataclass(frozen=True)
class GpuEstimate:
    """Seconds by resource over all waves; `busy` is the sum over waves of the slowest one, and of
    what does not overlap with it."""

    resources: Mapping[str, float]
    busy: float
    prologue: float
    reduction: float
    launch: float
    occupancy: Occupancy
    waves: float

    @property
    def seconds(self) -> float:
        return self.busy + self.prologue + self.reduction + self.launch

    @property
    def bound(self) -> str:
        overheads = {"launch": self.launch, "reduction": self.reduction, "prologue": self.prologue}
        slowest = max(overheads, key=lambda name: overheads[name])
        if overheads[slowest] > self.busy:
            return f"{slowest}-bound"
        resource = max(self.resources, key=lambda name: self.resources[name])
        return f"{BOUNDS.get(resource, resource)}-bound"

    @property
    def terms(self) -> Mapping[str, float]:
        return {
            **self.resources,
            "prologue": self.prologue,
            "reduction": self.reduction,
            "launch": self.launch,
        }


@dataclass(frozen=True)
class GpuKernels:
    """Kernels on a GPU: what their blocks do and read. CompileError where not even one block of one
    of them fits, or its instructions are not native.

    The arrays have an entry for each kernel; those named as a field of `KernelFeatures` have what
    it says.
    """

    features: Sequence[KernelFeatures]
    gpu: Gpu
    numbers: Mapping[str, Numbers]
    streams: Numbers  # whether they are of kind "rows"

    @staticmethod
    def of(features: Sequence[KernelFeatures], gpu: Gpu) -> GpuKernels:
        get = attrgetter(*NUMBERS)
        table = np.array([get(f) for f in features], np.float64).reshape(-1, len(NUMBERS))
        numbers = dict(zip(NUMBERS, np.ascontiguousarray(table.T), strict=True))
        streams = np.array([f.kind == "rows" for f in features], bool)
        return GpuKernels(features, gpu, numbers, streams)

    @cached_property
    def units(self) -> dict[str, str]:
        """Those that one of the kernels needs, and the name of their operations."""
        return {unit: name for unit, name in UNITS.items() if self.numbers[name].any()}

    # What runs at once

    @cached_property
    def warps(self) -> Numbers:
        return self.numbers["threads"] / WARP

    @cached_property
    def _registers(self) -> Numbers:
        """Of a thread, those of the assembler or about as many: every output of a block has an
        accumulator in one of the `warps_k` parts; the loads of a rows kernel arrive in registers,
        while it decodes those before."""
        n = self.numbers
        accumulators = n["block_m"] * n["block_n"] * n["warps_k"] / n["threads"]
        loads = np.where(self.streams, 2 * n["bytes_in_flight"] / n["threads"] / 4, 0)
        expected = BASE_REGISTERS + REGISTERS_PER_ACCUMULATOR * accumulators + loads
        return np.where(n["registers"] > 0, n["registers"], np.minimum(255, np.ceil(expected)))

    @cached_property
    def _limits(self) -> Numbers:
        """Blocks of an SM by `OCCUPANCY_LIMITS`."""
        n, gpu = self.numbers, self.gpu
        warps = np.ceil(self.warps)
        unit = gpu.register_granularity
        per_warp = np.ceil(self._registers * WARP / unit) * unit
        by_registers = gpu.registers_per_sm // (per_warp * warps)
        # The assembler makes do with what one block can have.
        by_registers = np.where(n["registers"] > 0, by_registers, np.maximum(1, by_registers))
        by_threads = gpu.threads_per_sm // (warps * WARP)
        by_shared = gpu.shared_per_sm // np.maximum(1, n["shared_bytes"] + gpu.shared_reserved)
        blocks = np.full(len(self.features), float(gpu.blocks_per_sm))
        return np.stack([blocks, by_threads, by_registers, by_shared])

    @cached_property
    def resident(self) -> Numbers:
        """Blocks of an SM."""
        blocks: Numbers = self._limits.min(axis=0)
        beyond = self.numbers["shared_bytes"] > self.gpu.shared_per_block
        wrong = np.flatnonzero((blocks == 0) | beyond)
        if len(wrong):
            i, gpu = wrong[0], self.gpu
            f = self.features[i]
            raise CompileError(
                f"{f.strategy} {f.schedule} does not fit on a multiprocessor of {gpu.name}: "
                f"{f.threads} threads, {int(self._registers[i])} registers each, "
                f"{f.shared_bytes} bytes of shared memory a block"
            )
        return blocks

    def occupancy_of(self, i: int) -> Occupancy:
        return Occupancy(int(self.resident[i]), OCCUPANCY_LIMITS[int(self._limits[:, i].argmin())])

    @cached_property
    def slots(self) -> Numbers:
        """Blocks of a full wave."""
        return self.resident * self.gpu.sms

    # What is read

    @cached_property
    def blocks_m(self) -> Numbers:
        return np.ceil(self.numbers["m"] / self.numbers["block_m"])

    @cached_property
    def blocks_n(self) -> Numbers:
        return np.ceil(self.numbers["n"] / self.numbers["block_n"])

    @cached_property
    def traffic(self) -> Numbers:
        """Bytes that pass between the SMs and L2."""
        n = self.numbers
        written = np.where(n["split"] > 1, n["workspace_bytes"], n["written_bytes"])
        read = n["weight_bytes"] * self.blocks_m + n["activation_bytes"] * self.activation_reads
        return read + written

    @property
    def activation_reads(self) -> Numbers:
        """How often they are read from L2: by every column of blocks. Few rows stay in the L1 of an
        SM, where one block leaves them to the next."""
        gpu = self.gpu
        small = self.numbers["activation_bytes"] <= L1_SHARE * gpu.shared_per_sm
        return np.where(self.streams & small, np.minimum(self.blocks_n, gpu.sms), self.blocks_n)

    @cached_property
    def dram(self) -> Numbers:
        """Bytes to and from DRAM. What does not stay in L2 comes again: weights for every group of
        rows of blocks (or wave of them), a group's activations for every wave of its blocks."""
        n = self.numbers
        at_once = np.minimum(self.slots, self.blocks_m * self.blocks_n)
        rows = np.minimum(self.blocks_m, np.maximum(n["group_m"], at_once / self.blocks_n))
        passes = self.blocks_m / rows
        waves = np.maximum(1.0, self.blocks_n * rows / at_once)
        weights = n["weight_bytes"] / n["split"]
        activations = n["activation_bytes"] / n["split"] / passes
        all_stays = self.stays_in_l2(weights + activations)
        wave_stays = self.stays_in_l2(weights / waves + activations)
        passes = np.where(all_stays, 1.0, passes)
        waves = np.where(all_stays | wave_stays, 1.0, waves)
        kept = self.stays_in_l2(n["workspace_bytes"])
        parts = np.where(kept, 0, n["workspace_bytes"])
        written = np.where(n["split"] > 1, parts, n["written_bytes"])
        return n["weight_bytes"] * passes + n["activation_bytes"] * waves + written

    def stays_in_l2(self, nbytes: Numbers) -> Numbers:
        return nbytes <= L2_SHARE * self.gpu.l2_bytes

    # How long it takes

    @cached_property
    def latency(self) -> Numbers:
        """Seconds that a block waits: for loads, of which only so many are under way, or for the
        steps of its pipeline, one after the other."""
        n, gpu = self.numbers, self.gpu
        near = np.maximum(0.0, self.traffic - self.dram)
        waits = self.dram * gpu.dram_latency + near * gpu.l2_latency
        loads = waits * LOADED_LATENCY / n["blocks"] / np.maximum(1, n["bytes_in_flight"])
        steps = np.ceil(n["k"] / (n["split"] * n["block_k"] * n["warps_k"]))
        stepped = np.maximum(loads, steps * STEP_CYCLES / gpu.clock)
        return np.where(self.streams, loads, stepped)

    def utilization(self, unit: str, blocks: Numbers) -> Numbers:
        """Of a unit's rate, by the warps of `blocks` blocks on one SM."""
        n, warps = self.numbers, self.warps
        if unit in WGMMA_UNITS:
            rows, parts = (list(numbers) for numbers in zip(*WGMMA_PART[unit].items(), strict=True))
            part = np.array(parts)[np.searchsorted(rows, n["block_m"], "right") - 1]
            multiplying = blocks * (n["threads"] // WARPGROUP - 1)
            return WGMMA_EFFICIENCY * part * np.where(multiplying == 1, ALONE, 1.0)
        if unit not in TENSOR_UNITS:
            return EFFICIENCY * np.minimum(1.0, blocks * warps / WARPS_IN_FLIGHT)
        chains = n["block_m"] * n["block_n"] * n["warps_k"] / ACCUMULATORS / warps
        chains = np.minimum(np.maximum(1.0, chains), 4.0)
        return np.minimum(1.0, blocks * warps * chains / MMAS_IN_FLIGHT)

    def wave(self, blocks: Numbers) -> dict[str, Numbers]:
        """Seconds of each resource for a wave of `blocks` blocks, at least one."""
        n, gpu = self.numbers, self.gpu
        busiest = np.ceil(blocks / gpu.sms)
        share = blocks / n["blocks"]
        seconds = {
            unit: busiest
            * n[name]
            / n["blocks"]
            / (gpu.rate(unit) * self.utilization(unit, busiest))
            for unit, name in self.units.items()
        }
        self._alternate(seconds)
        seconds["DRAM"] = self.dram * share / gpu.dram_bandwidth
        port = busiest * self.traffic / n["blocks"] / (gpu.rate("l2") * PORT_EFFICIENCY)
        seconds["L2"] = np.maximum(port, self.traffic * share / gpu.l2_bandwidth)
        seconds["latency"] = self.latency
        return seconds

    @staticmethod
    def _alternate(seconds: dict[str, Numbers]) -> None:
        """Of `mma.sync` and other instructions a part of the shorter is added to the longer; a
        kernel has one kind of MMAs."""
        if "issue" not in seconds:
            return
        issue = seconds["issue"]
        for unit in (unit for unit in TENSOR_UNITS if unit in seconds):
            mmas = seconds[unit]
            longer = mmas > issue
            seconds[unit] = np.where(longer, mmas + ALTERNATING * issue, mmas)
            seconds["issue"] = np.where(
                longer | (mmas == 0), seconds["issue"], issue + ALTERNATING * mmas
            )

    @cached_property
    def waves(self) -> tuple[tuple[Numbers, dict[str, Numbers]], ...]:
        """Full ones, and the last one, which may be missing: how many, and one's seconds."""
        shared = self.shared_tiles
        full = self.numbers["blocks"] // self.slots
        rest = np.where(shared.active, 0, self.numbers["blocks"] - full * self.slots)
        full = np.where(shared.active, shared.waves, full)
        first = self.wave(np.where(shared.active, shared.blocks, self.slots))
        last = self.wave(np.maximum(rest, 1))
        return ((full, first), ((rest > 0).astype(float), last))

    @cached_property
    def shared_tiles(self) -> SharedTiles:
        n = self.numbers
        tile_bytes = 4 * n["block_m"] * n["block_n"]
        shared_by = n["shared_by"]
        return SharedTiles(shared_by > 0, n["blocks"], shared_by, self.slots, tile_bytes)

    @cached_property
    def busy(self) -> Numbers:
        """Seconds of all waves, of what is busiest and of what does not overlap with it."""
        total = np.zeros(len(self.features))
        for count, wave in self.waves:
            slowest = np.max(list(wave.values()), axis=0)
            total = total + count * (slowest + SERIAL * (sum(wave.values()) - slowest))
        return total

    @cached_property
    def prologue(self) -> Numbers:
        """Until the first data of the first blocks are there, and of later waves: while a block
        starts, the others of its SM work."""
        shared = self.shared_tiles
        starts = np.ceil(self.numbers["blocks"] / self.slots)
        starts = np.where(shared.active, shared.starts, starts)
        stays = self.numbers["persistent"] > 0
        later = np.where(stays, NEXT_CYCLES / self.gpu.clock, self.start / self.resident)
        return self.start + (starts - 1) * later

    @cached_property
    def reduction(self) -> Numbers:
        """Seconds of the second kernel, which adds what the splits have left in the workspace, or
        of what blocks that share tiles do for that."""
        n, gpu, shared = self.numbers, self.gpu, self.shared_tiles
        near = self.stays_in_l2(n["workspace_bytes"])
        read = n["workspace_bytes"] / np.where(near, gpu.l2_bandwidth, gpu.dram_bandwidth)
        added = read + n["written_bytes"] / gpu.dram_bandwidth + self.start
        given_near = self.stays_in_l2(shared.given_bytes)
        bandwidth = np.where(given_near, gpu.l2_bandwidth, gpu.dram_bandwidth)
        handed_over = shared.hand_over(gpu, bandwidth, gpu.rate("l2") * PORT_EFFICIENCY)
        return np.where(n["split"] > 1, added, handed_over)

    @property
    def start(self) -> float:
        """Seconds from the start of a block to its first data."""
        return self.gpu.dram_latency + START_CYCLES / self.gpu.clock

    def seconds(self, launch: float) -> Numbers:
        """Of each, where a launch takes `launch`."""
        launches = launch * self.numbers["launches"]
        return self.busy + self.prologue + self.reduction + launches

    def estimate_of(self, i: int, launch: float) -> GpuEstimate:
        """The parts of the seconds of one."""
        resources: dict[str, float] = {}
        for count, wave in self.waves:
            for name, seconds in wave.items() if count[i] else ():
                if name not in UNITS or self.numbers[UNITS[name]][i]:
                    more = float(count[i] * seconds[i])
                    resources[name] = resources.get(name, 0.0) + more
        return GpuEstimate(
            resources=resources,
            busy=float(self.busy[i]),
            prologue=float(self.prologue[i]),
            reduction=float(self.reduction[i]),
            launch=launch * self.features[i].launches,
            occupancy=self.occupancy_of(i),
            waves=float(self.numbers["blocks"][i] / self.slots[i]),
        )
