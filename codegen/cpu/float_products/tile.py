"""What the float matmul kernels share: panels of 16 columns and register tiles over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa
from abqc.dialects.formats import Float

from ..grid_block import Span

PANEL = 16  # columns side by side; one zmm, two ymm, four xmm
TILE_PANELS = 3
COLUMN_BLOCK = TILE_PANELS * PANEL
DEPTH_BLOCK = 256
ONE_ROW_COLUMNS = 2 * PANEL

# The largest register tile by the bits of a register, as rows for three panels and for one.
# Accumulators, one vector of each panel and one broadcast fit the registers; smaller tiles do what
# rows are left.
TILE_ROWS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    512: ((8, 4, 2, 1), (8, 4, 2, 1)),
    256: ((), (6, 4, 2, 1)),
    128: ((), (2, 1)),
}
MAX_TILE_ROWS = 8


def tile_rows(isa: Isa, panels: int) -> tuple[int, ...]:
    """The rows of register tiles of three panels or of one, falling; none where there are none."""
    wide, narrow = TILE_ROWS[isa.vector_bits]
    return wide if panels == TILE_PANELS else narrow


def largest_tile(isa: Isa) -> tuple[int, int]:
    """Rows and panels of the largest register tile."""
    wide, narrow = TILE_ROWS[isa.vector_bits]
    return (wide[0], TILE_PANELS) if wide else (narrow[0], 1)


def multiply_add(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """`x * y + z`; in two roundings where the CPU has no fused instruction."""
    return b.fma(x, y, z) if b.isa.fma else x * y + z


MultiplyAdd = Callable[[Builder, Value, Value, Value], Value]


def broadcast(b: Builder, source: Value, at: Value | int, lanes: int = PANEL) -> Value:
    """Element `at` of `source` in all lanes."""
    return b.splat(b.load(source, at), lanes)


def load_floats(b: Builder, source: Value, at: Value, element: Float, lanes: int = PANEL) -> Value:
    """f32 lanes of floats stored as `element`, from byte `at` of a buffer of bytes."""
    vector = b.load_as(source, at, f"vector<{lanes}x{element}>")
    return vector if element == "f32" else b.extend(vector)


def row_tiles(
    b: Builder, begin: Value, end: Value, sizes: Sequence[int], tile: Callable[[Value, int], None]
) -> None:
    """Cover rows begin .. end with tiles of the given sizes, largest first, the last one 1."""
    for size in sizes:
        stop = begin + (end - begin) // size * size
        with b.loop(begin, stop, size) as loop:
            tile(loop.i, size)
        begin = stop


def cover(
    b: Builder, begin: Value, end: Value, lanes: int, emit: Callable[[Value, Value | None], None]
) -> None:
    """Call `emit(i, None)` for whole vectors of begin .. end, and with a mask for what is left."""
    stop = begin + b.max(end - begin, 0) // lanes * lanes
    with b.loop(begin, stop, lanes) as loop:
        emit(loop.i, None)
    with b.when(stop < end):
        emit(stop, b.mask(lanes, end - stop))


def cover_by_tiles(
    b: Builder,
    begin: Value,
    end: Value,
    lanes: int,
    vectors: int,
    tile: Callable[[Value, list[Value | None]], None],
) -> None:
    """Call `tile(i, masks)` for tiles of begin .. end, a mask for each vector: None for whole ones.

    Tiles have `vectors` vectors, what is left over a power of two of them or as many."""
    stop = begin + (end - begin) // (vectors * lanes) * (vectors * lanes)
    with b.loop(begin, stop, vectors * lanes) as tiles:
        tile(tiles.i, [None] * vectors)
    rest = end - stop
    widths = [*(2**i for i in range(vectors.bit_length()) if 2**i < vectors), vectors]
    for below, width in zip([0, *widths], widths, strict=False):
        with b.when((rest > below * lanes) & (rest <= width * lanes)):
            masks = [b.mask(lanes, rest - v * lanes) for v in range(below, width)]
            tile(stop, [*[None] * below, *masks])


def ceil_div(x: Value, y: int) -> Value:
    return (x + (y - 1)) // y


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


Tile = Callable[[Value, int, Value, int], None]  # column, panels, row, rows


def cover_block(
    b: Builder, rows: Span, columns: Span, tile: Tile, max_rows: int = MAX_TILE_ROWS
) -> None:
    """Cover rows and columns (at most 48) with register tiles of at most `max_rows`."""
    (row, row_end), (column, column_end) = rows, columns
    wide, narrow = (
        tuple(size for size in sizes if size <= max_rows) for sizes in TILE_ROWS[b.isa.vector_bits]
    )
    if wide:
        full = column + (TILE_PANELS - 1) * PANEL < column_end
        with b.when(full):
            row_tiles(b, row, row_end, wide, partial(tile, column, TILE_PANELS))
        column = b.select(full, column_end, column)
    with b.loop(column, column_end, PANEL) as panels:
        row_tiles(b, row, row_end, narrow, partial(tile, panels.i, 1))


def multiply_rows(
    b: Builder,
    x: Value,
    x_at: Sequence[Value],
    vectors: Callable[[Value], Sequence[Value]],
    terms: Value | int,
    start: Sequence[Value],
    multiply: Sequence[MultiplyAdd] = (multiply_add,),
) -> list[Value]:
    """`start` [row][panel] and the sums over the terms of x[x_at[row] + term] times a panel of
    `vectors(term)`, in registers; terms that take several steps take them one after the other."""
    with b.loop(0, terms, 1, start) as loop:
        panels = list(vectors(loop.i))
        factors = [broadcast(b, x, at + loop.i) for at in x_at]
        products = [(factor, panel) for factor in factors for panel in panels]
        sums = loop.args
        for step in multiply:
            sums = [
                step(b, factor, panel, total)
                for (factor, panel), total in zip(products, sums, strict=True)
            ]
        loop.carry(*sums)
    return loop.results


# Row `at` of the piece, 16 columns from `column` of the block on.
Weights = Callable[[Value, Value], Value]


def stack_block(b: Builder, block: Value) -> Weights:
    """Weights that lie as `[DEPTH_BLOCK][48]`."""
    return lambda at, column: b.load(block, at * COLUMN_BLOCK + column, PANEL)


@dataclass(frozen=True)
class Product:
    """`y += x * weights`, a piece of K at a time; sums wait in `y` meanwhile.

    `x` has rows of `k` elements, `y` of `n`. The steps of `multiply` add the products of an element
    of `x`, in all lanes, and weights.
    """

    b: Builder
    x: Value
    y: Value
    n: Value
    k: Value | int
    multiply: Sequence[MultiplyAdd] = (multiply_add,)
    max_rows: int = MAX_TILE_ROWS  # of a register tile

    def begin(self, rows: Span, columns: Span, bias: Value) -> None:
        """y = bias."""
        b = self.b
        with b.loop(*columns, PANEL) as panels:
            start = load_columns(b, bias, 0, panels.i, self.n)
            with b.loop(*rows) as loop:
                store_columns(b, start, self.y, loop.i * self.n, panels.i, self.n)

    def add(
        self,
        rows: Span,
        columns: Span,
        depth: tuple[Value | int, Value | int],
        weights: Weights,
        known: Value | None = None,
        scale: Callable[[Value], Value] | None = None,
        bias: Value | None = None,
    ) -> None:
        """Add the products of a piece of K, `depth` being its begin and number of terms; times
        `scale(column)` of 16 columns where there is one.

        Columns of y from `known` on hold no sums yet and count as zero; by default all do. With a
        `bias` none does, and sums begin with that.
        """

        def tile(column: Value, panels: int, row: Value, height: int) -> None:
            places = [(r, p) for r in range(height) for p in range(panels)]
            sums = self.n if known is None else known
            at = column - columns[0]
            self._tile((row, column), places, at, depth, weights, sums, scale, bias)

        cover_block(self.b, rows, columns, tile, self.max_rows)

    def _tile(
        self,
        corner: tuple[Value, Value],
        places: Sequence[tuple[int, int]],
        block_column: Value,
        depth: tuple[Value | int, Value | int],
        weights: Weights,
        known: Value,
        scale: Callable[[Value], Value] | None,
        bias: Value | None,
    ) -> None:
        b, (row, column), (begin, terms) = self.b, corner, depth
        height, panels = places[-1][0] + 1, places[-1][1] + 1
        y_at = [(row + r) * self.n for r in range(height)]
        x_at = [(row + r) * self.k + begin for r in range(height)]

        def vectors(term: Value) -> list[Value]:
            return [weights(term, block_column + p * PANEL) for p in range(panels)]

        def so_far() -> list[Value]:
            if bias is not None:
                first = [
                    load_columns(b, bias, 0, column + p * PANEL, self.n) for p in range(panels)
                ]
                return [first[p] for _, p in places]
            return [load_columns(b, self.y, y_at[r], column + p * PANEL, known) for r, p in places]

        zeros = [b.const(0.0, vec(PANEL, "f32"))] * len(places)
        start = so_far() if scale is None else zeros
        sums = multiply_rows(b, self.x, x_at, vectors, terms, start, self.multiply)
        if scale is not None:
            scales = [scale(column + p * PANEL) for p in range(panels)]
            sums = [
                multiply_add(b, scales[p], total, first)
                for (_, p), total, first in zip(places, sums, so_far(), strict=True)
            ]
        for (r, p), total in zip(places, sums, strict=True):
            store_columns(b, total, self.y, y_at[r], column + p * PANEL, self.n)
