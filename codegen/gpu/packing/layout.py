"""The bytes of packed activation rows, and how K is padded: what packing kernels write, and
matrix kernels read (docs/gpu.md, "Packed activations").

K is cut into groups (of the weight's scales), and each group is padded with zeros to whole units,
so that no unit has weights of two scales. `padded k` counts codes with that padding.

    Int8Rows    padded_k codes, one byte each: q, as s8 or (asymmetric 8 bits) as u8
                f32 scale, i32 zero point (0 where symmetric)
                i32 sums [groups] of q - zero, where the weight has zero points
    FloatRows   padded_k values of f16 or bf16; those of blocks are exact in bf16
    CentredRows padded_k values q - zero of f16 or bf16 (exact), then f32 scale, i32 zero point: for
                weights without integers

A row begins at a multiple of 32 bytes. Padding codes are 0 and are counted in no sum. All is
little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import Scheme

K_UNIT = 32  # codes of a unit of int8 and f16 operands: one k-step of the s8 MMA, two of f16
ROW_ALIGNMENT = 16  # bytes; what cp.async moves at once
SECTOR_BYTES = 32  # of memory: what a load of less takes too

FloatElement = Literal["f16", "bf16"]
Activation = Literal["int8", "f16", "bf16"]  # what packed rows hold


@dataclass(frozen=True)
class GroupedK:
    """K in groups of `group_size` (the last one may be short), each padded to whole units."""

    k: int
    group_size: int
    unit: int = K_UNIT

    @staticmethod
    def of(scheme: Scheme | None, k: int, unit: int = K_UNIT) -> GroupedK:
        """That of a weight's scheme; one group where there is none."""
        size = scheme.group_size if scheme is not None and scheme.group_size else k
        return GroupedK(k, min(size, k), unit)

    @property
    def groups(self) -> int:
        return -(-self.k // self.group_size)

    @property
    def group_units(self) -> int:
        """Units of a group, the last one excepted."""
        return -(-self.group_size // self.unit)

    @cached_property
    def units(self) -> int:
        """Units of all groups."""
        last = self.k - (self.groups - 1) * self.group_size
        return (self.groups - 1) * self.group_units + -(-last // self.unit)

    @property
    def padded_group(self) -> int:
        """From one group's codes to the next one's, in codes."""
        return self.group_units * self.unit

    @property
    def padded_k(self) -> int:
        return self.units * self.unit

    def bounds(self) -> list[tuple[int, int]]:
        """Begin and end of each group, without padding."""
        size = self.group_size
        return [(begin, min(begin + size, self.k)) for begin in range(0, self.k, size)]

    def pad(self, codes: np.ndarray) -> np.ndarray:
        """[R, k] with each group padded by zeros: [R, padded_k]."""
        out = np.zeros((len(codes), self.padded_k), codes.dtype)
        whole = self.k // self.group_size  # groups that are not short, at once
        size, pitch = self.group_size, self.padded_group
        if whole:
            view = out[:, : whole * pitch].reshape(len(codes), whole, pitch)
            view[:, :, :size] = codes[:, : whole * size].reshape(len(codes), whole, size)
        if whole < self.groups:
            rest = self.k - whole * size
            out[:, whole * pitch : whole * pitch + rest] = codes[:, whole * size :]
        return out

    def unpad(self, padded: np.ndarray) -> np.ndarray:
        """The inverse of `pad`."""
        starts = [
            (g * self.padded_group, end - begin) for g, (begin, end) in enumerate(self.bounds())
        ]
        return np.concatenate([padded[:, at : at + size] for at, size in starts], axis=1)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of each group, i32 [R, groups], of [R, k]."""
        starts = [begin for begin, _ in self.bounds()]
        return np.add.reduceat(values, starts, axis=1, dtype=np.int32)


class CodedRows:
    """What follows the codes of a row: scale, zero point, and sums where the layout has them."""

    grouped: GroupedK
    has_sums: bool

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, which come first."""
        raise NotImplementedError

    @property
    def scale_offset(self) -> int:
        return self.code_bytes

    @property
    def zero_offset(self) -> int:
        return self.scale_offset + 4

    @property
    def sums_offset(self) -> int:
        return self.zero_offset + 4

    @property
    def row_bytes(self) -> int:
        sums = 4 * self.grouped.groups if self.has_sums else 0
        return align(self.sums_offset + sums, SECTOR_BYTES)


@dataclass(frozen=True)
class Int8Rows(CodedRows):
    """Rows of codes of up to 8 bits, one byte each, with their scale, zero point and sums."""

    grouped: GroupedK
    unsigned: bool  # bytes are u8, else s8
    has_sums: bool

    @staticmethod
    def of(spec: MatmulSpec) -> Int8Rows:
        """The rows of a matmul with quantized activations."""
        assert spec.weight is not None and spec.activation is not None
        format = spec.activation.format
        unsigned = format.bits == 8 and not format.symmetric
        return Int8Rows(GroupedK.of(spec.weight, spec.k), unsigned, not spec.weight.symmetric)

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, which come first."""
        return self.grouped.padded_k

    def pack_reference(
        self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None
    ) -> np.ndarray:
        """Rows [M, row_bytes], uint8, of codes [M, k], scale f32 [M] and zero i32 [M]."""
        zeros = np.zeros(len(codes), np.int32) if zero is None else zero.astype(np.int32)
        rows = np.zeros((len(codes), self.row_bytes), np.uint8)
        rows[:, : self.code_bytes] = self.grouped.pad(codes).view(np.uint8)
        _put(rows, self.scale_offset, scale.astype(np.float32)[:, None])
        _put(rows, self.zero_offset, zeros[:, None])
        if self.has_sums:
            centred = codes.astype(np.int32) - zeros[:, None]
            _put(rows, self.sums_offset, self.grouped.sums(centred))
        return rows


@dataclass(frozen=True)
class FloatRows:
    """Rows of activations that stay float."""

    grouped: GroupedK
    element: FloatElement = "f16"

    @staticmethod
    def of(spec: MatmulSpec, element: FloatElement = "f16") -> FloatRows:
        return FloatRows(GroupedK.of(spec.weight, spec.k), element)

    @property
    def code_bytes(self) -> int:
        return 2 * self.grouped.padded_k

    @property
    def row_bytes(self) -> int:
        return self.code_bytes

    def pack_reference(self, x: np.ndarray) -> np.ndarray:
        """Rows [M, row_bytes], uint8, of x f32 [M, k], rounded to nearest even."""
        padded = self.grouped.pad(x.astype(np.float32))
        return np.ascontiguousarray(round_to(padded, self.element)).view(np.uint8)


@dataclass(frozen=True)
class CentredRows(CodedRows):
    """Rows of quantized activations for 16-bit products: q - zero, exact in f16 and bf16."""

    grouped: GroupedK
    element: FloatElement = "f16"
    has_sums = False

    @staticmethod
    def of(spec: MatmulSpec, element: FloatElement = "f16") -> CentredRows:
        return CentredRows(GroupedK.of(spec.weight, spec.k), element)

    @property
    def code_bytes(self) -> int:
        return 2 * self.grouped.padded_k

    def pack_reference(
        self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None
    ) -> np.ndarray:
        """Rows [M, row_bytes], uint8, of codes [M, k], scale f32 [M] and zero i32 [M]."""
        zeros = np.zeros(len(codes), np.int32) if zero is None else zero.astype(np.int32)
        centred = (codes.astype(np.int32) - zeros[:, None]).astype(np.float32)
        rows = np.zeros((len(codes), self.row_bytes), np.uint8)
        _put(rows, 0, round_to(self.grouped.pad(centred), self.element))
        _put(rows, self.scale_offset, scale.astype(np.float32)[:, None])
        _put(rows, self.zero_offset, zeros[:, None])
        return rows


def rows_of(spec: MatmulSpec, activation: Activation) -> Int8Rows | FloatRows | CentredRows:
    """The rows of a matmul whose packed activations are of that kind."""
    if activation == "int8":
        return Int8Rows.of(spec)
    return half_rows_of(spec, activation)


def half_rows_of(spec: MatmulSpec, element: FloatElement) -> FloatRows | CentredRows:
    """The rows of 16-bit floats: of activations that stay float or are rounded in blocks, or of
    codes with one scale."""
    if spec.activation is None or spec.blocks:
        return FloatRows.of(spec, element)
    return CentredRows.of(spec, element)


def round_to(x: np.ndarray, element: FloatElement) -> np.ndarray:
    """f32 as 16-bit floats, rounded to nearest even: f16 values, or the bits of bf16 as uint16."""
    if element == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16)
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _put(rows: np.ndarray, offset: int, values: np.ndarray) -> None:
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(len(rows), -1)
    rows[:, offset : offset + flat.shape[1]] = flat
