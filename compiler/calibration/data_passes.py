"""Passes over the data, by workers: segments are run, sums added up, weights encoded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abqc.compiler.recipe import FLOAT, Recipe
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit

from .dataflow import ValueId
from .error_feedback import Feedback, Settings
from .learn.learned import Learned
from .libraries import Libraries, Library, Part
from .measurements import Measurement
from .products import Product
from .runs import Stream
from .segments import Segment
from .static_reads import StaticRanges
from .sums import Sums
from .tasks import Advance, Chunk, Judge, Judged, Measure, Measured, shares, total
from .workers import Workers

MATRICES = 8  # of f64 [K, K], that a product's feedback is computed with


@dataclass
class DataPasses:
    """How a simplified module is run over chunks of data, whose values lie in `folder`."""

    module: ir.Operation
    unit: Unit
    chunks: Sequence[Chunk]
    folder: Path
    workers: Workers
    libraries: Libraries
    _begun: dict[Measurement, int] = field(default_factory=dict)

    def prepare(self, measurement: Measurement) -> None:
        """Start to compile what `measure` will run; it depends on no codes."""
        parts = self._parts(measurement)
        if parts:
            self._begun[measurement] = self.libraries.begin(parts)

    def _parts(self, measurement: Measurement) -> list[Part]:
        """What the float model runs, and what the quantized one so far: that need not compute what
        the float model keeps. Without what is the same, or nothing."""
        wanted = [measurement.outputs]
        if measurement.differ and measurement.measured != measurement.outputs:
            wanted.append(measurement.measured)
        return [self._part(measurement.segment, each, FLOAT) for each in wanted if each]

    def measure(
        self, measurement: Measurement, exact: Stream, own: Stream
    ) -> tuple[Sums, StaticRanges]:
        """Sums and ranges over the data; `exact` keeps the values that are wanted."""
        if measurement in self._begun:
            libraries = self.libraries.finish(self._begun.pop(measurement))
        else:
            libraries = [self.libraries.compile(part) for part in self._parts(measurement)]
        library = libraries[0] if libraries else None
        own_library = libraries[-1] if measurement.measured else None
        tasks = [
            Measure(
                share,
                library,
                own_library,
                exact,
                own if measurement.differ else None,
                measurement.products,
                measurement.static,
                measurement.totals,
                measurement.wanted,
            )
            for share in shares(self.chunks, self.workers.count)
        ]
        done = self.workers.map(tasks, self.folder, tasks_in_memory(measurement.bytes))
        pairs = zip(tasks, done, strict=True)
        measured = total((task.chunks, self._read(task)) for task, _ in pairs)
        self._forget(libraries)
        return measured.sums, measured.ranges

    def _read(self, task: Measure) -> Measured:
        path = self.folder / task.sums
        with open(path, "rb") as file:
            measured: Measured = pickle.load(file)
        path.unlink()
        return measured

    def advance(self, segment: Segment, recipe: Recipe, stream: Stream) -> None:
        """Run the segment as the recipe has it, on what the stream has computed so far."""
        library = self.libraries.compile(self._part(segment, segment.outputs, recipe))
        tasks = [Advance(chunk, library, stream, segment.outputs) for chunk in self.chunks]
        for _ in self.workers.map(tasks, self.folder):
            pass
        self._forget([library])

    def judge(
        self,
        sums: Sums,
        settings: Settings,
        work: Callable[[Judged, Feedback], Any],
        learned: Mapping[int, Learned] | None = None,
        output: Callable[[Product], str] = lambda product: "",
    ) -> Iterator[tuple[Product, Any]]:
        """What `work` makes of each product; codes that the caller stores are known to those that
        come later. `learned` is what was found before, by the products' positions; `output` names
        the file that `work` makes of a product, if any."""
        left = list(sums.products)
        while left:
            first: dict[str, Product] = {}  # of products with one weight, which fixes its codes
            for product in left:
                first.setdefault(product.encoding.symbol, product)
            batch = list(first.values())
            left = [product for product in left if first[product.encoding.symbol] is not product]
            found = learned or {}
            tasks = [
                self._judge(sums, p, settings, work, found.get(p.at), output(p)) for p in batch
            ]
            largest = max(product.shape[1] for product in batch)
            done = self.workers.map(tasks, self.folder, tasks_in_memory(MATRICES * 8 * largest**2))
            for product, task, result in zip(batch, tasks, done, strict=True):
                (self.folder / task.file).unlink()
                yield product, result

    def _judge(
        self,
        sums: Sums,
        product: Product,
        settings: Settings,
        work: Callable[[Judged, Feedback], Any],
        learned: Learned | None,
        output: str,
    ) -> Judge:
        encoding, store = product.encoding, self.unit.store
        weight, codes = encoding.weight(store), None
        if encoding.symbol in store or not encoding.calibrated:
            codes = encoding.encode(store, weight)
        judged = Judged(product, sums.of_product(product), weight, codes, learned)
        task = Judge(f"product{product.at}.pickle", settings, work, output)
        with open(self.folder / task.file, "wb") as file:
            pickle.dump(judged, file, protocol=5)
        return task

    def _part(self, segment: Segment, wanted: Sequence[ValueId], recipe: Recipe) -> Part:
        unit = self.unit
        return Part(
            *(self.module, unit.inputs, segment.inputs, wanted, recipe, unit.store, self.folder)
        )

    def _forget(self, libraries: Sequence[Library]) -> None:
        for library in libraries:
            (self.folder / library.file).unlink()


def tasks_in_memory(size: int) -> int:
    """How many tasks may hold so many bytes each, in a quarter of this machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, memory // 4 // max(size, 1))
