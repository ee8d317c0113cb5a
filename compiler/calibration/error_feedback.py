"""Error feedback: columns are rounded one by one, what each loses is made good by those to come.

GPTQ (Frantar et al. 2022) with the columns in the order of their energy and scales chosen before
(static groups), so that the order of columns is free. The layer's error, for inputs x of the
quantized model so far and f of the float one, is

    sum over rows |W f - Q x|^2  =  sum over rows |(V - Q) x|^2 + a constant,
    V = W + W D (X + damping)^-1,     X = sum of x x^T,  D = sum of (f - x) x^T

so that asymmetric calibration (GPTAQ, Li et al. 2025) is GPTQ of V, the weight that does best with
the inputs it gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.group_scales import WeightGroups
from numpy.typing import NDArray

from .moments import Moments

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 128  # columns whose errors reach the columns behind them by one product
DAMPING = 0.01  # of the mean of the second moments' diagonal
MOST_DAMPING = 10.0


@dataclass(frozen=True)
class Settings:
    """`asymmetry`: how much of the weight's shift towards V is taken, 0 to 1."""

    damping: float = DAMPING
    asymmetry: float = 1.0


class ColumnEncoder(Protocol):
    """Rounds the columns of one weight, in any order, each once."""

    def encode(self, column: int, x: F32) -> F32:
        """Round `x` [N]; what its codes stand for."""
        ...

    def finish(self) -> QuantizedTensor: ...


class ScalarEncoder:
    """Columns to the nearest codes, with scales and zero points that are chosen from `weight`.

    `importance` [K] weighs the columns in the search for scales.
    """

    def __init__(self, weight: F32, scheme: Scheme, importance: F32 | None) -> None:
        n, k = weight.shape
        self._scheme, self._size = scheme, scheme.group_size or k
        rows = weight if scheme.granularity != "tensor" else weight.reshape(1, -1)
        if scheme.granularity == "tensor" and importance is not None:
            importance = np.tile(importance, n)
        choice = WeightGroups.split(rows, scheme, importance).choose(search=True)
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
        return QuantizedTensor(codes, np.ascontiguousarray(self._scale), zero, self._scheme)


@dataclass(frozen=True)
class EncodedWeight:
    """Codes, and the squared error of the layer's outputs relative to their energy."""

    tensor: QuantizedTensor
    relative_error: float


def encode_weight(
    weight: F32, scheme: Scheme, moments: Moments, settings: Settings
) -> EncodedWeight:
    """The codes of `weight` [N, K] for inputs with `moments`."""
    target = shifted_weight(weight, moments, settings)
    importance = np.diagonal(moments.own).astype(np.float32)
    encoder = ScalarEncoder(target, scheme, importance)
    feed_back(target, moments, encoder, settings.damping)
    tensor = encoder.finish()
    error = output_error(target, tensor.dequantize(), moments)
    energy = float(np.sum(output_error(weight, np.zeros_like(weight), moments)))
    return EncodedWeight(tensor, float(np.sum(error)) / energy if energy > 0 else 0.0)


def shifted_weight(weight: F32, moments: Moments, settings: Settings) -> F32:
    """V above, `asymmetry` of the way from W; W itself where the models' inputs are the same."""
    if moments.drift is None or settings.asymmetry == 0:
        return weight
    damped = _damped(moments.own, settings.damping)
    shift = np.linalg.solve(damped, moments.drift.T @ weight.T.astype(np.float64)).T
    return (weight + settings.asymmetry * shift).astype(np.float32)


def feed_back(weight: F32, moments: Moments, encoder: ColumnEncoder, damping: float) -> None:
    """Round all columns of `weight` [N, K] with `encoder`, with feedback by `moments`."""
    k = weight.shape[1]
    order = np.argsort(-np.diagonal(moments.own), kind="stable")
    factor = _inverse_factor(moments.own[np.ix_(order, order)], damping).astype(np.float32)
    work = np.ascontiguousarray(weight[:, order].T)  # [K, N]: a column of the weight is a row
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        errors = np.empty((end - begin, weight.shape[0]), np.float32)
        for at in range(begin, end):
            rounded = encoder.encode(int(order[at]), work[at])
            errors[at - begin] = (work[at] - rounded) / factor[at, at]
            if at + 1 < end:
                work[at + 1 : end] -= np.outer(factor[at, at + 1 : end], errors[at - begin])
        if end < k:
            work[end:] -= factor[begin:end, end:].T @ errors


def output_error(weight: F32, rounded: F32, moments: Moments) -> F64:
    """Each output's squared error [N] over all rows, (w - q) X (w - q)^T."""
    lost = (weight - rounded).astype(np.float64)
    return np.einsum("nk,nk->n", lost @ moments.own, lost)


def _inverse_factor(moments: F64, damping: float) -> F64:
    """T, upper triangular, with T^T T the inverse of the damped moments.

    Singular moments (fewer rows than columns, dead columns) are damped more until it exists.
    """
    while True:
        damped = _damped(moments, damping)
        try:
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # damped = U U^T
        except np.linalg.LinAlgError:
            if damping > MOST_DAMPING:
                raise
            damping *= 10
            continue
        return np.linalg.solve(upper, np.eye(len(upper)))


def _damped(moments: F64, damping: float) -> F64:
    mean = float(np.mean(np.diagonal(moments)))
    return moments + (damping * mean if mean > 0 else 1.0) * np.eye(len(moments))
