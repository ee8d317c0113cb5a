"""Floats of 8 bits and fewer: their codes, and the f32 that each stands for.

(OCP Microscaling Formats 1.0 for e4m3, e5m2, e8m0, e2m1, e2m3, e3m2; ONNX's Cast for the rounding
and for `saturate`.)
"""

from __future__ import annotations

from abqc.dialects.mlir import ir
from abqc.errors import ModelError

from .element_types import ElementType


def decode(code: ir.Value, dtype: ElementType) -> ir.Value:
    """The f32 that an i8 code stands for."""
    raise ModelError(f"{dtype.name} is not supported")


def encode(value: ir.Value, dtype: ElementType) -> ir.Value:
    """The i8 code of an f32 that is a value of the type."""
    raise ModelError(f"{dtype.name} is not supported")
