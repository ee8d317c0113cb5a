"""Products of packed activations with weights of 1 to 8 bits, one thread, through the JIT: the
times of `int8` and the limits, weights coming from memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.strategy import MatmulSpec
from abqc.costmodel.hardware_cpu import ZEN4
from abqc.dialects import formats
from bench.bench_matmul import measure
from kernel_cases import compile_jit, variant_for

K = N = 4096
BITS = tuple(range(1, 9))
ROWS = (1, 128)
SECONDS = 0.4
COLD_BYTES = 384 << 20  # of copies of the weights, more than any cache


def matmul_rows() -> list[dict[str, float | str]]:
    """A row for every number of bits and of rows: microseconds, and what memory and arithmetic
    need at least on the CPU of the cost model."""
    isa = isas.available()[0]
    return [_row(isa, bits, m) for m in ROWS for bits in BITS]


def _row(isa: isas.Isa, bits: int, m: int) -> dict[str, float | str]:
    strategy = Int8Strategy()
    weight, activation = formats.parse_scheme(f"w{bits}"), formats.parse_scheme("a8")
    spec = MatmulSpec(N, K, weight, activation)
    rng = np.random.default_rng(0)
    codes = formats.quantize_weight(rng.standard_normal((N, K), np.float32), weight)
    blob = strategy.pack_weight(spec, codes)
    blobs = [blob, *(blob.copy() for _ in range(-(-COLD_BYTES // blob.nbytes) - 1))]
    x = rng.standard_normal(m * K, np.float32)
    q = np.zeros(m * strategy.row_bytes(spec), np.uint8)
    y, bias = np.zeros(m * N, np.float32), np.zeros(N, np.float32)
    pack, matmul = strategy.pack_kernel(spec), variant_for(strategy.matmul_kernels(spec), m)
    jit = compile_jit(isa, [pack, matmul])
    jit.prepare(pack.name, pack.grid(m), [x, q, m])()
    grid = matmul.grid(m, N)
    runs: list[Callable[[], None]] = [
        jit.prepare(matmul.name, grid, [q, part, bias, y, m, N]) for part in blobs
    ]
    rates = ZEN4.isas[isa.name] if isa.name in ZEN4.isas else ZEN4.isas["avx512"]
    memory = blob.nbytes / ZEN4.levels[-1].bandwidth
    arithmetic = m * N * K / rates.wide_macs
    return {
        "isa": isa.name,
        "bits": bits,
        "rows": m,
        "us": 1e6 * measure(runs, SECONDS),
        "memory_us": 1e6 * memory,
        "arithmetic_us": 1e6 * arithmetic,
        "bytes": blob.nbytes,
    }
