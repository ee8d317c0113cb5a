"""Polynomial replacements of math operations against numpy in f64, through the compiler."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.arithmetic.expand_math import expand_math
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit, kernel_assembly
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir

ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
TINY, HUGE, INF = 1.1754944e-38, 3.4028235e38, np.inf
SPECIAL = np.array(
    [0.0, -0.0, 1, -1, 0.5, 2, 3, 1e-45, -1e-45, TINY, 1e-30, 1e30, HUGE, -HUGE, INF, -INF, np.nan],
    np.float32,
)

LOOP = """
func.func @f(%i: index, %x: memref<?xf32>, %p: memref<?xf32>, %y: memref<?xf32>) {{
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %n = memref.dim %x, %c0 : memref<?xf32>
  scf.for %j = %c0 to %n step %c1 {{
    %a = memref.load %x[%j] : memref<?xf32>
    %b = memref.load %p[%j] : memref<?xf32>
    {body}
    memref.store %r, %y[%j] : memref<?xf32>
  }}
  return
}}
"""


@cache
def compile_body(isa: Isa, body: str) -> Jit:
    """A loop over `%r = body(%a, %b)`."""
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(LOOP.format(body=body))
        assert expand_math(module) == 1
        return Jit(module, isa, ["f"])


def apply(isa: Isa, body: str, x: np.ndarray, p: np.ndarray | None = None) -> np.ndarray:
    y = np.empty_like(x)
    compile_body(isa, body).run("f", 1, [x, x if p is None else p, y])
    return y


def unary(isa: Isa, name: str, x: np.ndarray) -> np.ndarray:
    return apply(isa, f"%r = math.{name} %a : f32", x)


def ulps(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units of the last place; 0 where both are NaN or the same infinity."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    same = (rounded == y) | (np.isnan(rounded) & np.isnan(y))
    spacing = np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, 1)))
    # Past the largest number an infinity is one step away.
    finite = np.where(np.isinf(y), np.copysign(np.float64(2.0**128), y), y)
    error = np.where(same, 0, np.abs(finite - exact) / spacing)
    return np.where(np.isnan(error), np.inf, error)


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf)(x)


def spread(low: float, high: float, n: int = 20_000) -> np.ndarray:
    """Uniform numbers and numbers of every magnitude in the range, and the special ones."""
    rng = np.random.default_rng(7)
    top = np.log10(max(abs(low), abs(high)))
    powers = 10 ** rng.uniform(-44, top, n) * rng.choice([-1.0, 1.0], n)
    x = np.concatenate([rng.uniform(low, high, n), powers])
    x = x[(x >= low) & (x <= high)].astype(np.float32)
    return np.concatenate([x, SPECIAL])


CASES = [
    # name, reference, range, ulp
    ("exp", np.exp, (-106, 90), 3),
    ("exp2", np.exp2, (-152, 130), 3),
    ("expm1", np.expm1, (-110, 90), 3),
    ("log", np.log, (0, 3e38), 3),
    ("log2", np.log2, (0, 3e38), 3),
    ("log10", np.log10, (0, 3e38), 1),
    ("log1p", np.log1p, (-1, 3e38), 3),
    ("log1p", np.log1p, (-1, 3), 3),
    ("log", np.log, (0.4, 2.5), 3),
    ("log2", np.log2, (0.4, 2.5), 3),
    ("tanh", np.tanh, (-12, 12), 8),
    ("erf", erf, (-6, 6), 8),
    ("rsqrt", lambda x: 1 / np.sqrt(x), (0, 3e38), 2),
    ("asin", np.arcsin, (-1.1, 1.1), 4),
    ("acos", np.arccos, (-1.1, 1.1), 4),
    ("atan", np.arctan, (-3e38, 3e38), 4),
    ("atan", np.arctan, (-5, 5), 4),
    ("sinh", np.sinh, (-90, 90), 6),
    ("cosh", np.cosh, (-90, 90), 6),
    ("asinh", np.arcsinh, (-3e38, 3e38), 4),
    ("asinh", np.arcsinh, (-5, 5), 4),
    ("acosh", np.arccosh, (0, 3e38), 4),
    ("acosh", np.arccosh, (0.9, 5), 4),
    ("atanh", np.arctanh, (-1.1, 1.1), 4),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2][1]:g}")
def test_unary(isa, case):
    name, reference, bounds, limit = case
    x = spread(*bounds)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(np.float64))
    error = ulps(unary(isa, name, x), exact)
    worst = error.argmax()
    assert error[worst] <= limit, f"{name}({x[worst]!r}) = {exact[worst]!r}: {error[worst]} ulp"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine(isa, name):
    reference = getattr(np, name)
    x = spread(-1e5, 1e5)
    x = x[np.isfinite(x) & (np.abs(x) <= 2**20)]
    x = np.concatenate([x, np.arange(0, 300) * np.float32(np.pi / 2)]).astype(np.float32)
    exact = reference(x.astype(np.float64))
    y = unary(isa, name, x)
    error = np.minimum(ulps(y, exact) / 3, np.abs(y - exact) / 1e-7)
    assert error.max() <= 1
    x = spread(-(2.0**30), 2.0**30)
    x = x[np.isfinite(x) & (np.abs(x) <= 2**30)]
    assert np.abs(unary(isa, name, x) - reference(x.astype(np.float64))).max() < 4e-7
    assert np.isnan(unary(isa, name, np.array([2e9, -np.inf, np.inf, np.nan], np.float32))).all()


@pytest.mark.parametrize("isa", ISAS)
def test_tangent(isa):
    x = spread(-(2.0**20), 2.0**20)
    x = x[np.abs(x) <= 2**20]
    exact = np.tan(x.astype(np.float64))
    y = unary(isa, "tan", x)
    # Where the sine is near 0, and the cosine near a pole, their absolute errors of 1e-7 count.
    error = np.abs(y - exact) / np.maximum(np.abs(exact), 1) / np.maximum(np.abs(exact), 1)
    assert np.minimum(ulps(y, exact) / 6, error / 4e-7).max() <= 1
    small = x[np.abs(x) < 1.5]
    assert ulps(unary(isa, "tan", small), np.tan(small.astype(np.float64))).max() <= 6
    assert np.isnan(unary(isa, "tan", np.array([2e9, np.inf, np.nan], np.float32))).all()


@pytest.mark.parametrize("isa", ISAS)
def test_powf(isa):
    rng = np.random.default_rng(3)
    x = np.concatenate([10 ** rng.uniform(-38, 38, 4000), rng.uniform(-3, 3, 4000)])
    p = np.concatenate([rng.uniform(-3, 3, 4000), rng.integers(-6, 7, 4000)])
    edges = np.array([0.0, -0.0, 1, -1, 2, -2, 0.5, np.inf, -np.inf, np.nan])
    ex, ep = (grid.reshape(-1) for grid in np.meshgrid(edges, np.append(edges, [3, -3, 2.5])))
    x, p = np.concatenate([x, ex]).astype(np.float32), np.concatenate([p, ep]).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), p.astype(np.float64))
    y = apply(isa, "%r = math.powf %a, %b : f32", x, p)
    error = ulps(y, exact)
    worst = error.argmax()
    assert error[worst] <= 2, f"{x[worst]!r} ** {p[worst]!r} = {exact[worst]!r}, not {y[worst]!r}"


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 1.5])
def test_powf_by_a_constant(exponent):
    x = np.random.default_rng(3).uniform(0.01, 30, 1000).astype(np.float32)
    body = f"%e = arith.constant {exponent} : f32\n %r = math.powf %a, %e : f32"
    assert ulps(apply(isas.PLAIN, body, x), np.power(x.astype(np.float64), exponent)).max() <= 2


def test_vectors_are_expanded_and_f64_stays():
    text = """
    func.func @v(%x: vector<8xf32>, %d: f64) -> (vector<8xf32>, f64) {
      %y = math.exp %x : vector<8xf32>
      %e = math.exp %d : f64
      return %y, %e : vector<8xf32>, f64
    }"""
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        assert expand_math(module) == 1
        assert module.operation.verify()
        assert str(module).count("math.exp") == 1


@pytest.mark.parametrize("name", ["exp", "tanh", "erf", "log", "sin"])
def test_loops_are_vectorized(name):
    """No calls, and packed registers of the widest kind."""
    body = f"%r = math.{name} %a : f32"
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(LOOP.format(body=body))
        expand_math(module)
        text = kernel_assembly(module, isas.AVX512, ["f"])
    assert f"{name}f" not in text
    assert "zmm" in text


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_arguments_over_a_constant_are_multiplied(isa, name):
    body = f"""%root = arith.constant 1.41421354 : f32
    %q = arith.divf %a, %root : f32
    %r = math.{name} %q : f32"""
    x = spread(-8, 8)
    y = np.empty_like(x)
    compile_body(isa, body).run("f", 1, [x, x, y])
    exact = {"erf": erf, "tanh": np.tanh}[name](x.astype(np.float64) / np.float32(1.41421354))
    assert np.nanmax(np.abs(y - exact)) <= 5e-7
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(LOOP.format(body=body))
        expand_math(module)
        divisions = [line for line in str(module).splitlines() if "arith.divf %a" in line]
    assert len(divisions) <= 1  # of x itself, which nothing reads


@pytest.mark.parametrize("isa", ISAS)
def test_an_exponential_that_only_divides(isa: Isa) -> None:
    """A logistic function: 1 / (1 + e^-x), NaN and infinity among x."""
    body = """%one = arith.constant 1.0 : f32
    %minus = arith.negf %a : f32
    %e = math.exp %minus : f32
    %sum = arith.addf %e, %one : f32
    %r = arith.divf %one, %sum : f32"""
    x = np.concatenate([np.linspace(-120, 120, 20011), SPECIAL]).astype(np.float32)
    y = apply(isa, body, x)
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    near = np.abs(x) < 87
    assert (ulps(y, exact)[near] <= 6 + np.abs(x[near])).all()
    np.testing.assert_allclose(y, exact, rtol=0, atol=2e-7)
    assert (y[x <= -89] == 0).all()  # also times the largest numbers
    # An exponential that is also added counts in all of f32.
    both = apply(isa, body.replace("%r =", "%s =") + "\n%r = arith.addf %s, %e : f32", x)
    with np.errstate(over="ignore"):
        sums = (exact + np.exp(-x.astype(np.float64))).astype(np.float32)
    np.testing.assert_allclose(both, sums, rtol=1e-6)
