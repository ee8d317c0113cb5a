"""A block's products as they will be: rows and weights rounded, by parameters that are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from abqc.dialects.formats import Scheme
from abqc.passes.quantization.encoding import Encoding
from numpy.typing import NDArray

from .learned import Learned
from .rounding import LearnedRange, learns_range, rotate, round_rows

F32 = NDArray[np.float32]
Tensor = Any
Key = tuple[str, str]  # a product's node, and its weight's symbol

SPREAD = 0.01  # the standard deviation of what a correction's second vector begins with


@dataclass(frozen=True)
class Rounding:
    """How a product of a block will be rounded.

    `rows` names what it reads: products that read the same share balance factors. `encoding` None:
    the weight stays float; `activation` None: the rows do. `shifts`: rows come without their means,
    which are in the bias; `biased`: what codes change in the mean of the outputs is.
    `learns`: its weight's ranges and, where it is balanced, its factors are learned; `corrects`:
    a correction of rank one too.
    """

    rows: str
    encoding: Encoding | None
    activation: Scheme | None = None
    shifts: bool = False
    biased: bool = False
    learns: bool = False
    corrects: bool = False


@dataclass
class RoundedBlock:
    """The products of a block, with parameters.

    `store` is the weight store, `constant` gives its floats as tensors. `means` [K] are those of
    the rows by name, `start` [K] the balance factors to begin with, 1 without. `product` is what an
    `Evaluator` calls; after a run `forget` drops what it has kept for products that share rows or
    weights.
    """

    roundings: Mapping[Key, Rounding]
    store: Any
    constant: Callable[[str], Tensor]
    means: Mapping[str, F32]
    start: Mapping[str, F32] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)  # logarithms, by name of the rows
    ranges: dict[str, LearnedRange] = field(default_factory=dict)  # by symbol of the encoding
    corrections: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _fixed: dict[str, Tensor] = field(default_factory=dict)  # weights that learn nothing
    _weights: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _rows: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rounding in self.roundings.values():
            if rounding.learns and rounding.encoding is not None:
                self._add_parameters(rounding, rounding.encoding)

    def parameters(self) -> list[Tensor]:
        return [*self.range_parameters(), *self.factors.values(), *self.correction_parameters()]

    def range_parameters(self) -> list[Tensor]:
        return [each for range_ in self.ranges.values() for each in (range_.low, range_.high)]

    def correction_parameters(self) -> list[Tensor]:
        return [each for pair in self.corrections.values() for each in pair]

    def forget(self) -> None:
        self._weights.clear()
        self._rows.clear()

    def product(self, node: str, x: Tensor, symbol: str, bias: Tensor | None) -> Tensor:
        """y [.., N] of x [.., K]."""
        rounding = self.roundings[node, symbol]
        encoding = rounding.encoding
        if encoding is None:
            y = x @ self.constant(symbol).T
        else:
            exact, weight = self._weight(rounding, encoding)
            y = self._read(rounding, encoding, x) @ weight.T
            if rounding.shifts or rounding.biased:
                mean = self._moved(rounding, encoding, _tensor(self.means[rounding.rows]))
                y = y + (exact if rounding.shifts else exact - weight) @ mean
        return y if bias is None else y + bias

    def balance(self, rows: str) -> F32 | None:
        """The factors by which what is read is divided; None where there are none."""
        factors = self._factors(rows)
        return None if factors is None else factors.detach().numpy().copy()

    def learned(self, rounding: Rounding, encoding: Encoding) -> Learned:
        """What there is for a weight."""
        range_ = self.ranges.get(encoding.symbol)
        pair = self.corrections.get(encoding.symbol)
        if range_ is None:
            return Learned()
        with torch.no_grad():
            weight = self._corrected(encoding, self._encoded(rounding, encoding))
            choice = range_.choice(weight)
        if pair is None:
            return Learned(choice)
        u, v = (each.detach().numpy().copy() for each in pair)
        return Learned(choice, (u, v))

    def _add_parameters(self, rounding: Rounding, encoding: Encoding) -> None:
        n, *window = self.store.shape(encoding.source)
        k = prod(window)
        if encoding.balance and rounding.rows not in self.factors:
            start = self.start.get(rounding.rows, np.ones(k, np.float32))
            self.factors[rounding.rows] = torch.tensor(np.log(start), requires_grad=True)
        symbol = encoding.symbol
        if symbol in self.ranges or symbol in self.store or not learns_range(encoding.scheme):
            return
        with torch.no_grad():
            weight = self._encoded(rounding, encoding).numpy()
        self.ranges[symbol] = LearnedRange.of(weight, encoding.scheme)
        if rounding.corrects:
            v = SPREAD * np.random.default_rng(0).standard_normal(k, np.float32)
            pair = torch.zeros(n, requires_grad=True), torch.tensor(v, requires_grad=True)
            self.corrections[symbol] = pair

    def _factors(self, rows: str) -> Tensor | None:
        logarithm = self.factors.get(rows)
        return None if logarithm is None else logarithm.exp()

    def _read(self, rounding: Rounding, encoding: Encoding, x: Tensor) -> Tensor:
        """The rows of `x` [.., K] as the product gets them."""
        key = (id(x), rounding.rows, encoding.hadamard_block, rounding.activation, rounding.shifts)
        if key not in self._rows:
            rows = x - _tensor(self.means[rounding.rows]) if rounding.shifts else x
            rows = self._moved(rounding, encoding, rows)
            if rounding.activation is not None:
                flat, image_rows = rows.reshape(-1, rows.shape[-1]), prod(rows.shape[1:-1])
                rows = round_rows(flat, rounding.activation, image_rows).reshape(rows.shape)
            self._rows[key] = x, rows
        return self._rows[key][1]

    def _moved(self, rounding: Rounding, encoding: Encoding, rows: Tensor) -> Tensor:
        """Rows [.., K] divided by their factors and rotated."""
        factors = self._factors(rounding.rows) if encoding.balance else None
        if factors is not None:
            rows = rows / factors
        return rotate(rows, encoding.hadamard_block)

    def _weight(self, rounding: Rounding, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """The weight that is encoded, and what its codes stand for."""
        if encoding.symbol not in self._weights:
            exact = self._encoded(rounding, encoding)
            self._weights[encoding.symbol] = exact, self._rounded(rounding, encoding, exact)
        return self._weights[encoding.symbol]

    def _rounded(self, rounding: Rounding, encoding: Encoding, weight: Tensor) -> Tensor:
        symbol, range_ = encoding.symbol, self.ranges.get(encoding.symbol)
        if range_ is not None:
            return range_.round(self._corrected(encoding, weight))
        if symbol not in self.store and (
            rounding.learns or encoding.scheme.format.kind == "trellis"
        ):
            return weight  # whose codes do not follow from ranges, and may take long to make
        if symbol not in self._fixed:
            self._fixed[symbol] = _tensor(encoding.encode(self.store).dequantize())
        return self._fixed[symbol]

    def _corrected(self, encoding: Encoding, weight: Tensor) -> Tensor:
        pair = self.corrections.get(encoding.symbol)
        return weight if pair is None else weight + pair[0][:, None] * pair[1]

    def _encoded(self, rounding: Rounding, encoding: Encoding) -> Tensor:
        """The float weight [N, K], balanced and rotated where the rows are."""
        weight = self.constant(encoding.source)
        factors = self._factors(rounding.rows) if encoding.balance else None
        if factors is not None:
            weight = weight * factors
        return rotate(weight, encoding.hadamard_block)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
