"""What the quantized operations compute, in numpy (docs/numerics.md); tests compare kernels to it.

Accumulators are exact: they are summed in f64, where every partial sum is an integer below 2^53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import F32, QuantizedTensor, Scheme
from numpy.typing import NDArray

I64 = NDArray[np.int64]
GROUP_SUM_TOLERANCE = 2.0**-20  # relative to the sum of |terms|, where the order of a sum is free


def accumulate(
    codes_a: np.ndarray,
    zero_a: np.ndarray | None,
    codes_w: np.ndarray,
    zero_w: np.ndarray | None,
    scheme: Scheme,
) -> I64:
    """acc[m, n, g] = sum over k in group g of (q_a[m, k] - z_a[m]) * (q_w[n, k] - z_w[n, g]).

    q_w are the integers of the codes (`NumberFormat.integers`). `codes_a` [M, K], `zero_a` [M],
    `codes_w` [N, K], `zero_w` [N, G]; `scheme` is the weight's.
    """
    a = codes_a.astype(np.float64)
    if zero_a is not None:
        a -= zero_a.astype(np.float64)[:, None]
    return _accumulate_centred(a, codes_w, zero_w, scheme)


def _accumulate_centred(
    a: NDArray[np.float64], codes_w: np.ndarray, zero_w: np.ndarray | None, scheme: Scheme
) -> I64:
    bounds = scheme.group_bounds(a.shape[1])
    acc = np.empty((len(a), len(codes_w), len(bounds)), np.int64)
    for g, (begin, end) in enumerate(bounds):
        w = scheme.format.integers(codes_w[:, begin:end]).astype(np.float64)
        if zero_w is not None:
            w -= zero_w[:, g, None].astype(np.float64)
        acc[:, :, g] = a[:, begin:end] @ w.T
    return acc


def scale_accumulators(
    acc: I64, scale_a: F32, scale_w: np.ndarray, bias: np.ndarray | None = None
) -> F32:
    """y f32 [M, N] of acc [M, N, G], scale_a [M], scale_w [N, G] (of integers) and bias [N].

    With one group it is `fma(s_a * s_w, float(acc), bias)`, to the bit. With several it is the
    f64 result, rounded; kernels stay within `tolerance` of it.
    """
    bias = np.zeros(acc.shape[1], np.float32) if bias is None else bias
    if acc.shape[2] == 1:
        scale = scale_a.astype(np.float32)[:, None] * scale_w.astype(np.float32)[None, :, 0]
        return fma(scale, acc[:, :, 0].astype(np.float32), bias.astype(np.float32)[None, :])
    terms = _terms(acc, scale_a, scale_w)
    return (terms.sum(axis=2) + bias.astype(np.float64)).astype(np.float32)


def tolerance(
    acc: I64, scale_a: F32, scale_w: np.ndarray, bias: np.ndarray | None = None
) -> NDArray[np.float64]:
    """How far each y may be from `scale_accumulators`; 0 for one group. Arguments as there."""
    if acc.shape[2] == 1:
        return np.zeros(acc.shape[:2])
    total = np.abs(_terms(acc, scale_a, scale_w)).sum(axis=2)
    if bias is not None:
        total += np.abs(bias.astype(np.float64))
    return GROUP_SUM_TOLERANCE * total


def _terms(acc: I64, scale_a: np.ndarray, scale_w: np.ndarray) -> NDArray[np.float64]:
    return acc * scale_a.astype(np.float64)[:, None, None] * scale_w.astype(np.float64)[None]


def fma(a: F32, b: F32, c: F32) -> F32:
    """a * b + c in f32 with one rounding.

    The product is exact in f64. The sum is rounded to odd (Boldo and Melquiond, 2008), so that the
    rounding to f32 that follows is as good as one rounding.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = np.broadcast_to(c.astype(np.float64), product.shape)
    total = product + addend
    with np.errstate(invalid="ignore"):
        from_addend = total - product
        error = (product - (total - from_addend)) + (addend - from_addend)
    even = (total.view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0)
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        return np.where(inexact & even, toward, total).astype(np.float32)


def matmul(
    codes_a: np.ndarray,
    scale_a: F32,
    zero_a: np.ndarray | None,
    weight: QuantizedTensor,
    bias: np.ndarray | None = None,
) -> F32:
    """y [M, N] of quantized activations, as `formats.quantize_activation` gives them.

    Weights without integers (`NumberFormat.has_integers`) are multiplied as floats.
    """
    if not weight.scheme.format.has_integers:
        zero = np.zeros(len(codes_a)) if zero_a is None else zero_a
        centred = codes_a.astype(np.float32) - zero.astype(np.float32)[:, None]
        return matmul_float(centred * scale_a[:, None], weight, bias)
    acc = accumulate(codes_a, zero_a, weight.codes, weight.zero, weight.scheme)
    return scale_accumulators(acc, scale_a, weight.integer_scale, bias)


def matmul_float(x: F32, weight: QuantizedTensor, bias: np.ndarray | None = None) -> F32:
    """y [M, N] of float activations and a quantized weight: f64, rounded once."""
    y = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    return (y if bias is None else y + bias).astype(np.float32)


def gather(table: QuantizedTensor, indices: np.ndarray) -> F32:
    """Rows of a quantized table [rows, columns]: f32 [indices..., columns]."""
    flat = indices.reshape(-1)
    zero = None if table.zero is None else table.zero[flat]
    rows = QuantizedTensor(
        table.codes[flat], table.scale[flat], zero, table.scheme, table.tensor_scale
    )
    return rows.dequantize().reshape(*indices.shape, table.codes.shape[1])


@dataclass(frozen=True)
class ConvGeometry:
    """The attributes of ONNX Conv; `pads` lists begins, then ends, one of each per spatial axis."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1

    def output_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        rank = len(spatial)
        return tuple(
            (spatial[i] + self.pads[i] + self.pads[i + rank] - self.dilations[i] * (w - 1) - 1)
            // self.strides[i]
            + 1
            for i, w in enumerate(self.window)
        )


def im2col(x: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """x [B, C, spatial] as rows [B, output positions, C * window]; padding is 0."""
    batch, channels, *spatial = x.shape
    rank = len(spatial)
    pads = [(geometry.pads[i], geometry.pads[i + rank]) for i in range(rank)]
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    out = geometry.output_shape(tuple(spatial))
    columns = np.empty((batch, *out, channels, *geometry.window), x.dtype)
    for tap in np.ndindex(*geometry.window):
        source = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(
                (t * d for t, d in zip(tap, geometry.dilations, strict=True)),
                out,
                geometry.strides,
                strict=True,
            )
        )
        view = padded[(slice(None), slice(None), *source)]
        columns[(Ellipsis, *tap)] = np.moveaxis(view, 1, -1)
    return columns.reshape(batch, math.prod(out), channels * math.prod(geometry.window))


def conv(
    codes_a: np.ndarray,
    scale_a: F32,
    zero_a: np.ndarray | None,
    weight: QuantizedTensor,
    geometry: ConvGeometry,
    bias: np.ndarray | None = None,
) -> F32:
    """y [B, O, spatial] of an input [B, C, spatial] with one scale and zero point an image, [B].

    `weight` is O x (C / groups * window). Padding is the value 0, whatever the zero point.
    """
    batch, channels, *spatial = codes_a.shape
    a = codes_a.astype(np.float64)
    if zero_a is not None:
        a -= zero_a.astype(np.float64).reshape(-1, *(1,) * (a.ndim - 1))
    out = geometry.output_shape(tuple(spatial))
    rows_per_image = math.prod(out)
    scale_rows = np.repeat(scale_a, rows_per_image)
    bias = np.zeros(len(weight.codes), np.float32) if bias is None else bias
    in_step, out_step = channels // geometry.groups, len(weight.codes) // geometry.groups
    parts = []
    for group in range(geometry.groups):
        inputs = slice(group * in_step, (group + 1) * in_step)
        outputs = slice(group * out_step, (group + 1) * out_step)
        rows = im2col(a[:, inputs], geometry).reshape(batch * rows_per_image, -1)
        zero_w = None if weight.zero is None else weight.zero[outputs]
        acc = _accumulate_centred(rows, weight.codes[outputs], zero_w, weight.scheme)
        scale_w = weight.integer_scale[outputs]
        parts.append(scale_accumulators(acc, scale_rows, scale_w, bias[outputs]))
    y = np.concatenate(parts, axis=1).reshape(batch, rows_per_image, -1)
    return np.moveaxis(y, 1, 2).reshape(batch, -1, *out)
