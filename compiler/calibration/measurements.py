"""What is measured where: the passes over the data that a calibration consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .dataflow import ValueId
from .moments import Moments
from .products import Product
from .segments import Segment
from .static_reads import StaticRead
from .sums import groups_of


@dataclass(frozen=True, eq=False)
class Measurement:
    """One pass over the data through a segment: sums of what `products` read, ranges of `static`.

    The values `wanted` of the float model are kept. `differ`: the model as it is quantized so far
    has computed other values than the float model.
    """

    segment: Segment
    products: tuple[Product, ...]
    static: tuple[StaticRead, ...]
    wanted: tuple[ValueId, ...]
    differ: bool

    @cached_property
    def totals(self) -> dict[int, ValueId]:
        """The residual streams that products are added to, by the product's position."""
        return {
            product.at: product.total
            for product in self.products
            if self.differ and product.total is not None and product.total.at < self.segment.end
        }

    @cached_property
    def measured(self) -> tuple[ValueId, ...]:
        """What has to be computed of both models, besides what has been kept."""
        values = [*(p.read for p in self.products), *(read.read for read in self.static)]
        reads = [id_ for id_ in values if id_ is not None and id_ not in self.segment.inputs]
        return tuple(dict.fromkeys([*reads, *self.totals.values()]))

    @cached_property
    def outputs(self) -> tuple[ValueId, ...]:
        """What has to be computed of the float model."""
        return tuple(dict.fromkeys([*self.measured, *self.wanted]))

    @property
    def bytes(self) -> int:
        """Of the sums."""
        moments = {p.rows: Moments.bytes_of(p.shape[1]) for p in self.products}
        excess = [8 * p.shape[0] * p.shape[1] for p in self.products if p.at in self.totals]
        return sum(moments.values()) + sum(excess)


def measurements_of(
    segment: Segment,
    products: Sequence[Product],
    static: Sequence[StaticRead],
    *,
    differ: bool = True,
) -> list[Measurement]:
    """The passes through one segment for those of the model's products and reads that are in it.

    Several where sums would take too much memory, none where there is nothing to do. `differ` says
    that there is a quantized model beside the float one.
    """
    found = []
    products = [product for product in products if product.at in segment.products]
    static = [read for read in static if segment.begin <= read.at < segment.end]
    wanted = segment.outputs
    # A segment without inputs reads the model's alone, which are the same.
    differ = differ and bool(segment.inputs)
    for group in groups_of(products):
        if group or wanted or static:
            found.append(Measurement(segment, tuple(group), tuple(static), wanted, differ))
        static, wanted = [], ()
    return found
