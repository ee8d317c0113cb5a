"""Language models token by token: `Decoder` keeps a compiled model's caches between the steps.

    decoder = Decoder(abqc.load("model.so"))
    logits = decoder.step(prompt)             # token ids in, f32 [vocabulary] out
    while True:
        logits = decoder.step([int(logits.argmax())])

The signature is that of exported decoders:

    input_ids        [batch, tokens]
    attention_mask   [batch, past + tokens]   if there is one; ones
    position_ids     [batch, tokens]          if there is one; counted from 0
    logits_to_keep   scalar or [1]            if there is one (num_logits_to_keep); 1
    past_key_values.0.key, ...                 caches; what follows `past...` names the output
    -> logits        [batch, tokens, vocabulary], or of the last token alone
       present.0.key, ...

On a CPU a cache is one buffer with room for more, updated in place: a step writes the new rows and
copies nothing. On a GPU caches stay in its memory, the outputs of a step are inputs of the next. A
model without caches runs the whole sequence in every step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import InputError
from .dlpack import FirstRows, RowsLayout
from .element_types import by_name, numpy_dtype
from .tensor_spec import Dim, TensorSpec

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
KEPT = ("logits_to_keep", "num_logits_to_keep")
WANTED = (
    f"a decoder has {IDS}, perhaps {MASK}, {POSITIONS} and past_key_values.0.key, ..., and gives "
    f"{LOGITS} and present.0.key, ..."
)

CHUNK = 512  # tokens of a prompt in one run: their logits are [tokens, vocabulary]
ALIGNMENT = 64  # bytes, of memory that a run makes an output in (`ABQC_ALIGNMENT`)
ROOM = 256  # rows that caches begin with

_PAST = re.compile(r"past(_key_values?)?(?=[._\d]|$)")
_PRESENT = re.compile(r"present(_key_values?)?(?=[._\d]|$)")


class BoundRuns(Protocol):
    """`abqc.runtime.bound.Bound`."""

    def run(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, np.ndarray]
    ) -> dict[str, Any]: ...


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


class Decoder:
    """A model, the sequence that it has seen, and the caches that hold it.

    InputError, with the names that were found and wanted, where the model is no decoder. `room`:
    how many tokens to make room for; more get it as they come, by a copy into buffers twice as
    large. One sequence, one thread at a time; several decoders may share a model.
    """

    def __init__(self, model: Runnable, *, room: int = ROOM) -> None:
        self._model = model
        self._inputs = {spec.name: spec for spec in model.inputs}
        self._check_names()
        self._caches = [self._cache(spec) for spec in model.inputs if _PAST.match(spec.name)]
        logits = next(spec for spec in model.outputs if spec.name == LOGITS)
        size = logits.shape[-1]
        self.vocabulary: int | None = size if isinstance(size, int) else None
        self._batch, self._run_size = self._sizes_of_ids()
        self._logits_dtype = numpy_dtype(logits.dtype)
        self._logits_of = self._tokens_with_logits(logits.shape)
        self._room = max(room, 1)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self._seen: list[int] = []
        on_cpu = self._model.device == "cpu"
        store: type[_InPlace] | type[_Returned] = _InPlace if on_cpu else _Returned
        self._store = store(self._model, self._caches, self._room)

    @property
    def has_caches(self) -> bool:
        """Whether a step costs its own tokens alone, not the whole sequence."""
        return bool(self._caches)

    @property
    def tokens(self) -> Sequence[int]:
        """The sequence so far."""
        return tuple(self._seen)

    @property
    def limit(self) -> int | None:
        """How many tokens caches of a fixed size hold; None where they grow."""
        return self._store.limit

    def step(self, ids: Iterable[int]) -> np.ndarray:
        """Append tokens to the sequence; the logits f32 [vocabulary] of the one that comes next.

        InputError for no tokens, for ids outside of the vocabulary, where fixed caches are full,
        and where the logits are no numbers. Where a run fails, `tokens` are those before it.
        """
        new = [int(token) for token in ids]
        self._check_tokens(new)
        if not self._caches:
            logits = self._run([*self._seen, *new], 0)
            self._seen += new
            return self._checked(logits)
        size = self._run_size or CHUNK
        for begin in range(0, len(new), size):
            chunk = new[begin : begin + size]
            logits = self._run(chunk, len(self._seen))
            self._seen += chunk
        return self._checked(logits)

    def _run(self, tokens: Sequence[int], past: int) -> np.ndarray:
        """Logits [vocabulary] of the last of `tokens`, which come after `past` cached ones."""
        total = past + len(tokens)
        feeds: dict[str, Any] = {IDS: self._array(IDS, [tokens])}
        if MASK in self._inputs:
            feeds[MASK] = self._mask(total)
        if POSITIONS in self._inputs:
            dtype = numpy_dtype(self._inputs[POSITIONS].dtype)
            feeds[POSITIONS] = np.arange(past, total, dtype=dtype)[None]
        for name in KEPT:
            if name in self._inputs:
                feeds[name] = self._array(name, [1] if self._inputs[name].shape else 1)
        buffers: dict[str, np.ndarray] = {}
        if self._logits_of is not None and self.vocabulary is not None:
            count = 1 if self._logits_of == "last" else len(tokens)
            buffers[LOGITS] = _aligned((1, count, self.vocabulary), self._logits_dtype)
        logits = np.asarray(self._store.run(feeds, buffers, past, total)[LOGITS])
        rows = logits.reshape(-1, logits.shape[-1])
        return rows[-1].astype(np.float32, copy=len(rows) > 1)  # no view of a whole prompt's

    def _array(self, name: str, values: Any) -> np.ndarray:
        return np.array(values, numpy_dtype(self._inputs[name].dtype))

    def _mask(self, total: int) -> np.ndarray:
        """Ones over what is there; zeros behind it where the model fixes the mask's size."""
        size = self._inputs[MASK].shape[1]
        dtype = numpy_dtype(self._inputs[MASK].dtype)
        mask = np.zeros((1, size if isinstance(size, int) else total), dtype)
        mask[:, :total] = 1
        return mask

    # ---- checks ----

    def _check_names(self) -> None:
        known = {IDS, MASK, POSITIONS, *KEPT}
        unknown = [n for n in self._inputs if n not in known and not _PAST.match(n)]
        missing = IDS not in self._inputs
        logits = any(spec.name == LOGITS for spec in self._model.outputs)
        if not missing and not unknown and logits:
            return
        given = _list(spec.name for spec in self._model.outputs)
        if missing:
            why = f"it has no input {IDS}"
        elif not logits:
            why = f"it has no output {LOGITS}"
        else:
            why = f"there is nothing to feed to its input {unknown[0]}"
        raise InputError(
            f"{self._model.path} is not run as a decoder: {why}; its inputs are "
            f"{_list(self._inputs)}, its outputs {given}",
            hint=WANTED,
        )

    def _sizes_of_ids(self) -> tuple[Dim, int | None]:
        """What the batch is called, and how many tokens every run takes if the model fixes that."""
        ids = self._inputs[IDS]
        if len(ids.shape) != 2 or (isinstance(ids.shape[0], int) and ids.shape[0] != 1):
            raise InputError(f"input '{IDS}' is {ids}, expected one sequence [1, tokens]")
        tokens = ids.shape[1]
        if isinstance(tokens, int) and (tokens != 1 or not self._caches):
            raise InputError(
                f"input '{IDS}' takes {tokens} tokens at a time, expected any number",
                hint="compile the model with dynamic sizes",
            )
        mask = self._inputs.get(MASK)
        if mask is not None and len(mask.shape) != 2:
            raise InputError(f"input '{MASK}' is {mask}, expected [1, tokens]")
        return ids.shape[0], tokens if isinstance(tokens, int) else None

    def _tokens_with_logits(self, shape: Sequence[Dim]) -> Literal["all", "last"] | None:
        """None where a run alone knows how many there are."""
        batch, tokens = self._inputs[IDS].shape
        if len(shape) != 3 or shape[0] not in (1, batch) or None in shape:
            return None
        if shape[1] == 1:
            return "last"
        return "all" if shape[1] == tokens else None

    def _cache(self, past: TensorSpec) -> _Cache:
        rest = _PAST.sub("", past.name)
        for spec in self._model.outputs:
            if _PRESENT.match(spec.name) and _PRESENT.sub("", spec.name) == rest:
                return _Cache.of(past, spec, self._inputs[IDS].shape[0])
        raise InputError(
            f"no output belongs to the cache '{past.name}'; the outputs are "
            f"{_list(spec.name for spec in self._model.outputs)}",
            hint=f"it would be called 'present{rest}'",
        )

    def _check_tokens(self, new: list[int]) -> None:
        if not new:
            raise InputError("a step takes at least one token")
        worst = max(new) if max(new) >= (self.vocabulary or max(new) + 1) else min(new)
        if worst < 0 or (self.vocabulary is not None and worst >= self.vocabulary):
            raise InputError(
                f"token {worst} is not in the model's vocabulary of {self.vocabulary}",
                hint="the tokenizer belongs to another model",
            )
        if self.limit is not None and len(self._seen) + len(new) > self.limit:
            raise InputError(
                f"the caches of {self._model.path} hold {self.limit} tokens, which are "
                f"{len(self._seen)} and {len(new)} more"
            )

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        if not np.isfinite(logits.max()):
            raise InputError(
                f"the logits of {self._model.path} have NaN or infinity after "
                f"{len(self._seen)} tokens",
                hint="take a recipe of more bits, or see whether the model in float has them too",
            )
        return logits


# ---- caches ----


@dataclass(frozen=True)
class _Cache:
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
    def of(past: TensorSpec, present: TensorSpec, batch: Dim) -> _Cache:
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
        return _Cache(
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


class _InPlace:
    """Buffers with room for more rows: past and present are their first rows."""

    def __init__(self, model: Runnable, caches: Sequence[_Cache], room: int) -> None:
        self._model = model
        self._room = room
        self._caches = [cache for cache in caches if cache.axis is not None]
        self._buffers = [cache.buffer(room) for cache in self._caches]
        self._states = _States([cache for cache in caches if cache.axis is None], room)
        self.limit = min((c.rows for c in caches if c.rows is not None), default=None)
        self._bind()

    def run(
        self, feeds: dict[str, Any], buffers: dict[str, np.ndarray], past: int, total: int
    ) -> Mapping[str, Any]:
        if total > self._room:
            self._grow(past, max(total, 2 * self._room))
        for layout in self._pasts:
            layout.rows = past
        for layout in self._presents:
            layout.rows = total
        results = self._bound.run(feeds | self._states.values, buffers)
        self._states.take(results)
        return results

    def _grow(self, rows: int, room: int) -> None:
        for i, cache in enumerate(self._caches):
            larger = cache.buffer(room)
            cache.first(larger, rows)[...] = cache.first(self._buffers[i], rows)
            self._buffers[i] = larger
        self._room = room
        self._bind()

    def _bind(self) -> None:
        """The caches, described once for all steps in these buffers: all that are alike have their
        number of rows in one place."""
        pasts: dict[str, Any] = {}
        presents: dict[str, Any] = {}
        layouts: dict[Any, tuple[RowsLayout, RowsLayout]] = {}
        for cache, buffer in zip(self._caches, self._buffers, strict=True):
            if cache.whole:
                pasts[cache.past] = presents[cache.present] = buffer
                continue
            key = buffer.shape, buffer.strides, cache.axis
            if key not in layouts:
                layouts[key] = cache.layout(buffer), cache.layout(buffer)
            past, present = layouts[key]
            dtype = by_name(cache.type).dlpack
            pasts[cache.past] = FirstRows(buffer, past, dtype)
            presents[cache.present] = FirstRows(buffer, present, dtype)
        self._pasts = [past for past, _ in layouts.values()]
        self._presents = [present for _, present in layouts.values()]
        self._bound = self._model.bind(pasts, presents)


class _States:
    """Outputs of a run, wherever it put them, that are inputs of the next: `values`, by input."""

    def __init__(self, caches: Sequence[_Cache], room: int) -> None:
        self._outputs = {cache.past: cache.present for cache in caches}
        self.values: dict[str, Any] = {c.past: c.buffer(room if c.whole else 0) for c in caches}

    def take(self, results: Mapping[str, Any]) -> None:
        self.values = {past: results[present] for past, present in self._outputs.items()}


class _Returned:
    """On a GPU: caches stay in its memory, and go from run to run."""

    def __init__(self, model: Runnable, caches: Sequence[_Cache], room: int) -> None:
        self._model = model
        self._names = [spec.name for spec in model.outputs]
        self._states = _States(caches, room)
        self.limit = min((c.rows or room for c in caches if c.whole), default=None)

    def run(
        self, feeds: dict[str, Any], buffers: dict[str, np.ndarray], past: int, total: int
    ) -> Mapping[str, Any]:
        outputs = self._model.run(feeds | self._states.values, outputs=buffers, device="cuda")
        results = dict(zip(self._names, outputs, strict=True))
        self._states.take(results)
        return results


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that kernels write their results to."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def _list(names: Iterable[str], most: int = 8) -> str:
    """Names, the first of many."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
