"""Error feedback: columns are rounded one by one, what each loses is made good by those to come.

GPTQ (Frantar et al. 2022) with the columns in the order of their energy and scales chosen before
(static groups), so that the order of columns is free. The layer's error, for inputs x of the
quantized model so far and f of the float one, is

    sum over rows |W f - Q x|^2  =  sum over rows |(V - Q) x|^2 + a constant,
    V = W + W D (X + damping)^-1,     X = sum of x x^T,  D = sum of (f - x) x^T

so that asymmetric calibration (GPTAQ, Li et al. 2025) is GPTQ of V, the weight that does best with
the inputs it gets. Where the output is added to a residual stream, W D is the sum of e x^T, with e
the difference of the streams in front of the rounding: V then also makes good for what its inputs
foretell of the errors that the stream brings along.

What feedback leaves is reduced by sweeps of coordinate descent: every column is rounded again, with
all others as they are, to where the whole error is least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from numpy.typing import NDArray

from .column_encoders import ColumnEncoder, encoder_for
from .moments import Excess, Moments

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 64  # columns whose errors reach the columns behind them by one product
DAMPING = 0.01  # of the mean of the second moments' diagonal
MOST_DAMPING = 10.0


@dataclass(frozen=True)
class Settings:
    """`asymmetry`: how much of the weight's shift towards V is taken, 0 to 1.

    `sweeps` of coordinate descent follow the feedback.
    """

    damping: float = DAMPING
    asymmetry: float = 1.0
    sweeps: int = 2


@dataclass(frozen=True)
class EncodedWeight:
    """Codes, and the squared error of the layer's outputs relative to their energy.

    `activations` are the scale and zero point of static activations.
    """

    tensor: QuantizedTensor
    relative_error: float
    activations: tuple[float, float] | None = None


class Feedback:
    """What all weights that read the same inputs share: the moments' damped inverse.

    `order` are the columns by falling energy, and T, `factor`, is upper triangular with T^T T the
    inverse of the damped moments in that order; `importance` [K] is what an error of each column
    costs after feedback. Singular moments (fewer rows than columns, dead
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
        self.importance = np.empty(len(self.order), np.float32)
        self.importance[self.order] = np.diagonal(self.factor) ** -2

    def encode(self, weight: F32, scheme: Scheme, excess: Excess | None = None) -> EncodedWeight:
        """The codes of `weight` [N, K] in `scheme`."""
        target = self.shifted(weight, excess)
        encoder = encoder_for(target, scheme, self.importance)
        rounded = self.round(target, encoder)
        # Trellis codes gain less than a hundredth from sweeps, and take the longest to encode.
        for _ in range(0 if scheme.format.kind == "trellis" else self.settings.sweeps):
            self.sweep(target, rounded, encoder)
        tensor = encoder.finish()
        error = output_error(target, tensor.dequantize(), self.moments)
        energy = float(np.sum(output_error(weight, np.zeros_like(weight), self.moments)))
        return EncodedWeight(tensor, float(np.sum(error)) / energy if energy > 0 else 0.0)

    def shifted(self, weight: F32, excess: Excess | None = None) -> F32:
        """V above, `asymmetry` of the way from W; W where the two models' inputs are the same."""
        drift = self.moments.drift
        if self.settings.asymmetry == 0:
            return weight
        if excess is not None:
            product: NDArray[np.floating] = excess.sum
        elif drift is not None:
            product = weight @ drift.astype(np.float32)
        else:
            return weight
        product = product[:, self.order].astype(np.float32)
        shift = np.empty_like(weight)
        shift[:, self.order] = (product @ self.factor.T) @ self.factor
        return weight + np.float32(self.settings.asymmetry) * shift

    def round(self, weight: F32, encoder: ColumnEncoder) -> F32:
        """Round all columns of `weight` [N, K] with `encoder`, each error fed back; the result."""
        n, k = weight.shape
        result = np.empty((k, n), np.float32)
        work = np.ascontiguousarray(weight[:, self.order].T)  # a column of the weight is a row
        for begin in range(0, k, BLOCK):
            end = min(begin + BLOCK, k)
            errors = np.empty((end - begin, n), np.float32)
            for at in range(begin, end):
                error, column = errors[at - begin], int(self.order[at])
                result[column] = encoder.encode(column, work[at])
                np.divide(work[at] - result[column], self.factor[at, at], out=error)
                work[at + 1 : end] -= np.outer(self.factor[at, at + 1 : end], error)
            work[end:] -= self.factor[begin:end, end:].T @ errors
        return result.T

    def sweep(self, weight: F32, rounded: F32, encoder: ColumnEncoder) -> None:
        """One sweep of coordinate descent from `rounded` [N, K], which it changes."""
        own = _damped(self.moments.own, self.settings.damping).astype(np.float32)
        own = own[np.ix_(self.order, self.order)]
        scale = 1 / np.diagonal(own)
        lost = np.ascontiguousarray((weight - rounded)[:, self.order].T)  # [K, N]
        for begin in range(0, len(own), BLOCK):
            end = min(begin + BLOCK, len(own))
            pull = own[begin:end] @ lost  # what the other columns' losses ask of these
            for at in range(begin, end):
                column = int(self.order[at])
                target = rounded[:, column] + scale[at] * pull[at - begin]
                changed = encoder.encode(column, target)
                delta = changed - rounded[:, column]
                rounded[:, column] = changed
                lost[at] -= delta
                pull[at - begin + 1 :] -= np.outer(own[at + 1 : end, at], delta)


def output_error(weight: F32, rounded: F32, moments: Moments) -> F64:
    """Each output's squared error [N] over all rows, (w - q) X (w - q)^T."""
    lost = (weight - rounded).astype(np.float64)
    return np.einsum("nk,nk->n", lost @ moments.own, lost)


def _damped(moments: F64, damping: float) -> F64:
    mean = float(np.mean(np.diagonal(moments)))
    return moments + (damping * mean if mean > 0 else 1.0) * np.eye(len(moments))
