"""What an attention kernel computes, and how it reads its arguments.

    y[b, h] = softmax(scale * q[b, h] k[b, h / group]^T + mask[b, h]) v[b, h / group]

q is M x D, k is T x D, v is T x E, y is M x E, with D and E innermost; everything else has strides
(in elements), so that [B, H, M, D], [B, M, H, D] and caches with room to grow are read where they
are. q and y are f32, k and v f32, f16 or bf16, or rows of quantized caches: bytes, whose strides
count bytes. Where rows start: stored_rows.py.

Query heads that share k and v are one *unit*: the M rows of each of them, `group * M` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abqc.codegen.builder import Value
from abqc.codegen.strategy import MaskKind

from ..builder import POINTER, GpuBuilder
from .stored_rows import Stored, StoredRows, label, unit_bytes

Precision = Literal["f32", "bf16x3", "f16"]

MAX_HEAD = 256  # columns; fuse-attention leaves wider heads alone
LOG2_E = 1.4426950408889634
LARGEST_EXPONENT = 2.0**127  # times LOG2_E is finite
MINUS_INFINITY = float("-inf")
SMALLEST_NORMAL = 2.0**-126
# Times queries in f16: those above 2^-10 stay normal, all that are finite stay so.
LEAST_OF_QUERIES, MOST_OF_QUERIES = 2.0**-4, 1.0


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
    keys: Stored = "f32"
    values: Stored = "f32"

    @property
    def name(self) -> str:
        """Part of the names of its kernels."""
        mask = "" if self.mask == "none" else f"_{self.mask}"
        formats = [("k", self.keys, self.head), ("v", self.values, self.value_head)]
        rows = "".join(f"_{of}_{label(f, columns)}" for of, f, columns in formats if f != "f32")
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
    """Rows that are `pitch` bytes (i64) apart."""

    pointer: Value
    pitch: Value
    rows: StoredRows

    @property
    def columns(self) -> int:
        return self.rows.columns

    def load4(self, b: GpuBuilder, row: Value, column: Value) -> list[Value]:
        """Elements column .. column + 4 of the row at pointer `row`, as f32; 0 past its end."""
        return self.rows.load4(b, row, column)

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


@dataclass(frozen=True)
class QueryRow:
    """A row of a query head: where q, y and the mask have it."""

    q: Value
    y: Value
    mask: Mask | None
    row: Value  # of the head, i32


class Problem:
    """The arguments of a kernel, `argument_types` in order."""

    def __init__(self, b: GpuBuilder, spec: AttentionSpec, arguments: Sequence[Value]) -> None:
        values = iter(arguments)
        self._b, self._spec = b, spec
        self._q, self._k, self._v = next(values), next(values), next(values)
        self._mask = next(values) if spec.mask != "none" else None
        self._y = next(values)
        self.rows, self.keys, self.heads, self.group = (next(values) for _ in range(4))
        self.scale = next(values)

        def strides(count: int, bytes_: int) -> list[Value]:
            taken = [next(values) for _ in range(count)]
            return [v * bytes_ if bytes_ > 1 else v for v in taken]

        self._q_strides = strides(3, 4)
        self._k_strides = strides(3, unit_bytes(spec.keys))
        self._v_strides = strides(3, unit_bytes(spec.values))
        self._y_strides = strides(3, 4)
        self._mask_strides = strides(4, 4) if self._mask is not None else []

    def head(self, number: Value) -> Head:
        """The matrices of query head `number` (i32) of all `batch * heads`."""
        batch, head = number // self.heads, number % self.heads
        k, v = self._shared(batch, head // self.group)
        q = self._matrix(self._q, self._q_strides, batch, head, StoredRows("f32", self._spec.head))
        rows = StoredRows("f32", self._spec.value_head)
        y = self._matrix(self._y, self._y_strides, batch, head, rows)
        return Head(q, k, v, y, self._mask_of(batch, head))

    @property
    def unit_rows(self) -> Value:
        """Rows of queries that share keys and values (i32)."""
        return self.group * self.rows

    def shared(self, unit: Value) -> tuple[Matrix, Matrix]:
        """The keys and values of a unit (i32)."""
        heads = self.heads // self.group
        return self._shared(unit // heads, unit % heads)

    def query_row(self, unit: Value, number: Value) -> QueryRow:
        """Row `number` (i32) of all that share the keys of a unit."""
        b, heads = self._b, self.heads // self.group
        batch = unit // heads
        head, row = unit % heads * self.group + number // self.rows, number % self.rows

        def at(pointer: Value, strides: Sequence[Value]) -> Value:
            places = zip((batch, head, row), strides, strict=True)
            offset = None
            for place, stride in places:
                step = b.wide(place) * stride
                offset = step if offset is None else offset + step
            assert offset is not None
            return b.at(pointer, offset)

        q, y = at(self._q, self._q_strides), at(self._y, self._y_strides)
        return QueryRow(q, y, self._mask_of(batch, head), row)

    def _shared(self, batch: Value, head: Value) -> tuple[Matrix, Matrix]:
        spec = self._spec
        keys, values = StoredRows(spec.keys, spec.head), StoredRows(spec.values, spec.value_head)
        return (
            self._matrix(self._k, self._k_strides, batch, head, keys),
            self._matrix(self._v, self._v_strides, batch, head, values),
        )

    def _matrix(
        self, pointer: Value, strides: Sequence[Value], batch: Value, head: Value, rows: StoredRows
    ) -> Matrix:
        b = self._b
        start = b.wide(batch) * strides[0] + b.wide(head) * strides[1]
        return Matrix(b.at(pointer, start), strides[2], rows)

    def _mask_of(self, batch: Value, head: Value) -> Mask | None:
        if self._mask is None:
            return None
        b = self._b
        of_batch, of_head, of_row, of_column = self._mask_strides
        start = b.wide(batch) * of_batch + b.wide(head) * of_head
        return Mask(b.at(self._mask, start), of_row, of_column)

    def with_mask(self, mask: Mask | None, score: Value, row: Value, key: Value) -> Value:
        """The scaled `score` of `row` and `key`, both of which there are, with the mask on it."""
        return score if mask is None else self._with(mask.load(self._b, row, key), score)

    def masked_inside(
        self,
        head: Head,
        score: Value,
        row: Value,
        key: Value,
        end: Value | None = None,
        *,
        of_two: Value | None = None,
    ) -> Value:
        """The scaled `score` of `row` and `key` with the mask on it; minus infinity from key `end`
        on, by default past the last one. Rows past the last repeat it. `of_two`: scores are not
        scaled; times this they are exponents of 2, as what is returned."""
        b = self._b
        value = score if of_two is None else score * of_two
        if head.mask is not None:
            row, at = b.min(row, self.rows - 1), b.min(key, self.keys - 1)
            mask = head.mask.load(b, row, at)
            if of_two is None:
                value = self._with(mask, score)
            elif self._spec.mask == "add":
                value = b.fma(score, of_two, exponent_of_two(b, mask))
            else:
                value = self._with(exponent_of_two(b, mask), value)
        return b.select(key < (self.keys if end is None else end), value, MINUS_INFINITY)

    def _with(self, mask: Value, score: Value) -> Value:
        if self._spec.mask == "add":
            return mask + score
        return self._b.select(mask == 0.0, score, mask)


@dataclass(frozen=True)
class Scale:
    """The scale times log2(e), so that scores are exponents of 2, in two factors: queries take all
    of it with the sign, as far as they stay in the range of f16; the rest is for scores in f32: a
    power of two, whose products are exact, and 1 where nothing is left."""

    queries: Value
    scores: Value

    @staticmethod
    def of(b: GpuBuilder, scale: Value) -> Scale:
        factor = b.abs(scale) * LOG2_E
        bits = b.bitcast(factor, "i32")
        power, mantissa = bits & 0x7F80_0000, bits & 0x007F_FFFF | 0x3F80_0000
        large = factor > MOST_OF_QUERIES
        beyond = large | (factor < LEAST_OF_QUERIES)
        # The mantissa is 1 to 2.
        part = b.select(large, b.const(MOST_OF_QUERIES / 2, "f32"), LEAST_OF_QUERIES)
        rest = b.select(large, b.const(2 / MOST_OF_QUERIES, "f32"), 1 / LEAST_OF_QUERIES)
        rest = b.bitcast(power, "f32") * rest
        # Of a scale of 0, too, scores of minus infinity stay such.
        rest = b.select(rest < SMALLEST_NORMAL, b.const(SMALLEST_NORMAL, "f32"), rest)
        part = b.select(beyond, b.bitcast(mantissa, "f32") * part, factor)
        rest = b.select(beyond, rest, b.const(1.0, "f32"))
        return Scale(b.select(scale < 0.0, -part, part), rest)


def exponent_of_two(b: GpuBuilder, mask: Value) -> Value:
    """What gives as a power of 2 what `mask` gives as one of e. Numbers whose product would not be
    finite stay as they are: of scores they leave nothing, and they are alike."""
    return b.select(b.abs(mask) > LARGEST_EXPONENT, mask, mask * LOG2_E)


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
