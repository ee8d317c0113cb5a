"""Kernels that quantize activations, shared by the integer strategies.

    PackKernel        (i, x: memref<?xf32>, q: memref<?xi8>, m: index)
        Rows from i * ROWS on of the m x k matrix x, each with a scale and zero point of its own,
        rotated before if asked.
    MeasureKernel     (i, x: memref<?xf32>, scale: memref<?xf32>, zero: memref<?xi32>, count: index)
        The scale and zero point of the `count` values of sample i.
    ScaledPackKernel  (i, x: memref<?xf32>, scale: memref<?xf32>, zero: memref<?xi32>,
                       q: memref<?xi8>, m: index, rows_per_scale: index)
        Like PackKernel, with row r quantized by entry r / rows_per_scale of what was measured (of
        rotated rows, where it rotates). With `stored`, x is memref<?xi8> and holds the codes.

What a row looks like in q is the strategy's business: its `RowWriter` gets the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel
from abqc.dialects.formats import NumberFormat
from abqc.dialects.mlir import ir

from .hadamard import emit_transform, scratch_of
from .quantize_row import LANES, RowCodes, RowScale, StoredCodes, sweep

ROWS = 4  # of one grid index


class RowPacker(Protocol):
    """What packs rows that others make."""

    def writer_of(self, b: Builder, x: Value) -> Callable[[Value, Value, Value], None]:
        """Packs, of the element of x that a row begins with, this row as a row of q, given its
        number. To be asked for outside of loops: it may have memory on the stack."""
        ...


class RowWriter(Protocol):
    """A strategy's layout of packed rows."""

    @property
    def row_bytes(self) -> int: ...

    def write_row(self, b: Builder, codes: RowCodes, row: RowScale, q: Value, at: Value) -> None:
        """Write the row that begins at byte `at` of `q`."""
        ...


@dataclass(frozen=True)
class PackKernel:
    """Rows of `k` values, each with its own scale; see the module."""

    format: NumberFormat
    k: int
    hadamard_block: int
    writer: RowWriter

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        with function(module, isa, name, [buffer("f32"), buffer("i8"), INDEX]) as (b, i, x, q, m):
            first = i * ROWS
            write = self.writer_of(b, x)
            with b.loop(first, b.min(first + ROWS, m)) as rows:
                write(rows.i * self.k, q, rows.i)

    def writer_of(self, b: Builder, x: Value) -> Callable[[Value, Value, Value], None]:
        """As `RowPacker` has it."""
        floats = rotated_rows(b, x, self.k, self.hadamard_block)

        def write(begin: Value, q: Value, number: Value) -> None:
            source, at = floats(begin)
            codes = RowCodes(b, self.format, source, at, b.index(self.k))
            self.writer.write_row(b, codes, codes.measure(), q, number * self.writer.row_bytes)

        return write


@dataclass(frozen=True)
class RowsKernel(Kernel):
    """A kernel that packs rows one by one, which others can do with rows that they make."""

    body: RowPacker


def rows_kernel(body: PackKernel, name: str) -> RowsKernel:
    return RowsKernel(name, (ROWS,), partial(_emit, body, name), body)


@dataclass(frozen=True)
class ScaledPackKernel:
    """Rows of `k` values, quantized by scales measured before; see the module."""

    format: NumberFormat
    k: int
    hadamard_block: int
    writer: RowWriter
    stored: bool = False

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        values, codes_of = ("i8", StoredCodes) if self.stored else ("f32", RowCodes)
        arguments = [buffer(values), buffer("f32"), buffer("i32"), buffer("i8"), INDEX, INDEX]
        with function(module, isa, name, arguments) as (b, i, x, scale, zero, q, m, shared):
            first = i * ROWS
            floats = rotated_rows(b, x, self.k, self.hadamard_block)
            with b.loop(first, b.min(first + ROWS, m)) as rows:
                source, begin = floats(rows.i * self.k)
                codes = codes_of(b, self.format, source, begin, b.index(self.k))
                entry = rows.i // shared
                row = codes.given(b.load(scale, entry), b.load(zero, entry))
                self.writer.write_row(b, codes, row, q, rows.i * self.writer.row_bytes)


@dataclass(frozen=True)
class MeasureKernel:
    """Scale and zero point of every sample; see the module."""

    format: NumberFormat

    def emit(self, module: ir.Module, isa: Isa, name: str) -> None:
        arguments = [buffer("f32"), buffer("f32"), buffer("i32"), INDEX]
        with function(module, isa, name, arguments) as (b, i, x, scale, zero, count):
            codes = RowCodes(b, self.format, x, i * count, count)
            row = codes.measure()
            b.store(row.scale, scale, i)
            b.store(row.zero - codes.shift, zero, i)


def measure_kernel(format: NumberFormat) -> Kernel:
    """The MeasureKernel of a format; its grid is the number of samples."""
    name = f"measure_{format.name}"
    return Kernel(name, (1,), partial(_emit, MeasureKernel(format), name))


def _emit(kernel: MeasureKernel | PackKernel, name: str, module: Any, isa: Any) -> None:
    kernel.emit(module, isa, name)


def rotated_rows(
    b: Builder, x: Value, k: int, block: int
) -> Callable[[Value], tuple[Value, Value]]:
    """Gives, of the element of x that a row of `k` begins with, where the row's values are: a
    buffer and an element of it. They are rotated in blocks of `block` if that is not 0."""
    if not block:
        return lambda begin: (x, begin)
    scratch, spare = b.alloca(k, "f32"), scratch_of(b, block)

    def rotate(begin: Value) -> tuple[Value, Value]:
        _rotate(b, x, begin, scratch, k, block, spare)
        return scratch, b.index(0)

    return rotate


def _rotate(
    b: Builder, x: Value, begin: Value, row: Value, k: int, block: int, spare: Value | None
) -> None:
    """row = the k values of x from `begin` on, Hadamard-transformed in blocks."""

    def copy(i: Value, mask: Value | None) -> tuple[()]:
        b.store(b.load(x, begin + i, LANES, mask), row, i, mask)
        return ()

    sweep(b, b.index(k), k % LANES == 0, copy)
    emit_transform(b, b.isa, row, k, block, scratch=spare)
