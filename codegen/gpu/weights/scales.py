"""Scales in packed weights: read as f32, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Callable

from abqc.codegen.builder import Value, vec
from abqc.codegen.codes.stored_values import e4m3_scale, power_of_two
from abqc.dialects.mlir import ir
from abqc.dialects.scale_types import StoredScale

from ..builder import GpuBuilder

Load = Callable[[Value, ir.Type, "Value | int"], Value]  # (pointer, type, offset in bytes)


def load_constant(b: GpuBuilder) -> Load:
    """Loads of what nothing writes."""
    return lambda pointer, type_, offset: b.load(pointer, type_, offset, cache="nc")


def load_scales(
    b: GpuBuilder,
    pointer: Value,
    stored: StoredScale,
    offset: Value | int,
    count: int,
    tensor_scale: Value,
    load: Load | None = None,
) -> list[Value]:
    """`count` neighbouring scales from byte `offset` behind `pointer` on, f32.

    `tensor_scale` points to that of the tensor, which e4m3 alone has. `load`: how the others are
    loaded, if not just so.
    """
    element = stored if stored in ("f16", "f32") else "i8"
    loaded = (load or load_constant(b))(pointer, vec(count, element), offset)
    if stored in ("f16", "f32"):
        return b.lanes_of(b.extend(loaded))
    wide = b.lanes_of(b.zext(loaded, "i32"))
    if stored == "e8m0":
        return [power_of_two(b, scale) for scale in wide]
    whole = b.load(tensor_scale, "f32", cache="nc")
    return [e4m3_scale(b, scale, whole) for scale in wide]
