"""Products of two activations in f32: `y[b] = a[b] * B[b / group]`, as attention needs them.

    kernel (a f32, b f32, f16 or bf16, y f32, m, n, k, group i32, pitch i64)

The contract is that of codegen/cpu/float_products/batch_matmul.py: `a` is batch x m x k, `y` batch
x m x n, both contiguous; `b` is `ceil(batch / group)` matrices, k x n or (`transposed`) n x k, that
begin `pitch` elements apart. The grid is `kernel.grid(batch, m, n)`, its index running over columns
first, then rows, then batches. k = 0 gives zeros.

With one row, `b` is read once: eight lanes to a row where it is n x k (`dot_rows`), a warp to 32
columns where it is k x n. With more rows a block makes a tile of 64 x 64 (`simt_tile`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from abqc.codegen.builder import Value, type_of, vec
from abqc.codegen.strategy import Kernel, Variant
from abqc.dialects.formats import FLOAT_BYTES, Float
from abqc.dialects.mlir import llvm

from ..arch import WARP, GpuArch
from ..builder import POINTER, GpuBuilder, kernel
from . import dot_rows, simt_tile

ARGUMENTS = [POINTER] * 3 + ["i32"] * 4 + ["i64"]

ROW_WARPS = 8  # that share K where b is k x n
ROW_UNROLL = 4


def batch_matmul_kernels(transposed: bool, element: Float = "f32") -> tuple[Variant, ...]:
    """Kernels by ranges of m; `transposed` says that `b` is n x k, `element` what it is made of."""
    name = "batch_matmul_transposed" if transposed else "batch_matmul"
    if element != "f32":
        name = f"{name}_{element}"
    one_name = f"{name}_one_row"
    emit_one, columns = (
        (_emit_dot_products, dot_rows.COLUMNS) if transposed else (_emit_sum_of_rows, WARP)
    )
    one = Kernel(one_name, (1, 1, columns), partial(emit_one, one_name, element))
    tile = (1, simt_tile.TILE, simt_tile.TILE)
    many = Kernel(name, tile, partial(_emit_tiles, name, transposed, element))
    return (Variant(one, 1, 1), Variant(many, 2, None))


@dataclass(frozen=True)
class _Problem:
    """A block's matrices: pointers to the batch's a, B and y; its first row and column."""

    a: Value
    matrix: Value
    y: Value
    row: Value
    column: Value

    @staticmethod
    def of(
        b: GpuBuilder, block: Value, tile: tuple[int, int], element: Float, *arguments: Value
    ) -> _Problem:
        a, matrix, y, m, n, k, group, pitch = arguments
        across, down = b.ceil_div(n, tile[1]), b.ceil_div(m, tile[0])
        batch = block // across // down
        rows = b.wide(batch) * b.wide(m)
        return _Problem(
            b.at(a, rows * b.wide(k) * 4),
            b.at(matrix, b.wide(batch // group) * pitch * FLOAT_BYTES[element]),
            b.at(y, rows * b.wide(n) * 4),
            block // across % down * tile[0],
            block % across * tile[1],
        )


def _emit_tiles(name: str, transposed: bool, element: Float, module: Any, arch: GpuArch) -> None:
    shape = {"threads": simt_tile.THREADS, "shared": simt_tile.SHARED_BYTES}
    with kernel(module, arch, name, ARGUMENTS, **shape) as (b, block, *arguments):
        m, n, k = arguments[3:6]
        p = _Problem.of(b, block, (simt_tile.TILE, simt_tile.TILE), element, *arguments)
        extents = simt_tile.extent(b, m, p.row), simt_tile.extent(b, n, p.column)
        first_row, first_column = b.wide(p.row), b.wide(p.column)
        left = simt_tile.Operand(b.at(p.a, first_row * b.wide(k) * 4), b.wide(k), extents[0])
        stride = b.wide(k if transposed else n)
        offset = first_column * stride if transposed else first_column
        matrix = b.at(p.matrix, offset * FLOAT_BYTES[element])
        right = simt_tile.Operand(matrix, stride, extents[1], not transposed, element)
        sums = simt_tile.multiply(b, left, right, k)
        y = b.at(p.y, (first_row * b.wide(n) + first_column) * 4)
        simt_tile.store_sums(b, y, n, extents, sums)


def _emit_dot_products(name: str, element: Float, module: Any, arch: GpuArch) -> None:
    """`y[j] = a . b[j, :]`: 4 elements a load where rows are aligned, else one."""
    with kernel(module, arch, name, ARGUMENTS, threads=dot_rows.THREADS) as (b, block, *arguments):
        _m, n, k, _group, pitch = arguments[3:]
        p = _Problem.of(b, block, (1, dot_rows.COLUMNS), element, *arguments)
        place, lane = dot_rows.lane_place(b)
        bytes_ = FLOAT_BYTES[element]
        column = p.column + place
        a = b.at(p.a, b.wide(p.row) * b.wide(k) * 4)
        # Lanes behind the last column take part in its sum: shuffles need the whole warp.
        matrix = b.at(p.matrix, b.wide(b.min(column, n - 1)) * b.wide(k) * bytes_)

        def sums(width: int) -> list[Value]:
            def load(at: Value) -> tuple[list[Value], list[list[Value]]]:
                row = b.load(matrix, vec(width, f"i{8 * bytes_}"), at * bytes_, cache="nc")
                factors = b.load(a, vec(width, "f32"), at * 4, cache="nc")
                return _widened(b, row, element), [b.lanes_of(factors)]

            return dot_rows.dot_products(b, k, 1, width, load)

        aligned = (k % 4 == 0) & (pitch % 4 == 0) & _aligned(b, p.matrix) & _aligned(b, p.a)
        (total,) = b.either(aligned, ["f32"], lambda: sums(4), lambda: sums(1))
        with b.when((lane == 0) & (column < n)):
            b.store(total, p.y, (b.wide(p.row) * b.wide(n) + b.wide(column)) * 4)


def _widened(b: GpuBuilder, stored: Value, element: Float) -> list[Value]:
    """The elements of a vector of integers, as f32."""
    if element == "bf16":
        return [b.bitcast(b.zext(bits, "i32") << 16, "f32") for bits in b.lanes_of(stored)]
    values = b.bitcast(stored, vec(stored.lanes, element))
    return b.lanes_of(values if element == "f32" else b.extend(values))


def _aligned(b: GpuBuilder, pointer: Value) -> Value:
    """Whether a pointer is one of 16 bytes; the same for all threads."""
    address = Value(llvm.PtrToIntOp(type_of("i64"), pointer.ir).result)
    return address % 16 == 0


def _emit_sum_of_rows(name: str, element: Float, module: Any, arch: GpuArch) -> None:
    """`y = sum over k of a[k] * b[k, :]`: warps share K, their sums are added in order."""
    threads = WARP * ROW_WARPS
    with kernel(module, arch, name, ARGUMENTS, threads=threads, shared=4 * threads) as (
        b,
        block,
        *arguments,
    ):
        n, k = arguments[4:6]
        p = _Problem.of(b, block, (1, WARP), element, *arguments)
        column = p.column + b.lane
        a = b.at(p.a, b.wide(p.row) * b.wide(k) * 4)
        matrix = b.at(p.matrix, b.wide(b.min(column, n - 1)) * FLOAT_BYTES[element])
        total = _sum_terms(b, a, matrix, n, k, element)
        b.store(total, b.shared, b.thread * 4)
        b.barrier()
        with b.when((b.warp == 0) & (column < n)):
            parts = [b.load(b.shared, "f32", b.lane * 4 + 4 * WARP * w) for w in range(ROW_WARPS)]
            y = parts[0]
            for part in parts[1:]:
                y = y + part
            b.store(y, p.y, (b.wide(p.row) * b.wide(n) + b.wide(column)) * 4)


def _sum_terms(b: GpuBuilder, a: Value, matrix: Value, n: Value, k: Value, element: Float) -> Value:
    """The sum of this warp's terms, every `ROW_WARPS`-th, of the lane's column."""

    def add(total: Value, terms: list[Value]) -> Value:
        loaded = [
            (
                b.load(a, "f32", b.wide(at) * 4, cache="nc"),
                b.load(matrix, stored, b.wide(at) * b.wide(n) * bytes_, cache="nc"),
            )
            for at in terms
        ]
        for factor, row in loaded:
            (value,) = _widened(b, row, element)
            total = b.fma(factor, value, total)
        return total

    bytes_ = FLOAT_BYTES[element]
    stored = vec(1, f"i{8 * bytes_}")
    step = ROW_WARPS * ROW_UNROLL
    whole = k - k % step
    with b.loop(0, whole, step, [b.const(0.0, "f32")]) as loop:
        terms = [loop.i + b.warp + ROW_WARPS * j for j in range(ROW_UNROLL)]
        loop.carry(add(loop.args[0], terms))
    with b.loop(whole + b.warp, k, ROW_WARPS, loop.results) as rest:
        rest.carry(add(rest.args[0], [rest.i]))
    return rest.results[0]
