"""`cvt` and 16-bit floats."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from one_instruction import apply, bits, same

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


def numpy_type(name: str) -> str:
    kind = {"u": "u", "s": "i", "f": "f"}[name[0]]
    return f"{kind}{int(name[1:]) // 8}"


def source(name: str, count: int = 600, seed: int = 0) -> np.ndarray:
    return bits(numpy_type(name), count, seed)


@pytest.mark.parametrize("origin", INTEGERS)
@pytest.mark.parametrize("to", INTEGERS)
def test_integers(to, origin):
    a = source(origin)
    result = apply(f"cvt.{to}.{origin} {{d}}, {{a}};", a, to=numpy_type(to))
    same(result, a.astype(numpy_type(to)))
    info = np.iinfo(numpy_type(to))
    clamped = [max(info.min, min(info.max, int(x))) for x in a]
    result = apply(f"cvt.sat.{to}.{origin} {{d}}, {{a}};", a, to=numpy_type(to))
    same(result, np.array(clamped, numpy_type(to)))


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("origin", ["f32", "f64"])
def test_floats_to_integers(origin, to):
    dtype = numpy_type(origin)
    near = np.array(
        [
            0.5,
            1.5,
            2.5,
            -0.5,
            -1.5,
            127.5,
            128,
            255.5,
            2147483647,
            2147483648,
            4294967296,
            -2147483649,
            9.3e18,
            1.9e19,
            -9.3e18,
            3.7,
            -3.7,
        ],
        dtype,
    )
    a = np.concatenate([near, source(origin, 300)])
    info = np.iinfo(numpy_type(to))
    for mode, function in ROUND.items():
        expected = []
        for x in a:
            if np.isnan(x):
                expected.append(0)
            elif np.isinf(x):
                expected.append(info.max if x > 0 else info.min)
            else:
                expected.append(max(info.min, min(info.max, int(function(x)))))
        result = apply(f"cvt.{mode}.{to}.{origin} {{d}}, {{a}};", a, to=numpy_type(to))
        same(result, np.array(expected, numpy_type(to)))


@pytest.mark.parametrize("origin", ["u32", "s32", "u64", "s64"])
def test_integers_to_floats(origin):
    a = source(origin)
    exact = [Fraction(int(x)) for x in a]
    nearest = np.array([_nearest_f32(x) for x in exact], "f4")
    same(apply(f"cvt.rn.f32.{origin} {{d}}, {{a}};", a, to="f4"), nearest)
    same(apply(f"cvt.rn.f64.{origin} {{d}}, {{a}};", a, to="f8"), a.astype("f8"))
    down = [_down_f32(x, f) for x, f in zip(exact, nearest, strict=True)]
    same(apply(f"cvt.rm.f32.{origin} {{d}}, {{a}};", a, to="f4"), np.array(down, "f4"))


def _nearest_f32(x: Fraction) -> np.float32:
    """To nearest even, by the integers' own bits."""
    magnitude = abs(int(x))
    shift = max(magnitude.bit_length() - 24, 0)
    kept, rest = magnitude >> shift, magnitude & (1 << shift) - 1
    half = 1 << shift >> 1
    kept += shift > 0 and (rest > half or (rest == half and kept & 1))
    return np.float32(float(kept << shift) * (1 if x >= 0 else -1))


def _down_f32(x: Fraction, near: np.float32) -> np.float32:
    return np.nextafter(near, np.float32(-np.inf)) if Fraction(float(near)) > x else near


@np.errstate(all="ignore")
def test_between_floats():
    a = bits("f8", 2000)
    same(apply("cvt.rn.f32.f64 {d}, {a};", a, to="f4"), a.astype("f4"))
    same(apply("cvt.rn.f16.f32 {d}, {a};", a.astype("f4"), to="f2"), a.astype("f4").astype("f2"))
    h = bits("f2", 2000)
    same(apply("cvt.f32.f16 {d}, {a};", h, to="f4"), h.astype("f4"))
    f = bits("f4", 2000)
    same(apply("cvt.f64.f32 {d}, {a};", f, to="f8"), f.astype("f8"))
    same(apply("cvt.rni.f32.f32 {d}, {a};", f, to="f4"), np.rint(f))
    near = np.array([-0.5, 0.25, 1.75, np.nan], "f4")
    same(apply("cvt.sat.f32.f32 {d}, {a};", near, to="f4"), np.array([0, 0.25, 1, 0], "f4"))
    tiny = np.array([1e-40, -1e-40, 1, 2], "f4")
    same(apply("cvt.ftz.f32.f32 {d}, {a};", tiny, to="f4"), np.array([0, -0.0, 1, 2], "f4"))


def bfloat(a: np.ndarray) -> np.ndarray:
    """To nearest even, on bits."""
    word = a.view("u4").astype("u8")
    rounded = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    return np.where(np.isnan(a), 0x7FFF, rounded).astype("u2")


def test_bfloat():
    a, b = bits("f4", 3000, 0), bits("f4", 3000, 1)
    same(apply("cvt.rn.bf16.f32 {d}, {a};", a, to="u2"), bfloat(a))
    pairs = apply("cvt.rn.bf16x2.f32 {d}, {a}, {b};", a, b, to="u4")
    same(pairs, bfloat(b).astype("u4") | bfloat(a).astype("u4") << 16)
    wide = (bits("u2", 500).astype("u4") << 16).view("f4")
    same(apply("cvt.f32.bf16 {d}, {a};", bits("u2", 500), to="f4"), wide)


def test_pairs_of_halves():
    a, b = (np.random.default_rng(k).uniform(-9, 9, 500).astype("f4") for k in range(2))
    pairs = apply("cvt.rn.f16x2.f32 {d}, {a}, {b};", a, b, to="u4")
    low, high = pairs.view("u2").reshape(-1, 2).T
    same(np.ascontiguousarray(low).view("f2"), b.astype("f2"))
    same(np.ascontiguousarray(high).view("f2"), a.astype("f2"))
    relu = apply("cvt.rn.relu.f16x2.f32 {d}, {a}, {b};", a, b, to="u4")
    low = np.ascontiguousarray(relu.view("u2").reshape(-1, 2)[:, 0]).view("f2")
    same(low, np.maximum(b, 0).astype("f2"))


def test_packing_integers():
    a, b, c = bits("i4", 500, 0), bits("i4", 500, 1), bits("u4", 500, 2)
    low, high = (np.clip(x, -128, 127).astype("i1").view("u1").astype("u4") for x in (b, a))
    result = apply("cvt.pack.sat.s8.s32.b32 {d}, {a}, {b}, {c};", a, b, c, to="u4")
    same(result, c << 16 | high << 8 | low)
    low, high = (np.clip(x, 0, 65535).astype("u4") for x in (b, a))
    same(apply("cvt.pack.sat.u16.s32 {d}, {a}, {b};", a, b, to="u4"), high << 16 | low)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn"])
def test_half_arithmetic(name):
    a, b, c = (bits("f2", 2000, k) for k in range(3))
    x, y, z = (v.astype("f8") for v in (a, b, c))
    with np.errstate(all="ignore"):
        exact = {"add": x + y, "sub": x - y, "mul": x * y, "fma.rn": x * y + z}[name]
        expected = exact.astype("f2")
    last = ", {c}" if name == "fma.rn" else ""
    same(apply(f"{name}.f16 {{d}}, {{a}}, {{b}}{last};", a, b, c, to="f2"), expected)
    a2, b2, c2 = (np.ascontiguousarray(v).view("u4") for v in (a, b, c))
    pairs = apply(f"{name}.f16x2 {{d}}, {{a}}, {{b}}{last};", a2, b2, c2, to="u4")
    same(pairs.view("f2"), expected)


def test_bfloat_arithmetic():
    a, b, c = (bfloat(np.random.default_rng(k).uniform(-9, 9, 1000).astype("f4")) for k in range(3))
    x, y, z = ((v.astype("u4") << 16).view("f4").astype("f8") for v in (a, b, c))
    result = apply("fma.rn.bf16 {d}, {a}, {b}, {c};", a, b, c, to="u2")
    # Products of 16 bits and one sum are exact in a double here, and f32 holds enough for bf16 but
    # for ties: compare with both roundings.
    exact = x * y + z
    near = (result.astype("u4") << 16).view("f4").astype("f8")
    step = (np.spacing(near.astype("f4")).astype("f8")) * 2.0**16
    assert (np.abs(near - exact) <= np.abs(step) / 2).all()


@pytest.mark.parametrize("name", ["min", "max"])
def test_half_extrema(name):
    a, b = bits("f2", 2000, 0), bits("f2", 2000, 1)
    nonzero = (a != 0) | (b != 0)
    a, b = a[nonzero], b[nonzero]
    ignoring, propagating = (np.fmin, np.minimum) if name == "min" else (np.fmax, np.maximum)
    same(apply(f"{name}.f16 {{d}}, {{a}}, {{b}};", a, b, to="f2"), ignoring(a, b))
    same(apply(f"{name}.NaN.f16 {{d}}, {{a}}, {{b}};", a, b, to="f2"), propagating(a, b))


def test_half_signs_and_functions():
    a = bits("f2", 500)
    same(apply("neg.f16 {d}, {a};", a, to="u2"), (-a).view("u2"))
    same(apply("abs.f16 {d}, {a};", a, to="u2"), np.abs(a).view("u2"))
    near = np.random.default_rng(0).uniform(-9, 9, 500).astype("f2")
    expected = np.exp2(near.astype("f8")).astype("f2")
    same(apply("ex2.approx.f16 {d}, {a};", near, to="f2"), expected)


def test_comparisons_of_pairs():
    a, b = (np.random.default_rng(k).integers(-2, 3, 600).astype("f2") for k in range(2))
    lines = "setp.lt.f16x2 %p0|%p1, {a}, {b}; selp.u32 {d}, 1, 0, %p0; selp.u32 {e}, 1, 0, %p1;"
    low, high = apply(lines, a.view("u4"), b.view("u4"), to="u4", results=2)
    expected = (a < b).astype("u4").reshape(-1, 2)
    same(low, np.ascontiguousarray(expected[:, 0]))
    same(high, np.ascontiguousarray(expected[:, 1]))


def test_pairs_of_floats_and_integers():
    a, b = bits("f4", 1000, 0), bits("f4", 1000, 1)
    with np.errstate(all="ignore"):
        for name, expected in {"add.rn": a + b, "sub.rn": a - b, "mul.rn": a * b}.items():
            result = apply(
                f"{name}.f32x2 {{d}}, {{a}}, {{b}};", a.view("u8"), b.view("u8"), to="u8"
            )
            same(result.view("f4"), expected)
    x, y = bits("i2", 1000, 0), bits("i2", 1000, 1)
    for name, expected in {"add": x + y, "min": np.minimum(x, y), "max": np.maximum(x, y)}.items():
        result = apply(f"{name}.s16x2 {{d}}, {{a}}, {{b}};", x.view("u4"), y.view("u4"), to="u4")
        same(result.view("i2"), expected)
