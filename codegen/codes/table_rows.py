"""The bytes of a constant table whose rows are gathered.

A row of a quantized table is one contiguous piece of bytes:

    codes    in units of 16, 32, 64 or 128 codes, the last one filled up with zeros
    scales   [groups]  f16, f32, e8m0 or e4m3
    zeros    [groups]  u8, asymmetric formats only
    tensor   f32       what e4m3 scales are multiplied with

A unit holds the bit parts of its codes (`bit_parts.py`), the lowest first. In a part of
`p` bits, 16 bytes hold 8 / p runs of 16 codes, run j at bit j * p of each byte. A row of a float
table is its f32 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.scale_types import SCALE_BYTES, StoredScale, scale_label, stored_scales

from ..align import align
from .bit_parts import BitPart, StoredValue, bit_parts
from .stored_values import tensor_scale_bytes

LANES = 16
CHUNK_ROWS = 4096  # packed at a time, to bound the memory of a compile


@dataclass(frozen=True)
class TableRows:
    """A table of `columns` columns; `scheme` is None for f32. `scale_bits` is 16 or 32."""

    columns: int
    scheme: Scheme | None
    scale_bits: int = 16
    index_bits: int = 64

    @property
    def value(self) -> StoredValue:
        return StoredValue.unsigned(quantized(self.scheme).format)

    @property
    def parts(self) -> tuple[BitPart, ...]:
        return bit_parts(self.value.bits)

    @property
    def unit(self) -> int:
        """Codes that share the vectors of the narrowest part."""
        return LANES * max(8 // part.bits for part in self.parts)

    @property
    def unit_bytes(self) -> int:
        return self.unit * self.value.bits // 8

    @property
    def scale(self) -> StoredScale:
        return "f32" if self.scale_bits == 32 else quantized(self.scheme).scale

    @property
    def groups(self) -> int:
        return quantized(self.scheme).n_groups(self.columns)

    @property
    def group_size(self) -> int:
        return quantized(self.scheme).group_size or self.columns

    @property
    def scales_offset(self) -> int:
        return -(-self.columns // self.unit) * self.unit_bytes

    @property
    def zeros_offset(self) -> int:
        return self.scales_offset + self.groups * SCALE_BYTES[self.scale]

    @property
    def tensor_scale_offset(self) -> int:
        """A multiple of 4 where there is one, else the end of a row."""
        end = self.zeros_offset + (0 if quantized(self.scheme).symmetric else self.groups)
        return align(end, tensor_scale_bytes(self.scale) or 1)

    @property
    def row_bytes(self) -> int:
        if self.scheme is None:
            return 4 * self.columns
        return self.tensor_scale_offset + tensor_scale_bytes(self.scale)

    def pack(self, table: QuantizedTensor | np.ndarray) -> np.ndarray:
        """The table, [rows, columns] of codes or f32, as uint8 of rows * row_bytes."""
        if isinstance(table, np.ndarray):
            return np.ascontiguousarray(table, np.float32).reshape(-1).view(np.uint8)
        blob = np.zeros((len(table.codes), self.row_bytes), np.uint8)
        for begin in range(0, len(blob), CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            blob[part, : self.scales_offset] = self._pack_codes(table.codes[part])
        scales = stored_scales(table.scale, self.scale, table.tensor_scale)
        scales = np.ascontiguousarray(scales).view(np.uint8)
        blob[:, self.scales_offset : self.zeros_offset] = scales
        if table.zero is not None:
            blob[:, self.zeros_offset : self.zeros_offset + self.groups] = table.zero
        if tensor_scale_bytes(self.scale):
            whole = np.array([table.tensor_scale], np.float32).view(np.uint8)
            blob[:, self.tensor_scale_offset :] = whole
        return blob.reshape(-1)

    def _pack_codes(self, codes: np.ndarray) -> np.ndarray:
        rows, columns = codes.shape
        units = -(-columns // self.unit)
        stored = np.zeros((rows, units * self.unit), np.uint8)
        stored[:, :columns] = self.value.encode(codes)
        pieces = []
        for part in self.parts:
            runs = 8 // part.bits
            bits = (stored >> part.shift) & ((1 << part.bits) - 1)
            shared = bits.reshape(rows, units, -1, runs, LANES)
            shifts = (np.arange(runs) * part.bits).astype(np.uint8)[:, None]
            packed = np.bitwise_or.reduce(shared << shifts, axis=3)
            pieces.append(packed.reshape(rows, units, -1))
        return np.concatenate(pieces, axis=2).reshape(rows, -1)

    @property
    def scale_name(self) -> str:
        return scale_label(self.scale)

    @property
    def kernel_name(self) -> str:
        """Of the kernels that gather from it."""
        if self.scheme is None:
            name = f"gather_f32_k{self.columns}"
        else:
            name = (
                f"gather_{self.scheme.format.name}_g{self.group_size}_{self.scale_name}"
                f"_k{self.columns}"
            )
        return name if self.index_bits == 64 else f"{name}_i{self.index_bits}"


def quantized(scheme: Scheme | None) -> Scheme:
    """The scheme of a table that is not float."""
    assert scheme is not None, "a float table has no codes"
    return scheme
