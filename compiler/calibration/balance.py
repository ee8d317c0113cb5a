"""Scale migration: factors s [K] that share what is hard between x / s and W diag(s).

Candidates are families of one exponent: SmoothQuant's (Xiao et al. 2022), which looks at both
sides, and AWQ's (Lin et al. 2023), which looks at what is read alone,

    s_j = max|x_j|^a / max|w_j|^(1 - a)        s_j = mean|x_j|^a

and no balance at all. The one is taken that leaves the least squared error of the outputs, of
weights and activations that are both quantized, over a sample of rows and of output channels; all
products that read the same rows share it, and count by their errors relative to their energies.
Where error feedback follows, what rounding a column will cost is known from the second moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from abqc.dialects import hadamard
from abqc.dialects.formats import (
    FORMATS,
    Scheme,
    quantize_activation,
    quantize_weight,
    round_activation,
)
from numpy.typing import NDArray

from .ranges import Range, Static
from .row_sample import RowSample

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EXPONENTS = np.linspace(0, 1, 11)
OUTPUTS = 64  # channels of a weight that errors are estimated from
LEAST = 0.1  # of the median: what channels count for that the data hardly use; others may use them
GAIN = 0.95  # of the error without balance: what is closer to it is not worth a division


@dataclass(frozen=True)
class Reader:
    """A product that reads the rows: its weight [N, K] and how both sides are quantized.

    `activation` None: rows stay float; with `static` they have one scale for all. `block` is that
    of the Hadamard transform behind the division. `search` is how a weight that is rounded to
    nearest gets its scales; `importance` [K], in place of that, what rounding errors of the columns
    cost after feedback (`Feedback.importance`). `mean` [K] is taken off the rows before.
    """

    weight: F32
    scheme: Scheme
    activation: Scheme | None
    static: Static | None = None
    block: int = 0
    search: bool = False
    importance: F32 | None = None
    mean: F32 | None = None


def choose_factors(readers: Sequence[Reader], sample: RowSample, total: float) -> F32 | None:
    """The factors [K], positive, of the least error; None where a balance gains nothing.

    `total` is what all rows count for together, of which `sample` has some.
    """
    rows, weights = sample.rows, sample.weights
    if not len(rows) or not weights.any():
        return None
    weights *= np.float32(total / weights.sum())
    errors = [_Errors.of(reader, rows, weights) for reader in readers]

    def error(factors: F32) -> float:
        return sum(each.relative(factors) for each in errors)

    best, least = None, GAIN * error(np.ones(sample.k, np.float32))
    for factors in candidates(readers, sample):
        found = error(factors)
        if found < least:
            best, least = factors, found
    return best


def candidates(readers: Sequence[Reader], sample: RowSample) -> Iterator[F32]:
    """Factors of both families, whose geometric mean is 1."""
    shifted = [reader.mean for reader in readers if reader.mean is not None]
    mean = shifted[0] if shifted else np.zeros(sample.k, np.float32)
    reach = np.maximum(np.abs(sample.high - mean), np.abs(sample.low - mean))
    size = np.abs(sample.rows - mean).mean(axis=0)
    largest = np.max([np.abs(reader.weight).max(axis=0) for reader in readers], axis=0)
    reach, size, largest = (np.log(_at_least(each)) for each in (reach, size, largest))
    for a in EXPONENTS:
        yield _normalized(a * reach - (1 - a) * largest)
    for a in EXPONENTS[1:]:
        yield _normalized(a * size)


def of_channels(sample: RowSample, symmetric: bool) -> F32 | None:
    """The factors that give every channel the same range: a static scale for each of them. None
    without rows."""
    if not sample.seen:
        return None
    low, high = np.minimum(sample.low, 0), np.maximum(sample.high, 0)
    ranges = np.maximum(high, -low) if symmetric else high - low
    return _normalized(np.log(_at_least(ranges)))


def balanced_range(sample: RowSample, factors: F32 | None, block: int) -> Range:
    """The range of the rows divided by `factors` (None: 1): exact where nothing rotates them, else
    that of the sample."""
    found = Range(block)
    if factors is None:
        factors = np.ones(sample.k, np.float32)
    found.add(sample.rows / factors)
    if not block and sample.seen:
        found.low = min(found.low, float((sample.low / factors).min()))
        found.high = max(found.high, float((sample.high / factors).max()))
    return found


def _at_least(statistic: F32) -> F64:
    """What is large enough that rows with a channel that the data do not use stay in range."""
    used = statistic[statistic > 0]
    floor = LEAST * float(np.median(used)) if used.size else 1.0
    return np.maximum(statistic, floor).astype(np.float64)


def _normalized(logarithm: F64) -> F32:
    return np.exp(logarithm - logarithm.mean()).astype(np.float32)


@dataclass(frozen=True)
class _Errors:
    """What quantization does to some outputs of a product over the sampled rows."""

    reader: Reader
    rows: F32  # less their mean, where that is taken off
    weights: F32  # of rows
    energy: float

    @staticmethod
    def of(reader: Reader, rows: F32, weights: F32) -> _Errors:
        n = len(reader.weight)
        outputs = np.linspace(0, n - 1, min(n, OUTPUTS)).astype(np.int64)
        rows = rows if reader.mean is None else rows - reader.mean
        reader = replace(reader, weight=reader.weight[outputs])
        energy = _energy(rows @ reader.weight.T, weights)
        return _Errors(reader, rows, weights, energy)

    def relative(self, factors: F32) -> float:
        """The squared error with these factors, relative to the outputs' energy."""
        if self.energy == 0:
            return 0.0
        reader = self.reader
        x, weight = self.rows / factors, reader.weight * factors
        if reader.block:
            x, weight = hadamard.transform(x, reader.block), hadamard.fold(weight, reader.block)
        rounded_x, rounded_weight = self._rounded_rows(x), self._rounded_weight(weight, factors)
        if reader.importance is None:
            lost = x @ weight.T - rounded_x @ rounded_weight.T
            return _energy(lost, self.weights) / self.energy
        error = _energy((x - rounded_x) @ weight.T, self.weights)
        squares = np.square(weight - rounded_weight).sum(axis=0, dtype=np.float64)
        return (error + float(squares @ self._costs(factors))) / self.energy

    def _costs(self, factors: F32) -> F64:
        """What the squared error of each column that is encoded costs after feedback.

        The inverse squares of a Cholesky factor's diagonal multiply up to the determinant of the
        moments. A rotation leaves that, and makes columns alike.
        """
        assert self.reader.importance is not None
        costs = self.reader.importance.astype(np.float64) / np.square(factors, dtype=np.float64)
        return np.full_like(costs, np.exp(np.log(costs).mean())) if self.reader.block else costs

    def _rounded_weight(self, weight: F32, factors: F32) -> F32:
        scheme = _stand_in(self.reader.scheme)
        if self.reader.importance is None:
            return quantize_weight(weight, scheme, search=self.reader.search).dequantize()
        importance = self._costs(factors)
        return quantize_weight(weight, scheme, search=True, importance=importance).dequantize()

    def _rounded_rows(self, x: F32) -> F32:
        scheme, static = self.reader.activation, self.reader.static
        if scheme is None:
            return x
        if scheme.granularity == "group":
            return round_activation(x, scheme)
        if static is None:
            codes, scale, zero = quantize_activation(x, scheme)
            zeros = None if scheme.symmetric else zero[:, None]
            return scheme.format.decode(codes, scale[:, None], zeros)
        measured = Range(0)
        measured.add(x)
        whole, offset = (np.array(each, np.float32) for each in measured.choose(static))
        shared = None if scheme.symmetric else offset
        return scheme.format.decode(scheme.format.encode(x, whole, shared), whole, shared)


def _energy(outputs: F32, weights: F32) -> float:
    return float(weights @ np.square(outputs).sum(axis=1, dtype=np.float64))


def _stand_in(scheme: Scheme) -> Scheme:
    """A scalar format of as many bits in the place of a trellis code, which takes long to encode:
    the error of either is nearly a constant part of a group's energy."""
    if scheme.format.kind != "trellis":
        return scheme
    bits = scheme.bits
    return replace(scheme, format=FORMATS["binary" if bits == 1 else f"int{bits}"])
