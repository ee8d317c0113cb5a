"""What the residual looks at: one line a feature.

Sizes are logarithms to base 2. Adding, removing or renaming a feature makes stored trees refuse to
load. `SHARES` are parts of the analytic prediction, `OPERATIONS` of the kernel's MLIR, as powers of
two; the other features describe what is asked, and they alone decide whether a query lies within
the range of the training set. Registers are no feature: whoever asks has not assembled the kernel
yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from .cpu_work import PANEL
from .interface import Estimate, Features, KernelFeatures, MatmulFeatures

VECTOR_BITS = {"amx": 512, "avx512": 512, "avxvnni": 256, "avx2": 256, "plain": 128}
COLD = 26.0  # 64 MiB: beyond the caches, more bytes make no difference


def _log(value: float) -> float:
    return math.log2(max(value, 1))


def _used(size: int, unit: int) -> float:
    """The part of whole units that `size` fills."""
    return size / (-(-size // unit) * unit) if unit else 1.0


MATMUL: dict[str, Callable[[MatmulFeatures], float]] = {
    "m": lambda f: _log(f.m),
    "n": lambda f: _log(f.n),
    "k": lambda f: _log(f.k),
    "weight_bits": lambda f: f.weight_bits,
    "activation_bits": lambda f: f.activation_bits,
    "group_size": lambda f: _log(f.k / f.groups),
    "threads": lambda f: f.threads,
    "cold_bytes": lambda f: min(_log(f.working_set), COLD),
    "vector_bits": lambda f: VECTOR_BITS.get(f.isa, 128),
    "tile_m": lambda f: f.tile_m,
    "tile_n": lambda f: f.tile_n,
    "chains": lambda f: f.chains,
    "block_m": lambda f: _log(f.block_m),
    "block_n": lambda f: _log(f.block_n),
    "block_k": lambda f: _log(f.block_k),
    "prefetch": lambda f: f.prefetch,
    "decode_once": lambda f: f.decode_once,
    "by_columns": lambda f: f.by_columns,
    "indexed": lambda f: f.indexed,
}

# Follow from the above, in ways that trees find hard to see.
MATMUL_DERIVED: dict[str, Callable[[MatmulFeatures], float]] = {
    "bits": lambda f: f.weight_bits * f.activation_bits,
    "accumulators": lambda f: f.tile_m * f.tile_n * f.chains * 32 / VECTOR_BITS.get(f.isa, 128),
    "row_use": lambda f: _used(f.m, f.tile_m),
    "column_use": lambda f: _used(f.n, f.tile_n),
    "weight_size": lambda f: _log(f.weight_bytes),
    "blocks": lambda f: _log(-(-f.m // f.block_m) * -(-f.n // f.block_n)) if f.block_n else 0.0,
    "row_passes": lambda f: _log(-(-f.m // f.tile_m)) if f.tile_m else 0.0,
    "block_use": lambda f: _used(f.n, f.block_n),
    "operands": lambda f: f.tile_m + f.tile_n * 32 / VECTOR_BITS.get(f.isa, 128),
    "tile_weight": lambda f: _log(f.tile_n * f.k * f.weight_bits / 8),
    "panel_weight": lambda f: _log(PANEL * f.k * f.weight_bits / 8),
    "tile_decoded": lambda f: _log(f.tile_n * (f.block_k or f.k)),
    "block_weight": lambda f: _log(f.block_n * f.k * f.weight_bits / 8),
    "block_rows": lambda f: _log(min(f.m, f.block_m) * f.k * min(f.activation_bits, 32) / 8),
    "row_rest": lambda f: f.m % f.tile_m if f.tile_m else 0.0,
    "column_rest": lambda f: f.n % f.block_n / f.block_n if f.block_n else 0.0,
    "group_steps": lambda f: _log(f.k / f.groups / 16),
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
    MatmulFeatures: (
        *("compute", "memory", "launch", "products", "loads", "decode", "stored", "scaling"),
        *("packing", "again", "across", "activations", "calls", "waits", "weights", "ends"),
    ),
    KernelFeatures: (
        *("b1", "s8", "f16", "f32", "dp4a", "alu", "issue", "shared"),
        *("DRAM", "L2", "latency", "prologue", "reduction", "launch"),
    ),
}

# Kinds of operations: the beginnings of their names.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "loops": ("scf.for",),
    "branches": ("scf.if",),
    "loads": ("vector.load", "memref.load", "vector.masked", "vector.transfer", "vector.gather"),
    "stores": ("vector.store", "memref.store"),
    "prefetches": ("memref.prefetch",),
    "intrinsics": ("llvm.x86",),
    "float multiplications": ("math.fma", "arith.mulf"),
    "float additions": ("arith.addf", "arith.subf"),
    "counts": ("math.ctpop",),
    "integer multiplications": ("arith.muli",),
    "integer additions": ("arith.addi", "arith.subi"),
    "bits": ("arith.and", "arith.or", "arith.xor", "arith.sh"),
    "conversions": ("arith.ext", "arith.trunc", "arith.sitofp", "arith.uitofp", "arith.fpto"),
    "moves": ("vector.bitcast", "vector.shuffle", "vector.broadcast", "vector.extract"),
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
    shares = tuple(f"{share} share" for share in SHARES[kind])
    if kind is not MatmulFeatures:
        return asked_names(kind) + shares
    operations = tuple(f"{name} of the kernel" for name in OPERATIONS)
    return asked_names(kind) + shares + (*MATMUL_DERIVED, *operations)


def numbers(features: Features, estimate: Estimate) -> list[float]:
    """The values of `names`, in that order."""
    shares = _shares(estimate.terms, estimate.seconds, SHARES[type(features)])
    if not isinstance(features, MatmulFeatures):
        return [float(value(features)) for value in KERNEL.values()] + shares
    asked = [float(value(features)) for value in MATMUL.values()]
    derived = [float(value(features)) for value in MATMUL_DERIVED.values()]
    return [*asked, *shares, *derived, *_operations(features.operations)]


def _shares(terms: Mapping[str, float], seconds: float, keys: tuple[str, ...]) -> list[float]:
    return [terms.get(key, 0.0) / seconds for key in keys]


@lru_cache(maxsize=4096)
def _operations(histogram: tuple[tuple[str, int], ...]) -> tuple[float, ...]:
    """By kind, logarithms; -1 for all where nobody looked."""
    if not histogram:
        return (-1.0,) * len(OPERATIONS)
    return tuple(
        _log(1 + sum(count for name, count in histogram if name.startswith(prefixes)))
        for prefixes in OPERATIONS.values()
    )


def flag(features: Features) -> str:
    """What gets a feature of its own, 0 or 1: the category, without the ISA, whose width is a
    feature already, so that what is learned of one helps with another."""
    if isinstance(features, MatmulFeatures):
        return features.strategy
    return category(features)


def category(features: Features) -> str:
    """The strategy and the ISA of its code, as it is measured."""
    return CATEGORIES[type(features)](features)
