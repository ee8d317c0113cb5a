"""The blocks that are learned one after the other: spans of segments of a model.

A block ends where the output of a product has joined the residual stream, or where a single value
goes on to what follows. So attention is one, and the perceptron behind it, which joins it: errors
of attention show in what both make of the stream (OmniQuant, Shao et al. 2023, and ABQ-LLM, Zeng et
al. 2024, learn whole transformer blocks too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from abqc.compiler.calibration.dataflow import DataFlow, ValueId
from abqc.compiler.calibration.products import Product
from abqc.compiler.calibration.segments import Segment
from abqc.dialects.mlir import ir
from abqc.passes.patterns.softmax import match_softmax


@dataclass(frozen=True)
class Block:
    """Consecutive segments. `products` are those that calibration encodes.

    `outputs` are what later blocks read; of the last one the residual stream behind its last
    product, or what that makes. `attention` are the attention maps, [.., queries, keys].
    """

    segments: tuple[Segment, ...]
    products: tuple[Product, ...]
    outputs: tuple[ValueId, ...]
    attention: tuple[ValueId, ...]

    @property
    def begin(self) -> int:
        return self.segments[0].begin

    @property
    def inputs(self) -> tuple[ValueId, ...]:
        """Values of earlier blocks that it reads."""
        read = {id_ for segment in self.segments for id_ in segment.inputs}
        return tuple(sorted(id_ for id_ in read if id_.at < self.begin))

    @property
    def joining(self) -> Product | None:
        """The last product, where its output is added to the residual stream."""
        last = self.products[-1] if self.products else None
        return last if last is not None and last.total is not None else None


def blocks_of(
    flow: DataFlow, segments: Sequence[Segment], products: Sequence[Product]
) -> list[Block]:
    """The blocks of all segments, in order."""
    found: list[Block] = []
    for span in _spans(segments, products):
        block = _block(flow, span, segments, products)
        if found and _belongs_to(block, found[-1]):
            block = _block(flow, [*found.pop().segments, *span], segments, products)
        found.append(block)
    return found


def _spans(segments: Sequence[Segment], products: Sequence[Product]) -> Iterator[list[Segment]]:
    span: list[Segment] = []
    for number, segment in enumerate(segments):
        span.append(segment)
        if number + 1 == len(segments) or _ends(segment, segments[number + 1 :], products):
            yield span
            span = []


def _ends(segment: Segment, later: Sequence[Segment], products: Sequence[Product]) -> bool:
    crossing = {id_ for other in later for id_ in other.inputs if id_.at < segment.end}
    inside = [product for product in products if product.at in segment.products]
    total = inside[-1].total if inside else None
    return len(crossing) == 1 or (total is not None and total.at < segment.end)


def _block(
    flow: DataFlow,
    span: Sequence[Segment],
    segments: Sequence[Segment],
    products: Sequence[Product],
) -> Block:
    begin, end = span[0].begin, span[-1].end
    inside = tuple(product for product in products if begin <= product.at < end)
    read = {id_ for segment in segments if segment.begin >= end for id_ in segment.inputs}
    outputs = tuple(sorted(id_ for id_ in read if begin <= id_.at < end))
    if not outputs and inside:
        outputs = (_result(flow, span, inside[-1]),)
    return Block(tuple(span), inside, outputs, tuple(_attention(flow, begin, end)))


def _result(flow: DataFlow, span: Sequence[Segment], last: Product) -> ValueId:
    """The sum that the last product of a model is a term of, or, where that needs values which are
    not kept, what the product makes."""
    kept = {id_ for segment in span for id_ in segment.inputs}
    if last.total is not None and kept.issuperset(flow.live_at(span[0].begin, last.total.at + 1)):
        return last.total
    return ValueId(last.at, 0)


def _attention(flow: DataFlow, begin: int, end: int) -> Iterator[ValueId]:
    """The results of softmaxes; where one is guarded, what the guard makes of it."""
    inner: list[ir.Operation] = []
    for at in reversed(range(begin, end)):
        op = flow.operations[at]
        with op.context:
            softmax = match_softmax(op.results[0]) if len(op.results) == 1 else None
        if softmax is not None and op not in inner:
            inner += softmax.loops
            yield ValueId(at, 0)


def _belongs_to(block: Block, before: Block) -> bool:
    """Whether it is the perceptron behind the attention of the block before."""
    joins = block.joining is not None and before.joining is not None
    return joins and len(before.attention) > 0 and not block.attention
