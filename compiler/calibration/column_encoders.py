"""Rounding a weight column by column, in any order, with scales that are chosen before."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from abqc.dialects import trellis_weight
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.group_scales import Choice, WeightGroups
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class ColumnEncoder(Protocol):
    """Rounds the columns of one weight, in any order, each once."""

    def encode(self, column: int, x: F32) -> F32:
        """Round `x` [N]; what its codes stand for."""
        ...

    def finish(self) -> QuantizedTensor: ...


def encoder_for(
    weight: F32, scheme: Scheme, importance: F32 | None, choice: Choice | None = None
) -> ColumnEncoder:
    """An encoder for the format, with scales chosen from `weight` [N, K].

    `importance` [K] weighs the columns in the search for scales. `choice`, where it is given, are
    the scales of a scalar format.
    """
    if scheme.format.kind == "trellis":
        scale = trellis_weight.searched_scale(weight, scheme, importance)
        return trellis_weight.ColumnEncoder(scheme, weight.shape[1], scale)
    return ScalarEncoder(weight, scheme, importance, choice)


class ScalarEncoder:
    """Columns to the nearest codes, with scales and zero points that are chosen from `weight`.

    `importance` [K] weighs the columns in the search for scales. `choice` are these where they are
    known.
    """

    def __init__(
        self, weight: F32, scheme: Scheme, importance: F32 | None, choice: Choice | None = None
    ) -> None:
        n, k = weight.shape
        self._scheme, self._size = scheme, scheme.group_size or k
        rows = weight if scheme.granularity != "tensor" else weight.reshape(1, -1)
        if scheme.granularity == "tensor" and importance is not None:
            importance = np.tile(importance, n)
        if choice is None:
            choice = WeightGroups.split(rows, scheme, importance).choose(search=True)
        self._tensor_scale = choice.tensor_scale
        self._scale = np.broadcast_to(choice.scale, (n, choice.scale.shape[1]))
        self._zero = None
        if choice.zero is not None:
            self._zero = np.broadcast_to(choice.zero, (n, choice.zero.shape[1]))
        self._codes = np.empty((k, n), scheme.format.dtype)  # a column is contiguous

    def encode(self, column: int, x: F32) -> F32:
        group = column // self._size
        scale = self._scale[:, group].astype(np.float32)
        zero = None if self._zero is None else self._zero[:, group].astype(np.float32)
        codes = self._scheme.format.encode(x, scale, zero)
        self._codes[column] = codes
        return self._scheme.format.decode(codes, scale, zero)

    def finish(self) -> QuantizedTensor:
        zero = None if self._zero is None else np.ascontiguousarray(self._zero)
        codes = np.ascontiguousarray(self._codes.T)
        scale = np.ascontiguousarray(self._scale)
        return QuantizedTensor(codes, scale, zero, self._scheme, self._tensor_scale)
