"""Integer arithmetic and bits, against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from one_instruction import apply, bits, same

SIZES = [16, 32, 64]


def of_python(function: Callable, type: str, *sources: np.ndarray) -> np.ndarray:
    """A function of Python's integers, wrapped to the type."""
    width = np.dtype(type).itemsize * 8
    wrapped = [int(function(*map(int, row))) % (1 << width) for row in zip(*sources, strict=True)]
    return np.array(wrapped, f"u{width // 8}").view(type)


def check(name: str, ptx: str, type: str, function: Callable, count: int = 2, **known) -> None:
    sources = [known.get("abc"[k], bits(type, 700, k)) for k in range(count)]
    operands = ", ".join("{" + "abc"[k] + "}" for k in range(count))
    to = known.get("to", type)
    result = apply(f"{name}.{ptx} {{d}}, {operands};", *sources, to=to)
    same(result, of_python(function, to, *sources))


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1) if b else -1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", "us")
def test_arithmetic(sign, size):
    type, ptx = f"{'i' if sign == 's' else 'u'}{size // 8}", f"{sign}{size}"
    check("add", ptx, type, lambda a, b: a + b)
    check("sub", ptx, type, lambda a, b: a - b)
    check("mul.lo", ptx, type, lambda a, b: a * b)
    check("mul.hi", ptx, type, lambda a, b: a * b >> size)
    check("mad.lo", ptx, type, lambda a, b, c: a * b + c, 3)
    check("mad.hi", ptx, type, lambda a, b, c: (a * b >> size) + c, 3)
    check("sad", ptx, type, lambda a, b, c: c + abs(a - b), 3)
    check("min", ptx, type, min)
    check("max", ptx, type, max)
    check("div", ptx, type, truncated)
    check("rem", ptx, type, lambda a, b: a - truncated(a, b) * b if b else a)
    if sign == "s":
        check("neg", ptx, type, lambda a: -a, 1)
        check("abs", ptx, type, abs, 1)


@pytest.mark.parametrize("sign", "us")
def test_wide_products(sign):
    for size in (16, 32):
        type, wide = (f"{'i' if sign == 's' else 'u'}{size // bits}" for bits in (8, 4))
        check("mul.wide", f"{sign}{size}", type, lambda a, b: a * b, to=wide)
        c = bits(wide, 700, 2)
        check("mad.wide", f"{sign}{size}", type, lambda a, b, c: a * b + c, 3, c=c, to=wide)


def test_saturating_sums():
    def clamp(value):
        return max(-(1 << 31), min((1 << 31) - 1, value))

    check("add.sat", "s32", "i4", lambda a, b: clamp(a + b))
    check("sub.sat", "s32", "i4", lambda a, b: clamp(a - b))


def test_carries():
    a, b = bits("u8", 700, 0), bits("u8", 700, 1)
    lines = """
    mov.b64 {{%t0, %t1}}, {a};
    mov.b64 {{%t2, %t3}}, {b};
    OP.cc.u32 %t0, %t0, %t2;
    OPc.u32 %t1, %t1, %t3;
    mov.b64 {d}, {{%t0, %t1}};
    """
    same(apply(lines.replace("OP", "add"), a, b, to="u8"), a + b)
    same(apply(lines.replace("OP", "sub"), a, b, to="u8"), a - b)
    product = """
    mov.b64 {{%t0, %t1}}, {a};
    mov.b64 {{%t2, %t3}}, {b};
    mul.lo.u32 %t4, %t0, %t2;
    mul.hi.u32 %t5, %t0, %t2;
    mad.lo.cc.u32 %t5, %t0, %t3, %t5;
    mad.lo.cc.u32 %t5, %t1, %t2, %t5;
    mov.b64 {d}, {{%t4, %t5}};
    """
    same(apply(product, a, b, to="u8"), a * b)


def test_dot_products():
    for a_sign in "us":
        for b_sign in "us":
            a, b, c = (bits("u4", 500, k) for k in range(3))
            quads = [
                x.view("i1" if s == "s" else "u1").reshape(-1, 4).astype("i8")
                for x, s in ((a, a_sign), (b, b_sign))
            ]
            expected = ((quads[0] * quads[1]).sum(1) + c.view("i4")).astype("u4")
            line = f"dp4a.{a_sign}32.{b_sign}32 {{d}}, {{a}}, {{b}}, {{c}};"
            same(apply(line, a, b, c, to="u4"), expected)
            halves = a.view("i2" if a_sign == "s" else "u2").reshape(-1, 2).astype("i8")
            expected = ((halves * quads[1][:, 2:]).sum(1) + c.view("i4")).astype("u4")
            line = f"dp2a.hi.{a_sign}32.{b_sign}32 {{d}}, {{a}}, {{b}}, {{c}};"
            same(apply(line, a, b, c, to="u4"), expected)


@pytest.mark.parametrize("size", SIZES)
def test_shifts_clamp(size):
    type, signed = f"u{size // 8}", f"i{size // 8}"
    a = bits(type, 700)
    amount = np.resize(np.array([0, 1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 1 << 31], "u4"), 700)
    wide = amount.astype("u8")
    exact = [int(x) << min(int(s), 70) & (1 << size) - 1 for x, s in zip(a, wide, strict=True)]
    same(apply(f"shl.b{size} {{d}}, {{a}}, {{b}};", a, amount, to=type), np.array(exact, type))
    exact = [int(x) >> min(int(s), 70) for x, s in zip(a, wide, strict=True)]
    same(apply(f"shr.u{size} {{d}}, {{a}}, {{b}};", a, amount, to=type), np.array(exact, type))
    exact = [int(x) >> min(int(s), 70) for x, s in zip(a.view(signed), wide, strict=True)]
    result = apply(f"shr.s{size} {{d}}, {{a}}, {{b}};", a, amount, to=type)
    same(result.view(signed), np.array(exact, signed))


def test_funnel_shifts():
    a, b = bits("u4", 500, 0), bits("u4", 500, 1)
    c = np.arange(500, dtype="u4") % 70
    both = (b.astype(object) << 32) | a.astype(object)
    for mode, amount in (("wrap", c % 32), ("clamp", np.minimum(c, 32))):
        left = np.array(
            [(int(x) << int(s)) >> 32 & 0xFFFFFFFF for x, s in zip(both, amount, strict=True)], "u4"
        )
        right = np.array(
            [int(x) >> int(s) & 0xFFFFFFFF for x, s in zip(both, amount, strict=True)], "u4"
        )
        same(apply(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, to="u4"), left)
        same(apply(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, to="u4"), right)


@pytest.mark.parametrize("size", [32, 64])
def test_bit_counts(size):
    type = f"u{size // 8}"
    a = bits(type, 700)
    lengths = np.array([int(x).bit_length() for x in a])
    counts = [int(x).bit_count() for x in a]
    same(apply(f"popc.b{size} {{d}}, {{a}};", a, to="u4"), np.array(counts, "u4"))
    same(apply(f"clz.b{size} {{d}}, {{a}};", a, to="u4"), (size - lengths).astype("u4"))
    found = (lengths - 1).astype("i4").view("u4")
    same(apply(f"bfind.u{size} {{d}}, {{a}};", a, to="u4"), found)
    reverse = [int(f"{int(x):0{size}b}"[::-1], 2) for x in a]
    same(apply(f"brev.b{size} {{d}}, {{a}};", a, to=type), np.array(reverse, type))
    signed = a.view(f"i{size // 8}")
    found = np.array([(int(x) if x >= 0 else ~int(x)).bit_length() - 1 for x in signed], "i4")
    same(apply(f"bfind.s{size} {{d}}, {{a}};", a, to="u4"), found.view("u4"))


@pytest.mark.parametrize("table", [0x00, 0x80, 0x96, 0xCA, 0xE8, 0xEA, 0xF8, 0xFE, 0x2D, 0xFF])
def test_logic_of_three(table):
    a, b, c = (bits("u4", 300, k) for k in range(3))

    def look_up(x, y, z):
        return sum(
            (table >> ((x >> k & 1) * 4 + (y >> k & 1) * 2 + (z >> k & 1)) & 1) << k
            for k in range(32)
        )

    expected = of_python(look_up, "u4", a, b, c)
    same(apply(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};", a, b, c, to="u4"), expected)


@pytest.mark.parametrize("size", [32, 64])
def test_bit_fields(size):
    type = f"u{size // 8}"
    rng = np.random.default_rng(1)
    a, b = bits(type, 700, 0), bits(type, 700, 1)
    start, length = (rng.integers(0, size + 6, 700, "u4") for _ in range(2))

    def insert(x, y, s, n):
        mask = ((1 << min(n, size)) - 1 << s) & (1 << size) - 1
        return y & ~mask | x << s & mask

    line = f"bfi.b{size} {{d}}, {{a}}, {{b}}, {{c}}, {{f}};"
    same(apply(line, a, b, start, length, to=type), of_python(insert, type, a, b, start, length))

    def extract(x, s, n):
        return x >> s & (1 << min(n, size)) - 1

    line = f"bfe.u{size} {{d}}, {{a}}, {{b}}, {{c}};"
    same(apply(line, a, start, length, to=type), of_python(extract, type, a, start, length))

    def extract_signed(x, s, n):
        field = x >> s & (1 << min(n, size)) - 1
        sign = x >> min(s + n - 1, size - 1) & 1 if n else 0
        used = min(n, max(size - s, 0))
        return field | (-1 << used if sign else 0)

    line = f"bfe.s{size} {{d}}, {{a}}, {{b}}, {{c}};"
    expected = of_python(extract_signed, type, a, start, length)
    same(apply(line, a, start, length, to=type), expected)


def test_permutations():
    a, b, c = (bits("u4", 500, k) for k in range(3))

    def permute(x, y, selectors):
        octets = [*x.to_bytes(4, "little"), *y.to_bytes(4, "little")]
        picked = []
        for k in range(4):
            selector = selectors >> 4 * k & 15
            octet = octets[selector & 7]
            picked.append((255 if octet & 128 else 0) if selector & 8 else octet)
        return int.from_bytes(bytes(picked), "little")

    line = "prmt.b32 {d}, {a}, {b}, {c};"
    same(apply(line, a, b, c, to="u4"), of_python(permute, "u4", a, b, c))
    for selector in (0x3210, 0x5410, 0x7632, 0xBA98, 0x0123, 0x4440):
        line = f"prmt.b32 {{d}}, {{a}}, {{b}}, {selector};"
        expected = of_python(lambda x, y, s=selector: permute(x, y, s), "u4", a, b)
        same(apply(line, a, b, to="u4"), expected)


def test_find_nth_set():
    mask = np.full(5, 0b1011_0100, "u4")
    base = np.array([0, 3, 7, 2, 31], "u4")
    offset = np.array([1, 1, -2, 0, 1], "i4")
    expected = np.array([2, 4, 5, 2, 0xFFFFFFFF], "u4")
    same(apply("fns.b32 {d}, {a}, {b}, {c};", mask, base, offset, to="u4"), expected)


@pytest.mark.parametrize("sign", "us")
def test_comparisons(sign):
    type = "i4" if sign == "s" else "u4"
    a, b = bits(type, 700, 0), bits(type, 700, 1)
    for name, function in {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
    }.items():
        lines = f"setp.{name}.{sign}32 %p0|%p1, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p0; "
        lines += "selp.u32 {e}, 1, 0, %p1;"
        holds, fails = apply(lines, a, b, to="u4", results=2)
        same(holds, function(a, b).astype("u4"))
        same(fails, 1 - holds)
    lines = f"setp.lt.{sign}32 %p0, {{a}}, {{b}}; setp.ge.and.{sign}32 %p1, {{a}}, 5, !%p0; "
    result = apply(lines + "selp.u32 {d}, 1, 0, %p1;", a, b, to="u4")
    same(result, ((a >= 5) & ~(a < b)).astype("u4"))
    result = apply(f"set.lt.u32.{sign}32 {{d}}, {{a}}, {{b}};", a, b, to="u4")
    same(result, np.where(a < b, 0xFFFFFFFF, 0).astype("u4"))


def test_comparisons_of_floats():
    a, b = bits("f4", 2000, 0), bits("f4", 2000, 1)
    nan = np.isnan(a) | np.isnan(b)
    for name, expected in {
        "eq": a == b,
        "ne": (a != b) & ~nan,
        "lt": a < b,
        "equ": (a == b) | nan,
        "neu": (a != b) | nan,
        "geu": (a >= b) | nan,
        "num": ~nan,
        "nan": nan,
    }.items():
        lines = f"setp.{name}.f32 %p0, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p0;"
        same(apply(lines, a, b, to="u4"), expected.astype("u4"))
