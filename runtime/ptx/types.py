"""The fundamental types of PTX, and what each is in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


@dataclass(frozen=True)
class ScalarType:
    """A type as instructions and declarations name it.

    `kind`: "b" (bits), "u", "s", "f", "bf" (bfloat16), "p" (predicate). Packed pairs have
    `lanes` 2. `dtype` is what arithmetic reads it as; bfloat16 and pairs are read as bits.
    """

    name: str
    kind: str
    bits: int
    lanes: int = 1

    @property
    def dtype(self) -> np.dtype:
        if self.kind == "p":
            return np.dtype(np.bool_)
        if self.kind == "s" and self.lanes == 1:
            return np.dtype(_SIGNED[self.bits])
        if self.kind == "f" and self.lanes == 1:
            return np.dtype(_FLOAT[self.bits])
        return np.dtype(_UNSIGNED[self.bits])

    @property
    def element(self) -> ScalarType:
        """The type of one half of a pair."""
        return TYPES[self.name.removesuffix("x2")]

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_integer(self) -> bool:
        return self.kind in ("b", "u", "s")

    @property
    def is_float(self) -> bool:
        return self.kind in ("f", "bf")


TYPES = {
    type.name: type
    for type in (
        ScalarType("pred", "p", 8),
        *(ScalarType(f"b{bits}", "b", bits) for bits in (8, 16, 32, 64)),
        *(ScalarType(f"u{bits}", "u", bits) for bits in (8, 16, 32, 64)),
        *(ScalarType(f"s{bits}", "s", bits) for bits in (8, 16, 32, 64)),
        *(ScalarType(f"f{bits}", "f", bits) for bits in (16, 32, 64)),
        ScalarType("bf16", "bf", 16),
        ScalarType("f16x2", "f", 32, 2),
        ScalarType("bf16x2", "bf", 32, 2),
        ScalarType("f32x2", "f", 64, 2),
        ScalarType("u16x2", "u", 32, 2),
        ScalarType("s16x2", "s", 32, 2),
    )
}
