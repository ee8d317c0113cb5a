"""Runs matmul strategies through the JIT, for tests and benchmarks of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from abqc.codegen import isa as isas
from abqc.codegen.cpu.packing.activations import measure_kernel
from abqc.codegen.cpu.schedule import CpuSchedule, KernelSchedule, RangeSchedule
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from abqc.codegen.strategy import Kernel, MatmulSpec, Variant
from abqc.dialects import formats, hadamard, reference
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from abqc.dialects.mlir import ir

CONTEXT = ir.Context()


class Kernels:
    """Kernels by name, each compiled when it is first asked for; see `Jit`."""

    def __init__(self, isa: Isa, kernels: Sequence[Kernel]) -> None:
        self.isa = isa
        self.kernels = {kernel.name: kernel for kernel in kernels}
        self._loaded: dict[str, Jit] = {}

    def __getitem__(self, name: str) -> Jit:
        if name not in self._loaded:
            self._loaded[name] = _compile(self.isa, self.kernels[name])
        return self._loaded[name]

    def run(self, name: str, grid: int, arguments: Sequence, begin: int = 0) -> None:
        self[name].run(name, grid, arguments, begin)

    def prepare(
        self, name: str, grid: int, arguments: Sequence, begin: int = 0
    ) -> Callable[[], None]:
        return self[name].prepare(name, grid, arguments, begin)


def compile_jit(isa: Isa, kernels: list[Kernel]) -> Kernels:
    return Kernels(isa, kernels)


_compiled: dict[tuple[Isa, str], Jit] = {}  # by what was emitted


def _compile(isa: Isa, kernel: Kernel) -> Jit:
    """A kernel; equal ones are compiled once."""
    module = ir.Module.create(ir.Location.unknown(CONTEXT))
    kernel.emit(module, isa)
    key = isa, module.operation.get_asm()
    if key not in _compiled:
        _compiled[key] = Jit(module, isa, [kernel.name])
    return _compiled[key]


def variant_for(variants: tuple[Variant, ...], rows: int) -> Kernel:
    """The kernel that covers M = rows; there must be exactly one."""
    (kernel,) = [variant.kernel for variant in variants if variant.covers(rows)]
    return kernel


def on_isa(schedule: CpuSchedule, isa: Isa) -> tuple[RangeSchedule, ...]:
    """One schedule, of one instruction set: for one row or for any number."""
    last = 1 if schedule.block_m == 1 else None
    return (RangeSchedule(1, last, KernelSchedule(((isa.vector_bits, schedule),))),)


@dataclass
class Case:
    """One quantized matmul with random operands, compiled for one instruction set."""

    strategy: Any
    isa: Isa
    spec: MatmulSpec
    weight: QuantizedTensor
    x: np.ndarray
    bias: np.ndarray
    schedules: Sequence[RangeSchedule] | None = None

    @staticmethod
    def random(
        strategy: Any, isa: Isa, weight: str, activation: str, m: int, n: int, k: int, seed: int = 0
    ) -> Case:
        rng = np.random.default_rng(seed)
        w_scheme, a_scheme = parse_scheme(weight), parse_scheme(activation)
        w = rng.standard_normal((n, k), np.float32)
        x = rng.standard_normal((m, k), np.float32) + np.float32(0.3)
        bias = rng.standard_normal(n, np.float32)
        quantized = formats.quantize_weight(w, w_scheme)
        return Case(strategy, isa, MatmulSpec(n, k, w_scheme, a_scheme), quantized, x, bias)

    @property
    def m(self) -> int:
        return len(self.x)

    def run(self, *, accumulators: bool) -> np.ndarray:
        """y [M, N], or the kernel's acc [M, N, G]."""
        spec, m = self.spec, self.m
        pack = self.strategy.pack_kernel(spec)
        variants = (
            self.strategy.accumulator_kernels(spec, self.schedules)
            if accumulators
            else self.strategy.matmul_kernels(spec, self.schedules)
        )
        matmul = variant_for(variants, m)
        jit = compile_jit(self.isa, [pack, matmul])
        q = np.full(m * self.strategy.row_bytes(spec), 0x55, np.uint8)
        jit.run(pack.name, pack.grid(m), [self.x.reshape(-1), q, m])
        assert spec.weight is not None
        groups = spec.weight.n_groups(spec.k) if accumulators else 1
        y = np.zeros(groups * m * spec.n, np.int32 if accumulators else np.float32)
        blob = self.strategy.pack_weight(spec, self.weight)
        jit.run(matmul.name, matmul.grid(m, spec.n), [q, blob, self.bias, y, m, spec.n])
        if accumulators:
            return y.reshape(groups, m, spec.n).transpose(1, 2, 0)
        return y.reshape(m, spec.n)

    def activation(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.spec.activation is not None
        return formats.quantize_activation(self.x, self.spec.activation)

    def reference_accumulators(self) -> np.ndarray:
        codes, _, zero = self.activation()
        weight = self.weight
        return reference.accumulate(codes, zero, weight.codes, weight.zero, weight.scheme)

    def check_accumulators(self) -> None:
        np.testing.assert_array_equal(
            self.run(accumulators=True), self.reference_accumulators(), self.describe()
        )

    def check_result(self) -> None:
        """Bit-identical for one group, within the contract for several."""
        assert self.spec.activation is not None
        acc = self.reference_accumulators()
        _, scale, _ = self.activation()
        expected = reference.scale_accumulators(acc, scale, self.weight.integer_scale, self.bias)
        allowed = reference.tolerance(acc, scale, self.weight.integer_scale, self.bias)
        if self.spec.activation.format.kind == "binary":  # its scale is a mean, in any order
            allowed = allowed + 1e-5 * np.abs(expected).max()
        error = np.abs(self.run(accumulators=False).astype(np.float64) - expected)
        assert (error <= allowed).all(), f"{self.describe()}: error {(error - allowed).max()}"

    def describe(self) -> str:
        spec = self.spec
        return (
            f"{self.strategy.name} {self.isa.name} {spec.weight} x {spec.activation} "
            f"M={self.m} N={spec.n} K={spec.k}"
        )


ISAS = isas.available()
TILED_ISAS = isas.tiled()
DOT_ISAS = (*ISAS, *(isa for isa in isas.extending() if isa.adds == "dot"))
WEIGHTS = (
    *(f"w{bits}" for bits in range(1, 9)),
    *(f"w{bits}:asym" for bits in range(1, 9)),
    "w2*",
    "wt",
)
ACTIVATIONS = (
    *(f"a{bits}" for bits in range(1, 9)),
    *(f"a{bits}:token:sym" for bits in range(1, 9)),
)


def all_pairs() -> list[tuple[str, str]]:
    """The 64 pairs of widths, with symmetric and asymmetric sides mixed; 2* and ternary."""
    pairs = []
    for w in range(1, 9):
        for a in range(1, 9):
            symmetry = ("", ":asym")[(w + a) % 2]
            token = (":token:sym", "")[(w // 2 + a) % 2]
            pairs.append((f"w{w}:g33{symmetry}", f"a{a}{token}"))
    pairs += [(w, f"a{a}") for w in ("w2*:channel", "wt:g20") for a in (1, 4, 8)]
    return pairs


def check_broken_rows(strategy: Any, isa: Isa, activation: str, weight: str = "w4:g32") -> None:
    """NaN, infinity and overflowing ranges make their row NaN and leave the others alone."""
    case = Case.random(strategy, isa, weight, activation, 6, 20, 70)
    case.x[1, 69] = np.nan
    case.x[2, 3] = np.inf
    case.x[3, 0] = -np.inf
    case.x[4] = 0.0
    y = case.run(accumulators=False)
    assert np.isnan(y[1:4]).all()
    assert np.isfinite(y[[0, 4, 5]]).all()
    whole = Case(strategy, isa, case.spec, case.weight, case.x[[0, 4, 5]], case.bias)
    np.testing.assert_array_equal(y[[0, 4, 5]], whole.run(accumulators=False))


def check_measured_scales(strategy: Any, isa: Isa, activation: str, weight: str = "w4:g32") -> None:
    """Rows that share a scale: measured by one kernel, applied by another."""
    image_rows, images = 5, 3
    case = Case.random(strategy, isa, weight, activation, image_rows * images, 20, 70)
    case.x[:image_rows] *= 3
    case.x[-1, 7] = np.nan
    scheme = case.spec.activation
    assert scheme is not None
    samples = 1 if scheme.granularity == "tensor" else images
    shared = case.m // samples
    measure = measure_kernel(scheme.format)
    pack = strategy.scaled_pack_kernel(case.spec)
    matmul = variant_for(strategy.matmul_kernels(case.spec), case.m)
    jit = compile_jit(isa, [measure, pack, matmul])
    scale, zero = np.zeros(samples, np.float32), np.zeros(samples, np.int32)
    x = case.x.reshape(-1)
    jit.run(measure.name, measure.grid(samples), [x, scale, zero, x.size // samples])
    codes, scales, zeros = formats.quantize_activation(case.x, scheme, image_rows=image_rows)
    np.testing.assert_array_equal(np.repeat(scale, shared), scales)
    np.testing.assert_array_equal(np.repeat(zero, shared), zeros)
    q = np.zeros(case.m * strategy.row_bytes(case.spec), np.uint8)
    jit.run(pack.name, pack.grid(case.m), [x, scale, zero, q, case.m, shared])
    y = np.zeros(case.m * case.spec.n, np.float32)
    blob = strategy.pack_weight(case.spec, case.weight)
    jit.run(
        matmul.name,
        matmul.grid(case.m, case.spec.n),
        [q, blob, case.bias, y, case.m, case.spec.n],
    )
    expected = reference.matmul(codes, scales, zeros, case.weight, case.bias)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


def check_scales_far_from_the_data(strategy: Any, isa: Isa) -> None:
    """Fixed scales, and values any number of steps away."""
    case = Case.random(strategy, isa, "w4:g32", "a8:tensor", 3, 20, 70)
    scale, zero = np.float32(1e-6), 7
    steps = [
        0,
        5.4,
        -9e6,
        -1.3e7,
        -2e7,
        -2.6e7,
        -1e30,
        -1e38,
        9e6,
        1.3e7,
        2e7,
        1e30,
        2**22,
        -(2**22),
    ]
    for row, first in enumerate((0, 5, 9)):
        case.x[row] = np.resize(np.roll(steps, -first), 70).astype(np.float32) * scale
    pack = strategy.scaled_pack_kernel(case.spec)
    matmul = variant_for(strategy.matmul_kernels(case.spec), case.m)
    jit = compile_jit(isa, [pack, matmul])
    q = np.zeros(case.m * strategy.row_bytes(case.spec), np.uint8)
    fixed = np.array([scale]), np.array([zero], np.int32)
    jit.run(pack.name, pack.grid(case.m), [case.x.reshape(-1), *fixed, q, case.m, case.m])
    y = np.zeros(case.m * case.spec.n, np.float32)
    blob = strategy.pack_weight(case.spec, case.weight)
    grid = matmul.grid(case.m, case.spec.n)
    jit.run(matmul.name, grid, [q, blob, case.bias, y, case.m, case.spec.n])
    with np.errstate(over="ignore"):
        codes = np.clip(np.rint(case.x / scale).astype(np.float64) + zero, 0, 255).astype(np.uint8)
    scales, zeros = (np.repeat(x, case.m) for x in fixed)
    expected = reference.matmul(codes, scales, zeros, case.weight, case.bias)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def check_packed_rows_are_deterministic(strategy: Any, isa: Isa, weight: str = "w3:g50") -> None:
    """Two matmuls over rows packed into different garbage agree."""
    case = Case.random(strategy, isa, weight, "a5", 5, 17, 130)
    pack = strategy.pack_kernel(case.spec)
    matmul = variant_for(strategy.matmul_kernels(case.spec), case.m)
    jit = compile_jit(isa, [pack, matmul])
    blob = strategy.pack_weight(case.spec, case.weight)
    results = []
    for garbage in (0x00, 0xFF):
        q = np.full(case.m * strategy.row_bytes(case.spec), garbage, np.uint8)
        y = np.zeros(case.m * case.spec.n, np.float32)
        jit.run(pack.name, pack.grid(case.m), [case.x.reshape(-1), q, case.m])
        grid = matmul.grid(case.m, case.spec.n)
        jit.run(matmul.name, grid, [q, blob, case.bias, y, case.m, case.spec.n])
        results.append(y)
    np.testing.assert_array_equal(results[0], results[1])


def check_rotated_rows(strategy: Any, isa: Isa, k: int, block: int, weight: str = "w4:g32") -> None:
    """Packing that rotates first agrees with packing rows that were rotated before."""
    case = Case.random(strategy, isa, weight, "a8", 7, 20, k)
    rotated = Case(
        strategy, isa, case.spec, case.weight, hadamard.transform(case.x, block), case.bias
    )
    case.spec = MatmulSpec(
        case.spec.n, k, case.spec.weight, case.spec.activation, hadamard_block=block
    )
    # Sums may be ordered otherwise there, so that a few codes differ by a step.
    y = case.run(accumulators=False)
    np.testing.assert_allclose(y, rotated.run(accumulators=False), rtol=0, atol=0.02 * abs(y).max())
