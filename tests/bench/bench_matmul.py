"""Speed of the integer matmul kernels, one thread, through the JIT.

    python tests/bench/bench_matmul.py [--isa avx512] [--strategy int8] [--rows 1 16 128] ...

Prints, for each kernel, the time of a matmul (activations already packed), multiply-adds per
second and bytes of weights read per second, beside the pack kernel's time. Weights are cycled
through several copies, so that small ones do not stay in the cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from abqc.codegen import isa as isas
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.look_up.strategy import LookUpStrategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats
from kernel_cases import compile_jit, variant_for

STRATEGIES = {s.name: s for s in (Int8Strategy(), LookUpStrategy(), BitplaneStrategy())}
COLD_BYTES = 64 << 20


def measure(runs, seconds: float) -> float:
    """The best time of one of the calls on this thread, in seconds, preemption left out."""
    runs[0]()
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while time.perf_counter() < end or calls < 3:
        run = runs[calls % len(runs)]
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
        calls += 1
    return best


def bench(strategy, isa, recipe: tuple[str, str], m: int, k: int, n: int, args) -> None:
    weight, activation = (formats.parse_scheme(text) for text in recipe)
    spec = MatmulSpec(n, k, weight, activation)
    rng = np.random.default_rng(0)
    w = formats.quantize_weight(rng.standard_normal((n, k), np.float32), weight)
    blob = strategy.pack_weight(spec, w)
    copies = max(1, -(-COLD_BYTES // blob.nbytes)) if args.cold else 1
    blobs = [blob, *(blob.copy() for _ in range(copies - 1))]
    x = rng.standard_normal(m * k, np.float32)
    q = np.zeros(m * strategy.row_bytes(spec), np.uint8)
    y, bias = np.zeros(m * n, np.float32), np.zeros(n, np.float32)
    pack = strategy.pack_kernel(spec)
    matmul = variant_for(strategy.matmul_kernels(spec), m)
    jit = compile_jit(isa, [pack, matmul])
    pack_time = measure([jit.prepare(pack.name, pack.grid(m), [x, q, m])], args.seconds / 4)
    grid = matmul.grid(m, n)
    runs = [jit.prepare(matmul.name, grid, [q, part, bias, y, m, n]) for part in blobs]
    time_ = measure(runs, args.seconds)
    print(
        f"{strategy.name:9} {isa.name:7} {'x'.join(recipe):12} {m:4} x {k:5} x {n:5}: "
        f"{time_ * 1e6:9.1f} us {m * n * k / time_ / 1e9:7.1f} GMAC/s "
        f"{blob.nbytes / time_ / 1e9:6.2f} GB/s  pack {pack_time * 1e6:7.1f} us "
        f"{blob.nbytes * 8 / n / k:5.2f} bpw"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--isa", nargs="*", default=["avx512"])
    parser.add_argument("--strategy", nargs="*", default=list(STRATEGIES))
    parser.add_argument("--recipes", nargs="*", default=["w8:a8", "w4:a8", "w2:a8", "w1:a1"])
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 16, 128])
    parser.add_argument("--shapes", nargs="*", default=["384x1536", "4096x4096"], help="K x N")
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--cold", action="store_true", help="weights come from memory")
    args = parser.parse_args()
    for name in args.isa:
        for strategy in args.strategy:
            for recipe in args.recipes:
                weight, _, activation = recipe.rpartition(":")
                for shape in args.shapes:
                    k, n = (int(size) for size in shape.split("x"))
                    for m in args.rows:
                        bench(
                            STRATEGIES[strategy], isas.by_name(name), (weight, activation), m, k, n,
                            args,
                        )  # fmt: skip


if __name__ == "__main__":
    main()
