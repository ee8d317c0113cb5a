"""Float arithmetic, against numpy, the C library and exact rationals."""

from __future__ import annotations

import ctypes
import ctypes.util
from fractions import Fraction

import numpy as np
import pytest
from one_instruction import apply, bits, same

A, B, C = (bits("float32", 6000, seed) for seed in range(3))
A64, B64, C64 = (bits("float64", 1000, seed) for seed in range(3))


def libm(name: str, kind: type) -> object:
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.restype = kind
    function.argtypes = [kind] * 3
    return function


@pytest.mark.parametrize(
    ("name", "function"),
    [("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("div.rn", np.divide)],
)
def test_rounded_to_nearest(name, function):
    with np.errstate(all="ignore"):
        same(apply(f"{name}.f32 {{d}}, {{a}}, {{b}};", A, B, to="f4"), function(A, B))
        same(apply(f"{name}.f64 {{d}}, {{a}}, {{b}};", A64, B64, to="f8"), function(A64, B64))


def test_fma_f32_is_rounded_once():
    fmaf = libm("fmaf", ctypes.c_float)
    near = np.random.default_rng(3).uniform(-2, 2, (3, 6000)).astype("f4")
    tiny = (near * np.float32(2.0**-64)).astype("f4")
    for a, b, c in ((A, B, C), tuple(near), (tiny[0], tiny[1], near[2] * np.float32(2.0**-128))):
        expected = np.array([fmaf(*map(float, row)) for row in zip(a, b, c, strict=True)], "f4")
        same(apply("fma.rn.f32 {d}, {a}, {b}, {c};", a, b, c, to="f4"), expected)


def test_fma_f32_half_way_cases():
    """Sums that lie half way between two f32 but for a bit that a double does not hold."""
    a = np.float32(1 + 2.0**-12) * np.ones(8, "f4")
    b = np.float32(1 + 2.0**-12) * np.array([1, -1] * 4, "f4")
    c = np.array(
        [2.0**-60, 2.0**-60, -(2.0**-60), -(2.0**-60), 2.0**-149, -(2.0**-149), 0, 0], "f4"
    )
    fmaf = libm("fmaf", ctypes.c_float)
    expected = np.array([fmaf(*map(float, row)) for row in zip(a, b, c, strict=True)], "f4")
    same(apply("fma.rn.f32 {d}, {a}, {b}, {c};", a, b, c, to="f4"), expected)


def test_fma_f64_is_rounded_once():
    fma = libm("fma", ctypes.c_double)
    expected = np.array([fma(*map(float, row)) for row in zip(A64, B64, C64, strict=True)])
    same(apply("fma.rn.f64 {d}, {a}, {b}, {c};", A64, B64, C64, to="f8"), expected)


def directed(exact: Fraction, mode: str) -> np.float32:
    """The f32 next to a rational in a direction."""
    near = np.float32(float(exact))
    while Fraction(float(near)) > exact:
        near = np.nextafter(near, np.float32(-np.inf))
    while Fraction(float(np.nextafter(near, np.float32(np.inf)))) <= exact:
        near = np.nextafter(near, np.float32(np.inf))
    if Fraction(float(near)) == exact:
        return near
    up = mode == "rp" or (mode == "rz" and exact < 0)
    return np.nextafter(near, np.float32(np.inf)) if up else near


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "mul", "fma", "div"])
def test_directed_roundings(name, mode):
    rng = np.random.default_rng(5)
    a, b, c = (rng.uniform(-3, 3, 300).astype("f4") for _ in range(3))
    c[::3] *= np.float32(2.0**-40)
    b[::5] *= np.float32(2.0**-40)
    functions = {
        "add": lambda x, y, z: x + y,
        "mul": lambda x, y, z: x * y,
        "fma": lambda x, y, z: x * y + z,
        "div": lambda x, y, z: x / y,
    }
    expected = [
        directed(functions[name](*(Fraction(float(x)) for x in row)), mode)
        for row in zip(a, b, c, strict=True)
    ]
    last = ", {c}" if name == "fma" else ""
    result = apply(f"{name}.{mode}.f32 {{d}}, {{a}}, {{b}}{last};", a, b, c, to="f4")
    same(result, np.array(expected, "f4"))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_square_roots(mode):
    a = np.random.default_rng(6).uniform(0, 9, 300).astype("f4")
    root = np.sqrt(a)
    low = np.array(
        [Fraction(float(r)) ** 2 <= Fraction(float(x)) for r, x in zip(root, a, strict=True)]
    )
    down = np.where(low, root, np.nextafter(root, np.float32(0)))
    exact = np.array(
        [Fraction(float(r)) ** 2 == Fraction(float(x)) for r, x in zip(root, a, strict=True)]
    )
    up = np.where(exact, root, np.nextafter(down, np.float32(np.inf)))
    expected = {"rn": root, "rz": down, "rm": down, "rp": up}[mode]
    same(apply(f"sqrt.{mode}.f32 {{d}}, {{a}};", a, to="f4"), expected)


def test_nan_is_canonical():
    nan = np.array([0x7FC00001, 0xFF800001, 0xFFC00000], "u4").view("f4")
    for line in (
        "add.f32 {d}, {a}, 0f3F800000;",
        "mul.f32 {d}, {a}, {a};",
        "fma.rn.f32 {d}, {a}, {a}, {a};",
        "min.NaN.f32 {d}, {a}, 0f00000000;",
    ):
        assert (apply(line, nan, to="f4").view("u4") == 0x7FFFFFFF).all()


def test_ftz_flushes_both_sides():
    a = np.array([1e-40, -1e-40, 1.0, 2.0**-126], "f4")
    b = np.array([1.0, 1.0, 1e-40, 0.5], "f4")
    same(apply("mul.ftz.f32 {d}, {a}, {b};", a, b, to="f4"), np.array([0, -0.0, 0, 0], "f4"))
    same(apply("add.ftz.f32 {d}, {a}, {b};", a, -a, to="f4"), np.zeros(4, "f4"))
    assert (apply("mul.f32 {d}, {a}, {b};", a, b, to="f4") != 0).all()


def test_saturation():
    a = np.array([-1, -0.0, 0.25, 1.5, np.nan, np.inf], "f4")
    same(
        apply("add.sat.f32 {d}, {a}, 0f00000000;", a, to="f4"),
        np.array([0, 0, 0.25, 1, 0, 1], "f4"),
    )


@pytest.mark.parametrize("name", ["min", "max"])
def test_extrema(name):
    ignoring = np.fmin if name == "min" else np.fmax
    propagating = np.minimum if name == "min" else np.maximum
    nonzero = (A != 0) | (B != 0)
    a, b = A[nonzero], B[nonzero]
    same(apply(f"{name}.f32 {{d}}, {{a}}, {{b}};", a, b, to="f4"), ignoring(a, b))
    same(apply(f"{name}.NaN.f32 {{d}}, {{a}}, {{b}};", a, b, to="f4"), propagating(a, b))
    zeros = np.array([0.0, -0.0], "f4")
    expected = np.array([-0.0 if name == "min" else 0.0] * 2, "f4")
    same(apply(f"{name}.f32 {{d}}, {{a}}, {{b}};", zeros, -zeros, to="f4"), expected)


@pytest.mark.parametrize(
    ("line", "function"),
    [
        ("ex2.approx.f32", np.exp2),
        ("lg2.approx.f32", np.log2),
        ("rcp.approx.f32", lambda x: 1 / x),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x)),
        ("sqrt.approx.f32", np.sqrt),
        ("sin.approx.f32", np.sin),
        ("cos.approx.f32", np.cos),
        ("tanh.approx.f32", np.tanh),
    ],
)
def test_approximate_functions(line, function):
    a = np.random.default_rng(7).uniform(0.01, 9, 500).astype("f4")
    result = apply(f"{line} {{d}}, {{a}};", a, to="f4")
    np.testing.assert_allclose(result, function(a.astype("f8")), rtol=1e-7)


def test_signs():
    same(apply("neg.f32 {d}, {a};", A, to="f4"), -A)
    same(apply("abs.f32 {d}, {a};", A, to="f4"), np.abs(A))
    same(apply("copysign.f32 {d}, {a}, {b};", A, B, to="f4"), np.copysign(B, A))


def test_properties():
    tiny = np.finfo("f4").tiny
    for name, expected in {
        "finite": np.isfinite(A),
        "notanumber": np.isnan(A),
        "subnormal": (np.abs(A) < tiny) & (A != 0),
        "normal": np.isfinite(A) & (np.abs(A) >= tiny),
    }.items():
        result = apply(f"testp.{name}.f32 %p0, {{a}}; selp.u32 {{d}}, 1, 0, %p0;", A, to="u4")
        same(result, expected.astype("u4"))


@pytest.mark.parametrize("half", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_mixed_precision_is_that_of_f32(half, mode):
    """16-bit operands of add, sub and fma, as LLVM emits them for sm_100 and later."""
    if half == "f16":
        a, b = bits("float16", 6000, 5), bits("float16", 6000, 6)
        wide_a, wide_b = a.astype("f4"), b.astype("f4")
    else:
        a, b = (x.view("u4") >> 16 for x in (A, B))
        a, b = a.astype("u2"), b.astype("u2")
        wide_a, wide_b = ((x.astype("u4") << 16).view("f4") for x in (a, b))
    for name in ("add", "sub"):
        expected = apply(f"{name}.{mode}.f32 {{d}}, {{a}}, {{b}};", wide_a, C, to="f4")
        same(apply(f"{name}.{mode}.f32.{half} {{d}}, {{a}}, {{b}};", a, C, to="f4"), expected)
    for sat in ("", ".sat"):
        lines = f"fma.{mode}{sat}.f32" + "{} {{d}}, {{a}}, {{b}}, {{c}};"
        expected = apply(lines.format(""), wide_a, wide_b, C, to="f4")
        same(apply(lines.format("." + half), a, b, C, to="f4"), expected)
