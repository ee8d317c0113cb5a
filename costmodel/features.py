"""What the residual looks at: one line a feature.

Sizes are logarithms to base 2. Adding, removing or renaming a feature makes stored trees refuse to
load. `SHARES` are parts of the analytic prediction; the other features describe what is asked, and
they alone decide whether a query lies within the range of the training set. Registers are no
feature: whoever asks has not assembled the kernel yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .interface import Estimate, Features, KernelFeatures, MatmulFeatures

COLD = 26.0  # 64 MiB: beyond the caches, more bytes make no difference


def _log(value: float) -> float:
    return math.log2(max(value, 1))


MATMUL: dict[str, Callable[[MatmulFeatures], float]] = {
    "m": lambda f: _log(f.m),
    "n": lambda f: _log(f.n),
    "k": lambda f: _log(f.k),
    "weight_bits": lambda f: f.weight_bits,
    "activation_bits": lambda f: f.activation_bits,
    "group_size": lambda f: _log(f.k / f.groups),
    "threads": lambda f: f.threads,
    "cold_bytes": lambda f: min(_log(f.working_set), COLD),
}

KERNEL: dict[str, Callable[[KernelFeatures], float]] = {
    "m": lambda f: _log(f.m),
    "n": lambda f: _log(f.n),
    "k": lambda f: _log(f.k),
    "weight_bits": lambda f: f.weight_bits,
    "activation_bits": lambda f: f.activation_bits,
    "block_m": lambda f: _log(f.block_m),
    "block_n": lambda f: _log(f.block_n),
    "block_k": lambda f: _log(f.block_k),
    "warps": lambda f: _log(f.threads / 32),
    "warps_k": lambda f: _log(f.warps_k),
    "stages": lambda f: f.stages,
    "split": lambda f: _log(f.split),
    "shared_bytes": lambda f: _log(f.shared_bytes),
    "bytes_in_flight": lambda f: _log(f.bytes_in_flight),
}

SHARES: dict[type, tuple[str, ...]] = {
    MatmulFeatures: ("compute", "memory", "launch"),
    KernelFeatures: (
        *("b1", "s8", "f16", "f32", "dp4a", "alu", "issue", "shared"),
        *("DRAM", "L2", "latency", "prologue", "reduction", "launch"),
    ),
}

# What is not a number: a category of its own each.
CATEGORIES: dict[type, Callable[[Features], str]] = {
    MatmulFeatures: lambda f: f"{f.strategy} {f.isa}",  # type: ignore[union-attr]
    KernelFeatures: lambda f: f"{f.strategy} {f.kind}",  # type: ignore[union-attr]
}


def asked_names(kind: type) -> tuple[str, ...]:
    """The features that describe what is asked."""
    return tuple(MATMUL if kind is MatmulFeatures else KERNEL)


def names(kind: type) -> tuple[str, ...]:
    """All numeric features, those that describe what is asked first."""
    return asked_names(kind) + tuple(f"{share} share" for share in SHARES[kind])


def numbers(features: Features, estimate: Estimate) -> list[float]:
    """The values of `names`, in that order."""
    if isinstance(features, MatmulFeatures):
        asked = [float(value(features)) for value in MATMUL.values()]
    else:
        asked = [float(value(features)) for value in KERNEL.values()]
    return asked + _shares(estimate.terms, estimate.seconds, SHARES[type(features)])


def _shares(terms: Mapping[str, float], seconds: float, keys: tuple[str, ...]) -> list[float]:
    return [terms.get(key, 0.0) / seconds for key in keys]


def category(features: Features) -> str:
    """The strategy and the ISA of its code, as it is measured."""
    return CATEGORIES[type(features)](features)
