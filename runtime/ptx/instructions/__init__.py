"""What each opcode means; importing this package registers all of them."""

from __future__ import annotations

from . import (
    bits,
    compare,
    control,
    convert,
    extended,
    floats,
    integers,
    load_store,
    move,
    warps,
)

__all__ = [
    "bits",
    "compare",
    "control",
    "convert",
    "extended",
    "floats",
    "integers",
    "load_store",
    "move",
    "warps",
]
