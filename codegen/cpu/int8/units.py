"""Stored weights of strategy `int8` in registers: a unit is loaded, its quads become bytes."""

from __future__ import annotations

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.bit_parts import BitPart, StoredValue

from ..panels.layout import PANEL
from ..panels.look_up import integer_values
from .layout import QUAD, value_parts, value_quads

Unit = dict[BitPart, list[Value]]


def load_unit(b: Builder, source: Value, at: Value, value: StoredValue) -> Unit:
    """The vectors of the unit at byte `at`, by part."""
    offset = 0
    vectors: Unit = {}
    for part in value_parts(value):
        vectors[part] = []
        for _ in range(value_quads(value) // part.quads):
            vectors[part].append(b.load_as(source, at + offset, vec(PANEL, "i32")))
            offset += PANEL * QUAD
    return vectors


def unit_quad(b: Builder, vectors: Unit, quad: int, value: StoredValue) -> Value:
    """The values of a quad as bytes, vector<16xi32>."""
    values = None
    for part, loaded in vectors.items():
        bits = part.emit(loaded[quad // part.quads], quad % part.quads)
        values = bits if values is None else values | bits
    assert values is not None
    return values if value.indexed is None else integer_values(b, values, value.indexed)
