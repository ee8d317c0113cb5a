"""What a launch costs: in a row, after a gap inside a run, and first thing after a pause; and what
a run costs that launches nothing.

    python tests/bench/bench_launch.py [threads]

Medians and 95th percentiles in microseconds. `work` is what one thread needs for the launch alone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import abqc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from abqc.codegen.link import ArtifactMeta
from abqc.runtime.tensor_spec import TensorSpec
from handmade import build

# Waits `gap`, then launches `grid` tasks of `task` nanoseconds; times each launch.
HOST = """
#include "shim.h"
#include <time.h>
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
int32_t abqc_host_main(abqc_ctx *ctx) {
    const int64_t *in = abqc_rt_input(ctx, 0)->data;
    int64_t start = now(), count = in[0], one = 1;
    int64_t *times = abqc_rt_alloc(ctx, (count + 1) * 8);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t t = now(); now() < t + in[1];) {}
        int64_t t = now();
        const uint64_t args[] = {(uint64_t)in[3]};
        abqc_rt_launch(ctx, 0, in[2], args);
        times[i] = now() - t;
    }
    times[count++] = start;
    abqc_rt_output(ctx, 0, times, 1, &count, &one);
    return 0;
}
"""

KERNELS = """
#include <stdint.h>
#include <time.h>
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
static void task(int64_t begin, int64_t end, const uint64_t *args) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t t = now(); args[0] && now() < t + (int64_t)args[0];) {}
}
void (*const abqc_kernels_ISA[])(int64_t, int64_t, const uint64_t *) = {task};
"""

META = ArtifactMeta(
    inputs=[TensorSpec("what", "int64", (4,))],
    outputs=[TensorSpec("times", "int64", (None,))],
    isas=("plain",),
)


def show(label: str, work_us: float, samples: list[float]) -> None:
    median, high = np.percentile(samples, [50, 95])
    print(f"{label:44} {work_us:8.1f} {median:8.1f} {high:8.1f}")


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder) / "launch.so", HOST, META, kernels=KERNELS)
        model = abqc.load(path, threads=threads)

        def run(count: int, gap: int, grid: int, task: int) -> np.ndarray:
            return model.run([np.array([count, gap, grid, task])])[0]

        print(f"{threads} threads{'':33} {'work':>8} {'median':>8} {'95 %':>8}")
        for grid, task in (1, 0), (8, 0), (64, 0), (8, 1000), (8, 20_000), (64, 20_000):
            times = run(300, 0, grid, task)[20:-1] / 1e3
            show(f"launch in a row, grid {grid}", grid * task / 1e3, list(times))
        nothing = [np.zeros(4, np.int64)]
        whole = []
        for _ in range(3000):
            begin = time.perf_counter_ns()
            model.run(nothing)
            whole.append((time.perf_counter_ns() - begin) / 1e3)
        show("run without launches, from Python", 0, whole)
        for gap in 5, 50, 200, 2000:
            times = run(100, gap * 1000, 8, 5000)[5:-1] / 1e3
            show(f"launch after {gap} us of host code, grid 8", 40, list(times))
        for pause in 0, 1, 5, 20, 100:
            first, whole, enter = [], [], []
            for _ in range(50 if pause < 100 else 20):
                time.sleep(pause / 1e3)
                begin = time.perf_counter_ns()
                times = run(1, 0, 8, 5000)
                whole.append((time.perf_counter_ns() - begin) / 1e3)
                first.append(times[0] / 1e3)
                enter.append((times[-1] - begin) / 1e3)
            show(f"host function begins, pause of {pause} ms", 0, enter)
            show(f"first launch after a pause of {pause} ms", 40, first)
            show(f"run with that launch alone, pause of {pause} ms", 40, whole)


if __name__ == "__main__":
    main()
