"""Matrix instructions of the PTX machine: layouts against CuTe's, products against matrices."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from abqc.runtime.ptx.tensor import (
    ELEMENT_BITS,
    UnsupportedMma,
    a_layout,
    b_layout,
    c_layout,
    ldmatrix,
    mma,
    mma_form,
    movmatrix,
    popcount,
    stmatrix,
    unpack,
)

WARPS = 3

# CuTe's (lane, value) -> (m or n) + rows * k, as nested (shape, stride) (CUTLASS 3.5,
# include/cute/atom/mma_traits_sm80.hpp): a statement of the layouts that is not ours.
LANE = (4, 8)
CUTE_A = {
    ("m8n8k16", 8): ((LANE, (4,)), ((32, 1), (8,))),
    ("m8n8k128", 1): ((LANE, (32,)), ((256, 1), (8,))),
    ("m16n8k4", 32): ((LANE, (2,)), ((16, 1), (8,))),
    ("m16n8k8", 32): ((LANE, (2, 2)), ((16, 1), (8, 64))),
    ("m16n8k8", 16): ((LANE, (2, 2)), ((32, 1), (16, 8))),
    ("m16n8k16", 16): ((LANE, (2, 2, 2)), ((32, 1), (16, 8, 128))),
    ("m16n8k16", 8): ((LANE, (4, 2)), ((64, 1), (16, 8))),
    ("m16n8k32", 8): ((LANE, (4, 2, 2)), ((64, 1), (16, 8, 256))),
    ("m16n8k128", 1): ((LANE, (32, 2)), ((512, 1), (16, 8))),
    ("m16n8k256", 1): ((LANE, (32, 2, 2)), ((512, 1), (16, 8, 2048))),
}
CUTE_B = {
    ("m8n8k16", 8): ((LANE, (4,)), ((32, 1), (8,))),
    ("m8n8k128", 1): ((LANE, (32,)), ((256, 1), (8,))),
    ("m16n8k4", 32): ((LANE, (1,)), ((8, 1), (0,))),
    ("m16n8k8", 32): ((LANE, (2,)), ((8, 1), (32,))),
    ("m16n8k8", 16): ((LANE, (2,)), ((16, 1), (8,))),
    ("m16n8k16", 16): ((LANE, (2, 2)), ((16, 1), (8, 64))),
    ("m16n8k16", 8): ((LANE, (4,)), ((32, 1), (8,))),
    ("m16n8k32", 8): ((LANE, (4, 2)), ((32, 1), (8, 128))),
    ("m16n8k128", 1): ((LANE, (32,)), ((256, 1), (8,))),
    ("m16n8k256", 1): ((LANE, (32, 2)), ((256, 1), (8, 1024))),
}
CUTE_C = {8: ((LANE, (2,)), ((16, 1), (8,))), 16: ((LANE, (2, 2)), ((32, 1), (16, 8)))}


def cute_offsets(layout) -> np.ndarray:
    """Offsets [32, values] of a CuTe layout; the first mode of a shape runs fastest."""
    (lane_shape, value_shape), (lane_stride, value_stride) = layout

    def mode(shape, stride):
        digits = np.unravel_index(np.arange(prod(shape)), shape, order="F")
        return sum(digit * step for digit, step in zip(digits, stride, strict=True))

    return mode(lane_shape, lane_stride)[:, None] + mode(value_shape, value_stride)[None, :]


@pytest.mark.parametrize(("shape", "bits"), CUTE_A)
def test_layouts_are_those_of_cute(shape: str, bits: int) -> None:
    m = 16 if shape.startswith("m16") else 8
    row, k = a_layout(shape, bits)
    np.testing.assert_array_equal(row + m * k, cute_offsets(CUTE_A[shape, bits]))
    k, column = b_layout(shape, bits)
    np.testing.assert_array_equal(column + 8 * k, cute_offsets(CUTE_B[shape, bits]))
    row, column = c_layout(shape)
    np.testing.assert_array_equal(row + m * column, cute_offsets(CUTE_C[m]))


def test_a_layout_is_that_of_the_manual() -> None:
    """PTX ISA 9.7.14: m16n8k16 of f16, m16n8k32 of s8, m16n8k64 of s4, spelled out."""
    for shape, bits, width in (("m16n8k16", 16, 2), ("m16n8k32", 8, 4), ("m16n8k64", 4, 8)):
        row, k = a_layout(shape, bits)
        for lane, i in product(range(32), range(4 * width)):
            group, thread = lane >> 2, lane % 4
            upper = i < width or 2 * width <= i < 3 * width
            assert row[lane, i] == (group if upper else group + 8)
            right = 4 * width if i >= 2 * width else 0
            assert k[lane, i] == thread * width + i % width + right


# -- mma --------------------------------------------------------------------------------------


def words_of(elements: np.ndarray, bits: int) -> np.ndarray:
    """Registers uint32 [warps, 32, registers] from codes [warps, 32, elements], lowest first."""
    per_word = 32 // bits
    grouped = elements.astype(np.uint64).reshape(*elements.shape[:2], -1, per_word)
    shifts = (np.arange(per_word) * bits).astype(np.uint64)
    return np.bitwise_or.reduce((grouped & np.uint64((1 << bits) - 1)) << shifts, -1).astype(
        np.uint32
    )


def random_codes(rng: np.random.Generator, element_type: str, size) -> np.ndarray:
    """Bit patterns of elements; floats are of moderate size."""
    bits = ELEMENT_BITS[element_type]
    if bits < 16 and not element_type.startswith("e"):
        return rng.integers(0, 1 << bits, size)
    values = rng.standard_normal(size).astype(np.float32)
    if element_type == "f16":
        return values.astype(np.float16).view(np.uint16)
    if element_type == "bf16":
        return values.view(np.uint32) >> 16
    if element_type == "tf32":
        return values.view(np.uint32)
    codes = rng.integers(0, 256, size)
    return np.where((codes & 0x7C) >= 0x78, 0, codes)  # neither NaN nor infinity


def value_of(codes: np.ndarray, element_type: str) -> np.ndarray:
    bits = ELEMENT_BITS[element_type]
    if element_type == "b1" or element_type.startswith("u"):
        return codes.astype(np.int64)
    if element_type.startswith("s"):
        return (codes ^ (1 << bits - 1)) - (1 << bits - 1)
    if element_type == "f16":
        return codes.view(np.float16).astype(np.float64)
    if element_type == "bf16":
        return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if element_type == "tf32":
        return (codes >> 13 << 13).view(np.float32).astype(np.float64)
    exponent_bits, mantissa_bits = int(element_type[1]), int(element_type[3])
    bias = (1 << exponent_bits - 1) - 1
    mantissa = codes & (1 << mantissa_bits) - 1
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    normal = np.where(exponent == 0, 0, 1 << mantissa_bits) + mantissa
    magnitude = normal * 2.0 ** (np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes >= 128, -magnitude, magnitude)


FORMS = [
    *product(
        ("m8n8k128", "m16n8k128", "m16n8k256"), [("b1", "b1", "s32")], ("and.popc", "xor.popc")
    ),
    *product(
        ("m8n8k32", "m16n8k32", "m16n8k64"),
        [(a, b, "s32") for a, b in product(("u4", "s4"), repeat=2)],
        ("", "satfinite"),
    ),
    *product(
        ("m8n8k16", "m16n8k16", "m16n8k32"),
        [(a, b, "s32") for a, b in product(("u8", "s8"), repeat=2)],
        ("", "satfinite"),
    ),
    *product(("m16n8k16", "m16n8k32"), [("e4m3", "e5m2", "f32"), ("e4m3", "e4m3", "f16")], ("",)),
    *product(("m16n8k8", "m16n8k16"), [("f16", "f16", "f32"), ("f16", "f16", "f16")], ("",)),
    *product(("m16n8k8", "m16n8k16"), [("bf16", "bf16", "f32")], ("",)),
    *product(("m16n8k4", "m16n8k8"), [("tf32", "tf32", "f32")], ("",)),
]


@pytest.mark.parametrize(("shape", "types", "op"), FORMS)
def test_mma(shape: str, types: tuple[str, str, str], op: str) -> None:
    """Matrices scattered into fragments by the layouts, multiplied, gathered, compared."""
    a_type, b_type, result = types
    rng = np.random.default_rng(7)
    form = mma_form(shape, a_type, b_type, result, result, op)
    a_codes = random_codes(rng, a_type, (WARPS, form.m, form.k))
    b_codes = random_codes(rng, b_type, (WARPS, form.k, form.n))
    left, right = value_of(a_codes, a_type), value_of(b_codes, b_type)
    if op == "xor.popc":
        expected = (left[:, :, :, None] ^ right[:, None]).sum(2)
    else:
        expected = left @ right

    row, column = c_layout(shape)
    if result == "s32":
        c = rng.integers(-(1 << 31), 1 << 31, (WARPS, form.m, form.n))
        c_words = c[:, row, column].astype(np.uint32)
    elif result == "f32":
        c = rng.standard_normal((WARPS, form.m, form.n)).astype(np.float32)
        c_words = c[:, row, column].view(np.uint32)
    else:
        c = rng.standard_normal((WARPS, form.m, form.n)).astype(np.float16)
        c_words = words_of(c.view(np.uint16)[:, row, column], 16)

    a_words = words_of(a_codes[(slice(None), *a_layout(shape, form.bits))], form.bits)
    b_words = words_of(b_codes[(slice(None), *b_layout(shape, form.bits))], form.bits)
    assert a_words.shape == (WARPS, 32, form.a_registers)
    assert b_words.shape == (WARPS, 32, form.b_registers)
    assert c_words.shape == (WARPS, 32, form.c_registers)
    d_words = mma(shape, a_type, b_type, result, result, op, a_words, b_words, c_words)
    assert d_words.shape == c_words.shape

    expected = (expected + c.astype(expected.dtype))[:, row, column]
    if result == "s32":
        if op == "satfinite":
            expected = expected.clip(-(1 << 31), (1 << 31) - 1)
        np.testing.assert_array_equal(d_words, expected.astype(np.uint32))
    elif result == "f32":
        np.testing.assert_allclose(d_words.view(np.float32), expected, rtol=1e-6, atol=1e-6)
    else:
        with np.errstate(over="ignore"):
            rounded = expected.astype(np.float16)
        np.testing.assert_allclose(d_words.view(np.float16), rounded, rtol=1e-3)


def test_satfinite_clamps_and_the_plain_form_wraps() -> None:
    ones = np.full((1, 32, 2), 0x01010101, np.uint32)
    top = np.full((1, 32, 4), 0x7FFFFFFF, np.uint32)
    b = ones[..., :1]
    plain = mma("m16n8k16", "s8", "s8", "s32", "s32", "", ones, b, top)
    assert (plain == 0x7FFFFFFF + 16).all()
    clamped = mma("m16n8k16", "s8", "s8", "s32", "s32", "satfinite", ones, b, top)
    assert (clamped == 0x7FFFFFFF).all()


def test_nan_is_canonical_and_infinity_travels() -> None:
    a = np.zeros((1, 32, 2), np.uint32)
    a[0, 0] = 0xFE01  # row 0 has a NaN with a payload
    a[0, 4] = 0x7C00  # row 1 has an infinity
    b = np.full((1, 32, 1), 0x3C003C00, np.uint32)
    zeros = np.zeros((1, 32, 4), np.uint32)
    d = mma("m16n8k8", "f16", "f16", "f32", "f32", "", a, b, zeros)
    assert (d[0, :4, :2] == 0x7FFFFFFF).all()
    assert (d[0, 4:8, :2] == 0x7F800000).all()
    assert (d[0, 8:, :2] == 0).all()
    d = mma("m16n8k8", "f16", "f16", "f16", "f16", "", a, b, zeros[..., :2])
    assert (d[0, :4, 0] == 0x7FFF7FFF).all()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (("m16n8k64", "s8", "s8", "s32", "s32", ""), "not m16n8k64"),
        (("m16n8k16", "f16", "bf16", "f32", "f32", ""), "f16 with bf16"),
        (("m16n8k16", "bf16", "bf16", "f16", "f16", ""), "no result f16"),
        (("m16n8k256", "b1", "b1", "s32", "s32", "or.popc"), "or.popc"),
        (("m16n8k16", "f16", "f16", "f32", "f32", "satfinite"), "satfinite"),
        (("m8n8k4", "f64", "f64", "f64", "f64", ""), "f64"),
    ],
)
def test_unsupported_forms_say_why(form: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnsupportedMma, match=message):
        mma_form(*form)


def test_popcount_and_unpack() -> None:
    words = np.array([[0, 0xFFFFFFFF, 0x80000001, 0x12345678]], np.uint32)
    assert popcount(words).tolist() == [[0, 32, 2, 13]]
    assert unpack(words[:, 3:], "s4").tolist() == [[-8, 7, 6, 5, 4, 3, 2, 1]]
    assert unpack(words[:, 2:3], "b1")[0].nonzero()[0].tolist() == [0, 31]
    assert unpack(np.array([[0x7E7F8180]], np.uint32), "s8").tolist() == [[-128, -127, 127, 126]]
    assert unpack(np.array([[0x7E80FE01]], np.uint32), "e4m3").tolist() == [[2.0**-9, -448, 0, 448]]


# -- matrix moves -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_and_stmatrix(count: int, trans: bool) -> None:
    rng = np.random.default_rng(3)
    matrices = rng.integers(0, 1 << 16, (WARPS, count, 8, 8)).astype(np.uint16)
    rows = matrices.view(np.uint8).reshape(WARPS, 8 * count, 16)
    registers = ldmatrix(rows, trans)
    assert registers.shape == (WARPS, 32, count)
    for lane, i in product(range(32), range(count)):
        row, column = lane // 4, lane % 4 * 2
        source = matrices[:, i].swapaxes(1, 2) if trans else matrices[:, i]
        low, high = source[:, row, column], source[:, row, column + 1]
        np.testing.assert_array_equal(registers[:, lane, i], low | high.astype(np.uint32) << 16)
    np.testing.assert_array_equal(stmatrix(registers, trans), rows)


def test_movmatrix_transposes() -> None:
    matrix = np.arange(64, dtype=np.uint16).reshape(1, 8, 8)
    registers = matrix.view(np.uint32).reshape(1, 32)
    moved = movmatrix(registers).view(np.uint16).reshape(1, 8, 8)
    np.testing.assert_array_equal(moved, matrix.swapaxes(1, 2))


def test_ldmatrix_feeds_mma() -> None:
    """The usual way: A by x4 and B by x2.trans from row-major tiles gives fragments of m16n8k16."""
    rng = np.random.default_rng(5)
    a = rng.standard_normal((16, 16)).astype(np.float16)
    b = rng.standard_normal((16, 8)).astype(np.float16)
    lanes = np.arange(32)
    a_rows = np.stack([a[i % 16, i // 16 * 8 : i // 16 * 8 + 8] for i in lanes])
    b_rows = np.stack([b[i] for i in range(16)])
    a_words = ldmatrix(a_rows.view(np.uint8)[None])
    b_words = ldmatrix(b_rows.view(np.uint8)[None], trans=True)
    zeros = np.zeros((1, 32, 4), np.uint32)
    d = mma("m16n8k16", "f16", "f16", "f32", "f32", "", a_words, b_words, zeros)
    row, column = c_layout("m16n8k16")
    expected = (a.astype(np.float64) @ b.astype(np.float64))[row, column]
    np.testing.assert_allclose(d[0].view(np.float32), expected, rtol=1e-6, atol=1e-6)
