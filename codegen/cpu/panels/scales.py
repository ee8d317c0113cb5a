"""Scales in packed weights: read as f32, whatever they are stored as."""

from __future__ import annotations

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.stored_values import e4m3_scale, power_of_two
from abqc.dialects.scale_types import StoredScale


def load_scales(
    b: Builder, source: Value, at: Value, stored: StoredScale, lanes: int, tensor_scale: Value
) -> Value:
    """`lanes` scales (0: one, a scalar) from byte `at` on, f32.

    `tensor_scale` is the byte where that of the tensor is, which e4m3 alone has.
    """
    element = {"f16": "i16", "f32": "f32"}.get(stored, "i8")
    loaded = b.load_as(source, at, vec(lanes, element) if lanes else element)
    if stored == "f32":
        return loaded
    if stored == "f16":
        return b.half_to_float(loaded)
    wide = b.zext(loaded, "i32")
    if stored == "e8m0":
        return power_of_two(b, wide)
    whole = b.load_as(source, tensor_scale, "f32")
    return e4m3_scale(b, wide, b.splat(whole, lanes) if lanes else whole)
