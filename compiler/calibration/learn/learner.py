"""Learning, block by block: balance factors, ranges of weights, a correction of rank one.

As ABQ-LLM (Zeng et al. 2024, arXiv 2408.08554) does, after OmniQuant (Shao et al. 2023): with the
weights as they are, for each block in turn, so that its outputs, on what the quantized model has
computed so far, are those of the float model. Needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from abqc.compiler.calibration.dataflow import DataFlow
from abqc.compiler.calibration.products import Product
from abqc.compiler.calibration.runs import Feeds, Stream
from abqc.compiler.calibration.segments import Segment, extract, name_of
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit
from abqc.passes.loops.constant_values import symbol_of
from abqc.passes.quantization.product_encodings import (
    float_source,
    matmul_activation,
    matmul_encoding,
    node_of,
    table_schemes,
)
from abqc.runtime.environment import NUM_THREADS
from numpy.typing import NDArray

from .blocks import Block, blocks_of
from .evaluate import Evaluator, UnknownOperationError
from .float_block import FloatBlock
from .learned import Learned
from .rounded_block import Key, RoundedBlock, Rounding
from .samples import Samples
from .settings import LearnSettings
from .train import train

Array = NDArray[Any]
Tensor = Any


@dataclass
class Learner:
    """Learns the blocks of a calibration. `learned` has what was found, by the products' positions;
    balance factors go to the weight store. `losses` are those of each block, by its first product's
    node, before and after. `known` are the positions of products whose codes are there already.

    `masks` says for each batch which tokens count ([batch, tokens]; None: all).
    """

    module: ir.Operation
    unit: Unit
    batches: Sequence[Feeds]
    masks: Sequence[Array | None]
    settings: LearnSettings
    flow: DataFlow
    blocks: list[Block]
    known: Set[int]
    learned: dict[int, Learned] = field(default_factory=dict)
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)

    def before(self, segment: Segment, exact: Stream, rounded: Stream) -> None:
        """Learn the block that begins with `segment`, if one does, on what both variants of the
        model have computed so far."""
        block = next((block for block in self.blocks if block.begin == segment.begin), None)
        asked = [product for product in block.products if product.learns] if block else []
        if block is None or all(product.at in self.known for product in asked):
            return
        node = asked[0].node
        try:
            self._learn(block, node, exact, rounded)
        except UnknownOperationError as error:
            self.unit.refuse(node, f"is calibrated without learning: its block has {error}")

    def manifest(self) -> dict[str, list[float]]:
        """The losses, before and after, of each block that was learned."""
        return {node: [round(loss, 6) for loss in pair] for node, pair in self.losses.items()}

    def _learn(self, block: Block, node: str, exact: Stream, rounded: Stream) -> None:
        wanted = [*block.outputs, *block.attention]
        part = extract(self.module, self.unit.inputs, block.inputs, wanted)
        roundings = self._roundings(block)
        samples = Samples(block, part, (exact, rounded), self.masks, self._chosen())
        constant = self._constants()
        floats = FloatBlock(roundings, constant)
        run = Evaluator(part, torch, constant, floats.product)
        samples.prepare(run, floats)
        found = RoundedBlock(roundings, self.unit.store, constant, floats.means(), floats.factors())
        if found.parameters():
            run = Evaluator(part, torch, constant, found.product)
            self.losses[node] = train(found, run, samples, self.settings)
        self._take(block, roundings, found)
        samples.close()

    def _take(self, block: Block, roundings: dict[Key, Rounding], found: RoundedBlock) -> None:
        for product in block.products:
            rounding, encoding = roundings.get(product.key), product.encoding
            if rounding is None or not rounding.learns:
                continue
            self.learned[product.at] = found.learned(rounding, encoding)
            factors = found.balance(rounding.rows) if encoding.balance else None
            fixed = encoding.symbol in found.ranges or encoding.symbol in self.unit.store
            if factors is None and not fixed:
                note = f"has nothing to learn: scales of {encoding.scheme} follow from no range"
                self.unit.refuse(product.node, note)
            gains = factors is not None and not np.all(factors == 1)
            if gains and encoding.balance not in self.unit.store:
                self.unit.store.add(encoding.balance, factors)

    def _constants(self) -> Callable[[str], Tensor]:
        """Arrays of the weight store, some of which take long to compute, by symbol."""

        @cache
        def constant(symbol: str) -> Tensor:
            stored = self.unit.store.get(symbol)
            dtype = stored.dtype if stored.dtype.kind in "iub" else np.float32
            return torch.from_numpy(np.array(stored, dtype))

        return constant

    def _chosen(self) -> list[int]:
        """The batches that are learned from, spread over the data."""
        sizes = [max(array.size for array in feeds.values()) for feeds in self.batches]
        share = min(1.0, self.settings.elements / max(sum(sizes), 1))
        count = max(1, round(share * len(sizes)))
        return [number * len(sizes) // count for number in range(count)]

    def _roundings(self, block: Block) -> dict[Key, Rounding]:
        """How the products of a block will be rounded."""
        tables = table_schemes(self.module, self.unit)
        products = {product.at: product for product in block.products}
        found: dict[Key, Rounding] = {}
        for at in range(block.begin, block.segments[-1].end):
            op = self.flow.operations[at]
            symbol = symbol_of(op.operands[1]) if op.name == "abq.matmul" else None
            if symbol is None:
                continue
            source = float_source(op.opview.x)
            name = name_of(source, self.flow.id_of(source), self.unit.inputs)
            encoding = matmul_encoding(op, tables, self.unit)
            rounding = Rounding(name, encoding)
            if encoding is not None:
                rounding = replace(rounding, activation=matmul_activation(op, encoding, self.unit))
            if at in products:
                rounding = self._calibrated(rounding, products[at], block)
            found[node_of(op), symbol] = rounding
        return found

    def _calibrated(self, rounding: Rounding, product: Product, block: Block) -> Rounding:
        """Of a product that calibration encodes. With error feedback no correction is learned: the
        weight that does best with the inputs it gets is known."""
        ends = block is self.blocks[0] or block is self.blocks[-1]
        joins = product is block.joining and not product.feeds_back
        return replace(
            rounding,
            shifts=product.shifts,
            biased=product.takes_bias,
            learns=product.learns,
            corrects=product.learns and joins and ends,
        )


def learner_of(
    module: ir.Operation,
    unit: Unit,
    batches: Sequence[Feeds],
    masks: Sequence[Array | None],
    segments: Sequence[Segment],
    products: Sequence[Product],
    known: Set[int],
) -> Learner:
    """For a simplified module, cut into `segments`, with the `products` that are calibrated."""
    threads = NUM_THREADS.get()
    if threads:
        torch.set_num_threads(threads)
    flow = DataFlow(module)
    blocks = blocks_of(flow, segments, products)
    return Learner(module, unit, batches, masks, LearnSettings(), flow, blocks, known)
