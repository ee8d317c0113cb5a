"""The packed weight of strategy `float`: a row for each column (n) of the product.

Elements are f32, f16 or bf16, as the model has them. Rows of k values are filled up with zeros to
whole 16 bytes, [n][padded k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from abqc.codegen.align import align
from abqc.codegen.builder import Value, vec
from abqc.dialects.formats import FLOAT_BYTES, Float
from abqc.dialects.matmul_spec import MatmulSpec

from ..builder import Cache, GpuBuilder
from ..packing.layout import ROW_ALIGNMENT

LOAD_BYTES = 16


@dataclass(frozen=True)
class FloatRows:
    """Rows of `k` values, each stored as `element`."""

    k: int
    element: Float = "f32"

    @staticmethod
    def of(spec: MatmulSpec) -> FloatRows:
        return FloatRows(spec.k, spec.weight_float)

    @property
    def name(self) -> str:
        """In names of kernels."""
        return f"k{self.k}" if self.element == "f32" else f"{self.element}_k{self.k}"

    @property
    def element_bytes(self) -> int:
        return FLOAT_BYTES[self.element]

    @property
    def row_bytes(self) -> int:
        """From one row to the next."""
        return align(self.element_bytes * self.k, ROW_ALIGNMENT)

    @property
    def pitch(self) -> int:
        """From one row to the next, in elements."""
        return self.row_bytes // self.element_bytes

    @property
    def width(self) -> int:
        """The number of values in 16 bytes."""
        return LOAD_BYTES // self.element_bytes

    def load(self, b: GpuBuilder, row: Value, at: Value, count: int, cache: Cache) -> list[Value]:
        """`count` values from `at` of the row at pointer `row`, as f32."""
        type_ = vec(count * self.element_bytes // 4, "i32")
        words = b.load(row, type_, at * self.element_bytes, cache=cache)
        if self.element == "f32":
            return b.lanes_of(b.bitcast(words, vec(count, "f32")))
        return [v for word in b.lanes_of(words) for v in widen_pair(b, word, self.element)]


def widen_pair(b: GpuBuilder, word: Value, element: Float) -> Sequence[Value]:
    """The two halves of a word (i32), the lower one first, as f32."""
    if element == "bf16":  # the upper bits of an f32
        return [b.bitcast(bits, "f32") for bits in (word << 16, word & 0xFFFF0000)]
    return b.lanes_of(b.extend(b.bitcast(b.splat(word, 1), vec(2, "f16"))))


def pack_float(weight: np.ndarray) -> np.ndarray:
    """The blob, uint8, of a weight [n, k]."""
    n, k = weight.shape
    row = align(weight.itemsize * k, ROW_ALIGNMENT) // weight.itemsize
    padded = np.zeros((n, row), weight.dtype)
    padded[:, :k] = weight
    return padded.reshape(-1).view(np.uint8)
