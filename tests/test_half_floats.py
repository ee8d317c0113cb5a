"""Conversions between 16-bit floats and others are exact to the bit on every instruction set."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.arithmetic.half_floats import lower_half_floats
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit, compile_kernels
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir

ml_dtypes = pytest.importorskip("ml_dtypes")

ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
HALVES = ("f16", "bf16")


def kernel(source: str, target: str, body: str) -> str:
    """`y[j] = body(x[j])` for all j < n, as one loop."""
    x, y = f"memref<?x{source}>", f"memref<?x{target}>"
    return f"""func.func @convert(%i: index, %x: {x}, %y: {y}, %n: index) {{
      %c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      scf.for %j = %c0 to %n step %c1 {{
        %v = memref.load %x[%j] : {x}
        {body}
        memref.store %r, %y[%j] : {y}
      }}
      return
    }}"""


def run(isa: Isa, source: str, target: str, body: str, x: np.ndarray) -> np.ndarray:
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(kernel(source, target, body))
        lower_half_floats(module, isa)
        jit = Jit(module, isa, ["convert"])
    y = np.zeros(len(x), DTYPES[target])
    jit.run("convert", 1, [x, y, len(x)])
    return y


def check(y: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits; a NaN is a quiet one of the same sign."""
    assert y.dtype == expected.dtype
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(y), nan)
    kind = f"u{y.itemsize}"
    np.testing.assert_array_equal(y[~nan].view(kind), expected[~nan].view(kind))
    np.testing.assert_array_equal(np.signbit(y[nan]), np.signbit(expected[nan]))


def all_halves(name: str) -> np.ndarray:
    return np.arange(65536, dtype=np.uint16).view(DTYPES[name])


def hard_values(wide: type, narrow: str) -> np.ndarray:
    """Every value of a half, what lies halfway to its neighbours, what is nearest to both; extremes
    and random bits."""
    halves = all_halves(narrow)
    with np.errstate(invalid="ignore"):
        exact = np.unique(halves[np.isfinite(halves)].astype(wide))
    ties = (exact[:-1].astype(np.float64) + exact[1:]) / 2
    beyond = np.array([exact[-1] + (exact[-1] - exact[-2]) / 2])  # rounds to infinity
    with np.errstate(over="ignore"):
        points = np.concatenate([exact, ties, beyond, -beyond]).astype(wide)
    near = [points, np.nextafter(points, wide(np.inf)), np.nextafter(points, wide(-np.inf))]
    info = np.finfo(wide)
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, info.max, info.min, info.tiny,
                      info.smallest_subnormal, -info.smallest_subnormal], wide)  # fmt: skip
    kind = f"u{np.dtype(wide).itemsize}"
    bits = np.random.default_rng(0).integers(0, 2**63, 20000, np.uint64).astype(kind)
    bits = (bits << 1) | (bits & 1)
    return np.concatenate([*near, edges, bits.view(wide)])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("source", "target"), [*product(HALVES, ("f32", "f64"))])
def test_widening(isa: Isa, source: str, target: str) -> None:
    x = all_halves(source)
    y = run(isa, source, target, f"%r = arith.extf %v : {source} to {target}", x)
    with np.errstate(invalid="ignore"):
        check(y, x.astype(np.float32).astype(DTYPES[target]))


def narrowed(x: np.ndarray, target: str) -> np.ndarray:
    """Rounded once; ml_dtypes would go from f64 to bfloat16 through f32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if target == "f16" or x.dtype == np.float32:
            return x.astype(DTYPES[target])
        single = x.astype(np.float32)
        back = single.astype(np.float64)
        away = np.abs(back) > np.abs(x)
        odd = (single.view(np.uint32) - away) | (np.isfinite(x) & (back != x))
        return odd.astype(np.uint32).view(np.float32).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("source", "target"), [*product(("f32", "f64"), HALVES)])
def test_narrowing(isa: Isa, source: str, target: str) -> None:
    x = hard_values(DTYPES[source], target)
    y = run(isa, source, target, f"%r = arith.truncf %v : {source} to {target}", x)
    check(y, narrowed(x, target))


def test_the_reference_of_double_to_bfloat16() -> None:
    """A tie that f32 would make: just above it, the value rounds up, at it to even."""
    tie = 1 + 2.0**-8
    x = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -(tie + 2.0**-40), 1e-300, 1e300])
    assert narrowed(x, "bf16").astype(float).tolist() == [
        *(1.0, 1 + 2.0**-7, 1.0, -(1 + 2.0**-7)), float(narrowed(x, "bf16")[4]), np.inf
    ]  # fmt: skip


ARITHMETIC = {
    "add": "%r = arith.addf %v, %v : {t}",
    "compare": "%c = arith.cmpf olt, %v, %one : {t}\n%r = arith.select %c, %one, %v : {t}",
    "exp": "%r = math.exp %v : {t}",
    "fma": "%r = math.fma %v, %v, %v : {t}",
    "power": "%two = arith.constant 2 : i32\n%r = math.fpowi %v, %two : {t}, i32",
    "integers": "%k = arith.fptosi %v : {t} to i32\n%r = arith.sitofp %k : i32 to {t}",
}
REFERENCES = {
    "add": lambda x: x + x,
    "compare": lambda x: np.maximum(x, 1),
    "exp": np.exp,
    "fma": lambda x: x * x + x,
    "power": lambda x: x * x,
    "integers": np.trunc,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_done_in_f32_and_rounded(isa: Isa, half: str, name: str) -> None:
    x = np.linspace(-5, 5, 300).astype(DTYPES[half])
    body = f"%one = arith.constant 1.0 : {half}\n" + ARITHMETIC[name].format(t=half)
    y = run(isa, half, half, body, x)
    expected = REFERENCES[name](x.astype(np.float32)).astype(DTYPES[half])
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("isa", isas.ALL, ids=lambda isa: isa.name)
def test_no_helpers_of_a_library_are_called(isa: Isa, tmp_path: Path) -> None:
    bodies = [
        (a, b, f"%r = arith.{op} %v : {a} to {b}")
        for op, pairs in (
            ("extf", product(HALVES, ("f32", "f64"))),
            ("truncf", product(("f32", "f64"), HALVES)),
        )
        for a, b in pairs
    ]
    text = "".join(
        kernel(*body).replace("@convert", f"@convert{i}") for i, body in enumerate(bodies)
    )
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        lower_half_floats(module, isa)
        names = [f"convert{i}" for i in range(len(bodies))]
        (tmp_path / "x.o").write_bytes(compile_kernels(module, isa, names, "table"))
    listed = subprocess.run(["nm", "-u", tmp_path / "x.o"], capture_output=True, text=True)
    assert not listed.stdout.split()
