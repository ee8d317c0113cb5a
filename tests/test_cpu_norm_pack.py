"""Rows that are normalized and packed in one launch on a CPU: what the pack kernels make of the
normalized row, to the bit, on every instruction set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.packing.norm_pack import norm_pack_kernel
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import parse_scheme
from abqc.dialects.norm_spec import MAX_COLUMNS, NormSpec
from kernel_cases import ISAS, compile_jit

EPSILON = 1e-5
STRATEGIES = {"int8": Int8Strategy(), "bitplane": BitplaneStrategy(), "floats": Dequantize()}


def pack(strategy: str, weight: str, activation: str, k: int, block: int = 0) -> Kernel:
    spec = MatmulSpec(16, k, parse_scheme(weight), parse_scheme(activation), hadamard_block=block)
    kernel = STRATEGIES[strategy].pack_kernel(spec)
    assert kernel is not None
    return kernel


class Operands:
    """Random rows; the last one has an infinity, one is zeros."""

    def __init__(self, norm: NormSpec, rows: int) -> None:
        self.norm, self.rows, k = norm, rows, norm.columns
        rng = np.random.default_rng(k)
        self.given = {
            "x": 3 * rng.standard_normal((rows, k), np.float32) + np.float32(0.5),
            "residual": rng.standard_normal((rows, k), np.float32),
            "weight": 1 + rng.standard_normal(k, np.float32) / 4,
            "bias": rng.standard_normal(k, np.float32),
        }
        self.given["x"][rows // 2] = 0
        self.given["x"][-1, k // 2] = np.inf

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """x + residual in f32, and the normalized rows in f64."""
        norm, given = self.norm, self.given
        total = given["x"] + given["residual"] if norm.residual else given["x"]
        x = total.astype(np.float64)
        with np.errstate(invalid="ignore"):
            if norm.kind == "layer":
                x = x - x.mean(1, keepdims=True)
            y = x / np.sqrt(np.square(x).mean(1, keepdims=True) + EPSILON)
        y = y * given["weight"] if norm.weight else y
        return total, y + given["bias"] if norm.bias else y


def run(
    operands: Operands, packs: Sequence[Kernel], isa: object
) -> tuple[dict[str, np.ndarray], list[list[np.ndarray]]]:
    """The outputs by name, and the packed rows: of the kernel that keeps the row y, of the one that
    does not, and of the pack kernels on y."""
    norm, m = operands.norm, operands.rows
    fused = {keeps: norm_pack_kernel(norm, packs, keeps_row=keeps) for keeps in (True, False)}
    kernels = [kernel for kernel in fused.values() if kernel is not None]
    assert len(kernels) == 2
    jit = compile_jit(isa, [*kernels, *packs])  # type: ignore[arg-type]
    sizes = [pack.body.writer.row_bytes for pack in packs]  # type: ignore[attr-defined]
    found: dict[str, np.ndarray] = {}
    packed = []
    for keeps, kernel in zip(fused, kernels, strict=True):
        arrays = {
            name: operands.given.get(name, np.full_like(operands.given["x"], 7)).reshape(-1).copy()
            for name in norm.pointers(row=keeps)
        }
        packed.append([np.full(m * size, 0x55, np.uint8) for size in sizes])
        jit.run(kernel.name, kernel.grid(m), [*arrays.values(), *packed[-1], m, EPSILON])
        found = arrays | found
    packed.append([np.full(m * size, 0x55, np.uint8) for size in sizes])
    for kernel, q in zip(packs, packed[-1], strict=True):
        jit.run(kernel.name, kernel.grid(m), [found["y"], q, m])
    return found, packed


CASES = [
    (NormSpec("rms", 256, weight=False), 9, [("int8", "wt:channel", "a8:token:sym")]),
    (NormSpec("layer", 70, bias=True), 5, [("int8", "w4:g33", "a8")]),
    (NormSpec("rms", 1, weight=False), 3, [("int8", "w8", "a8")]),
    (NormSpec("layer", 37, weight=False), 2, [("bitplane", "w2:g20", "a2")]),
    (
        NormSpec("layer", 576, bias=True, residual=True, keeps_sum=True),
        6,
        [("int8", "w4", "a4", 576), ("bitplane", "w1:channel", "a4"), ("floats", "wnf4", "a8")],
    ),
    (NormSpec("rms", 60, residual=True), 4, [("floats", "wnf4", "a8"), ("int8", "w4", "a8", 12)]),
]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("norm", "rows", "ways"), CASES, ids=lambda v: getattr(v, "name", None))
def test_bytes_are_those_of_separate_kernels(
    norm: NormSpec, rows: int, ways: list[tuple], isa: object
) -> None:
    operands = Operands(norm, rows)
    packs = [pack(*way[:3], norm.columns, *way[3:]) for way in ways]
    arrays, (kept, alone, apart) = run(operands, packs, isa)
    for a, b, c in zip(kept, alone, apart, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)
    total, y = operands.reference()
    shape = rows, norm.columns
    if norm.keeps_sum:
        np.testing.assert_array_equal(arrays["sum"].reshape(shape), total)
    found = arrays["y"].reshape(shape)
    np.testing.assert_allclose(found[:-1], y[:-1], rtol=1e-5, atol=1e-5)
    assert np.isnan(found[-1]).any()


def test_instruction_sets_agree_to_the_bit() -> None:
    operands = Operands(NormSpec("layer", 333, bias=True), 3)
    packs = [pack("int8", "w4", "a8", 333)]
    found = [run(operands, packs, isa)[0]["y"] for isa in ISAS]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_what_has_no_kernel() -> None:
    blocks = MatmulSpec(16, 64, parse_scheme("w4"), parse_scheme("abfp8"))
    own = STRATEGIES["floats"].pack_kernel(blocks)
    assert own is not None
    assert norm_pack_kernel(NormSpec("rms", 64), [own], keeps_row=True) is None
    longer = MAX_COLUMNS + 1
    packs = [pack("int8", "w4", "a8", longer)]
    assert norm_pack_kernel(NormSpec("rms", longer), packs, keeps_row=True) is None
