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

BLOCK = 64  # columns whose errors reach the columns behind them by one product
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


class Feedback:
    """What all weights that read the same inputs share: the moments' damped inverse.

    `order` are the columns by falling energy, and T, `factor`, is upper triangular with T^T T the
    inverse of the damped moments in that order. Singular moments (fewer rows than columns, dead
    columns) are damped more until T exists.
    """

    def __init__(self, moments: Moments, settings: Settings) -> None:
        self.moments, self.settings = moments, settings
        self.order = np.argsort(-np.diagonal(moments.own), kind="stable")
        damping = settings.damping
        while True:
            damped = _damped(moments.own, damping)[np.ix_(self.order, self.order)]
            try:
                upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # damped = U U^T
            except np.linalg.LinAlgError:
                if damping > MOST_DAMPING:
                    raise
                damping *= 10
                continue
            break
        self.factor = np.linalg.solve(upper, np.eye(len(upper))).astype(np.float32)

    def encode(self, weight: F32, scheme: Scheme) -> EncodedWeight:
        """The codes of `weight` [N, K] in `scheme`."""
        target = self.shifted(weight)
        importance = np.diagonal(self.moments.own).astype(np.float32)
        encoder = encoder_for(target, scheme, importance)
        self.round(target, encoder)
        tensor = encoder.finish()
        error = output_error(target, tensor.dequantize(), self.moments)
        energy = float(np.sum(output_error(weight, np.zeros_like(weight), self.moments)))
        return EncodedWeight(tensor, float(np.sum(error)) / energy if energy > 0 else 0.0)

    def shifted(self, weight: F32) -> F32:
        """V above, `asymmetry` of the way from W; W where the two models' inputs are the same."""
        drift = self.moments.drift
        if drift is None or self.settings.asymmetry == 0:
            return weight
        product = (weight @ drift.astype(np.float32))[:, self.order]
        shift = np.empty_like(weight)
        shift[:, self.order] = (product @ self.factor.T) @ self.factor
        return weight + np.float32(self.settings.asymmetry) * shift

    def round(self, weight: F32, encoder: ColumnEncoder) -> None:
        """Round all columns of `weight` [N, K] with `encoder`, each error fed back."""
        n, k = weight.shape
        work = np.ascontiguousarray(weight[:, self.order].T)  # a column of the weight is a row
        for begin in range(0, k, BLOCK):
            end = min(begin + BLOCK, k)
            errors = np.empty((end - begin, n), np.float32)
            for at in range(begin, end):
                error = errors[at - begin]
                rounded = encoder.encode(int(self.order[at]), work[at])
                np.divide(work[at] - rounded, self.factor[at, at], out=error)
                work[at + 1 : end] -= np.outer(self.factor[at, at + 1 : end], error)
            work[end:] -= self.factor[begin:end, end:].T @ errors


def output_error(weight: F32, rounded: F32, moments: Moments) -> F64:
    """Each output's squared error [N] over all rows, (w - q) X (w - q)^T."""
    lost = (weight - rounded).astype(np.float64)
    return np.einsum("nk,nk->n", lost @ moments.own, lost)


def _damped(moments: F64, damping: float) -> F64:
    mean = float(np.mean(np.diagonal(moments)))
    return moments + (damping * mean if mean > 0 else 1.0) * np.eye(len(moments))
