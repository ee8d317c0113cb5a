"""Discrete Fourier transforms of rows.

Rows are [rows, parts, n]: real parts, and imaginary ones where `parts` is 2. A transform is a
product with a constant matrix; one of a length with divisors is done in two steps (Cooley and
Tukey, 1965), whose matrices are small: n = n1 * n2 costs n * (n1 + n2) products instead of n * n.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from abqc.dialects.mlir import ir, linalg

from ..building.emit import Builder
from ..building.scalars import Scalar
from ..building.shaping import concat, reshape, slice_axis, transpose, unsqueeze
from ..ops.matmul import batched
from ..values.constants import from_array
from ..values.element_types import F32, F64, INDEX, ElementType
from ..values.symbolic import Dim
from ..values.value import Value, constant_value

LONGEST_FACTOR = 64
LONGEST_MATRIX = 512  # of lengths without a divisor up to LONGEST_FACTOR
LONGEST_EXACT = 16  # products of so few terms cost little: they are summed in f64


def transformed(b: Builder, z: Value, sign: int) -> Value:
    """`y[k] = sum of z[j] * e^(sign * 2 pi i j k / n)`, [rows, 2, n], for f32 or f64 rows."""
    n = z.dims[2].value
    if n is None:
        return _by_table(b, z, sign)
    first = _factor(n)
    if first is not None:
        return _in_two_steps(b, z, first, n // first, sign)
    if n > LONGEST_MATRIX:
        return _by_table(b, z, sign)
    flat = reshape(b, z, [z.dims[0], z.dims[1] * n])
    parts = z.dims[1].value or 2
    matrix = _matrix(parts, np.arange(n)[:, None] * np.arange(n)[None, :] / n, sign)
    if n <= LONGEST_EXACT and z.dtype is F32:
        wide = b.elementwise([flat], F64, lambda v: v.cast(F64))
        sums = batched(b, wide, _constant(wide, matrix))
        rounded = b.elementwise([sums], F32, lambda v: v.cast(F32))
        return reshape(b, rounded, [z.dims[0], 2, n])
    return reshape(b, batched(b, flat, _constant(z, matrix)), [z.dims[0], 2, n])


def _factor(n: int) -> int | None:
    """The divisor of n to split off, None where a product with one matrix is to be preferred."""
    if n <= LONGEST_FACTOR:
        return None
    most = min(LONGEST_FACTOR, math.isqrt(n))
    return next((f for f in range(most, 1, -1) if n % f == 0), None)


def _in_two_steps(b: Builder, z: Value, n1: int, n2: int, sign: int) -> Value:
    """With j = j1 * n2 + j2 and k = k1 + n1 * k2: over j1 for each j2, then over j2."""
    rows, parts = z.dims[0], z.dims[1].value or 2
    split = reshape(b, z, [rows, parts, n1, n2])
    by_j2 = reshape(b, transpose(b, split, [3, 0, 1, 2]), [n2, rows, parts * n1])
    j2, j1, k1 = np.ogrid[:n2, :n1, :n1]
    # The turn between the steps, by j2 * k1 / n, is in the matrix of each j2.
    matrices = _matrix(parts, (j1 * n2 + j2) * k1 / (n1 * n2), sign)
    inner = reshape(b, batched(b, by_j2, _constant(z, matrices)), [n2, rows, 2, n1])
    by_k1 = reshape(b, transpose(b, inner, [1, 3, 2, 0]), [rows * n1, 2, n2])
    outer = reshape(b, transformed(b, by_k1, sign), [rows, n1, 2, n2])
    return reshape(b, transpose(b, outer, [0, 2, 3, 1]), [rows, 2, n1 * n2])


def _matrix(parts: int, turns: np.ndarray, sign: int) -> np.ndarray:
    """Of complex products, e^(sign * 2 pi i * turns), [..., parts * j, 2 * k]."""
    angle = sign * 2 * np.pi * np.mod(turns, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    of_real = np.concatenate([cos, sin], axis=-1)
    if parts == 1:
        return of_real
    return np.concatenate([of_real, np.concatenate([-sin, cos], axis=-1)], axis=-2)


def _constant(like: Value, array: np.ndarray) -> Value:
    constant = from_array(np.ascontiguousarray(array.astype(like.dtype.dtype)), like.dtype.onnx)
    return constant_value(replace(constant, name="fourier"), like.dtype)


def _by_table(b: Builder, z: Value, sign: int) -> Value:
    """For lengths that a run knows, and long ones without small divisors: n cosines and sines."""
    rows, parts, n = z.dims
    dtype = z.dtype
    length = b.scalar(n)
    cos = b.tabulate([n], dtype, lambda at: _turn(at[0], length, dtype)[0])
    sin = b.tabulate([n], dtype, lambda at: _turn(at[0], length, dtype)[1] * float(sign))
    real = b.tensor(reshape(b, _part(b, z, 0), [rows, n]))
    imaginary = b.tensor(reshape(b, _part(b, z, 1), [rows, n])) if parts.value != 1 else None
    operands = [real] if imaginary is None else [real, imaginary]
    d = [ir.AffineDimExpr.get(i) for i in range(3)]
    read = ir.AffineMap.get(3, 0, [d[0], d[2]])
    written = ir.AffineMap.get(3, 0, [d[0], d[1]])

    def body(*values: ir.Value) -> list[ir.Value]:
        k, j = (Scalar(linalg.IndexOp(axis).result, INDEX) for axis in (1, 2))
        at = (k * j).remainder(length)
        c, s = b.read(cos, [at]).cast(F64), b.read(sin, [at]).cast(F64)
        *given, total_real, total_imaginary = values
        x, *others = (Scalar(value, dtype).cast(F64) for value in given)
        real_sum = Scalar(total_real, F64) + x * c
        imaginary_sum = Scalar(total_imaginary, F64) + x * s
        for y in others:
            real_sum, imaginary_sum = real_sum - y * s, imaginary_sum + y * c
        return [real_sum.ssa, imaginary_sum.ssa]

    outs = [b.full(F64, [rows, n], 0) for _ in range(2)]
    maps = [read] * len(operands) + [written] * 2
    made = b.structured(operands, outs, maps, [True, True, False], body)
    parts_made = [Value(F64, (rows, n), ssa=ssa) for ssa in made]
    return _joined(b, *(b.elementwise([x], dtype, lambda v: v.cast(dtype)) for x in parts_made))


def _turn(j: Scalar, n: Scalar, dtype: ElementType) -> tuple[Scalar, Scalar]:
    """Cosine and sine of `2 pi j / n`. Whole quarters of a turn are exact: what is left of them is
    an integer over n, at most an eighth of a turn."""
    quarters = (j * 8 + n) / (n * 2)
    rest = (j * 4 - quarters * n).cast(dtype) / n.cast(dtype) * (math.pi / 2)
    cos, sin = rest.cos(), rest.sin()
    odd, back = (quarters & 1) == 1, (quarters & 2) == 2
    x, y = odd.select(-sin, cos), odd.select(cos, sin)
    return back.select(-x, x), back.select(-y, y)


def _joined(b: Builder, real: Value, imaginary: Value) -> Value:
    """[rows, 2, n] of two [rows, n]."""
    return concat(b, [unsqueeze(b, real, [1]), unsqueeze(b, imaginary, [1])], 1)


def _part(b: Builder, z: Value, part: int) -> Value:
    return slice_axis(b, z, 1, part, 1)


def half(n: Dim) -> Dim:
    """The number of frequencies of a real signal of length n."""
    return n // 2 + 1
