"""How much the errors of each product matter to what the model puts out.

The error of a product's outputs, relative to their energy, says little of that by itself: a tenth
of the energy is nothing in one layer and the end of the model in another. So it is measured: what
error feedback leaves is imitated in one product of the float model at a time (`error_like`), so
large that its energy is `NOISE` of the outputs', the model is run from there to its end, and what
it puts out is compared. All these models go through it side by side, segment by segment, as the
undisturbed one does. For errors so small that comes to as much for each unit of energy: a
`sensitivity` is what it comes to for all of it.

What is compared: the distributions that an output `logits` stands for, by their KL divergence, in
nats a token; without one, all outputs of floats, by the squared error relative to their energy.
What a mask of tokens hides does not count.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from abqc.compiler.evaluation.metrics import log_sum_exp
from abqc.compiler.evaluation.text import LOGITS
from abqc.compiler.recipe import FLOAT
from abqc.dialects import hadamard
from abqc.dialects.mlir import ir
from abqc.errors import AbqcError
from abqc.passes.infrastructure import Unit
from abqc.runtime.element_types import is_float
from abqc.runtime.tensor_spec import TensorSpec
from numpy.typing import NDArray

from .data_passes import tasks_in_memory
from .dataflow import DataFlow, ValueId
from .error_feedback import F32, Feedback, output_error
from .libraries import Libraries, Library, Part
from .products import Product
from .runs import Feeds, Stream, token_rows
from .segments import Segment, cut, noise_name, value_name
from .tasks import Advance, Chunk, Judged, run
from .workers import Workers, open_workers

Array = NDArray[Any]

NOISE = 0.01  # of the energy of a product's outputs: between what 3 and 4 bits leave
SAMPLES = 2  # runs of the model, of so many elements of its largest input
ELEMENTS = 512


def error_like(weight: F32, feedback: Feedback, seed: int) -> F32:
    """[N, K], what error feedback may leave of `weight`, so large that its energy is `NOISE` of the
    outputs'; zeros where these have none.

    Each column's rounding, which is as large for all columns of a channel, goes on to the columns
    behind it as T has it (`error_feedback.py`).
    """
    rng = np.random.default_rng(seed)
    channels = np.sqrt(np.mean(np.square(weight), axis=1, keepdims=True))
    rounding = rng.standard_normal(weight.shape, np.float32) * channels
    unit = feedback.factor / np.diagonal(feedback.factor)[:, None]
    error = np.empty_like(weight)
    error[:, feedback.order] = rounding @ unit
    none = np.zeros_like(weight)
    energy, own = (float(output_error(w, none, feedback.moments).sum()) for w in (weight, error))
    return error * np.float32(np.sqrt(NOISE * energy / own)) if own > 0 and energy > 0 else none


def error_file(product: Product) -> str:
    """Where the error of a product's weight lies, which `write_error` makes."""
    return f"error{product.at}.npz"


def write_error(judged: Judged, feedback: Feedback) -> None:
    """In f16, times a scale; with the mean of the rows that a bias makes good for."""
    assert judged.output is not None
    error = error_like(judged.weight, feedback, judged.product.at)
    scale = np.abs(error).max()
    mean = feedback.sums.mean() if feedback.settings.bias else np.zeros(error.shape[1])
    np.savez(
        judged.output,
        error=(error / (scale or 1)).astype(np.float16),
        scale=scale,
        mean=mean.astype(np.float32),
    )


@dataclass(frozen=True)
class Disturbed:
    """The model with an error in one product, as far as it has been run.

    `changed` are the values that it has computed, so that what others read of them is its own.
    """

    product: Product
    changed: frozenset[str] = frozenset()

    def stream(self, stream: Stream) -> Stream:
        """Where its values lie, beside those of the undisturbed model."""
        return replace(stream, name=f"disturbed{self.product.at}")


@dataclass(frozen=True)
class Disturb:
    """Run a segment on a batch for models that are disturbed: by errors in its own products, where
    the library takes noise (`noisy`), or by earlier ones.

    What later segments read (`wanted`) is kept. In the last one `outputs` are those of the model,
    by the names of their values: then the task tells, by product, what became of them. It is NaN
    where that cannot be said, because another number of elements came out of the noise.
    """

    batch: int
    mask: Array | None
    models: tuple[Disturbed, ...]
    library: Library
    noisy: tuple[Product, ...]
    stream: Stream
    wanted: tuple[ValueId, ...]
    outputs: Mapping[str, TensorSpec]
    energies: Mapping[str, float]

    @property
    def reads(self) -> list[str]:
        noises = {noise_name(product.result) for product in self.noisy}
        read = {*self.library.inputs} - noises
        files = [self.library.file, *self._files(self.stream, read | self.outputs.keys())]
        if self.noisy:
            results = {value_name(product.result) for product in self.noisy}
            names = results | {model.product.name for model in self.models}
            files += self._files(self.stream, names)
            files += [error_file(model.product) for model in self.models]
        for model in self.models:
            own = (read | self.outputs.keys()) & model.changed
            files += self._files(model.stream(self.stream), own)
        return sorted(set(files))

    @property
    def writes(self) -> list[str]:
        names = [value_name(id_) for id_ in self.wanted]
        return [f for model in self.models for f in self._files(model.stream(self.stream), names)]

    def _files(self, stream: Stream, names: Iterable[str]) -> list[str]:
        return [stream.file(name, self.batch) for name in names]

    def run(self, folder: Path) -> dict[int, float]:
        stream = replace(self.stream, folder=folder)
        exact: Exact | None = None
        values: dict[str, Array] = {}
        if self.outputs:
            values = {name: stream.value(name, self.batch) for name in self.outputs}
            named = {spec.name: values[name] for name, spec in self.outputs.items()}
            exact = Exact(named, self.mask, self.energies)
        found = {}
        for model in self.models:
            own = model.stream(stream)
            (folder / own.name).mkdir(exist_ok=True)
            try:
                computed = run(self.library, stream, self.batch, self._given(model, stream, own))
            except AbqcError:  # sizes that depend on data no longer fit
                found[model.product.at] = math.nan
                computed = {}
            for id_ in self.wanted:
                own.keep(id_, self.batch, computed.get(value_name(id_), np.zeros(0)))
            if exact is not None and computed:
                known = {
                    name: own.value(name, self.batch) if name in model.changed else values[name]
                    for name in self.outputs.keys() - computed.keys()
                }
                others = {s.name: (known | computed)[name] for name, s in self.outputs.items()}
                found[model.product.at] = exact.divergence(others) / NOISE
        return found

    def _given(self, model: Disturbed, stream: Stream, own: Stream) -> dict[str, Array]:
        """What the library takes that is not the undisturbed model's."""
        names = model.changed.intersection(self.library.inputs)
        given = {name: own.value(name, self.batch) for name in names}
        for product in self.noisy:
            y = stream.value(value_name(product.result), self.batch)
            noise = np.zeros_like(y)
            if product.at == model.product.at:
                noise = self._noise(product, stream, y)
            given[noise_name(product.result)] = noise
        return given

    def _noise(self, product: Product, stream: Stream, y: Array) -> Array:
        """What the error makes of the batch, in the shape of the outputs `y`."""
        x = stream.value(product.name, self.batch)
        with np.load(stream.folder / error_file(product)) as arrays:
            error = arrays["error"].astype(np.float32) * arrays["scale"]
            mean = arrays["mean"]
        rows = token_rows(x, None) if product.patches is None else product.patches.rows(x, None)
        if product.encoding.hadamard_block:
            rows = hadamard.transform(rows, product.encoding.hadamard_block)
        noise = (rows - mean) @ error.T
        if product.patches is not None:
            batch, channels, *spatial = y.shape
            noise = np.moveaxis(noise.reshape(batch, *spatial, channels), -1, 1)
        return np.ascontiguousarray(noise.reshape(y.shape), y.dtype)


class Exact:
    """The outputs of the undisturbed model on a batch, by name, to which others are compared.

    `energies` are those of an element of each output, over all batches. Tokens that the mask hides
    do not count, nor do elements that are not finite.
    """

    def __init__(
        self, outputs: Mapping[str, Array], mask: Array | None, energies: Mapping[str, float]
    ) -> None:
        self._mask, self._energies = mask, energies
        self._rows = {name: self._counted(output) for name, output in outputs.items()}
        logits = outputs.get(LOGITS)
        self._is_likelihood = logits is not None and logits.ndim <= 3 and logits.shape[-1] > 1
        if self._is_likelihood:
            self._logits = _finite(self._rows[LOGITS])
            self._normalizers = log_sum_exp(self._logits)
            self._p = np.exp(self._logits - self._normalizers[:, None].astype(np.float32))

    def divergence(self, others: Mapping[str, Array]) -> float:
        """How far others are from them, see above; NaN where nothing can be compared."""
        if self._is_likelihood:
            logits = self._counted(others[LOGITS])
            return self._kl(_finite(logits)) if logits.shape == self._logits.shape else math.nan
        found = []
        for name, rows in self._rows.items():
            other = self._counted(others[name])
            energy = self._energies.get(name, 0.0)
            if rows.shape != other.shape or not energy:
                continue
            both = np.isfinite(rows) & np.isfinite(other)
            lost = np.square(other[both].astype(np.float64) - rows[both])
            if lost.size:
                found.append(float(lost.mean()) / energy)
        return float(np.mean(found)) if found else math.nan

    def _counted(self, output: Array) -> F32:
        """As rows [.., last axis]; of tokens those that the mask shows."""
        if output.ndim < 2:
            return np.asarray(output, np.float32).reshape(1, -1)
        hides = self._mask is not None and output.shape[:2] == self._mask.shape
        return token_rows(output, self._mask if hides else None)

    def _kl(self, logits: F32) -> float:
        """Mean over rows."""
        if not len(logits):
            return math.nan
        total = float((log_sum_exp(logits) - self._normalizers).sum())
        for begin in range(0, len(logits), 64):
            rows = slice(begin, begin + 64)
            lost = self._p[rows] * (self._logits[rows] - logits[rows])
            total += float(lost.sum(dtype=np.float64))
        return max(total / len(logits), 0.0)


def _finite(logits: F32) -> F32:
    """With infinities, which hide classes, as numbers far from all others."""
    return np.nan_to_num(logits, nan=0.0, posinf=1e4, neginf=-1e4)


@dataclass(frozen=True)
class Sensitivities:
    """Measures them, in a simplified module. Its own files lie in `folder`.

    `batches` are feeds of the whole model, `masks` which tokens count.
    """

    module: ir.Operation
    unit: Unit
    batches: Sequence[Feeds]
    masks: Sequence[Array | None]
    folder: Path
    workers: str | int | None
    progress: Callable[[str, int, int], None]

    def measure(self, products: Sequence[Product], errors: Path) -> dict[int, float]:
        """By the position of the product; NaN where the outputs do not tell. The files of errors
        move from `errors` to here."""
        for product in products:
            os.replace(errors / error_file(product), self.folder / error_file(product))
        with closing(open_workers(self.workers)) as workers, Libraries(self.folder) as libraries:
            found = _Measurement(self, products, workers, libraries).run()
        return {product.at: _mean(found.get(product.at, [])) for product in products}


def _mean(found: Sequence[float]) -> float:
    """Of batches that tell."""
    known = [value for value in found if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


class _Measurement:
    """One measurement: segment by segment, of the undisturbed model and of all disturbed ones."""

    def __init__(
        self,
        of: Sensitivities,
        products: Sequence[Product],
        workers: Workers,
        libraries: Libraries,
    ) -> None:
        self.of, self.workers, self.libraries = of, workers, libraries
        self.products = sorted(products, key=lambda product: product.at)
        self.flow = DataFlow(of.module)
        reads = {product.at: product.name for product in self.products}
        self.segments = cut(self.flow, reads, whole=True)
        self.stream = Stream.of(of.batches, of.folder).beside("sample")
        self.outputs = self._outputs()
        self.models: list[Disturbed] = []
        self.found: dict[int, list[float]] = {}

    def run(self) -> dict[int, list[float]]:
        """By the position of the product what becomes of the outputs of each batch."""
        parts = [self._parts(number) for number in range(len(self.segments))]
        ahead = min(self.workers.count, len(os.sched_getaffinity(0)))
        begun = deque(self.libraries.begin(each) for each in parts[:ahead])
        for number, (plain, noisy) in enumerate(parts):
            self.of.progress("weigh products", number, len(parts))
            both = self.libraries.finish(begun.popleft())
            if number + ahead < len(parts):
                begun.append(self.libraries.begin(parts[number + ahead]))
            self._advance(both[0], tuple(plain.wanted))
            self._disturb(number, tuple(noisy.wanted), *both)
            for library in both:
                (self.of.folder / library.file).unlink()
            self._forget(number, plain.wanted)
        return self.found

    def _parts(self, number: int) -> tuple[Part, Part]:
        """A segment as it is, with what its products read and put out; and with noise in these."""
        segment = self.segments[number]
        own, needed = self._own(segment), self._needed(number)
        read = [p.read for p in own if p.read is not None and p.read not in segment.inputs]
        results = tuple(product.result for product in own)
        outputs = tuple(id_ for id_ in segment.outputs if id_ in needed)
        seen = tuple(dict.fromkeys([*outputs, *read, *results]))
        given = self.of.module, self.of.unit.inputs, segment.inputs
        more = FLOAT, self.of.unit.store, self.of.folder
        return Part(*given, seen, *more), Part(*given, outputs, *more, noisy=results)

    def _needed(self, number: int) -> set[ValueId]:
        """What later segments read, and what is compared in the end."""
        later = {id_ for other in self.segments[number + 1 :] for id_ in other.inputs}
        return later | self.outputs.keys()

    def _own(self, segment: Segment) -> tuple[Product, ...]:
        return tuple(product for product in self.products if product.at in segment.products)

    def _advance(self, library: Library, wanted: tuple[ValueId, ...]) -> None:
        chunk = Chunk(0, tuple(range(len(self.of.batches))), tuple(self.of.masks))
        for _ in self.workers.map([Advance(chunk, library, self.stream, wanted)], self.of.folder):
            pass

    def _disturb(
        self, number: int, computed: tuple[ValueId, ...], plain: Library, noisy: Library
    ) -> None:
        """All models that have been disturbed before, and those of this segment's products."""
        last = number + 1 == len(self.segments)
        outputs = {value_name(id_): spec for id_, spec in self.outputs.items()} if last else {}
        energies = self._energies(outputs)
        wanted = () if last else computed
        own = self._own(self.segments[number])
        new = [Disturbed(product) for product in own]
        tasks = []
        for batch, mask in enumerate(self.of.masks):
            rest = (self.stream, wanted, outputs, energies)
            for group in self._groups(self.models):
                tasks.append(Disturb(batch, mask, group, plain, (), *rest))
            for group in self._groups(new):
                tasks.append(Disturb(batch, mask, group, noisy, own, *rest))
        at_once = tasks_in_memory(4 * self._bytes(outputs))
        for found in self.workers.map(tasks, self.of.folder, at_once):
            for at, value in found.items():
                self.found.setdefault(at, []).append(value)
        made = frozenset(map(value_name, computed))
        self.models = [
            replace(model, changed=model.changed | made)
            for model in (*self.models, *new)
            if not any(map(math.isnan, self.found.get(model.product.at, [])))
        ]

    def _groups(self, models: Sequence[Disturbed]) -> Iterator[tuple[Disturbed, ...]]:
        """Tasks are for a few models: a worker has little more than one of their values."""
        size = max(1, -(-len(models) // (2 * self.workers.count)))
        for begin in range(0, len(models), size):
            yield tuple(models[begin : begin + size])

    def _outputs(self) -> dict[ValueId, TensorSpec]:
        """The model's outputs that are compared: `logits`, else all of floats that depend on
        products."""
        returned = [self.flow.id_of(value) for value in self.flow.operations[-1].operands]
        found = {
            id_: spec
            for id_, spec in zip(returned, self.of.unit.outputs, strict=True)
            if id_ is not None and self.flow.is_expensive(id_) and is_float(spec.dtype)
        }
        return {id_: spec for id_, spec in found.items() if spec.name == LOGITS} or found

    def _energies(self, outputs: Mapping[str, TensorSpec]) -> dict[str, float]:
        """Of an element of each output about the mean; about 0 where all are the same."""
        found = {}
        for name, spec in outputs.items():
            arrays = [self.stream.value(name, batch) for batch in range(len(self.of.batches))]
            flat = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays])
            flat = flat[np.isfinite(flat)]
            if flat.size:
                found[spec.name] = float(flat.var()) or float(np.square(flat).mean())
        return found

    def _bytes(self, outputs: Mapping[str, TensorSpec]) -> int:
        """Of the outputs of the largest batch."""
        sizes = [
            sum(self.stream.value(name, batch).nbytes for name in outputs)
            for batch in range(len(self.of.batches))
        ]
        return max(sizes, default=0)

    def _forget(self, number: int, seen: Sequence[ValueId]) -> None:
        """Remove the values that no later segment reads, and errors that have been made."""
        segment = self.segments[number]
        for id_ in {*segment.inputs, *seen} - self._needed(number):
            self.stream.forget(id_)
            for model in self.models:
                model.stream(self.stream).forget(id_)
        for product in self._own(segment):
            (self.of.folder / error_file(product)).unlink()
