"""The roofline: an operation takes as long as its slower half, arithmetic or memory.

Williams, Waterman, Patterson: "Roofline: an insightful visual performance model" (CACM 2009). The
arithmetic of each strategy is counted by one function below; memory is the packed weight from the
level of the memory that the model's weights live in, and the activations from the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from ..errors import CompileError
from .hardware import cpu_named
from .hardware_cpu import ZEN4, Cpu, IsaRates
from .interface import MatmulFeatures
from .residual import Residual
from .roofline import Roofline

BYTE_UNIT, LOOK_UP_UNIT, PLANE_UNIT = 16, 32, 64  # groups are filled up to so many codes
LOOK_UP_ROWS = 4  # that share indices
FLOAT_ROW_BLOCK = 128  # rows that share weights decoded to floats
TRELLIS_DECODE = 16  # of the time that unpacking bits takes
NARROW_BITS = 14  # 2 * 2^p * 2^q fits 16 signed bits
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


def _padded_k(f: MatmulFeatures, unit: int) -> int:
    """K with every group filled up to whole units."""
    return f.groups * math.ceil(math.ceil(f.k / f.groups) / unit) * unit


def _scale(f: MatmulFeatures, rates: IsaRates) -> float:
    return f.m * f.n * f.groups / rates.scalings


def _float(f: MatmulFeatures, rates: IsaRates) -> float:
    return 2 * f.m * f.n * f.k / rates.flops


def _dequantize(f: MatmulFeatures, rates: IsaRates) -> float:
    decode = f.n * f.k * math.ceil(f.m / FLOAT_ROW_BLOCK) / rates.float_decodes
    return _float(f, rates) + decode


def _int8(f: MatmulFeatures, rates: IsaRates) -> float:
    return _int8_direct(f, rates) + f.m * f.k / rates.quantizations


def _int8_direct(f: MatmulFeatures, rates: IsaRates) -> float:
    """Of convolutions, whose images are quantized once for all places of a window."""
    k = _padded_k(f, BYTE_UNIT)
    narrow = f.weight_bits + f.activation_bits <= NARROW_BITS
    products = f.m * f.n * k / (rates.narrow_macs if narrow else rates.wide_macs)
    # Bytes need no decoding; what is narrower is decoded once for every block of rows.
    passes = 0 if f.weight_bits == 8 else math.ceil(f.m / rates.row_block)
    decode = f.n * k * passes / rates.decodes
    return products + decode + _scale(f, rates)


def _trellis(f: MatmulFeatures, rates: IsaRates) -> float:
    k = _padded_k(f, BYTE_UNIT)
    passes = math.ceil(f.m / rates.row_block)
    decode = f.n * k * passes * TRELLIS_DECODE / rates.decodes
    products = f.m * f.n * k / rates.wide_macs
    return products + decode + _scale(f, rates) + f.m * f.k / rates.quantizations


def _trellis_float(f: MatmulFeatures, rates: IsaRates) -> float:
    passes = math.ceil(f.m / FLOAT_ROW_BLOCK)
    return _float(f, rates) + f.n * f.k * passes * TRELLIS_DECODE / rates.decodes


def _bitplane(f: MatmulFeatures, rates: IsaRates) -> float:
    pairs = f.m * f.n * _padded_k(f, PLANE_UNIT)
    products = pairs * f.weight_bits * f.activation_bits / rates.bit_products
    loads = pairs / rates.operand_loads
    planes = f.m * f.k * f.activation_bits / rates.transpositions
    return products + loads + _scale(f, rates) + planes + f.m * f.k / rates.quantizations


def _look_up(f: MatmulFeatures, rates: IsaRates) -> float:
    parts = 1 if f.activation_bits <= ONE_TABLE_BITS else 2
    tables = f.m * f.k * parts / rates.quantizations
    if not rates.look_ups:
        return _int8(f, rates) + tables
    pairs = f.n * _padded_k(f, LOOK_UP_UNIT) / LOOKED_UP
    products = f.m * pairs * parts / rates.look_ups
    indices = pairs * math.ceil(f.m / LOOK_UP_ROWS) / rates.decodes
    return products + indices + _scale(f, rates) + f.m * f.k / rates.quantizations + tables


COMPUTE: dict[str, Callable[[MatmulFeatures, IsaRates], float]] = {
    "float": _float,
    "direct": _float,
    "dequantize": _dequantize,
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
        level = self.cpu.level_for(max(features.working_set, features.weight_bytes))
        activations = 4 * features.m * (features.k + features.n)
        near = self.cpu.levels[0].throughput(features.threads)
        return CpuEstimate(
            compute=compute(features, rates) / features.threads,
            memory=features.weight_bytes / level.throughput(features.threads) + activations / near,
            launch=self.cpu.launch_seconds * (2 if features.activation_bits <= 8 else 1),
            level=level.name,
        )
