"""Accuracy of a compiled model against the float model: pure functions over arrays.

The likelihood figures follow one protocol: fixed, non-overlapping windows with the context reset,
every token but a window's first predicted, and the difference between the two models paired by
window, so that its standard error does not contain the spread of the text itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Array = NDArray[Any]

CHUNK_TOKENS = 64


def cosine(expected: Array, actual: Array) -> F64:
    """Cosine of each pair of vectors along the last axis; 1 where both are zero, else 0."""
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~a.any(axis=-1) & ~b.any(axis=-1)
    dots = (a * b).sum(axis=-1)
    return np.where(norms > 0, dots / np.where(norms > 0, norms, 1), both_zero.astype(np.float64))


def top1_agreement(expected: Array, actual: Array) -> float:
    """Fraction of vectors along the last axis whose largest element is at the same place."""
    return float(np.mean(np.argmax(expected, axis=-1) == np.argmax(actual, axis=-1)))


def relative_error(expected: Array, actual: Array) -> float:
    """Largest absolute difference over the range (maximum - minimum) of `expected`.

    An `expected` without range is measured against its magnitude, at least 1.
    """
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if a.size == 0:
        return 0.0
    span = float(a.max() - a.min()) or max(float(np.abs(a).max()), 1.0)
    return float(np.abs(a - b).max()) / span


def log_sum_exp(logits: Array) -> F64:
    """log(sum(exp(x))) along the last axis; exponentials in f32 below the largest, sums in f64."""
    x = np.asarray(logits, np.float32)
    largest = x.max(axis=-1, keepdims=True)
    total = np.exp(x - largest).sum(axis=-1, dtype=np.float64)
    return np.asarray(largest[..., 0] + np.log(total), np.float64)


def split_windows(ids: Array, size: int, limit: int | None = None) -> Array:
    """Token ids as non-overlapping windows [count, size]; what does not fill one is dropped."""
    count = len(ids) // size
    if limit is not None:
        count = min(count, limit)
    return np.asarray(ids)[: count * size].reshape(count, size)


@dataclass(frozen=True)
class WindowLikelihood:
    """Means over one window's predicted tokens, in nats."""

    tokens: int
    nll_expected: float
    nll_actual: float
    kl: float
    agreement: float


class WindowReference:
    """The float model's distributions on one window, to which any number of models is compared.

    `logits` [tokens, vocabulary] of the window `ids` [tokens]; position t predicts ids[t + 1].
    Exponentials are taken in f32 and summed in f64: logits are f32 at best.
    """

    def __init__(self, logits: Array, ids: Array) -> None:
        self.targets = np.asarray(ids)[1:]
        self.logits = np.asarray(logits[:-1], np.float32)
        self.normalizers = log_sum_exp(self.logits)
        self.nll = float((self.normalizers - self._of_targets(self.logits, slice(None))).mean())

    def compare(self, logits: Array) -> WindowLikelihood:
        """Figures of another model's `logits`; KL is from the float model's to its distribution."""
        tokens = len(self.targets)
        nll = kl = hits = 0.0
        for begin in range(0, tokens, CHUNK_TOKENS):  # a whole window takes 100 MB a step
            part = slice(begin, min(begin + CHUNK_TOKENS, tokens))
            x, y = self.logits[part], np.asarray(logits[part], np.float32)
            normalizers = log_sum_exp(y)
            nll += float((normalizers - self._of_targets(y, part)).sum())
            # sum p (log p - log q), with log p = x - log sum exp x
            p = np.exp(x - self.normalizers[part, None].astype(np.float32))
            with np.errstate(invalid="ignore"):  # -inf - -inf, where p is 0
                difference = np.where(p > 0, x - y, np.float32(0))
            kl += float((p * difference).sum(dtype=np.float64))
            kl += float((normalizers - self.normalizers[part]).sum())
            hits += float((x.argmax(-1) == y.argmax(-1)).sum())
        return WindowLikelihood(tokens, self.nll, nll / tokens, kl / tokens, hits / tokens)

    def _of_targets(self, logits: Array, part: slice) -> F64:
        chosen = np.take_along_axis(logits, self.targets[part, None], -1)
        return np.asarray(chosen[:, 0], np.float64)


def window_likelihood(expected: Array, actual: Array, ids: Array) -> WindowLikelihood:
    """Compare two models' logits [tokens, vocabulary] on the window `ids` [tokens]."""
    return WindowReference(expected, ids).compare(actual)


@dataclass(frozen=True)
class Likelihood:
    """Windows summed up. `nll_difference` is actual - expected, its standard error over windows.

    The error is None for a single window.
    """

    windows: int
    tokens: int
    perplexity_expected: float
    perplexity_actual: float
    nll_difference: float
    standard_error: float | None
    kl: float
    agreement: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(windows: Sequence[WindowLikelihood]) -> Likelihood:
    """All windows have the same number of tokens and weigh the same; there is at least one."""
    difference = np.array([w.nll_actual - w.nll_expected for w in windows])
    count = len(windows)
    return Likelihood(
        windows=count,
        tokens=sum(w.tokens for w in windows),
        perplexity_expected=exp(float(np.mean([w.nll_expected for w in windows]))),
        perplexity_actual=exp(float(np.mean([w.nll_actual for w in windows]))),
        nll_difference=float(difference.mean()),
        standard_error=float(difference.std(ddof=1)) / sqrt(count) if count > 1 else None,
        kl=float(np.mean([w.kl for w in windows])),
        agreement=float(np.mean([w.agreement for w in windows])),
    )


@dataclass(frozen=True)
class OutputAccuracy:
    """One output over all samples; `cosine` (mean) and `worst` are over its last axis."""

    name: str
    vectors: int
    cosine: float
    worst: float
    top1: float
    error: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class OutputTotals:
    """Sums up one output over runs; nothing of the size of the output is kept.

    Where an output is [batch, seq, ...] and a run's attention mask [batch, seq] is given, only the
    positions that it shows count: what stands at the others means nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cosines: list[F64] = []
        self.hits = 0
        self.error = 0.0

    def add(self, expected: Array, actual: Array, mask: Array | None) -> None:
        e, a = visible(expected, mask), visible(actual, mask)
        self.cosines.append(cosine(e, a).ravel())
        self.hits += int((e.argmax(-1) == a.argmax(-1)).sum())
        self.error = max(self.error, relative_error(e, a))

    def result(self) -> OutputAccuracy:
        cosines = np.concatenate(self.cosines)
        return OutputAccuracy(
            name=self.name,
            vectors=len(cosines),
            cosine=float(cosines.mean()),
            worst=float(cosines.min()),
            top1=self.hits / len(cosines),
            error=self.error,
        )


def visible(values: Array, mask: Array | None) -> Array:
    """`values` [batch, seq, ...] where `mask` [batch, seq] is not 0; whole without such a mask."""
    if mask is None or values.ndim < 3 or values.shape[:2] != mask.shape:
        return values
    return values[mask != 0]


@dataclass(frozen=True)
class TaskAccuracy:
    """Fraction of labels that the arg-max of an output meets, for both models."""

    output: str
    labels: int
    expected: float
    actual: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def label_hits(scores: Array, labels: Array) -> int:
    """How often the largest of `scores` [..., classes] stands where `labels` [...] says.

    Negative labels are no labels: they never count.
    """
    return int(((scores.argmax(-1) == labels) & (labels >= 0)).sum())
