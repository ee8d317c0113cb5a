"""Strategy `float`: f32 weights, f32 activations.

Weights lie in panels of 16 output channels, `[ceil(N / 16)][K][16]`, the last one filled up with
zeros; activations are read as they are, row-major. One vector of a panel times one activation,
broadcast, adds 16 products; a register tile of several rows and panels uses each loaded vector for
all of its rows (Goto, van de Geijn: "Anatomy of high-performance matrix multiplication", 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...dialects.formats import QuantizedTensor
from ..builder import INDEX, Builder, Value, buffer, function
from ..isa import Isa
from ..strategy import Kernel, MatmulSpec, Variant

PANEL = 16  # output channels side by side; one zmm, two ymm, four xmm
PANEL_BYTES = 4 * PANEL
TILE_PANELS = 3
ROW_BLOCK = 64
COLUMN_BLOCK = TILE_PANELS * PANEL
ONE_ROW_COLUMNS = 2 * PANEL
ONE_ROW_UNROLL = 8  # independent sums: FMA latency times FMAs a cycle
PREFETCH_BYTES = 4096

# The largest register tile of each form, as rows for three panels and for one. Accumulators, one
# vector of each panel and one broadcast fit the registers; smaller tiles do what rows are left.
TILE_ROWS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "avx512": ((8, 4, 2, 1), (8, 4, 2, 1)),
    "avx2": ((), (6, 4, 2, 1)),
    "plain": ((), (2, 1)),
}


def pack_panels(weight: np.ndarray) -> np.ndarray:
    """`[N, K]` to `[ceil(N / 16), K, 16]`, filled up with zeros."""
    n, k = weight.shape
    padded = np.zeros((-(-n // PANEL) * PANEL, k), weight.dtype)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, PANEL, k).transpose(0, 2, 1))


def multiply_add(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """`x * y + z`; in two roundings where the CPU has no fused instruction."""
    return b.fma(x, y, z) if b.isa.fma else x * y + z


def broadcast(b: Builder, source: Value, at: Value | int, lanes: int = PANEL) -> Value:
    """Element `at` of `source` in all lanes."""
    return b.splat(b.load(source, at), lanes)


def row_tiles(
    b: Builder, begin: Value, end: Value, sizes: Sequence[int], tile: Callable[[Value, int], None]
) -> None:
    """Cover rows begin .. end with tiles of the given sizes, largest first, the last one 1."""
    for size in sizes:
        stop = begin + (end - begin) // size * size
        with b.loop(begin, stop, size) as loop:
            tile(loop.i, size)
        begin = stop


def ceil_div(x: Value, y: int) -> Value:
    return (x + (y - 1)) // y


class FloatMatmul:
    """The MatmulStrategy for f32 x f32."""

    name = "float"

    def unsupported(self, spec: MatmulSpec) -> str | None:
        if spec.weight is not None:
            return "strategy 'float' takes float weights only"
        if spec.activation is not None:
            return "strategy 'float' takes float activations only"
        if spec.hadamard_block:
            return "strategy 'float' does not rotate activations"
        return None

    def pack_weight(self, spec: MatmulSpec, weight: QuantizedTensor | np.ndarray) -> np.ndarray:
        assert isinstance(weight, np.ndarray) and weight.shape == (spec.n, spec.k)
        return pack_panels(weight.astype(np.float32, copy=False)).reshape(-1).view(np.uint8)

    def row_bytes(self, spec: MatmulSpec) -> int:
        return 0

    def pack_kernel(self, spec: MatmulSpec) -> Kernel | None:
        return None

    def matmul_kernels(self, spec: MatmulSpec) -> tuple[Variant, ...]:
        k = spec.k
        one = Kernel(
            f"float_matmul_k{k}_one_row",
            (1, ONE_ROW_COLUMNS),
            partial(_emit_one_row, f"float_matmul_k{k}_one_row", k),
        )
        many = Kernel(
            f"float_matmul_k{k}",
            (ROW_BLOCK, COLUMN_BLOCK),
            partial(_emit_many_rows, f"float_matmul_k{k}", k),
        )
        return (Variant(one, 1, 1), Variant(many, 2, None))


ARGUMENTS = [buffer("f32"), buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]


def _weight(b: Builder, w: Value, panel: Value, at: Value | int, k: int, ahead: int = 0) -> Value:
    """Row `at` of panel `panel + ahead`."""
    byte = (panel * k + at) * PANEL_BYTES + ahead * k * PANEL_BYTES
    return b.load_as(w, byte, f"vector<{PANEL}xf32>")


def load_columns(b: Builder, source: Value, base: Value | int, column: Value, n: Value) -> Value:
    """Columns `column` .. `column` + 16 of a row that begins at `base`; zeros from `n` on."""
    return b.load(source, column + base, PANEL, b.mask(PANEL, n - column))


def store_columns(
    b: Builder, value: Value, target: Value, base: Value | int, column: Value, n: Value
) -> None:
    """Store the columns that are below `n`."""
    b.store(value, target, column + base, b.mask(PANEL, n - column))


def sum_pairwise(values: Sequence[Value]) -> Value:
    """The sum of a power of two of values, as a tree."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _emit_one_row(name: str, k: int, module: Any, isa: Isa) -> None:
    """One row: every weight is read once and in order, so that memory is the only limit."""
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, _m, n):
        begin = i * ONE_ROW_COLUMNS
        with b.loop(begin, b.min(begin + ONE_ROW_COLUMNS, n), PANEL) as columns:
            panel = columns.i // PANEL
            sums = _one_row_sums(b, x, w, panel, k)
            total = sum_pairwise(sums) + load_columns(b, bias, 0, columns.i, n)
            store_columns(b, total, y, 0, columns.i, n)


def _one_row_sums(b: Builder, x: Value, w: Value, panel: Value, k: int) -> list[Value]:
    """Eight partial sums: number j has the terms k = j modulo 8."""
    zero = b.const(0.0, f"vector<{PANEL}xf32>")
    sums = [zero] * ONE_ROW_UNROLL
    whole = k // ONE_ROW_UNROLL * ONE_ROW_UNROLL
    if whole:
        with b.loop(0, whole, ONE_ROW_UNROLL, sums) as loop:
            terms = []
            for j, total in enumerate(loop.args):
                at = loop.i + j
                b.prefetch(w, (panel * k + at) * PANEL_BYTES + PREFETCH_BYTES)
                vector = _weight(b, w, panel, at, k)
                terms.append(multiply_add(b, broadcast(b, x, at), vector, total))
            loop.carry(*terms)
        sums = loop.results
    for j in range(k - whole):
        vector = _weight(b, w, panel, whole + j, k)
        sums[j] = multiply_add(b, broadcast(b, x, whole + j), vector, sums[j])
    return sums


def _emit_many_rows(name: str, k: int, module: Any, isa: Isa) -> None:
    """Blocks of 64 rows and 48 columns: the block's panels stay in the cache for all its rows."""
    with function(module, isa, name, ARGUMENTS) as (b, i, x, w, bias, y, m, n):
        blocks = ceil_div(n, COLUMN_BLOCK)
        row, column = i // blocks * ROW_BLOCK, i % blocks * COLUMN_BLOCK
        row_end = b.min(row + ROW_BLOCK, m)
        column_end = b.min(column + COLUMN_BLOCK, n)
        wide, narrow = TILE_ROWS[isa.name]

        def tile(column: Value, panels: int, row: Value, rows: int) -> None:
            _tile(b, (x, w, bias, y), row, rows, column, panels, n, k)

        if wide:
            full = column + (TILE_PANELS - 1) * PANEL < n
            with b.when(full):
                row_tiles(b, row, row_end, wide, partial(tile, column, TILE_PANELS))
            column = b.select(full, column_end, column)
        with b.loop(column, column_end, PANEL) as columns:
            row_tiles(b, row, row_end, narrow, partial(tile, columns.i, 1))


def _tile(
    b: Builder,
    buffers: tuple[Value, Value, Value, Value],
    row: Value,
    rows: int,
    column: Value,
    panels: int,
    n: Value,
    k: int,
) -> None:
    """`rows` rows times `panels` panels, all of K, in registers."""
    x, w, bias, y = buffers
    panel, x_base = column // PANEL, row * k
    start = [load_columns(b, bias, 0, column + p * PANEL, n) for p in range(panels)]
    with b.loop(0, k, 1, start * rows) as loop:
        vectors = [_weight(b, w, panel, loop.i, k, p) for p in range(panels)]
        sums = []
        for r in range(rows):
            factor = broadcast(b, x, x_base + loop.i + r * k)
            for p in range(panels):
                total = loop.args[r * panels + p]
                sums.append(multiply_add(b, factor, vectors[p], total))
        loop.carry(*sums)
    for r in range(rows):
        for p in range(panels):
            base = (row + r) * n
            store_columns(b, loop.results[r * panels + p], y, base, column + p * PANEL, n)
