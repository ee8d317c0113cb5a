"""Calibration: the model runs segment by segment, and each segment's weights are encoded.

Two variants run side by side over the same data: the float model, and the model as it is quantized
so far. A segment is run in float on the inputs of both; from what its products read come the second
moments, from these the codes (`error_feedback.py`). Then the segment is run as it will be, with
these codes and activations quantized, on what came before: so every layer answers for the errors of
those before it. In memory are one segment's moments and one batch; what crosses between segments
lies in files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.recipe import FLOAT, Kind
from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.dialects.schemes import Scheme
from abqc.passes.infrastructure import Unit
from abqc.passes.quantize import (
    Encoding,
    conv_encoding,
    float_source,
    matmul_encoding,
    static_scale_symbol,
    table_schemes,
)
from numpy.typing import NDArray

from .dataflow import DataFlow, ValueId
from .error_feedback import EncodedWeight, Feedback, Settings
from .kept import KeptCodes
from .moments import Excess, Moments
from .patches import Patches
from .ranges import Range
from .residual import sum_of
from .runs import Feeds, Stream, compile_segment, token_rows
from .segments import Segment, cut, extract, name_of, value_name

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]

MOMENT_BYTES = 1 << 30  # of one pass over the data; a segment with more is run several times


@dataclass(frozen=True)
class _Product:
    """A product to calibrate: where it is, what it reads, how its weight is encoded.

    `read` is the id of the value; None for an input of the model, whose name is `name`. `total` is
    the residual stream that the output is added to, in the same segment, None without one.
    `patches` are the windows of a convolution; they make the rows that are its inputs. `static` is
    the scheme of activations that have one scale for all, which calibration fixes.
    """

    at: int
    node: str
    read: ValueId | None
    name: str
    shape: tuple[int, int]
    encoding: Encoding
    total: ValueId | None
    patches: Patches | None = None
    static: Scheme | None = None

    @property
    def rows(self) -> _Rows:
        return self.name, self.patches


# What products read as rows: the name of a value, and the windows of a convolution.
_Rows = tuple[str, Patches | None]


@dataclass(frozen=True)
class _Sums:
    """What a pass over the data sums up: by what is read; by the product's position."""

    moments: dict[_Rows, Moments]
    excess: dict[int, Excess]
    ranges: dict[int, Range]


@dataclass
class Calibration:
    """One calibration of a simplified module, whose codes go to `unit.store`.

    `batches` are feeds of the whole model. `masks` says for each batch which tokens count
    ([batch, tokens]; None: all). `errors` has afterwards by node the squared error of the outputs,
    of its weight's codes alone, relative to their energy; `scarce` is the product with the fewest
    rows for its columns, with both numbers, if it has fewer rows than columns.
    """

    module: ir.Operation
    unit: Unit
    batches: Sequence[Feeds]
    masks: Sequence[Array | None]
    work: Path
    settings: Settings = field(default_factory=Settings)
    progress: Progress = lambda step, done, total: None
    errors: dict[str, float] = field(default_factory=dict)
    scarce: tuple[str, int, int] | None = None
    seconds: float = 0.0

    def run(self, kept: KeptCodes) -> None:
        """Encode all weights, but those of which `kept` has the codes; it is given the others."""
        products, segments = self._cut()
        known = self._take_kept(products, kept)
        if known == {product.at for product in products}:
            return
        exact, rounded = Stream(self.batches, self.work), Stream(self.batches, self.work)
        self.progress("calibrate", 0, len(segments))
        for done, segment in enumerate(segments):
            inside = [
                product
                for product in products
                if product.at in segment.products and product.at not in known
            ]
            self._measure(segment, inside, exact, rounded, kept)
            if done + 1 < len(segments):
                self._advance(segment, rounded)
            for id_ in _finished(segments[done + 1 :], segment):
                exact.forget(id_)
                rounded.forget(id_)
            self.progress("calibrate", done + 1, len(segments))

    def survey(self, visit: Callable[[str, NDArray[np.float32], Feedback], None]) -> None:
        """Show `visit` each product in the float model: its node, weight [N, K] and feedback."""
        products, segments = self._cut()
        stream = Stream(self.batches, self.work)
        for done, segment in enumerate(segments):
            self.progress("weigh formats", done, len(segments))
            inside = [product for product in products if product.at in segment.products]
            wanted = list(segment.outputs)
            for group in _groups(inside):
                sums = self._sums(segment, group, wanted, stream, None)
                wanted = []
                for product, feedback in self._feedbacks(group, sums):
                    visit(product.node, product.encoding.weight(self.unit.store), feedback)
            for id_ in _finished(segments[done + 1 :], segment):
                stream.forget(id_)

    def manifest(self) -> dict[str, Any]:
        """What `abqc inspect` shows of it."""
        errors = {node: round(error, 6) for node, error in self.errors.items()}
        seconds = round(self.seconds, 1)
        return {"calibration": {"batches": len(self.batches), "seconds": seconds, "errors": errors}}

    def _cut(self) -> tuple[list[_Product], list[Segment]]:
        flow = DataFlow(self.module)
        products = self._products(flow)
        return products, cut(flow, {product.at: product.name for product in products})

    def _products(self, flow: DataFlow) -> list[_Product]:
        tables = table_schemes(self.module, self.unit)
        found = []
        for at, op in enumerate(flow.operations):
            encoding = None
            if op.name == "abq.matmul":
                encoding = matmul_encoding(op, tables, self.unit)
            elif op.name == "abq.conv":
                encoding = conv_encoding(op, self.unit)
            if encoding is not None and encoding.calibrated:
                found.append(self._product(at, float_source(op.opview.x), encoding, flow))
        return found

    def _product(self, at: int, reads: ir.Value, encoding: Encoding, flow: DataFlow) -> _Product:
        id_ = flow.id_of(reads)
        name = name_of(reads, id_, self.unit.inputs)
        op = flow.operations[at]
        node = ir.StringAttr(op.attributes["node"]).value
        if op.name == "abq.conv":
            n, *window = abq.shape(op.opview.w)
            shape = n, prod(window)
            static = self._static(node, "conv")
            return _Product(at, node, id_, name, shape, encoding, None, Patches.of(op), static)
        result = op.results[0]
        total = sum_of(result)
        n, k = abq.shape(result)[-1], abq.shape(reads)[-1]
        stream = None if total == result else flow.id_of(total)
        static = self._static(node, "matmul")
        return _Product(at, node, id_, name, (n, k), encoding, stream, static=static)

    def _static(self, node: str, kind: Kind) -> Scheme | None:
        activation = self.unit.recipe.resolve(node, kind).activation
        return activation if activation and activation.granularity == "tensor" else None

    def _measure(
        self,
        segment: Segment,
        products: list[_Product],
        exact: Stream,
        rounded: Stream,
        kept: KeptCodes,
    ) -> None:
        """Moments of what the segment's products read, and their codes; `exact` moves on."""
        wanted = list(segment.outputs)
        for group in _groups(products):
            if not group and not wanted:
                continue
            self._encode(group, self._sums(segment, group, wanted, exact, rounded), kept)
            wanted = []

    def _sums(
        self,
        segment: Segment,
        products: list[_Product],
        wanted: list[ValueId],
        exact: Stream,
        rounded: Stream | None,
    ) -> _Sums:
        """Sums over the data of what `products` read; `exact` keeps the values `wanted`."""
        # The first segment reads the model's inputs alone.
        differ = rounded is not None and bool(segment.inputs)
        own = exact if rounded is None else rounded
        totals = {
            product.at: product.total
            for product in products
            if differ and product.total is not None and product.total.at < segment.end
        }
        drifting = {p.rows for p in products if differ and p.at not in totals}
        sums = _Sums(
            {product.rows: Moments(product.shape[1]) for product in products},
            {product.at: Excess(*product.shape) for product in products if product.at in totals},
            {p.at: Range(p.encoding.hadamard_block) for p in products if p.static is not None},
        )
        reads = [p.read for p in products if p.read is not None and p.read not in segment.inputs]
        outputs = list(dict.fromkeys([*reads, *totals.values(), *wanted]))
        part = extract(self.module, self.unit.inputs, segment.inputs, outputs)
        model = compile_segment(part, FLOAT, self.unit.store, self.work)
        for batch in range(len(exact)):
            mine = exact.run(model, batch)
            others = own.run(model, batch) if differ else mine

            def rows(
                read: _Rows, values: dict[str, Array], stream: Stream, batch: int = batch
            ) -> NDArray[np.float32]:
                name, patches = read
                value = values[name] if name in values else stream.value(name, batch)
                if patches is not None:
                    return patches.rows(value)
                return token_rows(value, self.masks[batch])

            xs = {key: rows(key, others, own) for key in sums.moments}
            for key, moments in sums.moments.items():
                moments.add(xs[key], rows(key, mine, exact) if key in drifting else None)
            for product in products:
                if product.at in totals:
                    total = value_name(totals[product.at]), None
                    missing = rows(total, mine, exact) - rows(total, others, own)
                    sums.excess[product.at].add(missing, xs[product.rows])
                if product.at in sums.ranges:
                    sums.ranges[product.at].add(xs[product.rows])
            for id_ in wanted:
                exact.keep(id_, batch, mine[value_name(id_)])
        model.close()
        for product in products:
            self._notice_scarcity(product, sums.moments[product.rows].rows)
        return sums

    def _notice_scarcity(self, product: _Product, rows: int) -> None:
        k = product.shape[1]
        if rows < k and (self.scarce is None or rows * self.scarce[2] < self.scarce[1] * k):
            self.scarce = product.node, rows, k

    def _feedbacks(
        self, products: list[_Product], sums: _Sums
    ) -> Iterator[tuple[_Product, Feedback]]:
        """Each product with the feedback of what it reads, which several may share."""
        made: dict[tuple[_Rows, int], Feedback] = {}
        for product in products:
            block = product.encoding.hadamard_block
            if (product.rows, block) not in made:
                moments = sums.moments[product.rows]
                rotated = moments.rotated(block) if block else moments
                made[product.rows, block] = Feedback(rotated, self.settings)
            yield product, made[product.rows, block]

    def _encode(self, products: list[_Product], sums: _Sums, kept: KeptCodes) -> None:
        """The codes of the products' weights."""
        for product, feedback in self._feedbacks(products, sums):
            encoding, block = product.encoding, product.encoding.hadamard_block
            if encoding.symbol in self.unit.store:
                continue  # a weight of several products: encoded for the first one
            excess = sums.excess.get(product.at)
            if excess is not None and block:
                excess = excess.rotated(block)
            weight = encoding.weight(self.unit.store)
            result = feedback.encode(weight, encoding.scheme, excess)
            if product.static is not None:
                scale, zero = sums.ranges[product.at].choose(product.static)
                result = replace(result, activations=(float(scale), float(zero)))
            self._take(product, result)
            kept.put(encoding.symbol, result)

    def _take(self, product: _Product, result: EncodedWeight) -> None:
        self.errors[product.node] = result.relative_error
        self.unit.store.add_codes(product.encoding.symbol, result.tensor)
        if result.activations is not None:
            symbol = static_scale_symbol(product.encoding, product.node)
            self.unit.store.add(symbol, np.array(result.activations))

    def _take_kept(self, products: list[_Product], kept: KeptCodes) -> set[int]:
        """Positions of products whose codes an earlier calibration of the same has made."""
        found: set[int] = set()
        for product in products:
            encoding = product.encoding
            if encoding.symbol not in self.unit.store:
                codes = kept.get(encoding.symbol, encoding.scheme)
                if codes is None:
                    continue
                self._take(product, codes)
            found.add(product.at)
        return found

    def _advance(self, segment: Segment, rounded: Stream) -> None:
        """Run the segment as it will be, on what the quantized model has computed so far."""
        part = extract(self.module, self.unit.inputs, segment.inputs, segment.outputs)
        model = compile_segment(part, self.unit.recipe, self.unit.store, self.work)
        for batch in range(len(rounded)):
            values = rounded.run(model, batch)
            for id_ in segment.outputs:
                rounded.keep(id_, batch, values[value_name(id_)])
        model.close()


def _groups(products: list[_Product]) -> list[list[_Product]]:
    """What is measured in one pass over the data: up to MOMENT_BYTES of moments."""
    groups: list[list[_Product]] = [[]]
    sizes: dict[_Rows, int] = {}
    for product in products:
        sizes.setdefault(product.rows, Moments.bytes_of(product.shape[1]))
        if groups[-1] and sum(sizes.values()) > MOMENT_BYTES:
            groups.append([])
            sizes = {product.rows: Moments.bytes_of(product.shape[1])}
        groups[-1].append(product)
    return groups


def _finished(later: list[Segment], segment: Segment) -> list[ValueId]:
    """Kept values that no later segment reads."""
    needed = {id_ for other in later for id_ in other.inputs}
    return [id_ for id_ in (*segment.inputs, *segment.outputs) if id_ not in needed]
