"""Warpgroup matrix instructions (`wgmma.mma_async`): forms, matrices in shared memory, products.

Pure functions over many warpgroups at once. Every operand has 32 bytes of k in each row, whatever
its type (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"): rows of
A and B come as uint8 [warpgroups, rows, 32].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .tensor import CANONICAL_NAN_F32, ELEMENT_BITS, Bytes, Index, UnsupportedMma, Words, unpack

ROWS = 64
THREADS = 128
ROW_BYTES = 32
CHUNK = 16  # bytes: the unit of addresses, strides and swizzles
A_REGISTERS = 4

_EVERY_EIGHT = frozenset(range(8, 257, 8))
_INTEGER_COLUMNS = frozenset({8, 24, *range(16, 257, 16)})
_INTEGERS = ("s8", "u8")


@dataclass(frozen=True)
class WgmmaForm:
    """One legal wgmma.mma_async: D[64, n] = A[64, k] B[n, k]^T (+ D)."""

    n: int
    k: int
    result_type: str
    a_type: str
    b_type: str

    @property
    def is_float(self) -> bool:
        """Types whose operands may be negated and transposed."""
        return self.a_type in ("f16", "bf16")

    @property
    def registers(self) -> int:
        """32-bit registers of D in a thread."""
        return self.n // 2

    @property
    def operations(self) -> int:
        """Multiplications and additions (for b1: ANDs and additions) of one warpgroup."""
        return 2 * ROWS * self.n * self.k

    @property
    def shape(self) -> str:
        return f"m{ROWS}n{self.n}k{self.k}"


@cache
def wgmma_form(n: int, k: int, d_type: str, a_type: str, b_type: str, op: str) -> WgmmaForm:
    """The form of `.m64n<n>k<k>.<d>.<a>.<b>{.and.popc}`; UnsupportedMma where there is none."""
    if a_type in ("f16", "bf16"):
        legal = b_type == a_type and d_type == "f32" and not op
        columns = _EVERY_EIGHT
    elif a_type in _INTEGERS:
        legal = b_type in _INTEGERS and d_type == "s32" and not op
        columns = _INTEGER_COLUMNS
    else:
        legal = a_type == b_type == "b1" and d_type == "s32" and op == "and.popc"
        columns = _INTEGER_COLUMNS
    if not legal:
        raise UnsupportedMma(f"wgmma of {d_type} from {a_type} and {b_type} {op} is not supported")
    if k * ELEMENT_BITS[a_type] != 8 * ROW_BYTES or n not in columns:
        raise UnsupportedMma(f"wgmma of {a_type} has no shape m64n{n}k{k}")
    return WgmmaForm(n, k, d_type, a_type, b_type)


# -- matrices in shared memory ------------------------------------------------------------------

_SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}  # bytes, by the descriptor's mode
_ADDRESS_MASK = 0x3FFFF
_FIELD = 0x3FFF


@dataclass(frozen=True)
class MatrixDescriptor:
    """A matrix descriptor, decoded: bytes. `swizzle` is 0, 32, 64 or 128."""

    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: int

    @staticmethod
    def decode(bits: int) -> MatrixDescriptor:
        return MatrixDescriptor(
            (bits & _FIELD) * CHUNK,
            (bits >> 16 & _FIELD) * CHUNK,
            (bits >> 32 & _FIELD) * CHUNK,
            bits >> 49 & 7,
            _SWIZZLES[bits >> 62],
        )

    def problem(self, bits: int) -> str | None:
        """What is wrong with it whatever it describes."""
        if bits & ~(_FIELD | _FIELD << 16 | _FIELD << 32 | 7 << 49 | 3 << 62):
            return f"the descriptor {bits:#018x} has bits outside of its fields"
        if self.base_offset:
            return f"a base offset of {self.base_offset} is not supported: patterns must be aligned"
        if self.swizzle and self.start >> 7 & self.swizzle // 16 - 1:
            return (
                f"the matrix at {self.start:#x} does not start in the first row of a pattern of "
                f"{8 * self.swizzle} bytes, as its swizzle of {self.swizzle} bytes and the base "
                "offset 0 say"
            )
        return None

    def chunks(self, rows: int, transposed: bool) -> Index:
        """Addresses of its 16-byte chunks, [rows, 2]; of a transposed one, whose chunks have 8 rows
        of one k of 16-bit elements, [rows / 8, 16]."""
        plain = self._by_rows(rows, transposed)
        if self.swizzle:
            plain = swizzled(plain, self.swizzle)
        return plain & _ADDRESS_MASK

    def _by_rows(self, rows: int, transposed: bool) -> Index:
        pitch = self.swizzle or CHUNK
        if not transposed:
            row, chunk = np.ogrid[:rows, : ROW_BYTES // CHUNK]
            step = CHUNK if self.swizzle else self.leading
            return self.start + row % 8 * pitch + row // 8 * self.stride + chunk * step
        octet, k = np.ogrid[: rows // 8, :16]
        inside = pitch // CHUNK
        if not self.swizzle:
            return self.start + k % 8 * pitch + k // 8 * self.leading + octet * self.stride
        return (
            self.start
            + (k % 8 * pitch + k // 8 * self.stride)
            + (octet % inside * CHUNK + octet // inside * self.leading)
        )


def swizzled(addresses: Index, swizzle: int) -> Index:
    """Where bytes lie in a swizzle of 32, 64 or 128 bytes: bits of the address from 7 on are added
    modulo 2 to those from 4 on."""
    return addresses ^ (addresses >> 3 & (swizzle // CHUNK - 1) << 4)


def rows_of_transposed(chunks: Bytes) -> Bytes:
    """Rows of 16 elements of 16 bits, uint8 [g, rows, 32], from chunks [g, rows / 8, 16, 16]."""
    halves = np.ascontiguousarray(chunks).view(np.uint16)  # group, octet, k, row in the octet
    rows = np.ascontiguousarray(halves.swapaxes(2, 3))
    return rows.reshape(len(chunks), -1, 16).view(np.uint8)


# -- registers ----------------------------------------------------------------------------------


def rows_of_fragment(registers: Words) -> Bytes:
    """A from registers, uint32 [groups, 128, 4] to uint8 [groups, 64, 32].

    Warp w has the rows from 16 w on, in the layout of A of mma.sync with rows of 32 bytes.
    """
    parts = registers.reshape(-1, 4, 8, 4, 2, 2)  # group, warp, row, word, upper half, upper rows
    rows = parts.transpose(0, 1, 5, 2, 4, 3)
    return np.ascontiguousarray(rows).reshape(-1, ROWS, ROW_BYTES // 4).view(np.uint8)


def accumulators(matrix: NDArray) -> NDArray:
    """[groups, 64, n] to what each thread holds of it, [groups, 128, n / 2]."""
    groups, _, n = matrix.shape
    parts = matrix.reshape(groups, 4, 2, 8, n // 8, 4, 2)
    # group, warp, upper rows, row, columns by 8, pair, parity
    return parts.transpose(0, 1, 3, 5, 4, 2, 6).reshape(groups, THREADS, n // 2)


# -- products -----------------------------------------------------------------------------------


def wgmma(form: WgmmaForm, a: Bytes, b: Bytes, d: Words | None, signs: int = 1) -> Words:
    """D, uint32 [groups, 128, n / 2], of rows of A and B and of the D before (None: zeros).

    Integers are exact modulo 2^32. Floats as in `tensor.mma`: the products and D are added in f64
    and rounded once. `signs` -1 negates the products.
    """
    left, right = _values(a, form.a_type), _values(b, form.b_type)
    if not form.is_float:  # exact in f32: 32 * 255 * 255 and 256 are below 2^24
        product = np.matmul(left.astype(np.float32), right.astype(np.float32).swapaxes(1, 2))
        sums = accumulators(product).astype(np.int32).view(np.uint32)
        return sums if d is None else sums + d
    with np.errstate(invalid="ignore", over="ignore"):
        exact = np.matmul(left.astype(np.float64), right.astype(np.float64).swapaxes(1, 2))
        fragment = signs * accumulators(exact)
        if d is not None:
            fragment = fragment + np.ascontiguousarray(d).view(np.float32)
        floats = fragment.astype(np.float32)
    bits = floats.view(np.uint32)
    bits[np.isnan(floats)] = CANONICAL_NAN_F32
    return bits


def _values(rows: Bytes, element_type: str) -> NDArray:
    return unpack(np.ascontiguousarray(rows).view(np.uint32), element_type)
