"""Layouts as data: where the elements of a tile are in registers and in shared memory.

A layout is a function from coordinates to offsets, written shape:stride, as in CuTe (NVIDIA
CUTLASS, "CuTe Layout Algebra"); that registers are described by layouts too is the idea of Tilus
("Tilus: A Tile-Level GPGPU Programming Language for Low-Precision Computation", 2025). Pure Python;
imports nothing of ours.
"""

from .layout import Layout, LayoutError
from .swizzle import Swizzle
from .thread_value import ThreadValue, copy_pieces

__all__ = ["Layout", "LayoutError", "Swizzle", "ThreadValue", "copy_pieces"]
