"""acc[16] += sum over a pair of x[2] * w[16][2], of bf16, on every instruction set.

A product of two bf16 is an exact f32. VDPBF16PS adds two of them to each lane, one after the other,
each sum rounded to nearest; it takes subnormals as zeros and makes none. Elsewhere a bf16 is the
upper half of an f32's bits, and f32 multiply-adds do the same.
"""

from __future__ import annotations

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa
from abqc.dialects.mlir import ir

from ..float_products.tile import MAX_TILE_ROWS, PANEL, MultiplyAdd, multiply_add

PAIR = 2  # consecutive k in 32 bits, the first one below


def dot_steps(isa: Isa) -> tuple[MultiplyAdd, ...]:
    """The steps that add the products of 16 pairs of x and of w, vector<16xi32>, to sums."""
    return (_dot,) if isa.dot_bf16 else (_multiply_low, _multiply_high)


def max_tile_rows(isa: Isa) -> int:
    """Of a register tile: halves of pairs need registers that sums would fill."""
    return MAX_TILE_ROWS if isa.dot_bf16 else MAX_TILE_ROWS // 2


def _dot(b: Builder, x: Value, w: Value, total: Value) -> Value:
    halves = vec(PAIR * PANEL, "bf16")
    assert b.isa.dot_bf16 is not None
    operands = b.bitcast(x, halves), b.bitcast(w, halves)
    return b.intrinsic(b.isa.dot_bf16, total.type, total, *operands)


def _multiply_low(b: Builder, x: Value, w: Value, total: Value) -> Value:
    return multiply_add(b, low_half(b, x), low_half(b, w), total)


def _multiply_high(b: Builder, x: Value, w: Value, total: Value) -> Value:
    return multiply_add(b, high_half(b, x), high_half(b, w), total)


def low_half(b: Builder, pairs: Value) -> Value:
    """The first ones of pairs (i32), as f32."""
    return b.bitcast(pairs << 16, vec(pairs.lanes, "f32"))


def high_half(b: Builder, pairs: Value) -> Value:
    """The second ones of pairs (i32), as f32."""
    return b.bitcast(pairs & 0xFFFF0000, vec(pairs.lanes, "f32"))


def pairs_of(b: Builder, low: Value, high: Value) -> Value:
    """Pairs (i32) of f32 vectors whose values bf16 holds."""
    words = vec(low.lanes, "i32")
    return (b.bitcast(low, words) >> 16) | (b.bitcast(high, words) & 0xFFFF0000)


def rounded_pairs(b: Builder, low: Value, high: Value) -> Value:
    """Pairs (i32) of f32, scalars or vectors, rounded to bf16."""
    return (_rounded_words(b, high) << 16) | _rounded_words(b, low)


def rounded(b: Builder, x: Value) -> Value:
    """The bf16 nearest to an f32, ties to even; with products of bf16, which take subnormals as
    zeros, they may be zeros already."""
    if b.isa.to_bf16 is not None and isinstance(x.type, ir.VectorType) and x.lanes == PANEL:
        return b.intrinsic(b.isa.to_bf16, vec(PANEL, "bf16"), x)
    return b.narrow(x, "bf16")


def _rounded_words(b: Builder, x: Value) -> Value:
    """The same as i32."""
    nearest = rounded(b, x)
    lanes = nearest.lanes if isinstance(x.type, ir.VectorType) else 0
    return b.zext(b.bitcast(nearest, vec(lanes, "i16") if lanes else "i16"), "i32")
