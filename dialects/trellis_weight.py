"""Weights in trellis codes (`trellis.py`): scales, rounding to nearest, and a column at a time.

Error feedback (GPTQ) rounds one column of W and needs its values before the next:

    encoder = ColumnEncoder(scheme, k, searched_scale(w, scheme))
    for column in order:                                  # any order
        rounded = encoder.encode(column, target)          # f32 [N] -> f32 [N]
    weight = encoder.finish()                             # a QuantizedTensor

`quantize` is the same without feedback, for all columns at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from abqc.dialects import trellis
from abqc.dialects.formats import QuantizedTensor, Scheme, spread_groups
from abqc.dialects.group_scales import round_scale
from abqc.dialects.trellis import F32, Panels, Symbols
from abqc.dialects.trellis_viterbi import ViterbiSearch
from numpy.typing import NDArray

# The standard deviation, in multiples of the table's, that a Gaussian weight has in units of its
# scale for the least error (measured): at more bits it is the tails that cost.
REACH = {1: 1.1, 2: 0.95, 3: 0.9, 4: 0.85, 5: 0.75, 6: 0.65}
# What a search multiplies all scales by, as long as it helps: longer tails want larger scales. (To
# choose for each channel is worse: the errors of one differ by chance more than by the factor.)
SEARCHED = (1.0, 1.15, 1.3, 1.5, 1.8, 2.2, 2.6)
CHUNK_ELEMENTS = 1 << 18  # worked on at a time, by a thread


def initial_scale(w: F32, scheme: Scheme) -> NDArray[np.float16]:
    """Scales [N, G] for `w` [N, K] by the rms of each group; 0 for a group of zeros.

    Raises ValueError for NaN, infinity, and scales beyond f16.
    """
    if not np.isfinite(w).all():
        raise ValueError("the weight holds NaN or infinity")
    starts = [begin for begin, _ in scheme.group_bounds(w.shape[1])]
    means = _group_sums(w, w, scheme, None) / np.diff([*starts, w.shape[1]])
    if scheme.granularity == "tensor":
        means = np.broadcast_to(means.mean(), means.shape)
    return round_scale(np.sqrt(means) / (trellis.SIGMA * REACH[_rate(scheme)]))


def quantize(
    w: F32, scheme: Scheme, *, search: bool = False, importance: np.ndarray | None = None
) -> QuantizedTensor:
    """The codes nearest to `w`, f32 [N, K], for the scales, which then fit the codes best.

    `search` tries `SEARCHED` multiples of the scales. `importance` [K] weighs the squared errors
    of the columns, for both. Raises ValueError as `initial_scale` does, and for an
    importance that is negative or not finite.
    """
    if importance is not None:
        _check_importance(importance, w.shape[1])
    return _rounded(w, scheme, SEARCHED if search else (1.0,), importance)[1]


def searched_scale(
    w: F32, scheme: Scheme, importance: np.ndarray | None = None
) -> NDArray[np.float16]:
    """Scales [N, G] for `w` [N, K]: `initial_scale` times the factor that a search finds to be best
    for some of its rows."""
    sample = w[:: -(-len(w) // trellis.PANEL_ROWS)]
    factor, _ = _rounded(sample, scheme, SEARCHED, importance)
    return _times(initial_scale(w, scheme), factor)


def _rounded(
    w: F32, scheme: Scheme, factors: Sequence[float], importance: np.ndarray | None
) -> tuple[float, QuantizedTensor]:
    """The first of the `factors` of the scales behind which errors grow, and what `w` becomes."""
    scale = initial_scale(w, scheme)
    found: list[tuple[float, float, QuantizedTensor]] = []
    for factor in factors:
        weight = _refit(w, _encode(w, scheme, _times(scale, factor)), importance)
        error = _error(w, weight, importance)
        if found and error >= found[-1][0]:
            break
        found.append((error, factor, weight))
    _, factor, weight = found[-1]
    return factor, weight


def _times(scale: NDArray[np.float16], factor: float) -> NDArray[np.float16]:
    return round_scale(scale * np.float32(factor))


class ColumnEncoder:
    """Encodes a weight a column at a time, in any order. `scale` is f16 [N, G]. Not thread-safe.

    A column may come again, as in coordinate descent: panels that the search, whose ends are a
    guess, makes worse for the new values keep their symbols.
    """

    def __init__(self, scheme: Scheme, k: int, scale: NDArray[np.float16]) -> None:
        self._scheme, self._k, self._scale = scheme, k, scale
        self._panels = Panels(len(scale))
        self._search = ViterbiSearch(_rate(scheme))
        self._symbols = np.zeros((k, self._panels.padded_n), np.uint8)
        self._encoded = np.zeros(k, bool)
        self._group_size = scheme.group_size or k

    def encode(self, column: int, x: F32) -> F32:
        """What `x` [N] becomes in that column: f32 [N], values of the code times the scales."""
        scale = self._scale[:, column // self._group_size].astype(np.float32)
        symbols = _encode_columns(x[None], scale[None], self._panels, self._search)[0]
        values = self._values(symbols, scale)
        if self._encoded[column]:
            before = self._symbols[column]
            values_before = self._values(before, scale)
            for begin, end in self._panels.bounds():
                rows = slice(begin, min(end, len(x)))
                old, new = (np.sum((v[rows] - x[rows]) ** 2) for v in (values_before, values))
                if old <= new:
                    symbols[begin:end], values[rows] = before[begin:end], values_before[rows]
        self._symbols[column], self._encoded[column] = symbols, True
        return values

    def _values(self, symbols: Symbols, scale: F32) -> F32:
        q = trellis.decode(symbols[:, None], self._panels.n, self._search.rate)[:, 0]
        return q.astype(np.float32) * scale

    def finish(self) -> QuantizedTensor:
        """The weight; columns that were never encoded hold a value near 0."""
        return _weight(np.ascontiguousarray(self._symbols.T), self._scheme, self._scale)


def _check_importance(importance: np.ndarray, k: int) -> None:
    if importance.shape != (k,) or not (np.isfinite(importance) & (importance >= 0)).all():
        raise ValueError(f"the importance of {k} columns is as many numbers from 0 on")


def _rate(scheme: Scheme) -> int:
    if scheme.format.kind != "trellis":
        raise ValueError(f"{scheme} is no trellis code")
    return scheme.bits


def _weight(symbols: Symbols, scheme: Scheme, scale: NDArray[np.float16]) -> QuantizedTensor:
    codes = trellis.decode(symbols, len(scale), scheme.bits)
    return QuantizedTensor(codes, scale, None, scheme, symbols=symbols)


def _encode(w: F32, scheme: Scheme, scale: NDArray[np.float16]) -> QuantizedTensor:
    """All columns, on all cores."""
    n, k = w.shape
    panels = Panels(n)
    symbols = np.empty((panels.padded_n, k), np.uint8)

    def encode(columns: slice) -> None:
        groups = np.arange(k)[columns] // (scheme.group_size or k)
        of_columns = scale.T[groups].astype(np.float32)
        search = ViterbiSearch(scheme.bits)
        symbols[:, columns] = _encode_columns(w[:, columns].T, of_columns, panels, search).T

    step = max(1, CHUNK_ELEMENTS // panels.padded_n)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(encode, [slice(at, at + step) for at in range(0, k, step)]):
            pass
    return _weight(symbols, scheme, scale)


def _encode_columns(x: F32, scale: F32, panels: Panels, search: ViterbiSearch) -> Symbols:
    """Symbols [columns, padded N] of columns `x` [columns, N] with their scales, as many.

    Rows of the padding are encoded as zeros, and so are those of a scale of 0.
    """
    units = np.zeros((len(x), panels.padded_n), np.float32)
    np.divide(x, scale, out=units[:, : panels.n], where=scale != 0)
    if not np.isfinite(units).all():
        raise ValueError("a column holds NaN or infinity, or exceeds its scales")
    symbols = np.empty(units.shape, np.uint8)
    for begin, end, rows in panels.runs():
        sequences = units[:, begin:end].reshape(-1, rows)
        symbols[:, begin:end] = search.encode(sequences).reshape(len(x), -1)
    return symbols


def _refit(w: F32, weight: QuantizedTensor, importance: np.ndarray | None) -> QuantizedTensor:
    """The same codes with the scales of least squared error."""
    scheme, q = weight.scheme, weight.codes
    wq, qq = (_group_sums(a, q, scheme, importance) for a in (w, q))
    if scheme.granularity == "tensor":
        wq, qq = (np.broadcast_to(a.sum(axis=0), a.shape) for a in (wq, qq))
    fitted = np.divide(wq, qq, out=weight.scale.astype(np.float64), where=(wq > 0) & (qq > 0))
    scale = round_scale(fitted)
    return QuantizedTensor(weight.codes, scale, None, scheme, symbols=weight.symbols)


def _error(w: F32, weight: QuantizedTensor, importance: np.ndarray | None) -> float:
    """The squared error of the whole weight."""
    scheme, total = weight.scheme, 0.0
    for rows in _row_chunks(w):
        scale = spread_groups(weight.scale[rows].astype(np.float32), scheme, w.shape[1])
        errors = np.square(weight.codes[rows] * scale - w[rows]).sum(axis=0, dtype=np.float64)
        total += float(errors.sum() if importance is None else errors @ importance)
    return total


def _group_sums(
    a: np.ndarray, b: np.ndarray, scheme: Scheme, importance: np.ndarray | None
) -> NDArray[np.float64]:
    """Sums [N, G] of a * b [N, K] over each group, weighted by the importance of its columns."""
    starts = [begin for begin, _ in scheme.group_bounds(a.shape[1])]
    weights = np.float64(1) if importance is None else importance.astype(np.float64)
    sums = [np.add.reduceat(a[rows] * weights * b[rows], starts, axis=1) for rows in _row_chunks(a)]
    return np.concatenate(sums)


def _row_chunks(w: np.ndarray) -> Iterator[slice]:
    """Some rows at a time: temporary copies of a large weight are as large."""
    step = max(1, CHUNK_ELEMENTS // w.shape[1])
    return (slice(begin, begin + step) for begin in range(0, len(w), step))
