"""Keys and values as halves, in tiles as they lie in shared memory, made once for all rows.

Many rows read every key often: a tile of 64 rows each time. So a kernel first rounds (or decodes)
keys and values, and tiles are then copied as they are, asynchronously.

    attention_halves (arguments of attention, workspace)     grid units * tiles

A unit's tiles follow each other. A tile has `keys` keys: the parts of K, then those of V
(`_Shape`), rows `pitch` bytes apart; zeros past the last key and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value
from abqc.codegen.strategy import Kernel

from ..arch import GpuArch
from ..atoms import ATOMS
from ..builder import POINTER, GpuBuilder, kernel
from .spec import AttentionSpec, Matrix, Problem, argument_types

THREADS = 128
LOADS = 4  # chunks of a thread under way
PAD = 16  # bytes between rows: ldmatrix meets all banks
TILE_LIMIT = 40 * 1024  # two tiles, and two blocks on a multiprocessor; wider heads: fewer keys

HALF = {"bf16x3": "bf16", "f16": "f16"}


@dataclass(frozen=True)
class TileShape:
    """Sizes of a tile; columns padded to the K of an MMA. Offsets in bytes."""

    spec: AttentionSpec

    @property
    def name(self) -> str:
        return "halves"

    @property
    def parts(self) -> int:
        return 2 if self.spec.precision == "bf16x3" else 1

    @property
    def head(self) -> int:
        return -(-self.spec.head // 16) * 16

    @property
    def value_head(self) -> int:
        return -(-self.spec.value_head // 16) * 16

    @property
    def k_pitch(self) -> int:
        return self.head * 2 + PAD

    @property
    def v_pitch(self) -> int:
        return self.value_head * 2 + PAD

    @property
    def resident(self) -> int:
        """Registers of a thread for queries and sums."""
        return self.head // 4 * self.parts + self.value_head // 2

    @property
    def sum_columns(self) -> int:
        """Of ones, that products have beside values: they are sums of weights. 0: none."""
        return 0

    @property
    def sums(self) -> int:
        """Accumulators of a thread for values and those."""
        return (self.value_head + self.sum_columns) // 2

    @property
    def key_bytes(self) -> int:
        return self.parts * (self.k_pitch + self.v_pitch)

    @property
    def keys(self) -> int:
        return 64 if 64 * self.key_bytes <= TILE_LIMIT else 32

    @property
    def k_part(self) -> int:
        return self.keys * self.k_pitch

    @property
    def v_part(self) -> int:
        return self.keys * self.v_pitch

    @property
    def values(self) -> int:
        """Where V begins."""
        return self.parts * self.k_part

    @property
    def bytes(self) -> int:
        return self.keys * self.key_bytes

    def place(self, row: Value, column: Value, pitch: int) -> Value:
        """The byte of a part where four columns from `column` on of a row are."""
        return row * pitch + column * 2


def halves_kernel(spec: AttentionSpec, shape: TileShape) -> Kernel:
    """See the file's head; `block[0]` keys a tile."""
    name = f"attention_{shape.name}_{spec.precision}_{spec.name}"
    return Kernel(name, (shape.keys,), partial(_emit, name, spec, shape))


def _emit(name: str, spec: AttentionSpec, shape: TileShape, module: Any, arch: GpuArch) -> None:
    types = [*argument_types(spec), POINTER]
    with kernel(module, arch, name, types, threads=THREADS) as (b, block, *arguments, workspace):
        problem = Problem(b, spec, arguments)
        tiles = b.ceil_div(problem.keys, shape.keys)
        first = block % tiles * shape.keys
        to = b.at(workspace, b.wide(block) * shape.bytes)
        work = _Halved(b, spec, shape, first, problem.keys - 1)
        k, v = problem.shared(block // tiles)
        work.fill(k, to, shape.k_pitch, shape.k_part)
        work.fill(v, b.at(to, shape.values), shape.v_pitch, shape.v_part)


class _Halved:
    """A tile's keys from `first` (i32) on."""

    def __init__(
        self, b: GpuBuilder, spec: AttentionSpec, shape: TileShape, first: Value, last: Value
    ) -> None:
        self.b, self.shape, self.first, self.last = b, shape, first, last
        self.half = Halves(b, HALF[spec.precision], shape.parts)

    def fill(self, matrix: Matrix, to: Value, pitch: int, part: int) -> None:
        """The tile's rows by chunks of 4 columns, what is between them too: all of it is copied."""
        b = self.b
        chunks = pitch // 8
        total = self.shape.keys * chunks
        for begin in range(0, total, THREADS * LOADS):
            loaded = []
            for item in range(begin, min(begin + THREADS * LOADS, total), THREADS):
                at = b.thread + item
                row, column = at // chunks, at % chunks * 4
                pointer = matrix.row(b, b.min(row + self.first, self.last))
                values = matrix.load4(b, pointer, column)
                inside = row + self.first <= self.last
                loaded.append((at, row, column, [b.select(inside, v, 0.0) for v in values]))
            for item, (at, row, column, values) in enumerate(loaded):
                words = self.half.fragments([values[:2], values[2:]])
                # Behind the last chunk is what other threads write.
                whole = begin + (item + 1) * THREADS <= total
                with nullcontext() if whole else b.when(at < total):
                    place = self.shape.place(row, column, pitch)
                    for i, pair in enumerate(words):
                        b.store(b.vector(pair), to, place + i * part)


class Halves:
    """Fragments of f32 values in one or two parts, and their products."""

    def __init__(self, b: GpuBuilder, element: str, parts: int) -> None:
        self.b, self.element, self.parts = b, element, parts
        self.atom = ATOMS[f"{element}.m16n8k16"]

    def fragments(self, pairs: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Registers (i32) of two values each, by part: hi, lo."""
        packed = [self._pack(pair) for pair in pairs]
        if self.parts == 1:
            return [packed]
        rest = []
        for word, (low, high) in zip(packed, pairs, strict=True):
            hi_low = self.b.bitcast(word << 16, "f32")
            hi_high = self.b.bitcast(word & 0xFFFF0000, "f32")
            rest.append(self._pack([low - hi_low, high - hi_high]))
        return [packed, rest]

    def _pack(self, pair: Sequence[Value]) -> Value:
        low, high = pair
        text = f"cvt.rn.{self.element}x2.f32 $0, $1, $2;"
        return self.b.asm(text, "=r,f,f", ["i32"], high, low)[0]

    def product(
        self, a: list[list[Value]], c: list[list[Value]], sums: Sequence[Value]
    ) -> list[Value]:
        """`sums` + a c, the small products first."""
        if self.parts == 2:
            sums = self.atom.emit(self.b, a[1], c[0], sums)
            sums = self.atom.emit(self.b, a[0], c[1], sums)
        return self.atom.emit(self.b, a[0], c[0], sums)
