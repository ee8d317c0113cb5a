"""Quantized matmuls with random operands, for tests of GPU kernels in the PTX machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gpu_kernels
import numpy as np
from abqc.codegen.gpu.arch import SM_80, GpuArch
from abqc.codegen.gpu.few_rows.schedules import rows_kernel, rows_reduce_kernel
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.packing.layout import FloatRows, rows_of
from abqc.codegen.gpu.weights.layout import K_UNIT, TILE_COLUMNS, WeightLayout, pack
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats, reference
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from abqc.runtime.ptx.counters import Counters, Counts

HALF_TOLERANCE = 1e-2  # of the output's range, docs/numerics.md


def schedule(spec: MatmulSpec, rows: int, warps: tuple[int, int], split=1, stages=4) -> Schedule:
    """Of kind "rows"; `warps` of N and of K."""
    block_k = WeightLayout.of(spec).chunk_units * K_UNIT
    columns = TILE_COLUMNS * warps[0]
    return Schedule("rows", rows, columns, block_k, 1, *warps, stages, split)


@dataclass
class Case:
    """One matmul: activations of a scheme, or "f16" or "bf16"."""

    spec: MatmulSpec
    activation: str
    weight: QuantizedTensor
    x: np.ndarray
    bias: np.ndarray

    @staticmethod
    def random(weight: str, activation: str, m: int, n: int, k: int, seed: int = 0) -> Case:
        rng = np.random.default_rng(seed)
        w_scheme = parse_scheme(weight)
        a_scheme = None if activation in ("f16", "bf16") else parse_scheme(activation)
        w = rng.standard_normal((n, k), np.float32)
        x = rng.standard_normal((m, k), np.float32) + np.float32(0.3)
        bias = rng.standard_normal(n, np.float32)
        spec = MatmulSpec(n, k, w_scheme, a_scheme)
        return Case(spec, activation, formats.quantize_weight(w, w_scheme), x, bias)

    @property
    def kind(self):
        if self.spec.activation is None:
            return self.activation
        return "int8" if self.weight.scheme.format.has_integers else "f16"

    def packed_rows(self) -> np.ndarray:
        rows = rows_of(self.spec, self.kind)
        if isinstance(rows, FloatRows):
            return rows.pack_reference(self.x)
        assert self.spec.activation is not None
        return rows.pack_reference(*formats.quantize_activation(self.x, self.spec.activation))

    def run(self, schedule: Schedule, arch: GpuArch = SM_80) -> np.ndarray:
        """y [m, n] of the kernel, and of the one that adds the parts of a split."""
        spec, (m, _), n = self.spec, self.x.shape, self.spec.n
        kernel = rows_kernel(spec, schedule, self.kind)
        grid = kernel.grid(m, n) * schedule.split
        rows, blob = self.packed_rows(), pack(WeightLayout.of(spec), self.weight)
        reduce = rows_reduce_kernel(spec, schedule, self.kind)
        y = gpu_kernels.output(m * n)
        if reduce is None:
            arguments = [rows, blob, self.bias, y, m, n]
            return gpu_kernels.take(gpu_kernels.run(kernel, grid, arguments, arch)[3]).reshape(m, n)
        parts = gpu_kernels.output(schedule.split * m * n)
        arguments = [rows, blob, self.bias, parts, m, n]
        parts = gpu_kernels.take(gpu_kernels.run(kernel, grid, arguments, arch)[3]).copy()
        arguments = [parts, rows, blob, self.bias, y, m, n]
        y = gpu_kernels.run(reduce, reduce.grid(m, n), arguments, arch)[4]
        return gpu_kernels.take(y).reshape(m, n)

    def count(self, schedule: Schedule) -> Counts:
        """What the matmul kernel executes and moves."""
        counters = Counters()
        kernel = rows_kernel(self.spec, schedule, self.kind)
        m, n = len(self.x), self.spec.n
        y = gpu_kernels.output(m * n)
        arguments = [self.packed_rows(), pack(WeightLayout.of(self.spec), self.weight)]
        arguments += [self.bias, y, m, n]
        gpu_kernels.run(kernel, kernel.grid(m, n), arguments, counters=counters)
        return counters.counts()

    def check(self, schedule: Schedule, arch: GpuArch = SM_80) -> None:
        """To the bit for one group of quantized activations, else within the contract."""
        y = self.run(schedule, arch)
        expected, allowed = self.expected()
        error = np.abs(y.astype(np.float64) - expected)
        assert (error <= allowed).all(), f"{self.describe(schedule)}: {(error - allowed).max()}"

    def check_accumulators(self, schedule: Schedule) -> None:
        """Those of every group, to the bit: in column n, only group n modulo G has a scale."""
        assert self.spec.activation is not None
        n, groups = self.weight.scale.shape
        codes, scale, zero = formats.quantize_activation(self.x, self.spec.activation)
        weight = self.weight
        acc = reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)
        for shift in range(0, groups, n):
            chosen = (np.arange(n) + shift) % groups
            scales = np.zeros_like(weight.scale)
            scales[np.arange(n), chosen] = 1
            case = replace(self, weight=replace(weight, scale=scales), bias=np.zeros(n, np.float32))
            sums = acc[:, np.arange(n), chosen].astype(np.float32)
            np.testing.assert_array_equal(
                case.run(schedule), scale[:, None] * sums, case.describe(schedule)
            )

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """y, and how far from it a kernel may be."""
        if self.spec.activation is None:
            y = reference.matmul_float(self.x, self.weight, self.bias)
            return y, np.full(y.shape, HALF_TOLERANCE * np.abs(y).max())
        codes, scale, zero = formats.quantize_activation(self.x, self.spec.activation)
        weight = self.weight
        if not weight.scheme.format.has_integers:
            y = reference.matmul(codes, scale, zero, weight, self.bias)
            return y, np.full(y.shape, 1e-3 * np.abs(y).max())
        acc = reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)
        y = reference.scale_accumulators(acc, scale, weight.integer_scale, self.bias)
        return y, reference.tolerance(acc, scale, weight.integer_scale, self.bias)

    def describe(self, schedule: Schedule) -> str:
        m, k = self.x.shape
        return f"{self.spec.weight} x {self.activation} {schedule.name} M={m} N={self.spec.n} K={k}"

    def with_scales(self, scale: np.ndarray) -> Case:
        """The same codes with f32 scales."""
        weight = replace(self.weight, scale=scale.astype(np.float32))
        return replace(self, weight=weight, spec=replace(self.spec, scale_bits=32))
