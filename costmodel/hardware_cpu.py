"""CPUs as data: what one core computes per second by instruction set, and how fast memory feeds it.

Rates are sustained ones of the instruction mix that a kernel needs, loads included, not peaks of
single instructions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, MIB, GIGA = 1 << 10, 1 << 20, 1e9


@dataclass(frozen=True)
class IsaRates:
    """One core running the kernels of one instruction set; per second."""

    flops: float  # f32 multiply-adds count two
    bf16_flops: float  # the same of bf16; of the best set that extends this one
    wide_macs: float  # bytes, products too large for pairs to be added in 16 bits
    narrow_macs: float  # bytes, where two products always fit 16 bits
    small_macs: float  # bytes, where eight do
    bit_products: float  # AND, population count, accumulate
    look_ups: float  # bytes looked up in tables and added; 0: not done
    operand_loads: float  # bits of weights loaded, which serve all rows of a tile
    decodes: float  # codes in one part (`cpu_arithmetic._unpacked`) unpacked to bytes
    float_decodes: float  # codes unpacked to f32
    scalings: float  # int32 accumulators centred, converted, scaled and added in f32
    quantizations: float  # activations rounded to codes and stored
    transpositions: float  # activation codes laid out as one bit plane
    loads: float  # registers loaded, or filled with one number
    vector_bits: int
    product_latency: int  # products of bytes under way that keep the units busy


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
class Streams:
    """Panels of weights that are read side by side: the part of the bandwidth that they get, and
    the bytes that could be read in the time that a panel takes to begin."""

    part: float
    begin: float

    def part_of(self, panel: float) -> float:
        """The part that panels of so many bytes get."""
        return self.part * panel / (panel + self.begin)


@dataclass(frozen=True)
class Cpu:
    """A CPU: `levels` from the smallest up, a private one with the capacity of one core."""

    name: str
    levels: tuple[CacheLevel, ...]
    launch_seconds: float  # a parallel loop that does nothing
    tile_seconds: float  # beginning and end of a tile's loop
    block_seconds: float  # a call of a kernel
    waits: float  # the part of the memory's time that products of several rows do not hide
    patch_elements: float  # of a convolution's patches written, or results transposed; per second
    isas: Mapping[str, IsaRates] = field(default_factory=dict)
    # How one row of products of bytes reads DRAM: by the panels that are read side by side, and
    # whether instructions prefetch them.
    one_row_streams: Mapping[tuple[int, bool], Streams] = field(default_factory=dict)

    def level_for(self, working_set: float) -> CacheLevel:
        """The smallest level that holds `working_set` bytes."""
        return next(level for level in self.levels if working_set <= level.capacity)


ZEN4 = Cpu(
    name="Zen 4",
    levels=(
        CacheLevel("L1", 32 * KIB, 220 * GIGA),
        CacheLevel("L2", 1 * MIB, 100 * GIGA),
        CacheLevel("L3", 32 * MIB, 60 * GIGA, 240 * GIGA),
        CacheLevel("DRAM", math.inf, 30 * GIGA, 39 * GIGA),
    ),
    launch_seconds=2e-6,
    tile_seconds=8e-9,
    block_seconds=20e-9,
    waits=0.25,
    one_row_streams={
        (1, False): Streams(0.8, 0.5 * KIB),
        (1, True): Streams(0.68, 0.5 * KIB),
        (2, False): Streams(0.74, 3.5 * KIB),
        (2, True): Streams(0.69, 0.5 * KIB),
        (4, False): Streams(0.84, 3.5 * KIB),
        (4, True): Streams(0.74, 0.75 * KIB),
    },
    patch_elements=2.5 * GIGA,
    isas={
        "avx512": IsaRates(
            flops=110 * GIGA,
            bf16_flops=210 * GIGA,
            wide_macs=226 * GIGA,
            narrow_macs=226 * GIGA,
            small_macs=226 * GIGA,
            bit_products=1000 * GIGA,
            look_ups=120 * GIGA,
            operand_loads=900 * GIGA,
            decodes=146 * GIGA,
            float_decodes=50 * GIGA,
            scalings=14 * GIGA,
            quantizations=4.3 * GIGA,
            transpositions=90 * GIGA,
            loads=5.5 * GIGA,
            vector_bits=512,
            product_latency=4,
        ),
        "avx2": IsaRates(
            flops=105 * GIGA,
            bf16_flops=95 * GIGA,
            wide_macs=75 * GIGA,
            narrow_macs=106 * GIGA,
            small_macs=135 * GIGA,
            bit_products=290 * GIGA,
            look_ups=36 * GIGA,
            operand_loads=735 * GIGA,
            decodes=100 * GIGA,
            float_decodes=18 * GIGA,
            scalings=10 * GIGA,
            quantizations=3.4 * GIGA,
            transpositions=60 * GIGA,
            loads=9 * GIGA,
            vector_bits=256,
            product_latency=4,
        ),
        "plain": IsaRates(
            flops=37 * GIGA,
            bf16_flops=35 * GIGA,
            wide_macs=16 * GIGA,
            narrow_macs=16 * GIGA,
            small_macs=16 * GIGA,
            bit_products=72 * GIGA,
            look_ups=0,
            operand_loads=150 * GIGA,
            decodes=50 * GIGA,
            float_decodes=13 * GIGA,
            scalings=5 * GIGA,
            quantizations=1.7 * GIGA,
            transpositions=15 * GIGA,
            loads=9 * GIGA,
            vector_bits=128,
            product_latency=4,
        ),
    },
)

CPUS = (ZEN4,)
