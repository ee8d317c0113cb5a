"""Rates of the float kernels on this machine: `python tests/bench/bench_float.py [isa]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.cpu.float_products.matmul import FloatMatmul
from abqc.codegen.llvm import Jit
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir

SHAPES = [(128, 1536, 384), (128, 384, 1536), (128, 384, 384), (16, 1536, 384), (1, 4096, 4096)]


def best(run: Callable[[], None], turns: int = 15) -> float:
    """The shortest of some runs, in seconds: the machine's other work does not count."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def bench_matmul(isa: isas.Isa, m: int, n: int, k: int) -> None:
    strategy, spec = FloatMatmul(), MatmulSpec(n, k, None, None)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    kernel = next(v.kernel for v in strategy.matmul_kernels(spec) if v.covers(m))
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, isa)
        jit = Jit(module, isa, [kernel.name])
    y, packed = np.empty(m * n, np.float32), strategy.pack_weight(spec, w)
    arguments = [x.reshape(-1), packed, np.zeros(n, np.float32), y, m, n]
    seconds = best(lambda: jit.run(kernel.name, kernel.grid(m, n), arguments))
    rate, bandwidth = 2e-9 * m * n * k / seconds, packed.nbytes / seconds * 1e-9
    print(
        f"{isa.name} {m}x{n}x{k}: {seconds * 1e6:8.1f} us {rate:6.1f} GFLOP/s {bandwidth:5.1f} GB/s"
    )


if __name__ == "__main__":
    chosen = isas.by_name(sys.argv[1]) if len(sys.argv) > 1 else isas.available()[0]
    for shape in SHAPES:
        bench_matmul(chosen, *shape)
