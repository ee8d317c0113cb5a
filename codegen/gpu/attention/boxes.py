"""Keys and values that are read where they are, by tensor maps: halves that are multiplied as such.

    tensor    [batch][head][row][column], dimension 0 the columns, with any strides
    box       an atom of 64 columns of a tile's rows

What is beyond the last key or column is zeros, as in tiles that are made before (halves.py).
"""

from __future__ import annotations

from abqc.runtime.tensor_parameter import Extent, TensorParameter

from .spec import AttentionSpec
from .tile import tile_types

HALF_BYTES = 2
TOGETHER = 16 // HALF_BYTES  # columns: tensor maps count in 16 bytes


def reads_boxes(spec: AttentionSpec) -> bool:
    """Whether keys and values are what the products take, at multiples of 16 bytes: the host
    function checks that of rows that are whole such (passes/lowering/attention.py)."""
    halves = spec.precision == spec.keys == spec.values == "f16"
    return halves and spec.head % TOGETHER == spec.value_head % TOGETHER == 0


def stored_tensors(
    spec: AttentionSpec, rows: int, columns: int
) -> tuple[str | TensorParameter, ...]:
    """The last arguments of a kernel (kernels.py), and maps whose boxes have so many rows."""
    pointers = 4 if spec.mask == "none" else 5
    strides = pointers + 5 + 3  # behind m, t, heads, group, scale and those of q
    batch = len(tile_types(spec))
    heads, keys = batch + 1, batch + 2
    maps = tuple(
        TensorParameter(
            1 + number,
            "f16",
            (Extent(width), Extent(1, keys), Extent(1, heads), Extent(1, batch)),
            tuple(Extent(HALF_BYTES, strides + 3 * number + axis) for axis in (2, 1, 0)),
            (columns, rows, 1, 1),
            swizzle=HALF_BYTES * columns,
        )
        for number, width in enumerate((spec.head, spec.value_head))
    )
    return ("i32", "i32", "i32", *maps)
