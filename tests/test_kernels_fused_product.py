"""Products with epilogues, and several in one kernel, against those alone and numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.float_products.matmul import FloatMatmul
from abqc.codegen.cpu.fused_product import fused_product_kernel
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.cpu.schedule import KernelSchedule, default_schedules
from abqc.codegen.cpu.trellis.strategy import TrellisStrategy
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects import formats
from abqc.dialects.epilogue import Epilogue, Stage
from abqc.dialects.formats import parse_scheme
from kernel_cases import ISAS, compile_jit, variant_for

K = 45

# (y + e) * s + c - one: inputs of all kinds.
EVERY_READ = Epilogue(
    """func.func @epilogue(%y: f32, %e: f32, %s: f32, %c: f32, %one: f32) -> f32 {
      %1 = arith.addf %y, %e : f32
      %2 = arith.mulf %1, %s : f32
      %3 = arith.addf %2, %c : f32
      %4 = arith.subf %3, %one : f32
      return %4 : f32
    }""",
    ("element", "sample", "channel", "one"),
)
GATE = Epilogue(
    """func.func @epilogue(%up: f32, %gate: f32) -> f32 {
      %zero = arith.constant 0.0 : f32
      %1 = arith.maximumf %gate, %zero : f32
      %2 = arith.mulf %1, %up : f32
      return %2 : f32
    }""",
    ("element",),
)

STRATEGIES = [
    (FloatMatmul(), None, None),
    (Dequantize(), "w4:g16", None),
    (Int8Strategy(), "w4:g16", "a8"),
    (Int8Strategy(), "w8:channel", "a8"),
    (BitplaneStrategy(), "w2:channel", "a2"),
    (TrellisStrategy(), "w3v", "a8"),
]


def _id(value: Any) -> str:
    return value.name if hasattr(value, "name") else str(value)


class Operands:
    """The operands of a product of m rows, and its kernel."""

    def __init__(
        self, strategy: Any, weight: str | None, activation: str | None, m: int, n: int
    ) -> None:
        self.rng = np.random.default_rng(m * n)
        schemes = [parse_scheme(text) if text else None for text in (weight, activation)]
        self.strategy, self.m, self.n = strategy, m, n
        self.spec = MatmulSpec(n, K, *schemes)
        self.kernel: Kernel = variant_for(strategy.matmul_kernels(self.spec), m)
        self.x = self.normal(m * K)
        self.pack = strategy.pack_kernel(self.spec)

    def normal(self, count: int) -> np.ndarray:
        return self.rng.standard_normal(count).astype(np.float32)

    def weight(self, n: int | None = None) -> list[np.ndarray]:
        """A packed weight and a bias."""
        n = n or self.n
        spec, w = replace(self.spec, n=n), self.normal(n * K).reshape(n, K)
        given = w if spec.weight is None else formats.quantize_weight(w, spec.weight)
        return [self.strategy.pack_weight(spec, given), self.normal(n)]

    def rows(self, jit: Any) -> np.ndarray:
        if self.pack is None:
            return self.x
        q = np.zeros(self.m * self.strategy.row_bytes(self.spec), np.uint8)
        jit.run(self.pack.name, self.pack.grid(self.m), [self.x, q, self.m])
        return q

    def jit(self, isa: Isa, *kernels: Kernel) -> Any:
        return compile_jit(isa, [*([self.pack] if self.pack else []), *kernels])

    def alone(self, jit: Any, x: np.ndarray, w: list[np.ndarray]) -> np.ndarray:
        y = np.zeros(self.m * self.n, np.float32)
        grid = self.kernel.grid(self.m, self.n)
        jit.run(self.kernel.name, grid, [x, *w, y, self.m, self.n])
        return y


def fused(*stages: Stage) -> Kernel:
    kernel = fused_product_kernel(stages)
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("strategy", "weight", "activation"), STRATEGIES, ids=_id)
@pytest.mark.parametrize(("m", "n"), [(1, 83), (130, 131), (66, 240)])
def test_epilogues(
    isa: Isa, strategy: Any, weight: str | None, activation: str | None, m: int, n: int
) -> None:
    """To the bit what numpy makes of the product alone, all blocks ragged or whole."""
    case = Operands(strategy, weight, activation, m, n)
    kernel = fused(Stage(case.kernel, EVERY_READ))
    jit = case.jit(isa, case.kernel, kernel)
    w, x = case.weight(), case.rows(jit)
    e, s, c, one = (case.normal(count) for count in (m * n, m, n, 1))
    y = np.full(m * n + 1, 7, np.float32)
    jit.run(kernel.name, kernel.grid(m, n), [x, *w, e, s, c, one, y[:-1], m, n])
    alone = case.alone(jit, x, w).reshape(m, n)
    expected = (alone + e.reshape(m, n)) * s[:, None] + c - one
    np.testing.assert_array_equal(y[:-1].reshape(m, n), expected)
    assert y[-1] == 7


def down_the_columns(strategy: Any, spec: MatmulSpec, m: int) -> Kernel:
    """The kernel whose grid indices do the blocks of a column one after another."""
    ranges = [
        replace(
            each,
            schedule=KernelSchedule(
                tuple((w, replace(s, by_columns=True)) for w, s in each.schedule.by_width)
            ),
        )
        for each in default_schedules(spec, strategy.schedules)
    ]
    return variant_for(strategy.matmul_kernels(spec, ranges), m)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("strategy", "weight", "activation"), STRATEGIES, ids=_id)
def test_grids_down_the_columns(
    isa: Isa, strategy: Any, weight: str | None, activation: str | None
) -> None:
    """An epilogue finishes the block that its product has stored, in whatever order they come."""
    case = Operands(strategy, weight, activation, 300, 131)
    case.kernel = down_the_columns(strategy, case.spec, case.m)
    assert case.kernel.by_columns
    kernel = fused(Stage(case.kernel, EVERY_READ))
    jit = case.jit(isa, case.kernel, kernel)
    w, x = case.weight(), case.rows(jit)
    e, s, c, one = (case.normal(count) for count in (300 * 131, 300, 131, 1))
    y = np.zeros(300 * 131, np.float32)
    jit.run(kernel.name, kernel.grid(300, 131), [x, *w, e, s, c, one, y, 300, 131])
    alone = case.alone(jit, x, w).reshape(300, 131)
    expected = (alone + e.reshape(300, 131)) * s[:, None] + c - one
    np.testing.assert_array_equal(y.reshape(300, 131), expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("strategy", "weight", "activation"), STRATEGIES[:3:2], ids=_id)
@pytest.mark.parametrize(("m", "n"), [(1, 83), (130, 70)])
def test_gates(
    isa: Isa, strategy: Any, weight: str | None, activation: str | None, m: int, n: int
) -> None:
    """The second product's epilogue reads the result of the first."""
    case = Operands(strategy, weight, activation, m, n)
    kernel = fused(Stage(case.kernel), Stage(case.kernel, GATE, (0,)))
    jit = case.jit(isa, case.kernel, kernel)
    gate_w, up_w, x = case.weight(), case.weight(), case.rows(jit)
    gate, y = np.zeros(m * n, np.float32), np.zeros(m * n, np.float32)
    jit.run(kernel.name, kernel.grid(m, n), [x, *gate_w, gate, *up_w, y, m, n])
    alone = case.alone(jit, x, gate_w)
    np.testing.assert_array_equal(gate, alone)
    np.testing.assert_array_equal(y, np.maximum(alone, 0) * case.alone(jit, x, up_w))


def test_blocks_and_their_order_must_be_equal() -> None:
    cases = [Operands(FloatMatmul(), None, None, m, 64) for m in (1, 64)]
    one, many = (case.kernel for case in cases)
    assert fused_product_kernel([Stage(one), Stage(many)]) is None
    other = down_the_columns(FloatMatmul(), cases[1].spec, 64)
    assert other.block == many.block
    assert fused_product_kernel([Stage(many), Stage(other)]) is None
