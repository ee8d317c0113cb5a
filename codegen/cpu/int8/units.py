"""Stored weights of strategy `int8` in registers: a unit is loaded, its quads become bytes."""

from __future__ import annotations

from functools import reduce
from operator import or_

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.codes.bit_parts import StoredValue
from abqc.codegen.codes.dense_units import value_pieces

from ..panels.layout import PANEL, VECTOR_BYTES
from ..panels.look_up import integer_values


def load_unit(b: Builder, source: Value, at: Value, value: StoredValue) -> list[Value]:
    """The vectors of the unit at byte `at`."""
    count = 1 + max(piece.vector for pieces in value_pieces(value) for piece in pieces)
    return [b.load_as(source, at + i * VECTOR_BYTES, vec(PANEL, "i32")) for i in range(count)]


def unit_quad(b: Builder, vectors: list[Value], quad: int, value: StoredValue) -> Value:
    """The values of a quad as bytes, vector<16xi32>."""
    pieces = value_pieces(value)[quad]
    values = reduce(or_, (piece.emit(vectors[piece.vector]) for piece in pieces))
    return values if value.indexed is None else integer_values(b, values, value.indexed)
