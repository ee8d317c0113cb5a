"""What an attention kernel computes, and where its operands lie.

    y[b, h] = softmax(scale * q[b, h] k[b, h / group]^T + mask[b, h]) v[b, h / group]

    kernel (i, q: memref<?xf32>, k: memref<?xKEYS>, v: memref<?xVALUES>, [mask: memref<?xf32>],
            y: memref<?xf32>, m, t, heads, group: index, scale: f32, strides: index ...
            [, workspace: memref<?xf32>, splits: index])

q is M x D, k is T x D, v is T x E and y M x E, with D and E innermost. All else has strides, in
elements: of batch, head and row of q, k, v and y, then of batch, head, row and column of the mask
(0: one for all). KEYS and VALUES are f32, f16 or bf16, or i8: rows of a quantized cache, whose
strides are in bytes. `heads` are those of queries, `group` consecutive ones share keys and values.

What shares keys is one *unit*: the M rows of each head of a group, `group * M` rows. A grid index
does a block of these, so that keys and values are read once for a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer
from abqc.codegen.strategy import MaskKind
from abqc.dialects.formats import Float

from ..float_products.cache_rows import CacheRows
from ..float_products.matrix import Matrix, Stored, element_of


@dataclass(frozen=True)
class AttentionSpec:
    """One form of attention. `mask`: `add` is added to the scaled scores, `replace` takes their
    place where it is not 0. `guarded`: rows that would be NaN are 0. `bf16`: products of many rows
    round their operands."""

    head: int  # D
    value_head: int  # E
    mask: MaskKind = "none"
    guarded: bool = False
    keys: Stored = "f32"
    values: Stored = "f32"
    bf16: bool = False

    @property
    def name(self) -> str:
        """Part of the names of its kernels."""
        mask = "" if self.mask == "none" else f"_{self.mask}"
        rows = "".join(
            f"_{of}_{_stored_name(stored)}"
            for of, stored in (("k", self.keys), ("v", self.values))
            if stored != "f32"
        )
        return f"d{self.head}_{self.output_name}{mask}{rows}" + ("_bf16" if self.bf16 else "")

    @property
    def output_name(self) -> str:
        """The part that says what becomes of the sums."""
        return f"e{self.value_head}" + ("_guarded" if self.guarded else "")

    @property
    def arguments(self) -> list[Any]:
        """Their types."""
        floats, masked = buffer("f32"), self.mask != "none"
        operands = [floats, buffer(element_of(self.keys)), buffer(element_of(self.values))]
        strides = [INDEX] * (16 if masked else 12)
        return [*operands, *[floats] * masked, floats, *[INDEX] * 4, "f32", *strides]


def _stored_name(stored: CacheRows | Float) -> str:
    return stored.name if isinstance(stored, CacheRows) else stored


@dataclass(frozen=True)
class Rows:
    """A block of rows of a unit; `count` of them, the tables have where each lies."""

    count: Value
    queries: Value  # i64 tables, on the stack
    results: Value
    masks: Value


class Problem:
    """The arguments of a kernel, and what they say of a grid index."""

    def __init__(self, b: Builder, spec: AttentionSpec, arguments: list[Value]) -> None:
        self.b, self.spec = b, spec
        self.q, self.k, self.v, *rest = arguments
        self.mask = rest.pop(0) if spec.mask != "none" else None
        self.y, self.m, self.t, self.heads, self.group, self.scale, *strides = rest
        parts = (strides[i : i + 3] for i in range(0, 12, 3))
        self.of_q, self.of_k, self.of_v, self.of_y = parts
        self.of_mask = strides[12:16]

    def operands(self, unit: Value) -> tuple[Matrix, Matrix]:
        """Keys and values of a unit: [T, D] and [T, E]."""
        shared = self.heads // self.group
        batch, head = unit // shared, unit % shared
        found = []
        for data, strides, columns, stored in (
            (self.k, self.of_k, self.spec.head, self.spec.keys),
            (self.v, self.of_v, self.spec.value_head, self.spec.values),
        ):
            base = batch * strides[0] + head * strides[1]
            found.append(Matrix(data, base, self.b.index(columns), strides[2], stored))
        return found[0], found[1]

    def rows(self, unit: Value, first: Value, most: int) -> Rows:
        """The rows from `first` of a unit on, at most `most`."""
        b = self.b
        count = b.min(self.group * self.m - first, most)
        tables = [b.alloca(most, "i64") for _ in range(3)]
        shared = self.heads // self.group
        strides = [self.of_q, self.of_y, self.of_mask[:3] or self.of_y]
        with b.loop(0, count) as loop:
            row = first + loop.i
            at = row % self.m
            head = unit % shared * self.group + row // self.m
            place = (unit // shared, head, at)
            for table, of in zip(tables, strides, strict=True):
                offset = b.index(0)
                for number, stride in zip(place, of, strict=True):
                    offset = offset + number * stride
                b.store(b.from_index(offset, "i64"), table, loop.i)
        return Rows(count, *tables)

    def entry(self, table: Value, row: Value | int) -> Value:
        """Where a row of a table lies."""
        return self.b.to_index(self.b.load(table, row))
