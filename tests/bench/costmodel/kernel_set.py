"""The kernels that cost models are trained on: matmuls of many formats, sizes and schedules."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from abqc.codegen import isa as isas
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec, MatmulStrategy, Variant
from abqc.codegen.targets.cpu import CpuTarget
from abqc.costmodel.analytic import AnalyticModel
from abqc.dialects.formats import parse_scheme

WIDTHS = range(1, 9)
GROUPS = ("", ":channel", ":g32", ":g64", ":g256")
OTHER_WEIGHTS = (
    "wnf4",
    "wfp4:g32",
    "wt:g64",
    "w4v",
    "w2v",
    "w4:asym",
    "w3:g64:asym",
    "w8:channel:asym",
)
ACTIVATIONS = (None, *(f"a{bits}" for bits in WIDTHS))
DEPTHS = (64, 100, 256, 384, 576, 768, 1024, 1536, 2048, 3072, 4096)


@dataclass(frozen=True)
class Candidate:
    """A kernel of one strategy for one ISA; `weight` and `activation` are texts of schemes."""

    strategy: MatmulStrategy
    spec: MatmulSpec
    weight: str | None
    activation: str | None
    variant: Variant
    isa: Isa

    @property
    def kernel(self) -> Kernel:
        return self.variant.kernel


def strategies() -> tuple[MatmulStrategy, ...]:
    """Those of the target, which are the same whatever the cost model says."""
    return CpuTarget(cost_model=AnalyticModel()).strategies


def all_isas() -> list[Isa]:
    """Those that can be compiled for; not all run here."""
    return list(isas.ALL)


def sampled(seed: int) -> Iterator[Candidate]:
    """All kernels, each once, in random order; strategies and ISAs take turns."""
    kinds: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in _all(seed):
        kinds.setdefault((candidate.strategy.name, candidate.isa.name), []).append(candidate)
    for turn in itertools.zip_longest(*kinds.values()):
        yield from filter(None, turn)


def _all(seed: int) -> Iterator[Candidate]:
    weights = [f"w{bits}{group}" for bits, group in itertools.product(WIDTHS, GROUPS)]
    weights = [None, *weights, *OTHER_WEIGHTS]
    specs = [
        (weight, activation, k)
        for weight, activation, k in itertools.product(weights, ACTIVATIONS, DEPTHS)
        if weight is not None or activation is None
    ]
    random.Random(seed).shuffle(specs)
    able = strategies()
    seen: set[tuple[str, str]] = set()
    for weight, activation, k in specs:
        spec = MatmulSpec(1024, k, _scheme(weight), _scheme(activation))
        for strategy in able:
            if strategy.unsupported(spec) is not None:
                continue
            for variant, isa in itertools.product(strategy.matmul_kernels(spec), all_isas()):
                if isa.extends is not None and isa.adds not in variant.kernel.uses:
                    continue
                key = variant.kernel.name, isa.name
                if key not in seen:
                    seen.add(key)
                    yield Candidate(strategy, spec, weight, activation, variant, isa)


def _scheme(text: str | None):
    return parse_scheme(text) if text else None
