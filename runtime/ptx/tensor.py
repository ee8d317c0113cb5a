"""Warp matrix instructions on bit patterns: mma.sync, ldmatrix, stmatrix, movmatrix.

Pure functions over many warps at once. A fragment is an array uint32 [warps, 32 lanes, registers];
narrow elements lie in a register from its lowest bits upwards. Where a lane's elements belong is
said by the layouts alone (PTX ISA, "Matrix fragments for mma.*"). With four lanes to a row, all
operands are made of the same block of 8 rows by 16 bytes of k; the layouts only order such blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Bytes = NDArray[np.uint8]
Index = NDArray[np.intp]

LANES = 32
BLOCK_ROWS = 8
BLOCK_BITS = 128  # of k that four lanes hold in one register each

CANONICAL_NAN_F32 = np.uint32(0x7FFFFFFF)
CANONICAL_NAN_F16 = np.uint16(0x7FFF)

ELEMENT_BITS = {
    "b1": 1,
    "u4": 4,
    "s4": 4,
    "u8": 8,
    "s8": 8,
    "e4m3": 8,
    "e5m2": 8,
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
}


class UnsupportedMma(ValueError):
    """No such combination of shape, types and operation in the PTX ISA, or none known here."""


# -- forms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """Forms that share shapes: A and B each have one of `operands`, C and D one of `results`."""

    operands: tuple[str, ...]
    shapes: tuple[str, ...]
    results: tuple[str, ...]
    ops: tuple[str, ...] = ("",)
    mixed: bool = False  # A and B may differ in type


_FAMILIES = (
    _Family(
        ("b1",), ("m8n8k128", "m16n8k128", "m16n8k256"), ("s32",), ops=("and.popc", "xor.popc")
    ),
    _Family(
        ("u4", "s4"), ("m8n8k32", "m16n8k32", "m16n8k64"), ("s32",), ("", "satfinite"), mixed=True
    ),
    _Family(
        ("u8", "s8"), ("m8n8k16", "m16n8k16", "m16n8k32"), ("s32",), ("", "satfinite"), mixed=True
    ),
    _Family(("e4m3", "e5m2"), ("m16n8k16", "m16n8k32"), ("f32", "f16"), mixed=True),
    _Family(("f16",), ("m16n8k8", "m16n8k16"), ("f32", "f16")),
    _Family(("bf16",), ("m16n8k8", "m16n8k16"), ("f32",)),
    _Family(("tf32",), ("m16n8k4", "m16n8k8"), ("f32",)),
)


@dataclass(frozen=True)
class MmaForm:
    """One legal mma.sync: D[m, n] = A[m, k] B[k, n] + C[m, n], one tile a warp."""

    m: int
    n: int
    k: int
    a_type: str
    b_type: str
    result_type: str  # of C and D
    op: str  # "", "and.popc", "xor.popc", "satfinite"

    @property
    def bits(self) -> int:
        """Of one element of A or B."""
        return ELEMENT_BITS[self.a_type]

    @property
    def a_registers(self) -> int:
        """32-bit registers of A in a lane; likewise below."""
        return self.m * self.k * self.bits // (32 * LANES)

    @property
    def b_registers(self) -> int:
        return self.n * self.k * self.bits // (32 * LANES)

    @property
    def c_registers(self) -> int:
        return self.m * self.n // LANES // (2 if self.result_type == "f16" else 1)

    @property
    def operations(self) -> int:
        """Multiplications and additions of one warp's tile (for b1: AND or XOR and additions)."""
        return 2 * self.m * self.n * self.k


@cache
def mma_form(
    shape: str, a_type: str, b_type: str, d_type: str, c_type: str, op: str = ""
) -> MmaForm:
    """The form that `mma.sync.aligned.<shape>.row.col` with these types is, else UnsupportedMma."""
    for family in _FAMILIES:
        if a_type not in family.operands:
            continue
        if b_type not in family.operands or (a_type != b_type and not family.mixed):
            raise UnsupportedMma(f"mma.sync has no operands of {a_type} with {b_type}")
        if shape not in family.shapes:
            raise UnsupportedMma(f"mma.sync of {a_type} is {', '.join(family.shapes)}, not {shape}")
        if c_type != d_type or d_type not in family.results:
            raise UnsupportedMma(f"mma.sync of {a_type} has no result {d_type} from {c_type}")
        if op not in family.ops:
            raise UnsupportedMma(f"mma.sync of {a_type} has no operation '{op}'")
        return MmaForm(*_sizes(shape), a_type, b_type, d_type, op)
    raise UnsupportedMma(f"mma.sync has no operands of type {a_type}")


def _sizes(shape: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", shape)
    if match is None:
        raise UnsupportedMma(f"'{shape}' is no shape of mma.sync")
    m, n, k = map(int, match.groups())
    return m, n, k


# -- layouts ----------------------------------------------------------------------------------


@cache
def a_layout(shape: str, bits: int) -> tuple[Index, Index]:
    """(row, k) of every element of A, each [32 lanes, elements]; blocks go down the rows first."""
    m, _, k = _sizes(shape)
    return _blocks(rows=m, k=k, bits=bits)


@cache
def b_layout(shape: str, bits: int) -> tuple[Index, Index]:
    """(k, column) of every element of B, each [32 lanes, elements]."""
    _, n, k = _sizes(shape)
    column, depth = _blocks(rows=n, k=k, bits=bits)
    return depth, column


@cache
def c_layout(shape: str) -> tuple[Index, Index]:
    """(row, column) of every element of C and D, each [32 lanes, elements]: pairs of columns."""
    m, n, _ = _sizes(shape)
    lane, element = np.ogrid[:LANES, : m * n // LANES]
    row = lane // 4 + BLOCK_ROWS * (element // 2)
    column = lane % 4 * 2 + element % 2
    return _full(row, column)


def _blocks(rows: int, k: int, bits: int) -> tuple[Index, Index]:
    """(row, k) of an operand of 8 x 16-byte blocks, one register of every lane to a block."""
    per_register = 32 // bits
    row_blocks = rows // BLOCK_ROWS
    lane, element = np.ogrid[:LANES, : rows * k // LANES]
    block = element // per_register
    row = lane // 4 + BLOCK_ROWS * (block % row_blocks)
    depth = (
        block // row_blocks * (BLOCK_BITS // bits)
        + lane % 4 * per_register
        + element % per_register
    )
    return _full(row, depth)


def _full(row: Index, column: Index) -> tuple[Index, Index]:
    row, column = np.broadcast_arrays(row, column)
    return np.ascontiguousarray(row), np.ascontiguousarray(column)


# -- mma --------------------------------------------------------------------------------------


def mma(
    shape: str,
    a_type: str,
    b_type: str,
    d_type: str,
    c_type: str,
    op: str,
    a: Words,
    b: Words,
    c: Words,
) -> Words:
    """D of `mma.sync`; a, b, c and the result are uint32 [warps, 32, registers].

    `shape` is "m16n8k16", types are those of the instruction without dots, `op` is "and.popc" or
    "xor.popc" for b1 and "" or "satfinite" for integers. Integers are exact modulo 2^32, or
    clamped once, after all products are added. Floats: products are exact, they and C are added
    in f64, and the sum is rounded once, to nearest even; hardware adds in an unspecified order and
    with fewer bits. A NaN result is the canonical one. UnsupportedMma where there is no such form.
    """
    form = mma_form(shape, a_type, b_type, d_type, c_type, op)
    c = np.ascontiguousarray(c)
    if form.a_type == "b1":
        return _mma_b1(form, a, b, c)
    if form.result_type == "s32":
        return _mma_integer(form, a, b, c)
    return _mma_float(form, a, b, c)


def _mma_b1(form: MmaForm, a: Words, b: Words, c: Words) -> Words:
    """32 bits of k in a word make an operand of 32-bit elements: the layout stays the same."""
    words = form.k // 32
    shape = f"m{form.m}n{form.n}k{words}"
    rows = _to_matrix(a, a_layout(shape, 32), (form.m, words))
    columns = _to_matrix(b, b_layout(shape, 32), (words, form.n))
    combine = np.bitwise_and if form.op == "and.popc" else np.bitwise_xor
    total = np.zeros((a.shape[0], form.m, form.n), np.uint32)
    for word in range(words):
        total += popcount(combine(rows[:, :, word, None], columns[:, None, word, :]))
    return _from_matrix(total, c_layout(f"m{form.m}n{form.n}k{form.k}")) + c


def _mma_integer(form: MmaForm, a: Words, b: Words, c: Words) -> Words:
    product = _product(form, a, b, np.float32)  # exact: 32 * 255 * 255 < 2^24
    shape = f"m{form.m}n{form.n}k{form.k}"
    sums = _from_matrix(product, c_layout(shape)).astype(np.int64) + c.view(np.int32)
    if form.op == "satfinite":
        sums = sums.clip(-(1 << 31), (1 << 31) - 1)
    return sums.astype(np.uint32)


def _mma_float(form: MmaForm, a: Words, b: Words, c: Words) -> Words:
    with np.errstate(invalid="ignore", over="ignore"):
        product = _product(form, a, b, np.float64)
        fragment = _from_matrix(product, c_layout(f"m{form.m}n{form.n}k{form.k}"))
        if form.result_type == "f16":
            halves = (fragment + c.view(np.float16)).astype(np.float16)
            halves_bits = halves.view(np.uint16)
            halves_bits[np.isnan(halves)] = CANONICAL_NAN_F16
            return halves_bits.view(np.uint32)
        floats = (fragment + c.view(np.float32)).astype(np.float32)
        bits = floats.view(np.uint32)
        bits[np.isnan(floats)] = CANONICAL_NAN_F32
        return bits


def _product(form: MmaForm, a: Words, b: Words, dtype: type) -> NDArray:
    """A B as [warps, m, n] of `dtype`."""
    shape = f"m{form.m}n{form.n}k{form.k}"
    left = _to_matrix(
        unpack(a, form.a_type).astype(dtype), a_layout(shape, form.bits), (form.m, form.k)
    )
    right = _to_matrix(
        unpack(b, form.b_type).astype(dtype), b_layout(shape, form.bits), (form.k, form.n)
    )
    return np.matmul(left, right)


def _to_matrix(elements: NDArray, layout: tuple[Index, Index], sizes: tuple[int, int]) -> NDArray:
    """[warps, 32, elements] to [warps, rows, columns]."""
    row, column = layout
    position = np.empty(row.size, np.intp)
    position[(row * sizes[1] + column).ravel()] = np.arange(row.size)
    flat = elements.reshape(elements.shape[0], row.size)
    return flat.take(position, axis=1).reshape(-1, *sizes)


def _from_matrix(matrix: NDArray, layout: tuple[Index, Index]) -> NDArray:
    """[warps, rows, columns] to [warps, 32, elements]."""
    row, column = layout
    return matrix[:, row, column]


# -- elements ---------------------------------------------------------------------------------


def unpack(words: Words, element_type: str) -> NDArray:
    """Values of packed elements: [..., registers] of uint32 to [..., elements], lowest bits first.

    Integers come as int16, floats as float32 (every value of every type is exact in it); a tf32
    register counts with its upper 19 bits. b1 comes as 0 and 1.
    """
    words = np.ascontiguousarray(words, dtype=np.uint32)
    if element_type == "b1":
        return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").astype(np.int16)
    if element_type in ("u4", "s4"):
        return _nibbles(words.view(np.uint8), signed=element_type == "s4")
    if element_type in ("u8", "s8"):
        return words.view(np.uint8 if element_type == "u8" else np.int8).astype(np.int16)
    if element_type in ("e4m3", "e5m2"):
        return _decode_table(element_type)[words.view(np.uint8)]
    if element_type == "f16":
        return words.view(np.float16).astype(np.float32)
    if element_type == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if element_type == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    raise UnsupportedMma(f"mma.sync has no operands of type {element_type}")


def _nibbles(octets: Bytes, signed: bool) -> NDArray[np.int16]:
    pairs = np.stack([octets & 15, octets >> 4], axis=-1).astype(np.int16)
    if signed:
        pairs = (pairs ^ 8) - 8
    return pairs.reshape(*octets.shape[:-1], 2 * octets.shape[-1])


@cache
def _decode_table(element_type: str) -> NDArray[np.float32]:
    """Values of the 256 codes of an 8-bit float (OCP 8-bit floating point specification)."""
    codes = np.arange(256, dtype=np.uint16)
    if element_type == "e5m2":  # the upper half of an f16
        return (codes << 8).astype(np.uint16).view(np.float16).astype(np.float32)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8.0, exponent.astype(np.int32) - 7)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes >= 128, -magnitude, magnitude).astype(np.float32)


def popcount(words: Words) -> Words:
    """Number of ones in each word."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words).astype(np.uint32)
    words = words - (words >> 1 & np.uint32(0x55555555))
    words = (words & np.uint32(0x33333333)) + (words >> 2 & np.uint32(0x33333333))
    words = words + (words >> 4) & np.uint32(0x0F0F0F0F)
    return words * np.uint32(0x01010101) >> np.uint32(24)


# -- ldmatrix, stmatrix, movmatrix ------------------------------------------------------------
#
# Matrices of 8 x 8 elements of 16 bits. Row r of matrix i lies at the address of lane 8 i + r; lane
# 4 r + c holds the elements (r, 2 c) and (r, 2 c + 1), or of the transposed matrix, in register i.


def matrix_lanes(count: int) -> slice:
    """Lanes whose addresses `ldmatrix.x<count>` and `stmatrix.x<count>` use, in order of rows."""
    return slice(0, BLOCK_ROWS * count)


def ldmatrix(rows: Bytes, trans: bool = False) -> Words:
    """Registers [warps, 32, count] from the 16-byte rows [warps, 8 * count, 16] of the lanes."""
    warps, total = rows.shape[:2]
    halves = np.ascontiguousarray(rows).view(np.uint16).reshape(warps, total // 8, 8, 8)
    if trans:
        halves = halves.swapaxes(2, 3)
    words = np.ascontiguousarray(halves).view(np.uint32).reshape(warps, total // 8, LANES)
    return np.ascontiguousarray(words.swapaxes(1, 2))


def stmatrix(registers: Words, trans: bool = False) -> Bytes:
    """Rows [warps, 8 * count, 16] to write at the lanes' addresses; inverse of `ldmatrix`."""
    warps, _, count = registers.shape
    words = np.ascontiguousarray(registers.swapaxes(1, 2))
    halves = words.view(np.uint16).reshape(warps, count, 8, 8)
    if trans:
        halves = halves.swapaxes(2, 3)
    return np.ascontiguousarray(halves).view(np.uint8).reshape(warps, BLOCK_ROWS * count, 16)


def movmatrix(registers: Words) -> Words:
    """`movmatrix.sync.aligned.m8n8.trans.b16` of one register a lane: [warps, 32] to the same."""
    return ldmatrix(stmatrix(registers[..., None]), trans=True)[..., 0]
