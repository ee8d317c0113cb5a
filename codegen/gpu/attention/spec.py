"""What an attention kernel computes, and how it reads its arguments.

    y[b, h] = softmax(scale * q[b, h] k[b, h / group]^T + mask[b, h]) v[b, h / group]

q is M x D, k is T x D, v is T x E, y is M x E, all f32 with D and E innermost; everything else has
strides (in elements), so that [B, H, M, D], [B, M, H, D] and caches with room to grow are read
where they are. Rows start at multiples of 16 bytes where D (E) is a multiple of 4. Rows of k and v
may be those of quantized caches: bytes, whose strides count bytes, from multiples of 4 bytes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MaskKind
from abqc.dialects.cache_formats import CacheFormat

from ..builder import POINTER, GpuBuilder
from ..rows.chunks import load4
from .cache_rows import load4_decoded

Precision = Literal["f32", "bf16x3", "f16"]

MAX_HEAD = 256  # columns; fuse-attention leaves wider heads alone
LOG2_E = 1.4426950408889634
MINUS_INFINITY = float("-inf")


@dataclass(frozen=True)
class AttentionSpec:
    """One form of attention; numbers of rows, keys, heads and the scale are known at run time only.

    `mask`: `add` is added to the scaled scores; `replace` takes their place where it is not 0.
    `precision` of the products, whose sums are f32: `f32`; `bf16x3`, f32 in two bf16 of which the
    product of the low ones is dropped (relative error 2^-16 of the sum of |terms|, range of f32);
    `f16`, operands rounded to f16 (2^-11 of each; beyond 65504 they are infinite).
    `guarded`: rows that would be NaN (all scores minus infinity, or one NaN) are 0.
    """

    head: int  # D
    value_head: int  # E
    mask: MaskKind = "none"
    precision: Precision = "f32"
    guarded: bool = False
    keys: CacheFormat | None = None
    values: CacheFormat | None = None

    @property
    def name(self) -> str:
        """Part of the names of its kernels."""
        mask = "" if self.mask == "none" else f"_{self.mask}"
        formats = [("k", self.keys, self.head), ("v", self.values, self.value_head)]
        rows = "".join(f"_{of}_{f.label(columns)}" for of, f, columns in formats if f is not None)
        return f"d{self.head}_{self.output_name}{mask}{rows}"

    @property
    def output_name(self) -> str:
        """The part that says what becomes of the sums."""
        return f"e{self.value_head}" + ("_guarded" if self.guarded else "")


def argument_types(spec: AttentionSpec) -> list[str]:
    """The types of the arguments that `Problem` takes."""
    masked = spec.mask != "none"
    pointers = [POINTER] * (5 if masked else 4)
    return [*pointers, *["i32"] * 4, "f32", *["i64"] * (16 if masked else 12)]


@dataclass(frozen=True)
class Matrix:
    """A matrix of f32, or of rows of a quantized cache, that are `pitch` bytes (i64) apart."""

    pointer: Value
    pitch: Value
    columns: int
    format: CacheFormat | None = None

    def load4(self, b: GpuBuilder, row: Value, column: Value) -> list[Value]:
        """Elements column .. column + 4 of the row at pointer `row`, as f32; 0 past its end."""
        if self.format is not None:
            return load4_decoded(b, self.format, row, column, self.columns)
        return load4(b, row, column, self.columns)

    def row(self, b: GpuBuilder, row: Value) -> Value:
        """The pointer to a row (i32)."""
        return b.at(self.pointer, b.wide(row) * self.pitch)


@dataclass(frozen=True)
class Mask:
    """A mask of f32, broadcast along axes of stride 0; strides in bytes (i64)."""

    pointer: Value
    row_stride: Value
    column_stride: Value

    def load(self, b: GpuBuilder, row: Value, column: Value) -> Value:
        at = b.wide(row) * self.row_stride + b.wide(column) * self.column_stride
        return b.load(self.pointer, "f32", at)


@dataclass(frozen=True)
class Head:
    """The matrices of one query head."""

    q: Matrix
    k: Matrix
    v: Matrix
    y: Matrix
    mask: Mask | None


class Problem:
    """The arguments of a kernel, `argument_types` in order."""

    def __init__(self, b: GpuBuilder, spec: AttentionSpec, arguments: Sequence[Value]) -> None:
        values = iter(arguments)
        self._b, self._spec = b, spec
        self.q, self.k, self.v = next(values), next(values), next(values)
        self.mask = next(values) if spec.mask != "none" else None
        self.y = next(values)
        self.rows, self.keys, self.heads, self.group = (next(values) for _ in range(4))
        self.scale = next(values)
        stored = [None, spec.keys, spec.values, None]  # q, k, v, y: three strides each
        sizes = [4 if format is None else 1 for format in stored for _ in range(3)] + [4] * 4
        self._strides = [
            v * size if size > 1 else v for v, size in zip(values, sizes, strict=False)
        ]

    def head(self, number: Value) -> Head:
        """The matrices of query head `number` (i32) of all `batch * heads`."""
        b, spec = self._b, self._spec
        batch, head = b.wide(number // self.heads), b.wide(number % self.heads)
        shared = b.wide(number % self.heads // self.group)
        strides = iter(self._strides)

        def matrix(
            pointer: Value, head: Value, columns: int, format: CacheFormat | None = None
        ) -> Matrix:
            start = batch * next(strides) + head * next(strides)
            return Matrix(b.at(pointer, start), next(strides), columns, format)

        q = matrix(self.q, head, spec.head)
        k = matrix(self.k, shared, spec.head, spec.keys)
        v = matrix(self.v, shared, spec.value_head, spec.values)
        y = matrix(self.y, head, spec.value_head)
        mask = None
        if self.mask is not None:
            start = batch * next(strides) + head * next(strides)
            mask = Mask(b.at(self.mask, start), next(strides), next(strides))
        return Head(q, k, v, y, mask)

    def masked(self, head: Head, score: Value, row: Value, key: Value) -> Value:
        """The scaled `score` of `row` and `key` with the mask on it; minus infinity past the last
        key, where the mask is not read."""
        b = self._b
        minus = b.const(MINUS_INFINITY, "f32")
        inside = key < self.keys
        mask = head.mask
        if mask is None:
            return b.select(inside, score, minus)
        (value,) = b.either(inside, ["f32"], lambda: [mask.load(b, row, key)], lambda: [minus])
        return self._with(value, score)

    def masked_inside(self, head: Head, score: Value, row: Value, key: Value) -> Value:
        """The same without a branch, where there is a key; rows past the last repeat it."""
        b = self._b
        value = score
        if head.mask is not None:
            row, at = b.min(row, self.rows - 1), b.min(key, self.keys - 1)
            value = self._with(head.mask.load(b, row, at), score)
        return b.select(key < self.keys, value, MINUS_INFINITY)

    def _with(self, mask: Value, score: Value) -> Value:
        if self._spec.mask == "add":
            return mask + score
        return self._b.select(mask == 0.0, score, mask)


def weight(b: GpuBuilder, score: Value, largest: Value) -> Value:
    """e^(score - largest); `largest` comes from `finite`."""
    return b.exp2((score - largest) * LOG2_E)


def finite(b: GpuBuilder, largest: Value) -> Value:
    """What to subtract from scores: 0 where all were minus infinity, so that weights become 0.

    Their sum then is 0 as well, and the row 0 / 0 = NaN, as a softmax of such a row is.
    """
    return b.select(largest == MINUS_INFINITY, b.const(0.0, "f32"), largest)


def quotients(
    b: GpuBuilder, spec: AttentionSpec, sums: Sequence[Value], total: Value, keys: Value
) -> list[Value]:
    """Sums over the sum of weights; 0 where there are no keys at all: the sum over nothing."""
    zero = b.const(0.0, "f32")
    factor = b.select(keys > 0, 1.0 / total, zero)
    values = [value * factor for value in sums]
    if spec.guarded:
        values = [b.select(total > 0.0, value, zero) for value in values]
    return values
