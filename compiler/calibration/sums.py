"""What passes over the data sum up for products, a batch at a time, and what comes of the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from abqc.dialects.formats import QuantizedTensor
from numpy.typing import NDArray

from .balance import Reader, balanced_range, choose_factors, of_channels
from .dataflow import ValueId
from .error_feedback import EncodedWeight, Feedback, Settings
from .learn.learned import Learned
from .moments import Excess, Moments
from .products import Product, Rows
from .ranges import Range
from .row_sample import RowSample
from .segments import value_name

Array = NDArray[Any]
F32 = NDArray[np.float32]
Values = Callable[[str], Array]  # a batch's values by name

MOMENT_BYTES = 1 << 30  # of one pass over the data; a segment with more is run several times


@dataclass(frozen=True)
class Sums:
    """Sums over the data of what `products` read: by what is read, by the product's position.

    `totals` has the streams to which products in it are added, where the quantized model's inputs
    differ from the float model's, which `differ` says. `samples` are rows for products that are
    balanced, and `factors` those found, by product: None where there is nothing to gain.
    """

    products: Sequence[Product]
    totals: Mapping[int, ValueId]
    differ: bool
    rows: dict[int, Rows]
    moments: dict[Rows, Moments]
    excess: dict[int, Excess]
    ranges: dict[int, Range]
    samples: dict[Rows, RowSample]
    factors: dict[int, F32 | None] = field(default_factory=dict)

    @staticmethod
    def of(products: Sequence[Product], totals: Mapping[int, ValueId], differ: bool) -> Sums:
        streams = {at: value_name(total) for at, total in totals.items()}
        rows = {p.at: replace(p.rows, stream=streams.get(p.at)) for p in products}
        return Sums(
            products,
            totals,
            differ,
            rows,
            {rows[p.at]: Moments(p.shape[1]) for p in products},
            {p.at: Excess(*p.shape) for p in products if p.at in totals},
            {
                p.at: Range(p.encoding.hadamard_block)
                for p in products
                if p.static is not None and not p.balances
            },
            {rows[p.at]: RowSample(p.shape[1]) for p in products if p.balances},
        )

    def add(self, floats: Values, own: Values, mask: Array | None) -> None:
        """A batch: values of the float model, and of the model as it is quantized so far.

        Where data decide how many rows there are, the two may have other rows: then nobody can say
        what the quantized model's lack, and it is taken for nothing.
        """
        xs: dict[Rows, NDArray[np.float32]] = {}
        weights: dict[Rows, NDArray[np.float32] | None] = {}
        for rows, moments in self.moments.items():
            xs[rows] = rows.of(own(rows.name), mask)
            weights[rows] = None
            if rows.stream is not None:
                stream = Rows(rows.stream).of(floats(rows.stream), mask)
                if len(stream) != len(xs[rows]):
                    stream = Rows(rows.stream).of(own(rows.stream), mask)
                weights[rows] = _weights(stream)
            drifts = self.differ and rows.stream is None
            floats_read = rows.of(floats(rows.name), mask) if drifts else None
            if floats_read is not None and len(floats_read) != len(xs[rows]):
                floats_read = None
            moments.add(xs[rows], floats_read, weights[rows])
            if rows in self.samples:
                self.samples[rows].add(xs[rows], weights[rows])
        for product in self.products:
            rows = self.rows[product.at]
            x = xs[rows]
            if rows.stream is not None:
                total = Rows(rows.stream)
                wanted, given = (total.of(of(total.name), mask) for of in (floats, own))
                if len(wanted) == len(given):
                    self.excess[product.at].add(wanted - given, x, weights[rows])
            if product.at in self.ranges:
                self.ranges[product.at].add(x)

    def merge(self, other: Sums) -> None:
        """Add the same sums over other batches."""
        for rows, moments in other.moments.items():
            self.moments[rows].merge(moments)
        for at, excess in other.excess.items():
            self.excess[at].merge(excess)
        for at, range_ in other.ranges.items():
            self.ranges[at].merge(range_)
        for rows, sample in other.samples.items():
            self.samples[rows].merge(sample)

    def of_product(self, product: Product) -> Sums:
        """What of them a product alone needs."""
        rows, at = self.rows[product.at], product.at
        return Sums(
            [product],
            {at: self.totals[at]} if at in self.totals else {},
            self.differ,
            {at: rows},
            {rows: self.moments[rows]},
            {at: self.excess[at]} if at in self.excess else {},
            {at: self.ranges[at]} if at in self.ranges else {},
            {rows: self.samples[rows]} if product.balances else {},
            {at: self.factors[at]} if at in self.factors else {},
        )

    def rows_seen(self, product: Product) -> int:
        return self.moments[self.rows[product.at]].rows

    def balance(self, settings: Settings, store: Any) -> None:
        """Find the factors of what is balanced, which products of the same rows share, and store
        them."""
        for rows in self.samples:
            found = [p for p in self.products if p.balances and self.rows[p.at] == rows]
            for group in ([p for p in found if p.per_channel == each] for each in (False, True)):
                factors = self._factors(group, settings, store) if group else None
                for product in group:
                    self.factors[product.at] = factors
                    if factors is not None and product.encoding.balance not in store:
                        store.add(product.encoding.balance, factors)

    def _factors(self, products: Sequence[Product], settings: Settings, store: Any) -> F32 | None:
        """For products that read the same rows; what was learned before stays."""
        first = products[0]
        if first.encoding.balance in store:
            return store.get(first.encoding.balance)
        moments, sample = self.moments[self.rows[first.at]], self.samples[self.rows[first.at]]
        if first.static is not None and first.per_channel:
            return of_channels(sample, first.static.scheme.symmetric)
        known: dict[Settings, Feedback] = {}
        for own in {_own(p, settings) for p in products if p.encoding.calibrated}:
            known[own] = Feedback(moments, own)
        readers = [_reader(p, moments, known.get(_own(p, settings)), store) for p in products]
        return choose_factors(readers, sample, moments.weight)

    def feedbacks(self, settings: Settings) -> Iterator[tuple[Product, Feedback]]:
        """Each product with the feedback of what it reads, which several may share."""
        made: dict[tuple[Rows, int, Settings, bytes | None], Feedback] = {}
        for product in self.products:
            rows, block = self.rows[product.at], product.encoding.hadamard_block
            own, factors = _own(product, settings), self.factors.get(product.at)
            key = rows, block, own, None if factors is None else factors.tobytes()
            if key not in made:
                moments = self.moments[rows]
                if factors is not None:
                    moments = moments.balanced(factors)
                made[key] = Feedback(moments.rotated(block) if block else moments, own)
            yield product, made[key]

    def encode(
        self,
        product: Product,
        feedback: Feedback,
        weight: F32,
        codes: QuantizedTensor | None = None,
        learned: Learned | None = None,
    ) -> EncodedWeight:
        """The product's codes, with its balance, bias, shift and static scale.

        `weight` [N, K] is the product's, `codes` what it has been given already: a weight of
        several products has one encoding, and one that is only balanced is rounded to nearest.
        `learned` is what was found for it before.
        """
        learned = learned or Learned()
        encoding, block = product.encoding, product.encoding.hadamard_block
        factors, excess = self.factors.get(product.at), self.excess.get(product.at)
        if excess is not None and factors is not None:
            excess = excess.balanced(factors)
        if excess is not None and block:
            excess = excess.rotated(block)
        if codes is not None and not encoding.calibrated:
            result = feedback.judge(weight, codes, target=weight)
        elif codes is not None:
            result = feedback.judge(weight, codes, excess)
        elif not product.feeds_back:
            result = feedback.judge(weight, learned.nearest(weight, encoding), excess)
        else:
            result = feedback.encode(weight, encoding.scheme, excess, learned.choice)
        if product.static is not None:
            measured = self._range(product, factors)
            result = replace(result, activations=measured.choose(product.static))
        if product.shifts:
            shift = self.moments[self.rows[product.at]].mean()
            shift = shift if factors is None else shift / factors
            result = replace(result, shift=shift.astype(np.float32))
        return replace(result, balance=factors)

    def _range(self, product: Product, factors: F32 | None) -> Range:
        """Of what a product with static activations reads."""
        if not product.balances:
            return self.ranges[product.at]
        sample = self.samples[self.rows[product.at]]
        return balanced_range(sample, factors, product.encoding.hadamard_block)


def _reader(product: Product, moments: Moments, feedback: Feedback | None, store: Any) -> Reader:
    """What the search for factors has to know of a product; `feedback` is that of its rows as they
    are, None where weights are rounded to nearest."""
    encoding = product.encoding
    return Reader(
        replace(encoding, hadamard_block=0, balance="").weight(store),
        encoding.scheme,
        product.activation,
        product.static,
        encoding.hadamard_block,
        encoding.search,
        feedback.importance if feedback is not None and encoding.calibrated else None,
        moments.mean().astype(np.float32) if product.shifts else None,
    )


def _own(product: Product, settings: Settings) -> Settings:
    """The settings for a product; weights that are only balanced are rounded as without data."""
    bias = settings.bias and product.takes_bias and product.encoding.calibrated
    return replace(settings, bias=bias, shift=product.shifts)


def _weights(stream: NDArray[np.float32]) -> NDArray[np.float32]:
    """What each row of a stream [R, N] counts for: its norm comes next, and makes all rows alike.

    Without that, a few rows of massive activations would be all that codes are chosen for.
    """
    energy = np.square(stream, dtype=np.float64).mean(axis=1)
    return (1 / np.maximum(energy, 1e-6 * energy.mean() + 1e-30)).astype(np.float32)


def groups_of(products: Sequence[Product]) -> list[list[Product]]:
    """What is measured in one pass over the data: up to MOMENT_BYTES of moments."""
    groups: list[list[Product]] = [[]]
    sizes: dict[Rows, int] = {}
    for product in products:
        sizes.setdefault(product.rows, Moments.bytes_of(product.shape[1]))
        if groups[-1] and sum(sizes.values()) > MOMENT_BYTES:
            groups.append([])
            sizes = {product.rows: Moments.bytes_of(product.shape[1])}
        groups[-1].append(product)
    return groups
