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

A bias makes good for what codes change in the mean of the outputs (bias correction, Nagel et al.
2019), so that x, f and e are taken less their means: only what varies is left to the codes.

What feedback leaves is reduced by sweeps of coordinate descent: every column is rounded again, with
all others as they are, to where the whole error is least.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from abqc.dialects.formats import QuantizedTensor, Scheme
from abqc.dialects.group_scales import Choice
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

    `sweeps` of coordinate descent follow the feedback; `bias` says that a bias takes the means,
    `shift` that the inputs come without theirs too.
    """

    damping: float = DAMPING
    asymmetry: float = 1.0
    sweeps: int = 2
    bias: bool = True
    shift: bool = False


@dataclass(frozen=True)
class EncodedWeight:
    """Codes, and the squared error of the layer's outputs relative to their energy.

    `bias` [N] is what outputs lack in the mean; None where they are as the codes give them. `shift`
    [K] is what is taken off the inputs before, `balance` [K] by what they are divided before that.
    `activations` are the scale and zero point of static activations.
    """

    tensor: QuantizedTensor
    relative_error: float
    bias: F32 | None = None
    activations: tuple[float, float] | None = None
    shift: F32 | None = None
    balance: F32 | None = None


class Feedback:
    """What all weights that read the same inputs share: the moments' damped inverse.

    `moments` are those of the inputs less their means where a bias takes these.

    `order` are the columns by falling energy, and T, `factor`, is upper triangular with T^T T the
    inverse of the damped moments in that order; `importance` [K] is what an error of each column
    costs after feedback. Singular moments (fewer rows than columns, dead
    columns) are damped more until T exists.
    """

    def __init__(self, moments: Moments, settings: Settings) -> None:
        self.sums, self.settings = moments, settings
        self.moments = moments = moments.centred() if settings.bias else moments
        self.order = np.argsort(-np.diagonal(moments.own), kind="stable")

    @cached_property
    def factor(self) -> F32:
        """T, for which weights that are only judged do not ask."""
        damping = self.settings.damping
        while True:
            damped = _damped(self.moments.own, damping)[np.ix_(self.order, self.order)]
            try:
                upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # damped = U U^T
            except np.linalg.LinAlgError:
                if damping > MOST_DAMPING:
                    raise
                damping *= 10
                continue
            break
        return triangular_inverse(upper).astype(np.float32)

    @cached_property
    def importance(self) -> F32:
        """[K], what an error of each column costs after feedback."""
        importance = np.empty(len(self.order), np.float32)
        importance[self.order] = np.diagonal(self.factor) ** -2
        return importance

    def encode(
        self,
        weight: F32,
        scheme: Scheme,
        excess: Excess | None = None,
        choice: Choice | None = None,
    ) -> EncodedWeight:
        """The codes of `weight` [N, K] in `scheme`; `choice` has their scales, if known."""
        target = self.shifted(weight, excess)
        encoder = encoder_for(target, scheme, self.importance, choice)
        rounded = self.round(target, encoder)
        # Trellis codes gain less than a hundredth from sweeps, and take the longest to encode.
        for _ in range(0 if scheme.format.kind == "trellis" else self.settings.sweeps):
            self.sweep(target, rounded, encoder)
        return self.judge(weight, encoder.finish(), excess, target)

    def judge(
        self,
        weight: F32,
        tensor: QuantizedTensor,
        excess: Excess | None = None,
        target: F32 | None = None,
    ) -> EncodedWeight:
        """What codes of `weight` make of its outputs; `target` is the weight that is best."""
        rounded = tensor.dequantize()
        target = self.shifted(weight, excess) if target is None else target
        error = float(np.sum(output_error(target, rounded, self.moments)))
        energy = float(np.sum(output_error(weight, np.zeros_like(weight), self.moments)))
        relative = error / energy if energy > 0 else 0.0
        return EncodedWeight(tensor, relative, self.bias(weight, rounded, excess))

    def bias(self, weight: F32, rounded: F32, excess: Excess | None = None) -> F32 | None:
        """What the outputs of `rounded` lack in the mean [N] against those asked for."""
        if not self.settings.bias or not self.sums.weight:
            return None
        lost = weight @ (self.sums.total + self.sums.lack)
        if not self.settings.shift:
            lost -= rounded @ self.sums.total
        if excess is not None:
            lost += excess.total
        return (lost / self.sums.weight).astype(np.float32)

    def shifted(self, weight: F32, excess: Excess | None = None) -> F32:
        """V above, `asymmetry` of the way from W; W where the two models' inputs are the same."""
        drift = self.moments.drift
        if self.settings.asymmetry == 0 or (excess is None and drift is None):
            return weight
        product = np.zeros(weight.shape, np.float32)
        if excess is not None:
            product += (excess.centred(self.sums) if self.settings.bias else excess).product
        if drift is not None:
            product += weight @ drift.astype(np.float32)
        shift = np.empty_like(weight)
        shift[:, self.order] = (product[:, self.order] @ self.factor.T) @ self.factor
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


def triangular_inverse(upper: NDArray[Any]) -> NDArray[Any]:
    """Of an upper triangular matrix, by products of halves: numpy has none of its own."""
    k = len(upper)
    if k <= BLOCK:
        return np.linalg.inv(upper)
    half = k // 2
    first, last = (triangular_inverse(upper[part, part]) for part in np.s_[:half, half:])
    result = np.zeros((k, k))
    result[:half, :half], result[half:, half:] = first, last
    result[:half, half:] = -first @ (upper[:half, half:] @ last)
    return result
