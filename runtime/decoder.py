"""Language models token by token: `Decoder` keeps a compiled model's caches between the steps.

    decoder = Decoder(abqc.load("model.so"))
    logits = decoder.step(prompt)             # token ids in, f32 [vocabulary] out
    while True:
        logits = decoder.step([int(logits.argmax())])

The signature is that of exported decoders:

    input_ids        [batch, tokens]
    attention_mask   [batch, past + tokens]   if there is one; ones
    position_ids     [batch, tokens]          if there is one; counted from 0
    logits_to_keep   scalar or [1]            if there is one (num_logits_to_keep): how many
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
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import InputError
from .decoder_tensors import (
    IDS,
    KEPT,
    LOGITS,
    MASK,
    POSITIONS,
    Cache,
    InPlace,
    Returned,
    Runnable,
    TokenInputs,
)
from .tensor_spec import Dim, TensorSpec

WANTED = (
    f"a decoder has {IDS}, perhaps {MASK}, {POSITIONS} and past_key_values.0.key, ..., and gives "
    f"{LOGITS} and present.0.key, ..."
)

CHUNK = 512  # tokens of a prompt in one run: their logits are [tokens, vocabulary]
ROOM = 256  # rows that caches begin with

_PAST = re.compile(r"past(_key_values?)?(?=[._\d]|$)")
_PRESENT = re.compile(r"present(_key_values?)?(?=[._\d]|$)")


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
        size = next(spec for spec in model.outputs if spec.name == LOGITS).shape[-1]
        self.vocabulary: int | None = size if isinstance(size, int) else None
        self._batch, self._run_size = self._sizes_of_ids()
        self._room = max(room, 1)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self._seen: list[int] = []
        on_cpu = self._model.device == "cpu"
        store: type[InPlace] | type[Returned] = InPlace if on_cpu else Returned
        self._store = store(self._model, TokenInputs(self._inputs), self._caches, self._room)

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
        return self._append(ids, every=False)[-1]

    def step_each(self, ids: Iterable[int]) -> np.ndarray:
        """Append tokens as `step` does; logits f32 [tokens, vocabulary], of what comes after each.

        InputError as of `step`, and where the model gives those of the last token alone.
        """
        self._check_logits()
        return self._append(ids, every=True)

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens of the sequence. InputError where something of the model
        has seen them for good: a state, or on a GPU a cache that grows."""
        if self._store.final is not None:
            raise InputError(
                f"{self._model.path} cannot take tokens back: its input '{self._store.final}' has "
                "seen them"
            )
        if not 0 <= count <= len(self._seen):
            raise InputError(f"of {len(self._seen)} tokens {count} cannot be taken back")
        del self._seen[len(self._seen) - count :]

    def check_drafts(self) -> None:
        """InputError unless several tokens can be tried in one run: `step_each`, `take_back`."""
        if self._run_size is not None:
            raise InputError(f"{self._model.path} takes one token at a time")
        self._check_logits()
        self.take_back(0)

    def _append(self, ids: Iterable[int], *, every: bool) -> np.ndarray:
        """Logits [tokens, vocabulary] of `every` new token, or [1, vocabulary] of the last one."""
        new = [int(token) for token in ids]
        self._check_tokens(new)
        if not self._caches:
            logits = self._run([*self._seen, *new], 0, len(new) if every else 1)
            self._seen += new
            return self._checked(logits)
        size = self._run_size or CHUNK
        parts = []
        for begin in range(0, len(new), size):
            chunk = new[begin : begin + size]
            parts.append(self._run(chunk, len(self._seen), len(chunk) if every else 1))
            self._seen += chunk
        whole = every and len(parts) > 1
        return self._checked(np.concatenate(parts) if whole else parts[-1])

    def _run(self, tokens: Sequence[int], past: int, kept: int) -> np.ndarray:
        """Logits [kept, vocabulary] of the last `tokens`, which come after `past` cached ones."""
        logits = np.asarray(self._store.run(tokens, past, kept))
        rows = logits.reshape(-1, logits.shape[-1])
        if len(rows) < kept:
            raise InputError(
                f"{self._model.path} has the logits of {len(rows)} tokens where those of {kept} "
                "are asked for"
            )
        return rows[-kept:].astype(np.float32)

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

    def _cache(self, past: TensorSpec) -> Cache:
        rest = _PAST.sub("", past.name)
        for spec in self._model.outputs:
            if _PRESENT.match(spec.name) and _PRESENT.sub("", spec.name) == rest:
                return Cache.of(past, spec, self._inputs[IDS].shape[0])
        raise InputError(
            f"no output belongs to the cache '{past.name}'; the outputs are "
            f"{_list(spec.name for spec in self._model.outputs)}",
            hint=f"it would be called 'present{rest}'",
        )

    def _check_logits(self) -> None:
        """InputError where a run of several tokens has logits of the last one alone."""
        spec = next(spec for spec in self._model.outputs if spec.name == LOGITS)
        if len(spec.shape) < 3:
            one = not any(name in self._inputs for name in KEPT)
        else:
            one = spec.shape[1] == 1
        if one and self._run_size is None:
            raise InputError(
                f"{self._model.path} has the logits of the last token of a run alone",
                hint="compile it without --last-logits",
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
        if not math.isfinite(logits.max()):
            raise InputError(
                f"the logits of {self._model.path} have NaN or infinity after "
                f"{len(self._seen)} tokens",
                hint="take a recipe of more bits, or see whether the model in float has them too",
            )
        return logits


def _list(names: Iterable[str], most: int = 8) -> str:
    """Names, the first of many."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
