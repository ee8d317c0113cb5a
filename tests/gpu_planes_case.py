"""A matmul of the strategy `planes` for tests: random codes, run in the PTX machine."""

from __future__ import annotations

from typing import Self

import numpy as np
from abqc.codegen.gpu.arch import SM_80, GpuArch
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.gpu.planes.strategy import Planes
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects import reference
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from abqc.dialects.mlir import ir
from abqc.runtime.ptx import run_kernel
from gpu_kernels import output, run_stream

STRATEGY = Planes()


def compiled(kernel: Kernel, arch: GpuArch = SM_80):
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, arch)
        return compile_ptx(module, arch)


def launch(kernel: Kernel, grid: int, arguments: list, arch: GpuArch = SM_80) -> list[np.ndarray]:
    ptx = compiled(kernel, arch)
    shape = ptx.kernels[kernel.name]
    return run_kernel(
        ptx.text, kernel.name, grid, shape.threads, arguments, shared_bytes=shape.shared
    )


class Case:
    """A matmul with random codes: all scales are 1, so that y shows the accumulators' sum."""

    def __init__(self, weight: str, activation: str, m: int, n: int, k: int, seed: int = 0) -> None:
        self.arch = SM_80
        rng = np.random.default_rng(seed)
        w, a = parse_scheme(weight), parse_scheme(activation)
        self.spec = MatmulSpec(n, k, w, a)
        groups = w.n_groups(k)
        zero = None
        if not w.symmetric:
            zero = rng.integers(0, w.format.qmax + 1, (n, groups)).astype(np.uint8)
        codes = rng.choice(w.format.codes, (n, k)).astype(w.format.dtype)
        self.weight = QuantizedTensor(codes, np.ones((n, groups), np.float16), zero, w)
        self.codes = rng.choice(a.format.codes, (m, k)).astype(a.format.dtype)
        self.scale = np.ones(m, np.float32)
        self.zero = np.zeros(m, np.int32)
        if not a.symmetric:
            self.zero = rng.integers(0, a.format.qmax + 1, m).astype(np.int32)
        self.bias = rng.integers(-9, 9, n).astype(np.float32)

    @property
    def m(self) -> int:
        return len(self.codes)

    def accumulators(self) -> np.ndarray:
        weight = self.weight
        return reference.accumulate(self.codes, self.zero, weight.codes, weight.zero, weight.scheme)

    def on(self, arch: GpuArch) -> Self:
        """The same for another target."""
        self.arch = arch
        return self

    def run(self, schedule: Schedule) -> np.ndarray:
        spec, m, n = self.spec, self.m, self.spec.n
        q = PlaneRows.of(spec).pack_reference(self.codes, self.scale, self.zero)
        w = STRATEGY.pack_weight(spec, self.weight)
        y = output(m * n)
        kernel = STRATEGY.kernel(spec, schedule)
        if kernel.stream is not None:
            grid = kernel.grid(m, n)
            return run_stream(kernel, grid, [q, w, self.bias], m, n, self.arch)
        if schedule.split == 1:
            return launch(kernel, kernel.grid(m, n), [q, w, self.bias, y, m, n], self.arch)[
                3
            ].reshape(m, n)
        space = output(schedule.split * m * n)
        grid = kernel.grid(m, n) * schedule.grid_split
        space = launch(kernel, grid, [q, w, self.bias, space, m, n], self.arch)[3]
        reduce = STRATEGY.reduce_kernel(spec, schedule)
        assert reduce is not None
        out = launch(reduce, reduce.grid(m, n), [space, q, w, self.bias, y, m, n], self.arch)
        return out[4].reshape(m, n)

    def check(self, schedule: Schedule) -> None:
        """To the bit where f32 holds all sums; group by group where it does not."""
        acc = self.accumulators()
        expected = reference.scale_accumulators(acc, self.scale, self.weight.scale, self.bias)
        allowed = reference.tolerance(acc, self.scale, self.weight.scale, self.bias)
        if np.abs(acc).sum(axis=2).max() < 1 << 23:
            allowed = np.zeros_like(allowed)
        error = np.abs(self.run(schedule).astype(np.float64) - expected)
        assert (error <= allowed).all(), f"{self.spec} {schedule.name}: {error.max()}"
