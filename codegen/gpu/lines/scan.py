"""Running sums along an axis: `y[i] = x[0] + ... + x[i]` for every line.

    scan rows, scan columns   (x, y; n i32, inner i32)

x and y are outer x n x inner; a line has the stride `inner`. A block goes along its lines in steps
of many elements, and carries their totals from one step to the next:

    rows      the block has one line; warps scan 32 of its elements by shuffles
              grid = outer * inner
    columns   the block has 32 neighbouring lines, one for each lane of its warps
              grid = outer * ceil(inner / 32)

Both do any shape; `inner` says which is fast. The order of the additions depends on the place in
the line alone. Halves are added in f32 and rounded once for each result.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, bits_of, type_of
from abqc.codegen.strategy import Kernel, Variant
from abqc.dialects.mlir import ir

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from .block_scan import across_warps, warp_scan

ELEMENTS = ("f16", "bf16", "f32", "f64", "i32", "i64")
THREADS = 256
WARPS = THREADS // WARP
RESIDENT = 2  # blocks on a multiprocessor: registers without spills for 64-bit elements
PER_THREAD = 8  # elements in a step
STEP = PER_THREAD * THREADS  # of a line that has the block
COLUMN_STEP = PER_THREAD * WARPS  # of lines that share it
FEW_COLUMNS = 4  # up to so many neighbouring lines have a block each


def scan_kernels(element: str) -> tuple[Variant, ...]:
    """The kernels by `inner`."""
    rows, columns = scan_rows_kernel(element), scan_columns_kernel(element)
    return Variant(rows, 1, FEW_COLUMNS), Variant(columns, FEW_COLUMNS + 1, None)


def scan_rows_kernel(element: str) -> Kernel:
    """A block has one line. See the file's head."""
    return Kernel(f"scan_rows_{element}", (1,), partial(_emit_rows, element))


def scan_columns_kernel(element: str) -> Kernel:
    """A block has `block[0]` neighbouring lines. See the file's head."""
    return Kernel(f"scan_columns_{element}", (WARP,), partial(_emit_columns, element))


def accumulator(element: str) -> ir.Type:
    """The type in which elements are added."""
    return type_of("f32" if element in ("f16", "bf16") else element)


def _neutral(b: GpuBuilder, type_: ir.Type) -> Value:
    return b.const(-0.0 if isinstance(type_, ir.FloatType) else 0, type_)


def _open(
    module: Any, arch: GpuArch, name: str, element: str, totals: int
) -> AbstractContextManager[tuple[Any, ...]]:
    """A kernel with shared memory for `totals` sums."""
    shared = totals * bits_of(accumulator(element)) // 8
    arguments = [POINTER, POINTER, "i32", "i32"]
    return kernel(module, arch, name, arguments, threads=THREADS, shared=shared, blocks=RESIDENT)


def _line(
    b: GpuBuilder, element: str, x: Value, y: Value, n: Value, inner: Value, place: list[Value]
) -> tuple[Value, Value, Value]:
    """Where the line at `place` (outer, column) begins in x and y, and its stride in bytes."""
    outer, column = place
    item = bits_of(type_of(element)) // 8
    start = (b.wide(outer) * b.wide(n) * b.wide(inner) + b.wide(column)) * item
    return b.at(x, start), b.at(y, start), b.wide(inner) * item


def _emit_rows(element: str, module: Any, arch: GpuArch) -> None:
    type_ = accumulator(element)
    opened = _open(module, arch, f"scan_rows_{element}", element, WARPS)
    with opened as (b, block, x, y, n, inner):
        place = [block // inner, block % inner]
        x, y, stride = _line(b, element, x, y, n, inner, place)
        with b.loop(0, n, STEP, [_neutral(b, type_)]) as loop:
            first = loop.i + (b.warp * (PER_THREAD * WARP) + b.lane)
            places = [first + i * WARP for i in range(PER_THREAD)]
            terms = [_load(b, x, element, p < n, b.wide(p) * stride) for p in places]
            sums: list[Value] = []
            for term in terms:
                scanned = warp_scan(b, term)
                sums.append(b.exchange(sums[-1], "idx", WARP - 1) + scanned if sums else scanned)
            total = b.exchange(sums[-1], "idx", WARP - 1)
            before, carry = across_warps(b, b.shared, total, loop.args[0], WARPS)
            for place, value in zip(places, sums, strict=True):
                with b.when(place < n):
                    _store(b, before + value, y, element, b.wide(place) * stride)
            loop.carry(carry)


def _emit_columns(element: str, module: Any, arch: GpuArch) -> None:
    type_ = accumulator(element)
    opened = _open(module, arch, f"scan_columns_{element}", element, THREADS)
    with opened as (b, block, x, y, n, inner):
        blocks = b.ceil_div(inner, WARP)
        column = block % blocks * WARP + b.lane
        x, y, stride = _line(b, element, x, y, n, inner, [block // blocks, column])
        there = column < inner
        with b.loop(0, n, COLUMN_STEP, [_neutral(b, type_)]) as loop:
            first = loop.i + b.warp * PER_THREAD
            places = [first + i for i in range(PER_THREAD)]
            sums: list[Value] = []
            for place in places:
                term = _load(b, x, element, (place < n) & there, b.wide(place) * stride)
                sums.append(sums[-1] + term if sums else term)
            before, carry = across_warps(b, b.shared, sums[-1], loop.args[0], WARPS, by_lane=True)
            for place, value in zip(places, sums, strict=True):
                with b.when((place < n) & there):
                    _store(b, before + value, y, element, b.wide(place) * stride)
            loop.carry(carry)


def _load(b: GpuBuilder, x: Value, element: str, there: Value, offset: Value) -> Value:
    """An element, or what adds nothing."""
    type_ = accumulator(element)

    def load() -> list[Value]:
        value = b.load(x, element, offset, cache="nc")
        return [value if value.type == type_ else b.extend(value)]

    return b.either(there, [type_], load, lambda: [_neutral(b, type_)])[0]


def _store(b: GpuBuilder, value: Value, y: Value, element: str, offset: Value) -> None:
    if value.type != type_of(element):
        value = b.narrow(value, element)
    b.store(value, y, offset)
