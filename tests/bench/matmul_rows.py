"""Products of packed activations with weights of 1 to 8 bits, one thread, through the JIT: the
times of the kernels that a compile chooses, and the limits of this machine, measured in turns with
them. Weights come from memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects import formats
from bench.machine_rates import Machine, Pool, timed
from kernel_cases import compile_jit, variant_for

K = N = 4096
BITS = tuple(range(1, 9))
ROWS = (1, 128)
CALLS = {1: 101, 128: 15}  # by rows
COLD_BYTES = 384 << 20  # of copies of the weights, more than any cache


def matmul_rows() -> list[dict[str, float | str]]:
    """A row for every number of bits and of rows: microseconds, and what memory and arithmetic
    need at least on this machine."""
    isa = isas.available()[0]
    machine = Machine(isa, Pool())
    rows = []
    for m in ROWS:
        for bits in BITS:
            machine.measure()
            rows.append(_row(isa, bits, m))
    for row in rows:
        row["memory_us"] = 1e6 * float(row["bytes"]) / machine.bandwidth
        row["arithmetic_us"] = 1e6 * float(row["rows"]) * N * K / machine.rate
        row["bandwidth"], row["rate"] = machine.bandwidth, machine.rate
    return rows


def _row(isa: isas.Isa, bits: int, m: int) -> dict[str, float | str]:
    weight, activation = formats.parse_scheme(f"w{bits}"), formats.parse_scheme("a8")
    spec = MatmulSpec(N, K, weight, activation)
    (choice,) = CpuTarget().choose([spec], nodes=["product"], working_set=COLD_BYTES)
    strategy = choice.strategy
    rng = np.random.default_rng(0)
    codes = formats.quantize_weight(rng.standard_normal((N, K), np.float32), weight)
    blob = strategy.pack_weight(spec, codes)
    blobs = [blob, *(blob.copy() for _ in range(-(-COLD_BYTES // blob.nbytes) - 1))]
    x = rng.standard_normal(m * K, np.float32)
    q = np.zeros(m * strategy.row_bytes(spec), np.uint8)
    y, bias = np.zeros(m * N, np.float32), np.zeros(N, np.float32)
    pack, matmul = strategy.pack_kernel(spec), variant_for(choice.variants, m)
    assert pack is not None
    jit = compile_jit(isa, [pack, matmul])
    jit.prepare(pack.name, pack.grid(m), [x, q, m])()
    grid = matmul.grid(m, N)
    runs: list[Callable[[], None]] = [
        jit.prepare(matmul.name, grid, [q, part, bias, y, m, N]) for part in blobs
    ]
    return {
        "isa": isa.name,
        "strategy": strategy.name,
        "bits": bits,
        "rows": m,
        "us": 1e6 * float(np.median([timed(runs[i % len(runs)]) for i in range(CALLS[m])])),
        "bytes": blob.nbytes,
    }
