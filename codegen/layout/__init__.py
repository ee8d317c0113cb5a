"""Layouts as data: where the elements of a tile are in registers, shared and global memory.

A layout is a function from coordinates to offsets, written shape:stride. The algebra is the one of
CuTe (NVIDIA CUTLASS, "CuTe Layout Algebra"); that registers are described by layouts too, from
which vector widths, `ldmatrix` and `cp.async` follow, is the idea of Tilus ("Tilus: A Tile-Level
GPGPU Programming Language for Low-Precision Computation", 2025). Pure Python; imports nothing of
ours.
"""

from .access import (
    BANK_BYTES,
    WARP,
    ldmatrix_rows,
    vector_width,
    wavefronts,
)
from .algebra import (
    coalesce,
    complement,
    compose,
    left_inverse,
    logical_divide,
    logical_product,
    right_inverse,
    tiled_divide,
    zipped_divide,
)
from .layout import Layout, LayoutError, concatenate
from .swizzle import Swizzle, Swizzled
from .thread_value import ThreadValue, copy_pieces

__all__ = [
    "BANK_BYTES",
    "WARP",
    "Layout",
    "LayoutError",
    "Swizzle",
    "Swizzled",
    "ThreadValue",
    "coalesce",
    "complement",
    "compose",
    "concatenate",
    "copy_pieces",
    "ldmatrix_rows",
    "left_inverse",
    "logical_divide",
    "logical_product",
    "right_inverse",
    "tiled_divide",
    "vector_width",
    "wavefronts",
    "zipped_divide",
]
