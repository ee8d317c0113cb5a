"""Matmuls by the GPU strategies `int8` and `dequantize` in the PTX machine, against numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.codegen.gpu.arch import SM_80, GpuArch
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.packing.layout import FloatElement, FloatRows, round_to, rows_of
from abqc.codegen.gpu.tiles.schedules import plan_of
from abqc.codegen.gpu.wgmma.schedules import plan_of as wgmma_plan_of
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats, reference
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from abqc.dialects.scale_types import SCALE_TYPES
from abqc.runtime.ptx import run_kernel
from abqc.runtime.ptx.counters import Counters, Counts
from gpu_kernels import compile_kernel, output, run, run_stream, take

INT8 = Int8Matmul()


@dataclass
class TileCase:
    """One quantized matmul with random operands and packed rows made by numpy."""

    strategy: Int8Matmul | DequantizeMatmul
    spec: MatmulSpec
    schedule: Schedule
    arch: GpuArch
    weight: QuantizedTensor
    x: np.ndarray
    bias: np.ndarray

    @staticmethod
    def random(
        weight: str,
        activation: str | None,
        shape: tuple[int, int, int],
        schedule: Schedule,
        arch: GpuArch = SM_80,
        seed: int = 0,
        element: FloatElement = "f16",
    ) -> TileCase:
        """`activation` None: `dequantize`, in `element`. All codes of the weight are random."""
        rng = np.random.default_rng(seed)
        m, n, k = shape
        scheme = parse_scheme(weight)
        a_scheme = None if activation is None else parse_scheme(activation)
        spec = MatmulSpec(n, k, scheme, a_scheme)
        groups = (n, scheme.n_groups(k))
        codes = rng.choice(scheme.format.codes, (n, k)).astype(scheme.format.dtype)
        tensor_scale = 0.01 if scheme.scale == "e4m3" else 1.0
        draws = rng.uniform(0.001, 0.1, groups).astype(np.float32)
        scale = SCALE_TYPES[scheme.scale].nearest(draws, tensor_scale)
        zero = None
        if not scheme.symmetric:
            zero = rng.integers(0, scheme.format.qmax + 1, groups).astype(np.uint8)
        x = rng.standard_normal((m, k), np.float32) + np.float32(0.3)
        return TileCase(
            INT8
            if a_scheme is not None and scheme.format.has_integers
            else DequantizeMatmul(element),
            spec,
            schedule,
            arch,
            QuantizedTensor(codes, scale, zero, scheme, tensor_scale),
            x,
            rng.standard_normal(n, np.float32),
        )

    def check(self) -> None:
        """y, and for integers the accumulators to the bit."""
        plan = wgmma_plan_of if self.schedule.kind == "wgmma" else plan_of
        problem = plan(self.spec, self.schedule, self.strategy.activation).problem(self.arch)
        assert problem is None, f"{self}: {problem}"
        if self.spec.activation is None:
            self._check_float()
        elif not self.weight.scheme.format.has_integers:
            self._check_codes_as_floats()
        else:
            self._check_integer()

    def result(self, *, on_device: bool = False) -> np.ndarray:
        """y of rows packed by numpy, or by the packing kernel."""
        return self._run(self._packed() if on_device else self._rows())

    def _packed(self) -> np.ndarray:
        m = len(self.x)
        pack = self.strategy.pack_kernel(self.spec)
        assert pack is not None
        q = output(m * self.strategy.row_bytes(self.spec), np.uint8)
        return take(run(pack, pack.grid(m), [self.x.reshape(-1), q, m], self.arch)[1])

    def counts(self) -> Counts:
        """What the matmul executes."""
        kernel, (m, n) = self.strategy.kernel(self.spec, self.schedule), (len(self.x), self.spec.n)
        ptx, counters = compile_kernel(self.arch, kernel), Counters()
        shape = ptx.kernels[kernel.name]
        blob = self.strategy.pack_weight(self.spec, self.weight)
        arguments = [self._rows().reshape(-1), blob, self.bias, output(m * n), m, n]
        run_kernel(
            ptx.text,
            kernel.name,
            kernel.grid(m, n),
            shape.threads,
            arguments,
            shape.shared,
            counters=counters,
        )
        return counters.counts()

    def _rows(self) -> np.ndarray:
        rows = rows_of(self.spec, self.strategy.activation)
        if isinstance(rows, FloatRows):
            return rows.pack_reference(self.x)
        assert self.spec.activation is not None
        return rows.pack_reference(*formats.quantize_activation(self.x, self.spec.activation))

    def _check_integer(self) -> None:
        assert self.spec.activation is not None
        codes, scale, zero = formats.quantize_activation(self.x, self.spec.activation)
        weight, rows = self.weight, self._rows()
        acc = reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)
        if self.schedule.split == 1:  # accumulators are not shared
            np.testing.assert_array_equal(self._accumulators(rows, acc.shape), acc, str(self))
        expected = reference.scale_accumulators(acc, scale, weight.integer_scale, self.bias)
        allowed = reference.tolerance(acc, scale, weight.integer_scale, self.bias)
        error = np.abs(self._run(rows).astype(np.float64) - expected)
        assert (error <= allowed).all(), f"{self}: error {(error - allowed).max()}"

    def _check_codes_as_floats(self) -> None:
        """Against f64: minifloats and centred codes are exact in 16 bits, tables nearly."""
        assert self.spec.activation is not None
        codes, scale, zero = formats.quantize_activation(self.x, self.spec.activation)
        x = (codes.astype(np.float64) - zero[:, None]) * scale[:, None]
        values = self.weight.dequantize().astype(np.float64)
        expected = x @ values.T + self.bias
        magnitude = np.abs(x) @ np.abs(values).T + np.abs(self.bias)
        allowed = 2.0 ** (-16 if self.weight.scheme.format.minifloat else -11) * magnitude
        error = np.abs(self.result() - expected)
        assert (error <= allowed).all(), f"{self}: {(error / magnitude).max()}"

    def _check_float(self) -> None:
        """Against f64 over the rounded activations: f32 sums are all that differs."""
        assert self.strategy.activation != "int8"
        element = self.strategy.activation
        rounded = round_to(self.x, element)
        if element == "bf16":
            rounded = (rounded.astype(np.uint32) << 16).view(np.float32)
        values = self.weight.dequantize().astype(np.float64)
        x = rounded.astype(np.float64)
        expected = x @ values.T + self.bias
        magnitude = np.abs(x) @ np.abs(values).T + np.abs(self.bias)
        error = np.abs(self.result() - expected)
        by_table = {"f16": 2.0**-11, "bf16": 2.0**-8}[element]  # whose entries are rounded
        allowed = by_table if self.weight.scheme.format.kind == "table" else 2.0**-16
        assert (error <= allowed * magnitude).all(), f"{self}: {(error / magnitude).max()}"

    def _run(self, rows: np.ndarray) -> np.ndarray:
        spec, m = self.spec, len(self.x)
        kernel = self.strategy.kernel(spec, self.schedule)
        blob = self.strategy.pack_weight(spec, self.weight)
        q = rows.reshape(-1)
        grid = kernel.grid(m, spec.n) * self.schedule.grid_split
        if kernel.stream is not None:
            return run_stream(kernel, grid, [q, blob, self.bias], m, spec.n, self.arch)
        reduce = self.strategy.reduce_kernel(spec, self.schedule)
        size = self.schedule.split * m * spec.n
        target = run(kernel, grid, [q, blob, self.bias, output(size), m, spec.n], self.arch)[3]
        if reduce is None:
            return take(target).reshape(m, spec.n)
        # Sums of one group are integers, of which -1 is what poison is.
        parts = target if self.strategy.activation == "int8" else take(target)
        arguments = [parts, q, blob, self.bias, output(m * spec.n), m, spec.n]
        y = run(reduce, reduce.grid(m, spec.n), arguments, self.arch)[4]
        return take(y).reshape(m, spec.n)

    def _accumulators(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        assert isinstance(self.strategy, Int8Matmul)
        m, n, groups = shape
        kernel = self.strategy.accumulator_kernel(self.spec, self.schedule)
        blob = self.strategy.pack_weight(self.spec, self.weight)
        target = output(m * n * groups, np.int32)
        arguments = [rows.reshape(-1), blob, self.bias, target, m, n]
        acc = take(run(kernel, kernel.grid(m, n), arguments, self.arch)[3])
        return acc.reshape(groups, m, n).transpose(1, 2, 0)

    def __str__(self) -> str:
        spec = self.spec
        return (
            f"{self.strategy.name} {self.arch.name} {spec.weight} x {spec.activation} "
            f"M={len(self.x)} N={spec.n} K={spec.k} {self.schedule.name}"
        )
