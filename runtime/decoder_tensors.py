"""What a decoder gives to a run and takes from it: tokens and what is said of them, and caches.

On a CPU all of it lies in buffers with room for more, bound to the model once: what a run takes are
their first rows. On a GPU tokens are arrays, and caches go from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from .aligned import empty_aligned
from .dlpack import DType, FirstRows, RowsLayout
from .element_types import by_name, numpy_dtype
from .tensor_spec import Dim, TensorSpec

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
KEPT = ("logits_to_keep", "num_logits_to_keep")


class BoundRuns(Protocol):
    """`abqc.runtime.bound.Bound`."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]: ...


class Runnable(Protocol):
    """What a decoder needs of a model (`abqc.Model`)."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    path: Any
    device: str

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> list[Any]: ...

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> BoundRuns: ...


class TokenInputs:
    """The inputs that say which tokens come, by name; `past` are those that are cached already.

    A mask of a size that the model fixes has zeros behind the tokens.
    """

    def __init__(self, inputs: Mapping[str, TensorSpec]) -> None:
        self._specs = {n: inputs[n] for n in (IDS, MASK, POSITIONS) if n in inputs}
        self.constants = {
            name: np.ones((1,) * len(inputs[name].shape), numpy_dtype(inputs[name].dtype))
            for name in KEPT
            if name in inputs
        }
        self.ids_shape = {size for size in inputs[IDS].shape if isinstance(size, str)}
        size = inputs[MASK].shape[1] if MASK in inputs else None
        self._mask_size = size if isinstance(size, int) else None

    def keep(self, count: int) -> None:
        """Have the next run give the logits of the last `count` tokens, where the model asks."""
        for array in self.constants.values():
            array[...] = count

    def arrays(self, tokens: Sequence[int], past: int) -> dict[str, np.ndarray]:
        """Those of one run."""
        buffers = self.buffers(past + len(tokens))
        rows = self.fill(buffers, tokens, past)
        return {name: buffer[:, : rows[name]] for name, buffer in buffers.items()}

    def buffers(self, room: int) -> dict[str, np.ndarray]:
        """[1, room] each: memory for as many tokens."""
        return {
            name: np.ones((1, self._size(name, room)), numpy_dtype(spec.dtype))
            for name, spec in self._specs.items()
        }

    def fill(
        self, buffers: Mapping[str, np.ndarray], tokens: Sequence[int], past: int
    ) -> dict[str, int]:
        """Write into `buffers` what is said of these tokens; how many elements of each to take."""
        count, total = len(tokens), past + len(tokens)
        buffers[IDS][0, :count] = tokens
        rows = {IDS: count}
        if POSITIONS in buffers:
            buffers[POSITIONS][0, :count] = range(past, total)
            rows[POSITIONS] = count
        if MASK in buffers:
            rows[MASK] = total if self._mask_size is None else self._mask_size
            if self._mask_size is not None:
                buffers[MASK][0, :total] = 1
                buffers[MASK][0, total:] = 0
        return rows

    def type_of(self, name: str) -> DType:
        return by_name(self._specs[name].dtype).dlpack

    def _size(self, name: str, room: int) -> int:
        return self._mask_size if name == MASK and self._mask_size is not None else room


@dataclass(frozen=True)
class Cache:
    """A cache: its shape with 1 for the batch, and the axis of its rows, one for each token.

    `rows`: how many the model fixes; None where any number goes. `whole`: past and present are both
    the whole buffer, and the model knows from its other inputs which rows are new. A state (of a
    convolution, of a recurrence) has no axis: what comes out of a run goes into the next.
    """

    past: str
    present: str
    type: str
    dtype: np.dtype
    shape: tuple[int, ...]
    axis: int | None
    rows: int | None
    whole: bool

    @staticmethod
    def of(past: TensorSpec, present: TensorSpec, batch: Dim) -> Cache:
        dims = past.shape
        dynamic = [
            d
            for d, size in enumerate(dims)
            if d > 0 and not isinstance(size, int) and (size is None or size != batch)
        ]
        axis = dynamic[0] if dynamic else _fixed_axis(past)
        rows = None if axis is None else dims[axis]
        out = None if axis is None else present.shape[axis]
        fixed = isinstance(rows, int)
        if len(dynamic) > 1 or (fixed and out not in (None, rows)):
            raise InputError(
                f"how the cache {past} grows cannot be told; its output is {present}",
                hint="one size may differ from token to token",
            )
        return Cache(
            past.name,
            present.name,
            past.dtype,
            numpy_dtype(past.dtype),
            tuple(size if isinstance(size, int) else 1 for size in dims),
            axis,
            rows if isinstance(rows, int) else None,
            whole=fixed or (rows is not None and rows == out),
        )

    def buffer(self, rows: int) -> np.ndarray:
        """Zeros with room for `rows`; a page takes memory once it is written."""
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] = self.rows or rows
        return np.zeros(shape, self.dtype)

    def first(self, buffer: np.ndarray, rows: int) -> np.ndarray:
        """The first rows of a buffer."""
        assert self.axis is not None
        return buffer[(slice(None),) * self.axis + (slice(rows),)]

    def layout(self, buffer: np.ndarray) -> RowsLayout:
        """That of the first rows of a buffer."""
        assert self.axis is not None
        return RowsLayout(buffer, self.axis)


def _fixed_axis(past: TensorSpec) -> int | None:
    """The axis of the rows of a cache whose sizes the model fixes; None for a state."""
    is_cache = past.name.endswith(("key", "value")) and len(past.shape) > 2
    return len(past.shape) - 2 if is_cache else None


class InPlace:
    """On a CPU: buffers with room for more rows; past and present are their first rows.

    `final`: an input that has seen tokens for good, so that none can be taken back; None where all
    can.
    """

    def __init__(
        self, model: Runnable, inputs: TokenInputs, caches: Sequence[Cache], room: int
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._room = room
        self._caches = [cache for cache in caches if cache.axis is not None]
        self._buffers = [cache.buffer(room) for cache in self._caches]
        self._states = States([cache for cache in caches if cache.axis is None], room)
        self.final = next((cache.past for cache in caches if cache.axis is None), None)
        self.limit = min((c.rows for c in caches if c.rows is not None), default=None)
        self._logits = _logits_of_one(model, inputs)
        self._bind()

    def run(self, tokens: Sequence[int], past: int, kept: int = 1) -> np.ndarray:
        """The logits that a run on `tokens`, which come after `past` cached ones, gave, at least
        those of the last `kept` if the model has them; to be read before the next run."""
        self._inputs.keep(kept)
        total = past + len(tokens)
        if total > self._room:
            self._grow(past, max(total, 2 * self._room))
        for name, rows in self._inputs.fill(self._tokens, tokens, past).items():
            self._token_layouts[name].rows = rows
        for layout in self._pasts:
            layout.rows = past
        for layout in self._presents:
            layout.rows = total
        single = len(tokens) == 1 and self._logits is not None
        results = (self._step if single else self._prompt).run(self._states.values)
        self._states.take(results)
        return self._logits if single and self._logits is not None else results[LOGITS]

    def _grow(self, rows: int, room: int) -> None:
        for i, cache in enumerate(self._caches):
            larger = cache.buffer(room)
            cache.first(larger, rows)[...] = cache.first(self._buffers[i], rows)
            self._buffers[i] = larger
        self._room = room
        self._bind()

    def _bind(self) -> None:
        """Describes all tensors once for all steps in these buffers: caches that are alike have
        their number of rows in one place."""
        self._tokens = self._inputs.buffers(self._room)
        self._token_layouts = {name: RowsLayout(b, 1) for name, b in self._tokens.items()}
        inputs: dict[str, Any] = dict(self._inputs.constants)
        for name, buffer in self._tokens.items():
            type_ = self._inputs.type_of(name)
            inputs[name] = FirstRows(buffer, self._token_layouts[name], type_)
        outputs: dict[str, Any] = {}
        layouts: dict[Any, tuple[RowsLayout, RowsLayout]] = {}
        for cache, buffer in zip(self._caches, self._buffers, strict=True):
            if cache.whole:
                inputs[cache.past] = outputs[cache.present] = buffer
                continue
            key = buffer.shape, buffer.strides, cache.axis
            if key not in layouts:
                layouts[key] = cache.layout(buffer), cache.layout(buffer)
            past, present = layouts[key]
            dtype = by_name(cache.type).dlpack
            inputs[cache.past] = FirstRows(buffer, past, dtype)
            outputs[cache.present] = FirstRows(buffer, present, dtype)
        self._pasts = [past for past, _ in layouts.values()]
        self._presents = [present for _, present in layouts.values()]
        self._prompt = self._step = self._model.bind(inputs, outputs)
        if self._logits is not None:
            self._step = self._model.bind(inputs, outputs | {LOGITS: self._logits})


class States:
    """Outputs of a run, wherever it put them, that are inputs of the next: `values`, by input."""

    def __init__(self, caches: Sequence[Cache], room: int) -> None:
        self._outputs = {cache.past: cache.present for cache in caches}
        self.values: dict[str, Any] = {c.past: c.buffer(room if c.whole else 0) for c in caches}

    def take(self, results: Mapping[str, Any]) -> None:
        self.values = {past: results[present] for past, present in self._outputs.items()}


class Returned:
    """On a GPU: caches stay in its memory, and go from run to run."""

    def __init__(
        self, model: Runnable, inputs: TokenInputs, caches: Sequence[Cache], room: int
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._names = [spec.name for spec in model.outputs]
        self._states = States(caches, room)
        self.final = next((cache.past for cache in caches if not cache.whole), None)
        self.limit = min((c.rows or room for c in caches if c.whole), default=None)

    def run(self, tokens: Sequence[int], past: int, kept: int = 1) -> np.ndarray:
        """As that of `InPlace`."""
        self._inputs.keep(kept)
        feeds = self._inputs.constants | self._inputs.arrays(tokens, past) | self._states.values
        made = self._model.run(feeds, device="cuda")
        results = dict(zip(self._names, made, strict=True))
        self._states.take(results)
        return np.asarray(results[LOGITS])


def _logits_of_one(model: Runnable, inputs: TokenInputs) -> np.ndarray | None:
    """Memory for the logits of a run on one token; None where their shape is not known before."""
    spec = next(spec for spec in model.outputs if spec.name == LOGITS)
    sizes = [1 if size in inputs.ids_shape else size for size in spec.shape]
    shape = [size for size in sizes if isinstance(size, int)]
    if len(shape) < len(spec.shape):
        return None
    return empty_aligned(tuple(shape), numpy_dtype(spec.dtype))
