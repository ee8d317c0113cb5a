"""Kernels of floats that the recipe has in bf16: rows and weights of bf16 pairs, sums in f32.

One row streams the weights. More share them in register tiles, or in tile registers, which hold
16 rows of 32 k and 32 k of 16 channels as these lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from abqc.codegen.builder import INDEX, Builder, Value, buffer, function, vec
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Variant

from ..float_products.schedules import FloatSchedules, row_variants
from ..float_products.tile import (
    PANEL,
    Product,
    broadcast,
    load_columns,
    store_columns,
    sum_pairwise,
)
from ..grid_block import grid_block
from ..schedule import KernelSchedule, RangeSchedule
from .dot import PAIR, dot_steps, max_tile_rows
from .rows import Bf16Rows
from .tiles import add_tiled_products
from .weights import Bf16Panels

ONE_ROW_CHAINS = 4  # independent sums of a panel
FLOAT_SCHEDULES = FloatSchedules(
    chains=ONE_ROW_CHAINS,
    decodes=False,
    prefetches=(2, 0, 1),
    row_blocks=(128, 64, 256),
    depths=(2048, 1024),
)
FEW_ROWS = 4  # that leave most of a tile register empty

ARGUMENTS = [buffer("i8"), buffer("i8"), buffer("f32"), buffer("f32"), INDEX, INDEX]


def float_kernels(rows: Bf16Rows, schedules: Sequence[RangeSchedule]) -> tuple[Variant, ...]:
    """The kernels for weights of floats, packed by `weights.pack_bf16`."""
    name = f"bf16_matmul_k{rows.padded_k}"
    return row_variants(
        name, schedules, _emit_one_row, _emit_many_rows, rows, uses=frozenset({"bf16"})
    )


def row_pairs(b: Builder, q: Value, rows: Bf16Rows, m: Value) -> Value:
    """Packed rows as pairs (i32)."""
    return b.view(q, "i32", m * rows.row_pairs)


def _emit_one_row(
    name: str, schedule: KernelSchedule, rows: Bf16Rows, module: Any, isa: Isa
) -> None:
    """One row: every weight is read once and in order, so that memory is the only limit."""
    panels = Bf16Panels(rows.padded_k)
    with function(module, isa, name, ARGUMENTS) as (b, i, q, w, bias, y, m, n):
        x = row_pairs(b, q, rows, m)
        _, span = grid_block(b, schedule, i, m, n)
        with b.loop(*span, PANEL) as columns:
            total = _one_row(b, x, w, columns.i // PANEL, panels, schedule.on(isa).prefetch)
            total = total + load_columns(b, bias, 0, columns.i, n)
            store_columns(b, total, y, 0, columns.i, n)


def _one_row(
    b: Builder, x: Value, w: Value, panel: Value, panels: Bf16Panels, prefetch: int
) -> Value:
    zeros = [b.const(0.0, vec(PANEL, "f32"))] * ONE_ROW_CHAINS
    with b.loop(0, panels.padded_k // 2, ONE_ROW_CHAINS, zeros) as loop:
        sums = []
        for j, total in enumerate(loop.args):
            at = loop.i + j
            panels.prefetch(b, w, panel, at, prefetch)
            factor, weights = broadcast(b, x, at), panels.pairs(b, w, panel, at)
            for step in dot_steps(b.isa):
                total = step(b, factor, weights, total)
            sums.append(total)
        loop.carry(*sums)
    return sum_pairwise(loop.results)


def _emit_many_rows(
    name: str, schedule: KernelSchedule, rows: Bf16Rows, module: Any, isa: Isa
) -> None:
    """Blocks of rows and 48 columns: what a piece of K needs of both stays in the cache."""
    panels, pairs = Bf16Panels(rows.padded_k), rows.row_pairs
    depth = schedule.on(isa).block_k // PAIR
    with function(module, isa, name, ARGUMENTS) as (b, i, q, w, bias, y, m, n):
        row_span, columns = grid_block(b, schedule, i, m, n)
        product = Product(
            b, row_pairs(b, q, rows, m), y, n, pairs, dot_steps(isa), max_tile_rows(isa)
        )
        product.begin(row_span, columns, bias)

        def by_pairs() -> None:
            with b.loop(0, pairs, depth) as pieces:
                count = b.min(pairs - pieces.i, b.index(depth)) if pairs % depth else depth
                weights = partial(_weights, b, w, panels, columns[0], pieces.i)
                product.add(row_span, columns, (pieces.i, count), weights)

        if not isa.bf16_tiles:
            by_pairs()
            return
        few = row_span[1] - row_span[0] <= FEW_ROWS
        with b.when(few):
            by_pairs()
        with b.when(few ^ 1):
            add_tiled_products(product, q, rows, w, panels, row_span, columns, m)


def _weights(
    b: Builder,
    w: Value,
    panels: Bf16Panels,
    column: Value,
    begin: Value,
    at: Value,
    block_column: Value,
) -> Value:
    """A pair of 16 columns; `at` from pair `begin`, `block_column` from `column` on."""
    return panels.pairs(b, w, (column + block_column) // PANEL, begin + at)
