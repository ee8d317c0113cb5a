"""A block's products in float, and the means of what they read. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from abqc.compiler.calibration.balance import Reader, choose_factors
from abqc.compiler.calibration.row_sample import RowSample
from abqc.compiler.calibration.runs import token_rows
from numpy.typing import NDArray

from .rounded_block import Key, Rounding

Tensor = Any
F32 = NDArray[np.float32]


class FloatBlock:
    """`product` is what an `Evaluator` calls; `weight` gives weights [N, K] by symbol.

    While it `listens`, it sums up what products read of the tokens that `mask` shows ([batch,
    tokens]; None: all).
    """

    def __init__(self, roundings: Mapping[Key, Rounding], weight: Callable[[str], Tensor]) -> None:
        self.listens = False
        self.mask: NDArray[Any] | None = None
        self._roundings, self._weight = roundings, weight
        self._totals: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._samples: dict[str, RowSample] = {}

    def product(self, node: str, x: Tensor, symbol: str, bias: Tensor | None) -> Tensor:
        if self.listens:
            self._add(self._roundings[node, symbol], token_rows(x.numpy(), self.mask))
        y = x @ self._weight(symbol).T
        return y if bias is None else y + bias

    def means(self) -> dict[str, F32]:
        """The means [K] of what was read, by its name."""
        return {
            rows: (total / max(self._counts[rows], 1)).astype(np.float32)
            for rows, total in self._totals.items()
        }

    def factors(self) -> dict[str, F32]:
        """Balance factors [K] by the closed form of `balance.py`, by the name of what is read."""
        means, found = self.means(), {}
        for rows, sample in self._samples.items():
            readers = [self._reader(r, means[rows]) for r in self._balanced() if r.rows == rows]
            factors = choose_factors(readers, sample, float(sample.seen))
            if factors is not None:
                found[rows] = factors
        return found

    def _balanced(self) -> list[Rounding]:
        return [
            r for r in self._roundings.values() if r.learns and r.encoding and r.encoding.balance
        ]

    def _reader(self, rounding: Rounding, mean: F32) -> Reader:
        encoding = rounding.encoding
        assert encoding is not None
        return Reader(
            self._weight(encoding.source).numpy(),
            encoding.scheme,
            rounding.activation,
            block=encoding.hadamard_block,
            search=True,
            mean=mean if rounding.shifts else None,
        )

    def _add(self, rounding: Rounding, x: F32) -> None:
        rows = rounding.rows
        self._totals[rows] = self._totals.get(rows, 0) + x.sum(axis=0, dtype=np.float64)
        self._counts[rows] = self._counts.get(rows, 0) + len(x)
        if rounding in self._balanced():
            self._samples.setdefault(rows, RowSample(x.shape[1])).add(x)
