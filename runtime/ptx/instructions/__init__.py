"""What each opcode means; importing this package registers all of them."""

from __future__ import annotations

from . import (
    async_copy,
    atomics,
    bits,
    bulk_copy,
    clusters,
    compare,
    control,
    convert,
    extended,
    floats,
    integers,
    load_store,
    matrix,
    mbarrier,
    move,
    pairs,
    warps,
    wgmma,
)

__all__ = [
    "async_copy",
    "atomics",
    "bits",
    "bulk_copy",
    "clusters",
    "compare",
    "control",
    "convert",
    "extended",
    "floats",
    "integers",
    "load_store",
    "matrix",
    "mbarrier",
    "move",
    "pairs",
    "warps",
    "wgmma",
]
