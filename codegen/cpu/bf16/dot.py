"""acc[16] += sum over a pair of x[2] * w[16][2], of bf16, on every instruction set.

A product of two bf16 is an exact f32. VDPBF16PS adds two of them to each lane, one after the other,
each sum rounded to nearest; it takes subnormals as zeros and makes none. Elsewhere a bf16 is the
upper half of an f32's bits, and f32 multiply-adds do the same.
"""

from __future__ import annotations

from abqc.codegen.builder import Builder, Value, vec
from abqc.codegen.isa import Isa

from ..float_products.tile import PANEL, MultiplyAdd, multiply_add

PAIR = 2  # consecutive k in 32 bits, the first one below


def dot_steps(isa: Isa) -> tuple[MultiplyAdd, ...]:
    """The steps that add the products of 16 pairs of x and of w, vector<16xi32>, to sums. A tile
    takes each for all of its pairs: halves of all of them at once do not fit the registers."""
    return (_dot,) if isa.dot_bf16 else (_multiply_low, _multiply_high)


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
