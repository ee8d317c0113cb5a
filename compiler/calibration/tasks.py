"""What the workers of a calibration do: parts of the data run through a segment, weights encoded.

Files that one task makes for others are pickles of our own classes, and segments of `.npy` files
(`runs.Stream`). A chunk is a few batches, and a group a few chunks, always the same ones. Sums of
chunks are added in order, and so are those of groups: it changes no bit whether a task has a chunk
or a group, and how many tasks there are at a time.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from abqc.dialects.formats import QuantizedTensor
from abqc.runtime.model import Model, load
from numpy.typing import NDArray

from .dataflow import ValueId
from .error_feedback import F32, EncodedWeight, Feedback, Settings
from .learn.learned import Learned
from .libraries import Library
from .products import Product
from .runs import Stream
from .segments import value_name
from .static_reads import StaticRanges, StaticRead
from .sums import Sums

Array = NDArray[Any]

CHUNKS = 16  # of the data, at most: what may be worked on at a time
GROUP = 4  # chunks


@dataclass(frozen=True)
class Chunk:
    """Batches by number, and for each which tokens count (None: all)."""

    number: int
    batches: tuple[int, ...]
    masks: tuple[Array | None, ...]

    def files(self, stream: Stream, names: Iterable[str]) -> list[str]:
        return [stream.file(name, batch) for name in names for batch in self.batches]


def chunks_of(masks: Sequence[Array | None]) -> list[Chunk]:
    """The chunks of data of which each batch has a mask."""
    count = min(CHUNKS, len(masks))
    bounds = [number * len(masks) // count for number in range(count + 1)]
    return [
        Chunk(number, tuple(range(begin, end)), tuple(masks[begin:end]))
        for number, (begin, end) in enumerate(itertools.pairwise(bounds))
    ]


def shares(chunks: Sequence[Chunk], workers: int) -> list[tuple[Chunk, ...]]:
    """The chunks of each task. Groups, whose sums are fewer to hand over, where workers get as many
    of them."""
    groups = [tuple(chunks[at : at + GROUP]) for at in range(0, len(chunks), GROUP)]
    return groups if len(groups) % workers == 0 else [(chunk,) for chunk in chunks]


@dataclass
class Measured:
    """Sums and static ranges over some data."""

    sums: Sums
    ranges: StaticRanges

    def merge(self, other: Measured) -> Measured:
        """Itself, with the same over other data."""
        self.sums.merge(other.sums)
        self.ranges.merge(other.ranges)
        return self


def total(measured: Iterable[tuple[Sequence[Chunk], Measured]]) -> Measured:
    """Of all shares, which come in order, with what was measured over each."""
    by_group = itertools.groupby(measured, lambda each: each[0][0].number // GROUP)
    groups = (reduce(Measured.merge, (found for _, found in group)) for _, group in by_group)
    return reduce(Measured.merge, groups)


@dataclass(frozen=True)
class Measure:
    """Run a segment in float over a share of the data: sums of what products read, to a file.

    `exact` has what the float model has computed so far; the values `wanted` are kept there. `own`
    is the model as it is quantized so far, None where it has computed the same. A library is None
    where all that the model is asked for has been kept.
    """

    chunks: tuple[Chunk, ...]
    library: Library | None
    own_library: Library | None
    exact: Stream
    own: Stream | None
    products: tuple[Product, ...]
    static: tuple[StaticRead, ...]
    totals: Mapping[int, ValueId]
    wanted: tuple[ValueId, ...]

    @property
    def sums(self) -> str:
        """The file of the sums and static ranges."""
        return f"sums{self.chunks[0].number}.pickle"

    @property
    def reads(self) -> list[str]:
        files = self._files(self.exact, self.library)
        if self.own is not None:
            files |= self._files(self.own, self.own_library)
        return sorted(files)

    def _files(self, stream: Stream, library: Library | None) -> set[str]:
        """What the rows and the library need of a stream, and the library."""
        names = {product.name for product in self.products} | {read.name for read in self.static}
        names |= {value_name(id_) for id_ in self.totals.values()}
        if library is not None:
            names = (names - {*library.outputs}) | {*library.inputs}
        files = {file for chunk in self.chunks for file in chunk.files(stream, names)}
        return files if library is None else files | {library.file}

    @property
    def writes(self) -> list[str]:
        names = [value_name(id_) for id_ in self.wanted]
        kept = [file for chunk in self.chunks for file in chunk.files(self.exact, names)]
        return [self.sums, *kept]

    def run(self, folder: Path) -> None:
        measured = total(([chunk], self._run(folder, chunk)) for chunk in self.chunks)
        with open(folder / self.sums, "wb") as file:  # without a copy in memory
            pickle.dump(measured, file, protocol=5)

    def _run(self, folder: Path, chunk: Chunk) -> Measured:
        exact = replace(self.exact, folder=folder)
        own = exact if self.own is None else replace(self.own, folder=folder)
        sums = Sums.of(self.products, self.totals, self.own is not None)
        ranges = StaticRanges(self.static)
        for batch, mask in zip(chunk.batches, chunk.masks, strict=True):
            mine = _run(self.library, exact, batch)
            others = mine if self.own is None else _run(self.own_library, own, batch)
            floats, given = exact.values(mine, batch), own.values(others, batch)
            sums.add(floats, given, mask)
            ranges.add(given, mask)
            for id_ in self.wanted:
                exact.keep(id_, batch, mine[value_name(id_)])
        return Measured(sums, ranges)


@dataclass(frozen=True)
class Advance:
    """Run a segment over a chunk, and keep the values `wanted`."""

    chunk: Chunk
    library: Library
    stream: Stream
    wanted: tuple[ValueId, ...]

    @property
    def reads(self) -> list[str]:
        return [self.library.file, *self.chunk.files(self.stream, self.library.inputs)]

    @property
    def writes(self) -> list[str]:
        return self.chunk.files(self.stream, map(value_name, self.wanted))

    def run(self, folder: Path) -> None:
        stream = replace(self.stream, folder=folder)
        for batch in self.chunk.batches:
            values = run(self.library, stream, batch)
            for id_ in self.wanted:
                stream.keep(id_, batch, values[value_name(id_)])


@dataclass(frozen=True)
class Judged:
    """A product with its sums and its weight, and its codes if another product has fixed them or
    the weight is only balanced. `learned` is what was found for it before. `output` is where its
    judge may leave arrays."""

    product: Product
    sums: Sums
    weight: F32
    codes: QuantizedTensor | None = None
    learned: Learned | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Judge:
    """Do `work` with a product, which `file` has, and the feedback of what it reads.

    What it writes besides is the file `output`, if there is one.
    """

    file: str
    settings: Settings
    work: Callable[[Judged, Feedback], Any]
    output: str = ""

    @property
    def reads(self) -> list[str]:
        return [self.file]

    @property
    def writes(self) -> list[str]:
        return [self.output] if self.output else []

    def run(self, folder: Path) -> Any:
        with open(folder / self.file, "rb") as file:
            judged = pickle.load(file)
        ((_, feedback),) = judged.sums.feedbacks(self.settings)
        output = folder / self.output if self.output else None
        return self.work(replace(judged, output=output), feedback)


def encode(judged: Judged, feedback: Feedback) -> EncodedWeight:
    parts = judged.weight, judged.codes, judged.learned
    return judged.sums.encode(judged.product, feedback, *parts)


def run(
    library: Library, stream: Stream, batch: int, given: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The outputs by name; what is not `given` the stream has."""
    return stream.run(_loaded(stream.folder / library.file), batch, given)


def _run(library: Library | None, stream: Stream, batch: int) -> dict[str, Array]:
    return {} if library is None else run(library, stream, batch)


@lru_cache(maxsize=2)  # of the float model, and of the quantized one
def _loaded(library: Path) -> Model:
    return load(library, verify=False)


def forget_libraries() -> None:
    """Let go of the libraries that this process has loaded: their files will be others."""
    _loaded.cache_clear()
