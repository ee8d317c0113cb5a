"""The weights of a transposed convolution as those of a convolution of stride 1.

The one's window of K elements, `dilation` apart, is filled up with zeros to `taps * stride`
elements; element `j * stride + r` becomes tap `taps - 1 - j` of output channel `r`:

    [C, M / groups, K...] -> [M * strides, C / groups, taps...]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..building.emit import Builder
from ..building.shaping import pad, reshape, slice_axes, transpose
from ..values.constants import Constant
from ..values.symbolic import ZERO, Dim
from ..values.value import Value, constant_value


def as_channels(
    b: Builder,
    w: Value,
    groups: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    taps: Sequence[int],
) -> Value:
    """The weights of the convolution; a constant stays one. C and the window are static."""
    if w.constant is not None:
        return constant_value(_constant(w.constant, groups, strides, dilations, taps), w.dtype)
    rank = len(strides)
    inputs, outputs = w.dims[0] // groups, w.dims[1]
    kernel = w.dims[2:]
    # K elements, each followed by dilation - 1 zeros.
    w = reshape(b, w, [*w.dims[:2], *(dim for k in kernel for dim in (k, Dim.of(1)))])
    w = pad(b, w, [0] * w.rank, [0, 0, *(n for d in dilations for n in (0, d - 1))])
    w = reshape(b, w, [*w.dims[:2], *(k * d for k, d in zip(kernel, dilations, strict=True))])
    lengths = [t * s for t, s in zip(taps, strides, strict=True)]
    ends = [Dim.of(n) - size for n, size in zip(lengths, w.dims[2:], strict=True)]
    w = pad(b, w, [0] * w.rank, [0, 0, *ends])
    pairs = [n for pair in zip(taps, strides, strict=True) for n in pair]
    w = reshape(b, w, [groups, inputs, outputs, *pairs])
    w = transpose(b, w, _order(rank))
    w = reshape(b, w, [outputs * groups * prod(strides), inputs, *taps])
    backwards = [-1] * rank
    return slice_axes(b, w, [ZERO, ZERO, *(t - 1 for t in taps)], w.dims, [1, 1, *backwards])


def _order(rank: int) -> list[int]:
    """[g, C/g, M/g, taps0, stride0, ...] -> [g, M/g, strides..., C/g, taps...]"""
    taps = [3 + 2 * i for i in range(rank)]
    return [0, 2, *(axis + 1 for axis in taps), 1, *taps]


def _constant(
    weights: Constant,
    groups: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    taps: Sequence[int],
) -> Constant:
    channels, outputs, *kernel = weights.shape
    lengths = [t * s for t, s in zip(taps, strides, strict=True)]
    shape = (outputs * groups * prod(strides), channels // groups, *taps)
    pairs = [n for pair in zip(taps, strides, strict=True) for n in pair]

    def load() -> np.ndarray:
        wide = np.zeros((channels, outputs, *lengths), weights.dtype)
        places = tuple(slice(0, (k - 1) * d + 1, d) for k, d in zip(kernel, dilations, strict=True))
        wide[(slice(None), slice(None), *places)] = weights.load()
        grouped = wide.reshape(groups, channels // groups, outputs, *pairs)
        ordered = grouped.transpose(_order(len(kernel))).reshape(shape)
        backwards = (slice(None, None, -1),) * len(kernel)
        return np.ascontiguousarray(ordered[(slice(None), slice(None), *backwards)])

    name = f"{weights.name}/taps" if weights.name else ""
    return Constant(shape, weights.elem_type, load, name=name)
