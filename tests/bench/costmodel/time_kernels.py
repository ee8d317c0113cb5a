"""Time kernels that `compile_kernels.py` has compiled, one thread, nothing else running.

    python tests/bench/costmodel/time_kernels.py FOLDER [--seconds 60]

Adds to FOLDER/samples.jsonl a line for each timing that it does not have yet: a sample of the cost
model (docs/cost-model.md) with the kernel's name and the number of its task, if that is held out.
A sample is packing and matmul, in time of the thread: the least of several calls, which on a
machine that others use too is what the kernel takes; the median where weights come from DRAM, as
some of them may still be in a cache. Stop it at any time and start it again.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import compile_kernels
import kernel_set
from abqc.codegen.cpu.schedule import CpuStrategy
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import initialize, pack_arguments
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.compiler.tune import spread
from abqc.compiler.tune_cpu import CpuRunner, aligned, random_weight, time_calls
from abqc.costmodel import samples
from abqc.costmodel.interface import Sample
from abqc.dialects.jit import load

MIN_CALLS, MAX_CALLS, SECONDS = 4, 30, 0.012

PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    compile_kernels.arguments(parser)
    parser.add_argument("--again", action="store_true", help="measure what is held out once more")
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    rows = compile_kernels.read(args.folder / "kernels.jsonl.gz")
    operations = {
        (row["kernel"], row["isa"]): tuple((name, n) for name, n in row["operations"])
        for row in rows
    }
    if args.again:
        args.count = 0
    path = args.folder / "samples.jsonl"
    known = {key(line) for line in read(path)} if not args.again else set()
    timer = Timer(args.folder)
    device, date = CpuRunner().device.name, datetime.date.today().isoformat()
    with open(path, "a", encoding="utf-8") as file:
        for timing, held_out in compile_kernels.wanted(args):
            candidate = timing.candidate
            histogram = operations.get((candidate.kernel.name, candidate.task.isa.name))
            if histogram is None or not timer.compiled(candidate):
                continue
            if time.perf_counter() > end:
                break
            working_set = kernel_set.COLD_BYTES if timing.cold else 0
            features = candidate.features(timing.m, working_set, histogram)
            about = {
                "kernel": candidate.kernel.name,
                "task": held_out,
                "default": candidate.default,
            }
            line = samples.to_json(Sample(features, 1.0)) | about
            if key(line) in known:
                continue
            known.add(key(line))
            seconds, wide, calls = timer.time(timing)
            sample = Sample(features, seconds, device, "", date, calls, wide)
            file.write(json.dumps(samples.to_json(sample) | about) + "\n")
        else:
            print("all of them")
    print(f"{path}: {len(known)} samples")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(line: dict) -> tuple:
    f = line["features"]
    return line["kernel"], f["isa"], f["m"], f["n"], f["working_set"] > 0, line["task"]


@dataclass(frozen=True)
class Weights:
    """A packed weight, and without end as many copies of it in turns as are read before the first
    comes again. All kernels go on through them: one that began anew would find in a cache what the
    last one has read."""

    packed: np.ndarray
    turns: Iterator[np.ndarray]

    @classmethod
    def of(cls, strategy: CpuStrategy, spec: MatmulSpec) -> Weights:
        packed = strategy.pack_weight(spec, random_weight(spec))
        copies = range(-(-kernel_set.COLD_BYTES // packed.nbytes))
        return cls(aligned(packed), itertools.cycle([aligned(packed) for _ in copies]))


class Timer:
    """Calls compiled kernels."""

    def __init__(self, folder: Path) -> None:
        initialize()
        self.folder = folder
        self.weights = lru_cache(maxsize=4)(Weights.of)
        self.packing = lru_cache(maxsize=64)(self._packing)

    def time(self, timing: kernel_set.Timing) -> tuple[float, float, int]:
        """Seconds of packing and matmul, the spread of the matmul's, its calls."""
        candidate, m = timing.candidate, timing.m
        spec, isa, strategy = candidate.task.spec, candidate.task.isa, candidate.strategy
        packing, q = self.packing(strategy, spec, isa, m)
        weights = self.weights(strategy, spec)
        y, bias = (aligned(np.zeros(size, np.float32)) for size in (m * spec.n, spec.n))
        prepare = self._loaded(candidate.kernel, isa)
        grid = candidate.kernel.grid(m, spec.n)
        given = weights.turns if timing.cold else itertools.repeat(weights.packed)
        times = call_times(prepare(grid, [q, weight, bias, y, m, spec.n]) for weight in given)
        seconds = statistics.median(times) if timing.cold else min(times)
        return packing + seconds, spread(times), len(times)

    def compiled(self, candidate: kernel_set.Candidate) -> bool:
        """Whether there is the object of what packs its rows."""
        pack = candidate.strategy.pack_kernel(candidate.task.spec)
        path = compile_kernels.object_path
        return pack is None or path(self.folder, pack, candidate.task.isa).exists()

    def _packing(
        self, strategy: CpuStrategy, spec: MatmulSpec, isa: Isa, m: int
    ) -> tuple[float, np.ndarray]:
        """Seconds of packing `m` rows, and the rows."""
        x = aligned(np.random.default_rng(1).standard_normal(m * spec.k, np.float32))
        pack = strategy.pack_kernel(spec)
        if pack is None:
            return 0.0, x
        q = aligned(np.zeros(m * strategy.row_bytes(spec), np.uint8))
        call = self._loaded(pack, isa)(pack.grid(m), [x, q, m])
        return min(call_times(itertools.repeat(call))), q

    def _loaded(
        self, kernel: Kernel, isa: Isa
    ) -> Callable[[int, Sequence[np.ndarray | int]], Callable[[], None]]:
        content = compile_kernels.object_path(self.folder, kernel, isa).read_bytes()
        code = load(content, [kernel.name])
        entry = PROTOTYPE(code[kernel.name])

        def prepare(grid: int, arguments: Sequence[np.ndarray | int]) -> Callable[[], None]:
            slots = pack_arguments(arguments)

            def call() -> None:
                assert code and arguments  # which it keeps alive
                entry(0, grid, slots.ctypes.data)

            return call

        return prepare


def call_times(calls: Iterator[Callable[[], None]]) -> list[float]:
    """`time_calls`, of many samples in little time."""
    times = time_calls(calls, MIN_CALLS, MAX_CALLS, SECONDS)
    assert statistics.median(times) > 0
    return times


if __name__ == "__main__":
    main()
