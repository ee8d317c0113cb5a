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

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from numpy.typing import NDArray

from .column_encoders import ColumnEncoder, encoder_for
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
    encoder = encoder_for(target, scheme, importance)
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
