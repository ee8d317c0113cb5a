"""Schedules of a CPU matmul against each other and against what is predicted of them, one thread.

    python tests/bench/bench_schedules.py int8 w4:channel a8 [--shape 4096x4096] [--rows 1 16 128]

Schedules take turns, each call reads another copy of the weight (`--cold` MiB in all); a time is
the lower quartile. Activations are packed before.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from abqc.codegen import isa as isas
from abqc.codegen.cpu.schedule import ROW_RANGES
from abqc.codegen.strategy import MatmulSpec
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cpu_plans import matmul_features
from abqc.compiler.tune_cpu import random_weight
from abqc.costmodel.analytic import AnalyticModel
from abqc.dialects.formats import parse_scheme
from kernel_cases import compile_jit, on_isa


def bench(strategy, spec: MatmulSpec, m: int, args) -> None:
    isa = isas.by_name(args.isa)
    rows = next(r for r in ROW_RANGES if r.last is None or m <= r.last)
    schedules = strategy.schedules(spec, rows, isa)
    kernels = [strategy.matmul_kernels(spec, on_isa(s, isa))[0].kernel for s in schedules]
    pack = strategy.pack_kernel(spec)
    jit = compile_jit(isa, [*kernels, *([pack] if pack else [])])
    blob = strategy.pack_weight(spec, random_weight(spec))
    blobs = [blob.copy() for _ in range(max(1, -(-(args.cold << 20) // blob.nbytes)))]
    q = x = np.random.default_rng(0).standard_normal(m * spec.k, dtype=np.float32)
    if pack:
        q = np.zeros(m * strategy.row_bytes(spec), np.uint8)
        jit.run(pack.name, pack.grid(m), [x, q, m])
    y, bias = np.zeros(m * spec.n, np.float32), np.zeros(spec.n, np.float32)
    calls = [
        [
            jit.prepare(kernel.name, kernel.grid(m, spec.n), [q, w, bias, y, m, spec.n])
            for w in blobs
        ]
        for kernel in kernels
    ]
    times: list[list[float]] = [[] for _ in schedules]
    called, end = 0, time.perf_counter() + args.seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for own, of_schedule in zip(calls, times, strict=True):
            call = own[called % len(own)]
            called += 1
            begin = time.perf_counter()
            call()
            of_schedule.append(time.perf_counter() - begin)
    seconds = [sorted(each)[len(each) // 4] for each in times]
    model = AnalyticModel()
    order = sorted(range(len(schedules)), key=seconds.__getitem__)
    print(
        f"{strategy.name} {spec.weight} x {spec.activation}, {m} x {spec.k} x {spec.n}, {isa.name}"
    )
    for i in dict.fromkeys([0, *order[: args.top]]):
        features = matmul_features(
            strategy.name,
            spec,
            schedules[i],
            m,
            isa,
            weight_bytes=blob.nbytes,
            working_set=len(blobs) * blob.nbytes,
        )
        rate = m * spec.n * spec.k / seconds[i] / 1e9
        print(
            f"  {schedules[i].name:28} {seconds[i] * 1e6:9.1f} us {rate:6.1f} GMAC/s "
            f"{blob.nbytes / seconds[i] / 1e9:5.1f} GB/s, predicted with packing "
            f"{model.predict(features) * 1e6:9.1f} us{'  default' if i == 0 else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("strategy")
    parser.add_argument("weight")
    parser.add_argument("activation", help="- for floats")
    parser.add_argument("--isa", default="avx512")
    parser.add_argument("--shape", default="4096x4096", help="K x N")
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 16, 128])
    parser.add_argument("--cold", type=int, default=128, help="MiB of weights in turns")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--top", type=int, default=6)
    args = parser.parse_args()
    strategies = {s.name: s for s in CpuTarget(cost_model=AnalyticModel()).strategies}
    k, n = (int(size) for size in args.shape.split("x"))
    weight, activation = (
        None if text == "-" else parse_scheme(text) for text in (args.weight, args.activation)
    )
    for m in args.rows:
        bench(strategies[args.strategy], MatmulSpec(n, k, weight, activation), m, args)


if __name__ == "__main__":
    main()
