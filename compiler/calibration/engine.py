"""Calibration: the model runs segment by segment, and each segment's weights are encoded.

Two variants run side by side over the same data: the float model, and the model as it is quantized
so far. A segment is run in float on the inputs of both; from what its products read come the second
moments, from these the codes (`error_feedback.py`). Then the segment is run as it will be, with
these codes and activations quantized, on what came before: so every layer answers for the errors of
those before it. In memory are one segment's moments and one batch; what crosses between segments
lies in files.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.calibrated import bias_symbol, shift_symbol, static_scale_symbol
from abqc.passes.quantization.product_encodings import table_schemes
from numpy.typing import NDArray

from .data_passes import DataPasses
from .dataflow import DataFlow
from .error_feedback import EncodedWeight, Feedback, Settings
from .kept import KeptCodes
from .learn import require_torch
from .learn.blocks import blocks_of
from .libraries import Libraries
from .measurements import measurements_of
from .products import Product, Rows, products_of
from .runs import Feeds, Stream
from .segments import Segment, cut
from .static_reads import places_of, static_reads
from .sums import Sums
from .tasks import Judged, chunks_of, encode
from .workers import open_workers

T = TypeVar("T")
Array = NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass
class Calibration:
    """One calibration of a simplified module, whose codes go to `unit.store`.

    `batches` are feeds of the whole model. `masks` says for each batch which tokens count
    ([batch, tokens]; None: all). `workers` says who does the work (`open_workers`). `errors` has
    afterwards by node the squared error of the outputs, of its weight's codes alone, relative to
    their energy; `scales` is the number of static scales that belong to no weight that is encoded;
    `scarce` is the product with the fewest rows for its columns, with both numbers, if it has fewer
    rows than columns.
    """

    module: ir.Operation
    unit: Unit
    batches: Sequence[Feeds]
    masks: Sequence[Array | None]
    work: Path
    settings: Settings = field(default_factory=Settings)
    progress: Progress = lambda step, done, total: None
    workers: str | int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    scales: int = 0
    scarce: tuple[str, int, int] | None = None
    seconds: float = 0.0
    learner: Any = None  # a learn.learner.Learner, which needs PyTorch

    def run(self, kept: KeptCodes) -> None:
        """Encode all weights, but those of which `kept` has the codes; it is given the others."""
        flow = DataFlow(self.module)
        products = products_of(flow, self.module, self.unit)
        static = static_reads(flow, self.unit, table_schemes(self.module, self.unit))
        self.scales = len(static)
        places = places_of(static, {product.at: product.name for product in products})
        segments = cut(flow, places)
        known = self._take_kept(products, kept, _made_together(flow, segments, products))
        self._prepare_learning(segments, products, known)
        products = [product for product in products if product.at not in known]
        static = [read for read in static if not read.take_kept(kept, self.unit.store)]
        if not products and not static:
            return
        plan = [measurements_of(segment, products, static) for segment in segments]
        following = dict(itertools.pairwise(itertools.chain(*plan)))
        exact, rounded = self._inputs.beside("exact"), self._inputs.beside("rounded")
        with self._passes() as passes:
            for done, segment in enumerate(segments):
                self.progress("calibrate", done, len(segments))
                if self.learner is not None:
                    self.learner.before(segment, exact, rounded)
                for measurement in plan[done]:
                    sums, ranges = passes.measure(measurement, exact, rounded)
                    self._notice_scarcity(sums)
                    sums.balance(self.settings, self.unit.store)
                    if measurement in following:
                        passes.prepare(following[measurement])
                    learned = self.learner.learned if self.learner is not None else {}
                    for product, result in passes.judge(sums, self.settings, encode, learned):
                        self._take(product, result)
                        kept.put(product.name_of_codes, result)
                    ranges.fix(self.unit.store, kept)
                if done + 1 < len(segments):
                    passes.advance(segment, self.unit.recipe, rounded)
                _forget_finished(segments[done + 1 :], segment, exact, rounded)
        self.progress("calibrate", len(segments), len(segments))

    def survey(
        self,
        work: Callable[[Judged, Feedback], T],
        output: Callable[[Product], str] = lambda product: "",
    ) -> Iterator[tuple[Product, T]]:
        """What `work` makes of each product in the float model, besides the file `output` in
        `folder`."""
        flow = DataFlow(self.module)
        products = products_of(flow, self.module, self.unit)
        products = [product for product in products if product.encoding.calibrated]
        segments = cut(flow, {product.at: product.name for product in products})
        plan = [measurements_of(segment, products, [], differ=False) for segment in segments]
        following = dict(itertools.pairwise(itertools.chain(*plan)))
        stream = self._inputs.beside("survey")
        with self._passes() as passes:
            for done, segment in enumerate(segments):
                self.progress("weigh formats", done, len(segments))
                for measurement in plan[done]:
                    sums, _ = passes.measure(measurement, stream, stream)
                    self._notice_scarcity(sums)
                    if measurement in following:
                        passes.prepare(following[measurement])
                    yield from passes.judge(sums, self.settings, work, output=output)
                _forget_finished(segments[done + 1 :], segment, stream)

    def manifest(self) -> dict[str, Any]:
        """What `abqc inspect` shows of it."""
        errors = {node: round(error, 6) for node, error in self.errors.items()}
        seconds = round(self.seconds, 1)
        found = {"batches": len(self.batches), "seconds": seconds, "errors": errors}
        if self.learner is not None:
            found["learned"] = self.learner.manifest()
        return {"calibration": found}

    def _prepare_learning(
        self, segments: list[Segment], products: list[Product], known: set[int]
    ) -> None:
        """Where the recipe wants products to learn. Raises RecipeError without PyTorch."""
        if not any(product.learns and product.at not in known for product in products):
            return
        require_torch()
        from .learn.learner import learner_of  # which most do not need

        parts = self.batches, self.masks
        self.learner = learner_of(self.module, self.unit, *parts, segments, products, known)

    @cached_property
    def _inputs(self) -> Stream:
        return Stream.of(self.batches, Path(tempfile.mkdtemp(dir=self.work, prefix="calibration-")))

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self._inputs.folder

    @contextmanager
    def _passes(self) -> Iterator[DataPasses]:
        """How the model is run; with the block the processes end that do it."""
        folder = self._inputs.folder
        with closing(open_workers(self.workers)) as workers, Libraries(folder) as libraries:
            chunks = chunks_of(self.masks)
            yield DataPasses(self.module, self.unit, chunks, folder, workers, libraries)

    def _notice_scarcity(self, sums: Sums) -> None:
        for product in sums.products:
            rows, k = sums.rows_seen(product), product.shape[1]
            if not product.encoding.calibrated:
                continue
            if rows < k and (self.scarce is None or rows * self.scarce[2] < self.scarce[1] * k):
                self.scarce = product.node, rows, k

    def _take(self, product: Product, result: EncodedWeight) -> None:
        self.errors[product.node] = result.relative_error
        encoding, store = product.encoding, self.unit.store
        if encoding.calibrated and encoding.symbol not in store:
            store.add_codes(encoding.symbol, result.tensor)
        if result.balance is not None and encoding.balance not in store:
            store.add(encoding.balance, result.balance)
        if result.bias is not None:
            store.add(bias_symbol(encoding, product.node), result.bias)
        if result.shift is not None:
            store.add(shift_symbol(encoding, product.node), result.shift)
        if result.activations is not None:
            store.add(static_scale_symbol(encoding, product.node), np.array(result.activations))

    def _take_kept(
        self, products: list[Product], kept: KeptCodes, together: list[set[int]]
    ) -> set[int]:
        """Positions of products whose codes an earlier calibration of the same has made; of those
        that are made `together`, all or none."""
        found = {}
        for product in products:
            codes = kept.get(product.name_of_codes, product.encoding.scheme)
            if codes is not None:
                found[product.at] = codes
        incomplete = {at for group in together if not group <= found.keys() for at in group}
        for product in products:
            if product.at in found.keys() - incomplete:
                self._take(product, found[product.at])
        return found.keys() - incomplete


def _made_together(
    flow: DataFlow, segments: list[Segment], products: list[Product]
) -> list[set[int]]:
    """The positions of products that share what is found for them: factors, or a learned block."""
    rows: dict[Rows, set[int]] = {}
    for product in products:
        if product.balances:
            rows.setdefault(product.rows, set()).add(product.at)
    learning = any(product.learns for product in products)
    blocks = blocks_of(flow, segments, products) if learning else []
    return [*rows.values(), *({p.at for p in block.products if p.learns} for block in blocks)]


def _forget_finished(later: Sequence[Segment], segment: Segment, *streams: Stream) -> None:
    """Remove the values that no later segment reads."""
    needed = {id_ for other in later for id_ in other.inputs}
    for id_ in {*segment.inputs, *segment.outputs} - needed:
        for stream in streams:
            stream.forget(id_)
