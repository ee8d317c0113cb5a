"""CUDA C, one thread to an element: arithmetic, conversions, functions; against numpy."""

from __future__ import annotations

import math

import numpy as np
from cuda_c import N, floats, from_bfloat16, integers, output, to_bfloat16


def test_vector_add(elementwise, rng) -> None:
    a, b = floats(rng, N), floats(rng, N)
    total = elementwise("vector_add", 3, 128, a, b, output(N), N)
    np.testing.assert_array_equal(total, a + b)


def test_saxpy_grid_stride(elementwise, rng) -> None:
    x, y = floats(rng, N), floats(rng, N)
    _, result = elementwise("saxpy", 2, 64, 2.5, x, y, N)
    np.testing.assert_allclose(result, y + np.float32(2.5) * x, rtol=1e-5, atol=1e-6)


def test_scale_vectors(elementwise, rng) -> None:
    x, w = floats(rng, N, 4), integers(rng, 0, 256, N, 4, dtype=np.uint8)
    y = elementwise("scale_vectors", 3, 128, x, w, output(N, 4), N)
    np.testing.assert_array_equal(y, x * w.astype(np.float32))


def test_divide_integers(elementwise, rng) -> None:
    a = integers(rng, -(1 << 31), 1 << 31, N)
    b = integers(rng, -5000, 5000, N) | 1
    c = integers(rng, -(1 << 62), 1 << 62, N, dtype=np.int64)
    d = integers(rng, -(1 << 40), 1 << 40, N, dtype=np.int64) | 1
    d[::2] = d[::2] % 1000 + 1
    as_int, as_long = output(N, dtype=np.int32), output(N, dtype=np.int64)
    quotients, remainders, unsigned, long_quotients, long_remainders, *_ = elementwise(
        "divide_integers", 3, 128, a, b, c, d, as_int, as_int, output(N, dtype=np.uint32),
        as_long, as_long, N,
    )  # fmt: skip
    expected = [divmod_c(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(np.stack([quotients, remainders], 1), expected)
    np.testing.assert_array_equal(unsigned, a.view(np.uint32) // b.view(np.uint32))
    expected = [divmod_c(int(x), int(y)) for x, y in zip(c, d, strict=True)]
    np.testing.assert_array_equal(np.stack([long_quotients, long_remainders], 1), expected)


def divmod_c(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero, and its remainder."""
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def test_divide_by_constants(elementwise, rng) -> None:
    a = integers(rng, -(1 << 31), 1 << 31, N)
    b = integers(rng, -(1 << 62), 1 << 62, N, dtype=np.int64)
    as_int = output(N, dtype=np.int32)
    by_seven, by_minus_ten, by_thousand, *_ = elementwise(
        "divide_by_constants", 3, 128, a, b, as_int, as_int, output(N, dtype=np.int64), N
    )
    assert by_seven.tolist() == [divmod_c(int(x), 7)[0] for x in a]
    assert by_minus_ten.tolist() == [divmod_c(int(x), -10)[0] for x in a]
    assert by_thousand.tolist() == [divmod_c(int(x), 1000)[0] for x in b]


def test_wide_arithmetic(elementwise, rng) -> None:
    a, b = integers(rng, 0, 1 << 64, 2, N, dtype=np.uint64)
    word = output(N, dtype=np.uint64)
    high, low, carry, shifted, *_ = elementwise(
        "wide_arithmetic", 3, 128, a, b, word, word, word, word, N
    )
    mask = (1 << 64) - 1
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        total = x * y + (x << 64 | y)
        assert high[i] == total >> 64 & mask
        assert low[i] == total & mask
        assert carry[i] == x * y >> 64
        signed = x - (1 << 64) if x >> 63 else x
        assert shifted[i] == (signed >> (y & 63) ^ x << (y & 31)) & mask


def test_bit_tricks(elementwise, rng) -> None:
    a, b = integers(rng, 0, 1 << 32, 2, N, dtype=np.uint32)
    c = integers(rng, 0, 1 << 64, N, dtype=np.uint64)
    a[:3], c[:3] = [0, 1, 0x80000000], [0, 1, 1 << 63]
    rows = elementwise("bit_tricks", 3, 128, a, b, c, output(N, 12, dtype=np.uint32), N)
    expected = [
        bit_tricks(x, y, z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(rows, expected)


def bit_tricks(a: int, b: int, c: int) -> list[int]:
    octets = (a | b << 32).to_bytes(8, "little")

    def signed(x: int) -> int:
        return x - (1 << 32) if x >> 31 else x

    return [
        a.bit_count(),
        32 - a.bit_length(),
        (a & -a).bit_length(),
        int(f"{a:032b}"[::-1], 2),
        (b << 32 | a) << (b & 31) >> 32 & 0xFFFFFFFF,
        (b << 32 | a) >> (b & 15) & 0xFFFFFFFF,
        int.from_bytes(bytes(octets[s] for s in (2, 7, 1, 6)), "little"),
        c.bit_count(),
        64 - c.bit_length(),
        a >> 5 & 0x3FF,
        (a & b | ~a & c) & 0xFFFFFFFF,
        (min(a, b) + max(signed(a), signed(b)) + abs(signed(a) >> 1)) & 0xFFFFFFFF,
    ]


def test_byte_dot_products(elementwise, rng) -> None:
    a, b = integers(rng, -(1 << 31), 1 << 31, 2, N)
    dots, unsigned, sums, *_ = elementwise(
        "byte_dot_products", 3, 128, a, b, output(N, dtype=np.int32),
        output(N, dtype=np.uint32), output(N, dtype=np.int32), N,
    )  # fmt: skip
    left, right = a.view(np.int8).reshape(N, 4), b.view(np.int8).reshape(N, 4)
    expected = (left.astype(np.int64) * right).sum(1) + np.arange(N)
    np.testing.assert_array_equal(dots, expected)
    products = left.view(np.uint8).astype(np.int64) * right.view(np.uint8)
    np.testing.assert_array_equal(unsigned, products.sum(1) + 7)
    difference = np.abs(a.astype(np.int64) - b) + 3
    np.testing.assert_array_equal(sums.view(np.uint32), difference)


def test_half_arithmetic(elementwise, rng) -> None:
    a, b = floats(rng, N, 2).astype(np.float16), floats(rng, N, 2).astype(np.float16)
    out, wide, *_ = elementwise(
        "half_arithmetic", 3, 128, a, b, output(N, 2, dtype=np.float16), output(N), N
    )
    product = (a.astype(np.float64) * b + 0.5).astype(np.float16)
    np.testing.assert_array_equal(out, np.maximum(product, a - b))
    expected = (a[:, 0] * a[:, 0]).astype(np.float32) + b[:, 1].astype(np.float32)
    np.testing.assert_array_equal(wide, np.where(a[:, 0] > b[:, 0], -expected, expected))


def test_bfloat_conversion(elementwise, rng) -> None:
    x = floats(rng, N)
    x[0] = np.array(0x3F808000, np.uint32).view(np.float32)  # a half, to even
    narrow, back, pairs, *_ = elementwise(
        "bfloat_conversion", 3, 128, x, output(N, dtype=np.uint16), output(N),
        output(N, 2, dtype=np.uint16), N,
    )  # fmt: skip
    np.testing.assert_array_equal(narrow, to_bfloat16(x))
    np.testing.assert_array_equal(back, from_bfloat16(to_bfloat16(x)) * np.float32(3))
    value = from_bfloat16(to_bfloat16(np.stack([x, x + np.float32(1)], 1))).astype(np.float64)
    np.testing.assert_array_equal(pairs, to_bfloat16(value * value + value))


def test_conversions(elementwise, rng) -> None:
    x = floats(rng, N) * 100
    x[:4] = [0.5, 1.5, -0.5, 2.5]
    k = integers(rng, -(1 << 31), 1 << 31, N)
    out, values, octets, *_ = elementwise(
        "conversions", 3, 128, x, k, output(N, 5, dtype=np.int32), output(N),
        output(N, dtype=np.uint8), N,
    )  # fmt: skip
    expected = [np.rint(x), np.trunc(x), np.floor(x), np.ceil(x)]
    np.testing.assert_array_equal(out[:, :4], np.stack(expected, 1).astype(np.int32))
    np.testing.assert_array_equal(out[:, 4].view(np.float32), np.rint(x))
    sums = k.astype(np.float32) + k.view(np.uint32).astype(np.float32) * np.float32(0.25)
    np.testing.assert_allclose(values, sums + k.astype(np.int16).astype(np.float32), rtol=1e-6)
    np.testing.assert_array_equal(octets, (k >> 3).astype(np.uint8))


def test_math_functions(elementwise, rng) -> None:
    x = floats(rng, N) * 3
    out = elementwise("math_functions", 3, 128, x, output(12, N), N)
    wide = x.astype(np.float64)
    positive = (np.abs(x) + np.float32(0.01)).astype(np.float64)
    expected = [
        np.exp(wide),
        np.sin(wide),
        np.cos((x * np.float32(1e5)).astype(np.float64)),
        np.sqrt(positive),
        1 / np.sqrt(positive),
        [math.erf(value) for value in wide],
        np.log(positive),
        np.tanh(wide),
        positive**wide,
        wide / positive,
        np.fmod(wide, np.float64(np.float32(0.7))),
        np.exp2(wide) + np.log2(positive) + np.floor(wide) + np.copysign(2, wide),
    ]
    np.testing.assert_allclose(out, np.array(expected), rtol=5e-6, atol=2e-6)
    np.testing.assert_array_equal(out[9], x / (np.abs(x) + np.float32(0.01)))


def test_fast_functions(elementwise, rng) -> None:
    x = floats(rng, N)
    out = elementwise("fast_functions", 3, 128, x, output(6, N), N)
    expected = [
        np.exp(x),
        np.sin(x),
        np.log(np.abs(x) + np.float32(0.5)),
        1 / (x * x + 1),
        x.clip(0, 1),
        x.clip(-0.5, 0.5),
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_double_precision(elementwise, rng) -> None:
    x, y = rng.standard_normal((2, N)) * 5
    out = elementwise("double_precision", 3, 128, x, y, output(6, N, dtype=np.float64), N)
    expected = [
        x * y - 1,
        x / y,
        np.sqrt(np.abs(x)),
        np.exp(x),
        x.astype(np.float32) + np.trunc(y * 1e6) + np.floor(x),
        np.sin(y),
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-15)


def test_constant_polynomial(elementwise, rng) -> None:
    x = floats(rng, N)
    y, count, *_ = elementwise(
        "constant_polynomial", 3, 128, x, output(N), output(1, dtype=np.int32), 5, N
    )
    expected = np.polynomial.polynomial.polyval(x, [1, -0.5, 0.25, -0.125, 0.0625, 3])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert count == 5
