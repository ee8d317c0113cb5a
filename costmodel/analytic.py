"""The roofline: an operation takes as long as its slower half, arithmetic or memory.

Williams, Waterman, Patterson: "Roofline: an insightful visual performance model" (CACM 2009). The
arithmetic of each strategy is counted by one function below; memory is the packed weight from the
level of the memory that the model's weights live in, and the activations from the nearest one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from abqc.errors import ArtifactError, CompileError

from .hardware_cpu import ZEN4, Cpu, FormRates
from .interface import MatmulFeatures, Sample
from .roofline import time_text

FORMAT = "abqc-analytic-1"

BYTE_UNIT, PLANE_UNIT = 16, 64  # groups are filled up to so many codes
FLOAT_ROW_BLOCK = 128  # rows that share weights decoded to floats
NARROW_BITS = 14  # 2 * 2^p * 2^q fits 16 signed bits


@dataclass(frozen=True)
class Estimate:
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


def _padded_k(f: MatmulFeatures, unit: int) -> int:
    """K with every group filled up to whole units."""
    return f.groups * math.ceil(math.ceil(f.k / f.groups) / unit) * unit


def _scale(f: MatmulFeatures, rates: FormRates) -> float:
    return f.m * f.n * f.groups / rates.scalings


def _float(f: MatmulFeatures, rates: FormRates) -> float:
    return 2 * f.m * f.n * f.k / rates.flops


def _dequantize(f: MatmulFeatures, rates: FormRates) -> float:
    decode = f.n * f.k * math.ceil(f.m / FLOAT_ROW_BLOCK) / rates.float_decodes
    return _float(f, rates) + decode


def _int8(f: MatmulFeatures, rates: FormRates) -> float:
    k = _padded_k(f, BYTE_UNIT)
    narrow = f.weight_bits + f.activation_bits <= NARROW_BITS
    products = f.m * f.n * k / (rates.narrow_macs if narrow else rates.wide_macs)
    # Bytes need no decoding; what is narrower is decoded once for every block of rows.
    passes = 0 if f.weight_bits == 8 else math.ceil(f.m / rates.row_block)
    decode = f.n * k * passes / rates.decodes
    return products + decode + _scale(f, rates) + f.m * f.k / rates.quantizations


def _bitplane(f: MatmulFeatures, rates: FormRates) -> float:
    pairs = f.m * f.n * _padded_k(f, PLANE_UNIT)
    products = pairs * f.weight_bits * f.activation_bits / rates.bit_products
    loads = pairs / rates.operand_loads
    planes = f.m * f.k * f.activation_bits / rates.transpositions
    return products + loads + _scale(f, rates) + planes + f.m * f.k / rates.quantizations


COMPUTE: dict[str, Callable[[MatmulFeatures, FormRates], float]] = {
    "float": _float,
    "dequantize": _dequantize,
    "int8": _int8,
    "bitplane": _bitplane,
}


@dataclass
class AnalyticModel:
    """A roofline for a described CPU; `fit` adds one factor for each strategy and form."""

    cpu: Cpu = ZEN4
    factors: dict[tuple[str, str], float] = field(default_factory=dict)

    def estimate(self, features: MatmulFeatures) -> Estimate:
        """The parts of the prediction, without the fitted factor."""
        compute = COMPUTE.get(features.strategy)
        rates = self.cpu.forms.get(features.isa)
        if compute is None:
            raise CompileError(f"the cost model knows no strategy '{features.strategy}'")
        if rates is None:
            raise CompileError(f"{self.cpu.name} has no rates for instruction set '{features.isa}'")
        level = self.cpu.level_for(max(features.working_set, features.weight_bytes))
        activations = 4 * features.m * (features.k + features.n)
        near = self.cpu.levels[0].throughput(features.threads)
        return Estimate(
            compute=compute(features, rates) / features.threads,
            memory=features.weight_bytes / level.throughput(features.threads) + activations / near,
            launch=self.cpu.launch_seconds * (2 if features.activation_bits <= 8 else 1),
            level=level.name,
        )

    def predict(self, features: MatmulFeatures) -> float:
        factor = self.factors.get((features.strategy, features.isa), 1.0)
        return self.estimate(features).seconds * factor

    def rank(self, candidates: Sequence[MatmulFeatures]) -> list[MatmulFeatures]:
        return sorted(candidates, key=self.predict)

    def explain(self, candidates: Sequence[MatmulFeatures]) -> str:
        return "; ".join(
            f"{f.strategy}: {time_text(self.predict(f))} {self.estimate(f).bound}"
            for f in self.rank(candidates)
        )

    def fit(self, samples: Sequence[Sample]) -> None:
        """Set each factor to the geometric mean of measured over predicted."""
        logs: dict[tuple[str, str], list[float]] = {}
        for sample in samples:
            ratio = sample.seconds / self.estimate(sample.features).seconds
            logs.setdefault((sample.features.strategy, sample.features.isa), []).append(
                math.log(ratio)
            )
        self.factors |= {key: math.exp(sum(values) / len(values)) for key, values in logs.items()}

    def save(self, path: Path) -> None:
        factors = [[strategy, isa, value] for (strategy, isa), value in self.factors.items()]
        path.write_text(
            json.dumps({"format": FORMAT, "cpu": self.cpu.name, "factors": factors}, indent=1)
        )

    @classmethod
    def load(cls, path: Path, cpu: Cpu = ZEN4) -> Self:
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT or data["cpu"] != cpu.name:
                raise ValueError(f"{data['format']} for {data['cpu']}")
            factors = {(str(s), str(isa)): float(value) for s, isa, value in data["factors"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} is no cost model for {cpu.name}: {error}", hint="run `abqc tune`"
            ) from error
        return cls(cpu, factors)
