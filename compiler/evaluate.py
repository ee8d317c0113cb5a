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


def log_softmax(logits: Array) -> F64:
    """log(softmax(x)) along the last axis, in f64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


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


def window_likelihood(expected: Array, actual: Array, ids: Array) -> WindowLikelihood:
    """Compare two models' logits [tokens, vocabulary] on the window `ids` [tokens].

    Position t predicts ids[t + 1]; KL is from the expected to the actual distribution.
    """
    p, q = log_softmax(expected[:-1]), log_softmax(actual[:-1])
    targets = np.asarray(ids)[1:, None]
    return WindowLikelihood(
        tokens=len(targets),
        nll_expected=-float(np.take_along_axis(p, targets, -1).mean()),
        nll_actual=-float(np.take_along_axis(q, targets, -1).mean()),
        kl=float((np.exp(p) * (p - q)).sum(-1).mean()),
        agreement=top1_agreement(p, q),
    )


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


def output_accuracy(
    name: str, expected: Sequence[Array], actual: Sequence[Array], masks: Sequence[Array | None]
) -> OutputAccuracy:
    """Compare one output over several runs.

    `masks` has a run's attention mask [batch, seq], or None. Where an output is [batch, seq, ...],
    only the positions that the mask shows count: what stands at the others means nothing.
    """
    chosen = [
        (_visible(e, mask), _visible(a, mask))
        for e, a, mask in zip(expected, actual, masks, strict=True)
    ]
    cosines = np.concatenate([cosine(e, a).ravel() for e, a in chosen])
    hits = np.concatenate([(e.argmax(-1) == a.argmax(-1)).ravel() for e, a in chosen])
    return OutputAccuracy(
        name=name,
        vectors=len(cosines),
        cosine=float(cosines.mean()),
        worst=float(cosines.min()),
        top1=float(hits.mean()),
        error=max(relative_error(e, a) for e, a in chosen),
    )


def _visible(values: Array, mask: Array | None) -> Array:
    if mask is None or values.ndim < 3 or values.shape[:2] != mask.shape:
        return values
    return values[mask != 0]
