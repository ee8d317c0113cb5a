"""The roofline: an operation takes as long as its slower half, arithmetic or memory.

Williams, Waterman, Patterson: "Roofline: an insightful visual performance model" (CACM 2009). The
arithmetic of each strategy is counted by one function below, under the schedule that the features
name (`cpu_work.py`): the units of a core overlap, so that most of the time is that of the busiest.
Memory is the packed weight from the level of the memory that the model's weights live in, and what
tiles and blocks read again from the caches that keep it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from ..errors import CompileError
from .cpu_work import BYTE_UNIT, LOOK_UP_UNIT, PLANE_UNIT, Tiling, padded_k, streams
from .hardware import cpu_named
from .hardware_cpu import ZEN4, Cpu, IsaRates
from .interface import MatmulFeatures
from .residual import Residual
from .roofline import Roofline

TRELLIS_DECODE = 16  # of the time that unpacking bits takes
NARROW_BITS = 14  # 2 * 2^p * 2^q fits 16 signed bits
SMALL_BITS = 12  # four of these do
WIDENED = 0.5  # of the instructions that unpack a code, to make words of bytes
SHARED = 0.35  # of the time of unpacking, where products take several instructions of its units
QUAD = 4  # products that a lane of bytes adds up at once
CONTENTION = 0.2  # of what a unit does beyond half of the busiest one's time
STORED = 1.3  # decoding to memory, of the time of decoding to registers
LOOKED_UP = 4  # products that a table has the sums of
ONE_TABLE_BITS = 5  # of activations whose sums are in one table


@dataclass(frozen=True)
class CpuEstimate:
    """Seconds of arithmetic over all threads, of memory traffic, and of starting the loops."""

    compute: float
    memory: float
    launch: float
    level: str

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory) + self.launch

    @property
    def bound(self) -> str:
        if self.launch > max(self.compute, self.memory):
            return "launch-bound"
        return "compute-bound" if self.compute >= self.memory else f"{self.level}-bound"

    @property
    def terms(self) -> Mapping[str, float]:
        return {"compute": self.compute, "memory": self.memory, "launch": self.launch}


def _together(*units: float) -> float:
    """Seconds of units that work at the same time; they hinder each other if both are busy."""
    busiest = max(units)
    beside = sum(max(0.0, unit - busiest / 2) for unit in units) - busiest / 2
    return busiest + CONTENTION * beside


def _scale(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return t.rows * t.columns * f.groups / rates.scalings


def _waits(t: Tiling, chains: int, rates: IsaRates) -> float:
    """How much longer products take that wait for each other: too few accumulators."""
    vectors = t.tile_m * t.panels * max(1, chains) * 512 / rates.vector_bits
    return max(1.0, rates.product_latency / vectors)


def _bf16_products(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return 2 * t.rows * t.columns * f.k / rates.bf16_flops


def _bf16(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    products = _bf16_products(f, t, rates)
    # Floats need no decoding.
    passes = 0 if f.weight_bits == 16 else t.row_blocks
    return products + t.columns * f.k * passes / rates.float_decodes + _scale(f, t, rates)


def _unpacked(f: MatmulFeatures) -> float:
    """Instructions that unpack a code, of those that unpack one that is in one part of 1, 2 or 4
    bits: each part takes two, and one that joins it to the others."""
    parts = f.weight_bits.bit_count()
    return 0.0 if f.weight_bits == 8 else (3 * parts - 1) / 2


def _passes(f: MatmulFeatures, t: Tiling) -> float:
    """How often weights are decoded."""
    return STORED * t.row_blocks if f.decode_once else t.row_tiles


def _float(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return 2 * t.rows * t.columns * f.k / rates.flops


def _dequantize(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return _float(f, t, rates) + t.columns * f.k * t.row_blocks / rates.float_decodes


def _int8(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    return _int8_direct(f, t, rates) + f.m * f.k / rates.quantizations


def _int8_direct(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    """Of convolutions, whose images are quantized once for all places of a window."""
    decode = t.columns * _unpacked(f) * _passes(f, t) * padded_k(f, BYTE_UNIT) / rates.decodes
    scale = _scale(f, t, rates)
    if f.decode_once:
        return _byte_products(f, t, rates, 0.0) + decode + scale
    return _byte_products(f, t, rates, decode) + scale


def _byte_products(f: MatmulFeatures, t: Tiling, rates: IsaRates, decode: float) -> float:
    """Products of bytes, what they load, and the decoding beside them."""
    k = padded_k(f, BYTE_UNIT)
    bits = f.weight_bits + f.activation_bits
    rate = rates.small_macs if bits <= SMALL_BITS else rates.narrow_macs
    if bits > NARROW_BITS:
        rate = rates.wide_macs
    products = t.rows * t.columns * k / rate
    if rate < rates.narrow_macs and not f.decode_once:  # words are made for each tile of rows
        products += WIDENED * t.columns * t.row_tiles * k / rates.decodes
    if rates.wide_macs < rates.small_macs:
        products, decode = products + SHARED * decode, 0.0
    operands = t.tile_m + t.panels * 512 / rates.vector_bits
    loads = t.tiles * (k / QUAD) * operands / rates.loads
    return _together(products * _waits(t, f.chains, rates), loads, decode)


def _trellis(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    decode = t.columns * f.k * _passes(f, t) * TRELLIS_DECODE / rates.decodes
    products = _byte_products(f, t, rates, 0.0)
    return products + decode + _scale(f, t, rates) + f.m * f.k / rates.quantizations


def _trellis_float(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    decode = t.columns * f.k * t.row_blocks * TRELLIS_DECODE / rates.decodes
    return _float(f, t, rates) + decode


def _bitplane(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    pairs = t.rows * t.columns * padded_k(f, PLANE_UNIT)
    products = pairs * f.weight_bits * f.activation_bits / rates.bit_products
    loads = pairs * f.weight_bits / t.tile_m / rates.operand_loads
    planes = f.m * f.k * f.activation_bits / rates.transpositions
    pack = planes + f.m * f.k / rates.quantizations
    return _together(products, loads) + _scale(f, t, rates) + pack


def _look_up(f: MatmulFeatures, t: Tiling, rates: IsaRates) -> float:
    parts = 1 if f.activation_bits <= ONE_TABLE_BITS else 2
    tables = f.m * f.k * parts / rates.quantizations
    if not rates.look_ups:
        return _int8(f, t, rates) + tables
    pairs = t.columns * padded_k(f, LOOK_UP_UNIT) / LOOKED_UP
    products = t.rows * pairs * parts / rates.look_ups
    indices = pairs * t.row_tiles / rates.decodes
    pack = f.m * f.k / rates.quantizations
    return products + indices + _scale(f, t, rates) + pack + tables


COMPUTE: dict[str, Callable[[MatmulFeatures, Tiling, IsaRates], float]] = {
    "float": _float,
    "direct": _float,
    "bf16-direct": _bf16_products,
    "dequantize": _dequantize,
    "bf16": _bf16,
    "int8": _int8,
    "int8-direct": _int8_direct,
    "bitplane": _bitplane,
    "look-up": _look_up,
    "trellis": _trellis,
    "trellis-float": _trellis_float,
}


@dataclass
class AnalyticModel(Roofline[MatmulFeatures]):
    """A roofline for a described CPU."""

    features_class = MatmulFeatures

    cpu: Cpu = ZEN4
    residual: Residual | None = None

    @property
    def machine(self) -> str:
        return self.cpu.name

    @classmethod
    def of_machine(cls, name: str) -> Self:
        return cls(cpu_named(name))

    @property
    def fitted_isas(self) -> frozenset[str]:
        """The instruction sets whose kernels were measured."""
        return self.residual.isas if self.residual else frozenset()

    def estimate(self, features: MatmulFeatures) -> CpuEstimate:
        compute = COMPUTE.get(features.strategy)
        rates = self.cpu.isas.get(features.isa)
        if compute is None:
            raise CompileError(f"the cost model knows no strategy '{features.strategy}'")
        if rates is None:
            raise CompileError(f"{self.cpu.name} has no rates for instruction set '{features.isa}'")
        tiling = Tiling.of(features)
        cpu, threads = self.cpu, features.threads
        calls = tiling.tiles * cpu.tile_seconds + tiling.blocks * cpu.block_seconds
        level = cpu.level_for(max(features.working_set, features.weight_bytes))
        bandwidth = level.throughput(threads)
        waits = 0.0
        if features.m == 1 and level.capacity == math.inf:
            part = _fetched(features, tiling, cpu)
            waits = (1 / part - 1) * features.weight_bytes / bandwidth
            bandwidth *= part
        elif features.m > 1 and features.prefetch == 0:
            waits = cpu.waits * features.weight_bytes / bandwidth
        read = 4 * features.m * (features.k + features.n) / cpu.levels[0].throughput(threads)
        for stream in streams(features, tiling):
            read += stream.traffic / cpu.level_for(stream.between).throughput(threads)
        return CpuEstimate(
            compute=(compute(features, tiling, rates) + calls) / threads + waits,
            memory=features.weight_bytes / bandwidth + read,
            launch=cpu.launch_seconds * (2 if features.activation_bits <= 8 else 1),
            level=level.name,
        )


def _fetched(f: MatmulFeatures, t: Tiling, cpu: Cpu) -> float:
    """The part of the memory's bandwidth that one row of products of bytes gets."""
    if not f.schedule or f.strategy != "int8":
        return 1.0
    return cpu.one_row_fetching.get((f.groups > 1, t.panels, f.prefetch > 0), 1.0)
