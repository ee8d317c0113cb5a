"""The roofline of a GPU kernel: waves of blocks, each as slow as its busiest resource.

A wave is as many blocks as fit on all SMs at once; registers, shared memory, threads and the limit
of blocks decide how many. Within a wave the units of the busiest SM, the memories and the latency
of the loads overlap, so the slowest decides; waves, prologues and launches add up. The weights are
cold: they come from DRAM, and from L2 when blocks read them again.

Williams, Waterman, Patterson: "Roofline" (CACM 2009); latency hiding is Little's law (Volkov,
"Understanding Latency Hiding on GPUs", 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from ..errors import CompileError
from .hardware import gpu_named
from .hardware_gpu import Gpu
from .interface import KernelFeatures
from .residual import Residual
from .roofline import Roofline

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
# Latencies of L2 until sums are written and seen by all; then, for each block that gives some,
# until that is noticed and the first of them are there.
GIVE_LATENCIES, TAKE_LATENCIES = 6, 2
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


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel an SM runs at once, and what limits them."""

    blocks: int
    limit: str

    @staticmethod
    def of(f: KernelFeatures, gpu: Gpu) -> Occupancy:
        """CompileError where not even one block fits."""
        warps = math.ceil(f.threads / WARP)
        registers = f.registers or _expected_registers(f)
        per_warp = _round_up(registers * WARP, gpu.register_granularity)
        by_registers = gpu.registers_per_sm // (per_warp * warps)
        if not f.registers:  # the assembler makes do with what one block can have
            by_registers = max(1, by_registers)
        limits = {
            "blocks": gpu.blocks_per_sm,
            "threads": gpu.threads_per_sm // (warps * WARP),
            "registers": by_registers,
            "shared memory": gpu.shared_per_sm // max(1, f.shared_bytes + gpu.shared_reserved),
        }
        limit = min(limits, key=lambda name: limits[name])
        if limits[limit] == 0 or f.shared_bytes > gpu.shared_per_block:
            raise CompileError(
                f"{f.strategy} {f.schedule} does not fit on a multiprocessor of {gpu.name}: "
                f"{f.threads} threads, {registers} registers each, {f.shared_bytes} bytes of "
                "shared memory a block"
            )
        return Occupancy(limits[limit], limit)


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
class _Kernel:
    """A kernel on a GPU: what its blocks do and read."""

    f: KernelFeatures
    gpu: Gpu

    @cached_property
    def occupancy(self) -> Occupancy:
        return Occupancy.of(self.f, self.gpu)

    @property
    def slots(self) -> int:
        """Blocks of a full wave."""
        return self.occupancy.blocks * self.gpu.sms

    @property
    def blocks_m(self) -> int:
        return math.ceil(self.f.m / self.f.block_m)

    @property
    def blocks_n(self) -> int:
        return math.ceil(self.f.n / self.f.block_n)

    @cached_property
    def traffic(self) -> float:
        """Bytes that pass between the SMs and L2."""
        f = self.f
        return (
            f.weight_bytes * self.blocks_m
            + f.activation_bytes * self.activation_reads
            + (f.workspace_bytes if f.split > 1 else f.written_bytes)
        )

    @property
    def activation_reads(self) -> int:
        """How often they are read from L2: by every column of blocks. Few rows stay in the L1 of an
        SM, where one block leaves them to the next."""
        f, gpu = self.f, self.gpu
        in_l1 = f.kind == "rows" and f.activation_bytes <= L1_SHARE * gpu.shared_per_sm
        return min(self.blocks_n, gpu.sms) if in_l1 else self.blocks_n

    @cached_property
    def dram(self) -> float:
        """Bytes to and from DRAM. What does not stay in L2 comes again: weights for every group of
        rows of blocks (or wave of them), a group's activations for every wave of its blocks."""
        f = self.f
        at_once = min(self.slots, self.blocks_m * self.blocks_n)
        rows = min(self.blocks_m, max(f.group_m, at_once / self.blocks_n))
        passes, waves = self.blocks_m / rows, max(1.0, self.blocks_n * rows / at_once)
        weights, activations = f.weight_bytes / f.split, f.activation_bytes / f.split / passes
        if self.stays_in_l2(weights + activations):
            passes = waves = 1.0
        elif self.stays_in_l2(weights / waves + activations):
            waves = 1.0
        written = f.written_bytes
        if f.split > 1:
            written = 0 if self.stays_in_l2(f.workspace_bytes) else f.workspace_bytes
        return f.weight_bytes * passes + f.activation_bytes * waves + written

    def stays_in_l2(self, nbytes: float) -> bool:
        return nbytes <= L2_SHARE * self.gpu.l2_bytes

    @cached_property
    def latency(self) -> float:
        """Seconds that a block waits: for loads, of which only so many are under way, or for the
        steps of its pipeline, one after the other."""
        f, gpu = self.f, self.gpu
        near = max(0.0, self.traffic - self.dram)
        waits = self.dram * gpu.dram_latency + near * gpu.l2_latency
        loads = waits * LOADED_LATENCY / f.blocks / max(1, f.bytes_in_flight)
        if f.kind == "rows":
            return loads
        steps = math.ceil(f.k / (f.split * f.block_k * f.warps_k))
        return max(loads, steps * STEP_CYCLES / gpu.clock)

    def utilization(self, unit: str, blocks: int) -> float:
        """Of a unit's rate, by the warps of `blocks` blocks on one SM."""
        f = self.f
        warps = f.threads / WARP
        if unit in WGMMA_UNITS:
            parts = WGMMA_PART[unit]
            part = max(p for rows, p in parts.items() if rows <= f.block_m)
            multiplying = blocks * (f.threads // WARPGROUP - 1)
            return WGMMA_EFFICIENCY * part * (ALONE if multiplying == 1 else 1.0)
        if unit not in TENSOR_UNITS:
            return EFFICIENCY * min(1.0, blocks * warps / WARPS_IN_FLIGHT)
        chains = max(1.0, f.block_m * f.block_n * f.warps_k / ACCUMULATORS / warps)
        return min(1.0, blocks * warps * min(chains, 4.0) / MMAS_IN_FLIGHT)

    def wave(self, blocks: int) -> dict[str, float]:
        """Seconds of each resource for a wave of `blocks` blocks."""
        f, gpu = self.f, self.gpu
        busiest = math.ceil(blocks / gpu.sms)
        share = blocks / f.blocks
        seconds = {
            unit: busiest * ops / f.blocks / (gpu.rate(unit) * self.utilization(unit, busiest))
            for unit, ops in ((unit, getattr(f, name)) for unit, name in UNITS.items())
            if ops
        }
        alternating = [unit for unit in (*TENSOR_UNITS, "issue") if unit in seconds]
        if len(alternating) > 1:
            shorter, longer = sorted(alternating, key=lambda unit: seconds[unit])
            seconds[longer] += ALTERNATING * seconds[shorter]
        seconds["DRAM"] = self.dram * share / gpu.dram_bandwidth
        port = busiest * self.traffic / f.blocks / (gpu.rate("l2") * PORT_EFFICIENCY)
        seconds["L2"] = max(port, self.traffic * share / gpu.l2_bandwidth)
        seconds["latency"] = self.latency
        return seconds

    # Blocks that stay and share tiles along K (codegen/gpu/wgmma/stream_k.py)

    @property
    def sharing(self) -> int:
        """Blocks that share tiles."""
        return min(self.f.blocks * self.f.shared_by, self.slots)

    @property
    def shared_tiles(self) -> int:
        """What whole waves leave over, and one of them."""
        waves, left = divmod(self.f.blocks, self.sharing)
        return left + (self.sharing if waves and left else 0)

    @cached_property
    def hand_over(self) -> float:
        """Seconds in which a block gives a tile's sums away, and adds those of others to its own:
        one, or of few tiles all that share it."""
        f, gpu = self.f, self.gpu
        blocks, shared = self.sharing, self.shared_tiles
        others = max(1, math.ceil(blocks / shared) - 1)
        tile = 4 * f.block_m * f.block_n
        given = blocks - math.gcd(blocks, shared)
        busiest = math.ceil(blocks / gpu.sms)
        port = busiest * (1 + others) * tile / (gpu.rate("l2") * PORT_EFFICIENCY)
        near = self.stays_in_l2(given * tile)
        bandwidth = gpu.l2_bandwidth if near else gpu.dram_bandwidth
        waits = (GIVE_LATENCIES + TAKE_LATENCIES * others) * gpu.l2_latency
        return max(port, 2 * given * tile / bandwidth) + waits

    @property
    def waves(self) -> list[tuple[float, int]]:
        """How often so many blocks run at once, each with a tile: parts of tiles are parts of a
        wave."""
        f = self.f
        if not f.shared_by:
            full, rest = divmod(f.blocks, self.slots)
            return [(count, blocks) for count, blocks in ((full, self.slots), (1, rest)) if blocks]
        waves = (f.blocks - self.shared_tiles) // self.sharing
        return [(waves + self.shared_tiles / self.sharing, self.sharing)]

    @property
    def starts(self) -> int:
        """Of tiles, or parts of them, one after another on a multiprocessor."""
        f = self.f
        if not f.shared_by:
            return math.ceil(f.blocks / self.slots)
        parts = math.ceil(self.shared_tiles / self.sharing) + 1 if self.shared_tiles else 0
        return (f.blocks - self.shared_tiles) // self.sharing + parts

    @cached_property
    def reduction(self) -> float:
        """Seconds of the second kernel, which adds what the splits have left in the workspace, or
        of what blocks that share tiles do for that."""
        f, gpu = self.f, self.gpu
        if f.shared_by and self.shared_tiles:
            return self.hand_over
        if f.split == 1:
            return 0.0
        near = self.stays_in_l2(f.workspace_bytes)
        read = f.workspace_bytes / (gpu.l2_bandwidth if near else gpu.dram_bandwidth)
        return read + f.written_bytes / gpu.dram_bandwidth + self.start

    @property
    def start(self) -> float:
        """Seconds from the start of a block to its first data."""
        return self.gpu.dram_latency + START_CYCLES / self.gpu.clock

    @property
    def next_start(self) -> float:
        """The same of a later wave: while a block starts, the others of its SM work."""
        if self.f.persistent:
            return NEXT_CYCLES / self.gpu.clock
        return self.start / self.occupancy.blocks


@dataclass
class GpuAnalyticModel(Roofline[KernelFeatures]):
    """A roofline for a described GPU. `in_graph`: launches are nodes of a CUDA graph."""

    features_class = KernelFeatures

    gpu: Gpu
    residual: Residual | None = None
    in_graph: bool = True

    @property
    def machine(self) -> str:
        return self.gpu.name

    @classmethod
    def of_machine(cls, name: str) -> Self:
        return cls(gpu_named(name))

    def estimate(self, features: KernelFeatures) -> GpuEstimate:
        if features.arch != self.gpu.arch:
            raise CompileError(
                f"{self.gpu.name} runs {self.gpu.arch}, the kernel is for {features.arch}"
            )
        kernel = _Kernel(features, self.gpu)
        resources: dict[str, float] = {}
        busy = 0.0
        for count, blocks in kernel.waves:
            wave = kernel.wave(blocks)
            slowest = max(wave.values())
            busy += count * (slowest + SERIAL * (sum(wave.values()) - slowest))
            for name, seconds in wave.items():
                resources[name] = resources.get(name, 0.0) + count * seconds
        gpu = self.gpu
        launch = gpu.graph_launch_seconds if self.in_graph else gpu.launch_seconds
        return GpuEstimate(
            resources=resources,
            busy=busy,
            prologue=kernel.start + (kernel.starts - 1) * kernel.next_start,
            reduction=kernel.reduction,
            launch=launch * features.launches,
            occupancy=kernel.occupancy,
            waves=features.blocks / kernel.slots,
        )


def _expected_registers(f: KernelFeatures) -> int:
    """Of one thread: every output of its block has an accumulator in one of the `warps_k` parts.
    The loads of a rows kernel arrive in registers, while it decodes those before."""
    accumulators = f.block_m * f.block_n * f.warps_k / f.threads
    loads = 2 * f.bytes_in_flight / f.threads / 4 if f.kind == "rows" else 0
    expected = BASE_REGISTERS + REGISTERS_PER_ACCUMULATOR * accumulators + loads
    return min(255, math.ceil(expected))


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
