"""CPUs as data: what one core computes per second in each form, and how fast memory feeds it.

Rates are sustained ones of the instruction mix that a kernel needs, loads included, not peaks of
single instructions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, MIB, GIGA = 1 << 10, 1 << 20, 1e9


@dataclass(frozen=True)
class FormRates:
    """One core running the kernels of one instruction set; per second."""

    flops: float  # f32 multiply-adds count two
    int8_macs: float  # 8 x 8 bits into 32, without saturation
    bit_products: float  # AND, population count, accumulate
    decodes: float  # low-bit codes unpacked from memory into registers
    scalings: float  # int32 accumulators converted, scaled and added in f32
    quantizations: float  # activations rounded to codes and stored
    transpositions: float  # activation codes laid out as one bit plane
    row_block: int  # rows of activations that share one decoded weight


@dataclass(frozen=True)
class CacheLevel:
    """A level of the memory: capacity in bytes (`inf` for DRAM), bytes per second of one core.

    A shared level gives all cores together at most `shared_bandwidth`.
    """

    name: str
    capacity: float
    bandwidth: float
    shared_bandwidth: float = math.inf

    def throughput(self, threads: int) -> float:
        return min(threads * self.bandwidth, self.shared_bandwidth)


@dataclass(frozen=True)
class Cpu:
    """A CPU: `levels` from the smallest up, a private one with the capacity of one core."""

    name: str
    levels: tuple[CacheLevel, ...]
    launch_seconds: float  # a parallel loop that does nothing
    forms: Mapping[str, FormRates] = field(default_factory=dict)

    def level_for(self, working_set: float) -> CacheLevel:
        """The smallest level that holds `working_set` bytes."""
        return next(level for level in self.levels if working_set <= level.capacity)


ZEN4 = Cpu(
    name="Zen 4",
    levels=(
        CacheLevel("L2", 1 * MIB, 100 * GIGA),
        CacheLevel("L3", 32 * MIB, 60 * GIGA, 240 * GIGA),
        CacheLevel("DRAM", math.inf, 22 * GIGA, 39 * GIGA),
    ),
    launch_seconds=2e-6,
    forms={
        "avx512": FormRates(
            flops=100 * GIGA,
            int8_macs=190 * GIGA,
            bit_products=900 * GIGA,
            decodes=50 * GIGA,
            scalings=20 * GIGA,
            quantizations=4 * GIGA,
            transpositions=8 * GIGA,
            row_block=8,
        ),
        "avx2": FormRates(
            flops=100 * GIGA,
            int8_macs=70 * GIGA,
            bit_products=300 * GIGA,
            decodes=25 * GIGA,
            scalings=10 * GIGA,
            quantizations=3 * GIGA,
            transpositions=4 * GIGA,
            row_block=4,
        ),
        "plain": FormRates(
            flops=40 * GIGA,
            int8_macs=25 * GIGA,
            bit_products=40 * GIGA,
            decodes=8 * GIGA,
            scalings=5 * GIGA,
            quantizations=0.5 * GIGA,
            transpositions=0.5 * GIGA,
            row_block=4,
        ),
    },
)
