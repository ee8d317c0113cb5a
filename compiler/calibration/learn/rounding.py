"""Rounding to codes that gradients pass, in PyTorch.

Forward it is what the formats do (`dialects/formats.py`, docs/numerics.md), to the bit but for the
order of roundings in scales. Backward what is rounded counts as if it were not (straight-through
estimator, Bengio et al. 2013), and what is clipped is constant. So a scale learns from what
rounding makes of the values that share it (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from abqc.dialects import hadamard
from abqc.dialects.group_scales import Choice, WeightGroups
from abqc.dialects.number_formats import NumberFormat
from abqc.dialects.scale_types import SCALE_TYPES, tensor_scale_of
from abqc.dialects.schemes import Scheme
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Tensor = Any  # torch.Tensor, where torch is there


def learns_range(scheme: Scheme) -> bool:
    """Whether a weight's scales follow from the ranges of its groups, so that these can be learned.

    Those of signs are means, those of trellis codes are of all of a channel's symbols, and one of a
    whole tensor leaves little to learn.
    """
    return scheme.format.kind not in ("binary", "trellis") and scheme.granularity != "tensor"


def round_rows(x: Tensor, scheme: Scheme, image_rows: int = 1) -> Tensor:
    """Rows [R, K] as codes give them back, with scales that are found at run time.

    A format with one scale for a tensor takes that of these rows. `image_rows` is how many share
    one where the format has one scale an image.
    """
    format = scheme.format
    if scheme.group_size is not None:
        return _round_blocks(x, scheme)
    shared = {"token": 1, "image": image_rows, "tensor": len(x)}[scheme.granularity]
    blocks = x.reshape(len(x) // shared, -1)
    if format.kind == "binary":
        scale = blocks.abs().mean(1, keepdim=True)
        return (_sign(blocks) * scale).reshape(x.shape)
    low = blocks.amin(1, keepdim=True).clamp(max=0) * format.clip
    high = blocks.amax(1, keepdim=True).clamp(min=0) * format.clip
    if format.symmetric:
        scale = _or_one(torch.maximum(high, -low) / format.qmax)
        return (_nearest(blocks / scale, format) * scale).reshape(x.shape)
    scale = _or_one((high - low) / format.qmax)
    zero = _rounded(-low / scale).clamp(0, format.qmax)
    return ((_nearest(blocks / scale, format, zero) - zero) * scale).reshape(x.shape)


def _round_blocks(x: Tensor, scheme: Scheme) -> Tensor:
    size, k = scheme.group_size, x.shape[1]
    assert size is not None
    blocks = torch.nn.functional.pad(x, (0, -k % size)).reshape(len(x), -1, size)
    reach = blocks.detach().abs().amax(2, keepdim=True).numpy()
    scale = _tensor(SCALE_TYPES[scheme.scale].by_reach(reach, scheme.format.largest, 1.0))
    values = _nearest(blocks / scale, scheme.format) * scale
    return values.reshape(len(x), -1)[:, :k]


@dataclass
class LearnedRange:
    """The ranges of a weight's groups, low and high [N, G], as factors of what is there.

    The factors' logarithms are learned, from where a search for the least squared error of the
    weight begins (`WeightGroups`).
    """

    scheme: Scheme
    low: Tensor
    high: Tensor

    @staticmethod
    def of(weight: F32, scheme: Scheme) -> LearnedRange:
        """`weight` [N, K] is what is encoded."""
        all_of_it = torch.zeros(len(weight), scheme.n_groups(weight.shape[1]))
        whole = LearnedRange(scheme, all_of_it, all_of_it).choice(_tensor(weight)).scale
        found = WeightGroups.split(weight, scheme).choose(search=True).scale
        start = np.log(found.astype(np.float32) / whole.astype(np.float32))
        low, high = (torch.tensor(start, requires_grad=True) for _ in range(2))
        return LearnedRange(scheme, low, high)

    def round(self, weight: Tensor) -> Tensor:
        """What the codes of `weight` [N, K] stand for, with these ranges."""
        scale, zero, _ = self._scales(weight)
        n, k = weight.shape
        values = _nearest(self._groups(weight) / scale, self.scheme.format, zero)
        if zero is not None:
            values = values - zero
        return (values * scale).reshape(n, -1)[:, :k]

    def choice(self, weight: Tensor) -> Choice:
        """The scales and zero points of these ranges, as they are stored."""
        with torch.no_grad():
            scale, zero, tensor_scale = self._scales(weight)
        stored = scale[:, :, 0].numpy().astype(self.scheme.scale_dtype)
        zeros = None if zero is None else zero[:, :, 0].numpy().astype(np.uint8)
        return Choice(stored, zeros, tensor_scale)

    def _groups(self, weight: Tensor) -> Tensor:
        n, k = weight.shape
        size = self.scheme.group_size or k
        if k % size:
            weight = torch.nn.functional.pad(weight, (0, -k % size))
        return weight.reshape(n, -1, size)

    def _scales(self, weight: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """Scales [N, G, 1], zero points, and what e4m3 scales are multiples of."""
        format, type_ = self.scheme.format, SCALE_TYPES[self.scheme.scale]
        groups = self._groups(weight)
        low = groups.amin(2).clamp(max=0) * self.low.exp()
        high = groups.amax(2).clamp(min=0) * self.high.exp()
        tensor_scale = 1.0
        if self.scheme.scale == "e4m3":
            largest = float(weight.detach().abs().max())
            tensor_scale = tensor_scale_of("e4m3", largest, format.largest)
        if format.symmetric:
            reach = torch.maximum(high, -low)
            scale = _replaced(
                reach / format.largest,
                type_.by_reach(reach.detach().numpy(), format.largest, tensor_scale),
            )
            return scale[:, :, None], None, tensor_scale
        span = (high - low) / format.qmax
        scale = _replaced(span, type_.nearest(span.detach().numpy(), tensor_scale))
        zero = _rounded(-low / scale).clamp(0, format.qmax)
        return scale[:, :, None], zero[:, :, None], tensor_scale


def rotate(x: Tensor, block: int) -> Tensor:
    """`hadamard.transform`: every run of `block` elements of the last axis."""
    if not block:
        return x
    bases, power = hadamard.split_block(block)
    sizes = [*bases, power]
    y = x.reshape(-1, *sizes)
    for axis, size in enumerate(sizes, 1):
        if size > 1:
            h = _tensor(_matrix(size))
            y = (y.movedim(axis, -1) @ h.T).movedim(-1, axis)
    return y.reshape(x.shape)


def _matrix(size: int) -> F32:
    return (hadamard.matrix(size) / np.sqrt(size)).astype(np.float32)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


class _Replaced(torch.autograd.Function):
    """The second argument forward, the gradient of the first backward."""

    @staticmethod
    def forward(context: Any, value: Tensor, by: Tensor) -> Tensor:
        return by

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _replaced(value: Tensor, by: np.ndarray | Tensor) -> Tensor:
    """`by` forward; backward it counts as `value`."""
    other = by.detach() if isinstance(by, torch.Tensor) else _tensor(by)
    return _Replaced.apply(value, other)


def _rounded(value: Tensor) -> Tensor:
    return _replaced(value, torch.round(value))


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _sign(x: Tensor) -> Tensor:
    sign = torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))
    return _replaced(x.clamp(-1, 1), sign)


def _nearest(steps: Tensor, format: NumberFormat, zero: Tensor | None = None) -> Tensor:
    """The format's value nearest to `steps`, in units of the scale; with a zero point, added to
    what is rounded before, the code."""
    if zero is not None:
        steps = _rounded(steps) + zero
    lowest, highest = _bounds(format)
    return _replaced(
        steps.clamp(lowest, highest), format.nearest(format, steps.detach().numpy().copy())
    )


def _bounds(format: NumberFormat) -> Sequence[float]:
    if format.indexed:
        return float(np.nanmin(format.values)), float(np.nanmax(format.values))
    return float(format.qmin), float(format.qmax)
