"""A prompt in, a text out, piece by piece, with the time that it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from abqc.compiler.generation.detokenizer import Detokenizer, StopTexts
from abqc.compiler.generation.prompt_lookup import PromptLookup
from abqc.errors import InputError
from abqc.runtime.decoder import Decoder, Runnable

DEFAULT_TOKENS = 256


@dataclass
class Timing:
    """Tokens of the prompt and made ones; seconds until the first of these, and until the last.

    Of the made ones `guessed` were in drafts, which had `drafted` tokens.
    """

    prompt: int
    made: int = 0
    drafted: int = 0
    guessed: int = 0
    first: float = 0.0
    last: float = 0.0

    def __str__(self) -> str:
        text = f"prompt {self.prompt} tokens"
        if self.made:
            text += f", {self.prompt / self.first:.1f} tokens/s, first token after "
            text += f"{self.first:.3f} s; generated {self.made} tokens"
        if self.made > 1:
            text += f", {(self.made - 1) / (self.last - self.first):.1f} tokens/s"
        if self.drafted:
            text += f"; {self.guessed} of {self.drafted} drafted tokens were right"
        return text


class TextGeneration:
    """Iterate for the pieces of text that follow `prompt`; `timing` is right at every moment.

    It ends with a token of `end_tokens`, before a text of `stop`, after `max_tokens`, or when
    prompt and text fill `context` (None: not known) or the model's caches; `ended_by` says which:
    "end token", "stop text", "max tokens", "context". A stop text that is one token of the
    vocabulary, such as <|im_end|>, is an end token. Without `special_tokens` the tokenizer adds
    none of its own to the prompt: those of a chat template are in it. `rest()` is the text that an
    interrupted iteration holds back. InputError where the model is no decoder, the prompt is empty
    or fills the context, or the tokenizer has more tokens than the model.

    With a `draft`, so many tokens that followed the last ones before (`PromptLookup`) are run
    together with the one that comes, and those that the sampler takes stay. The sampler is asked
    for every token once and in order: it makes the same of the same logits. These are those that
    tokens get one by one, to the bit or to rounding (docs/numerics.md, "Rows of a run").
    InputError where the model cannot (`Decoder.check_drafts`).
    """

    def __init__(
        self,
        model: Runnable,
        tokenizer: Any,
        prompt: str,
        sampler: Callable[[np.ndarray], int],
        *,
        max_tokens: int = DEFAULT_TOKENS,
        end_tokens: Sequence[int] | frozenset[int] = (),
        stop: Sequence[str] = (),
        context: int | None = None,
        special_tokens: bool = True,
        draft: int = 0,
    ) -> None:
        self._ids = _encode(tokenizer, prompt, special_tokens)
        self._sampler = sampler
        self._decoder = Decoder(model, room=len(self._ids) + max_tokens)
        _check_vocabulary(tokenizer, self._ids, self._decoder.vocabulary)
        if draft:
            self._decoder.check_drafts()
        self._draft = draft
        self._lookup = PromptLookup(self._ids if draft else ())
        self._max_tokens = max_tokens
        known = [size for size in (context, self._decoder.limit) if size is not None]
        self._room = min(known) - len(self._ids) if known else max_tokens
        if self._room < 1:
            raise InputError(
                f"the prompt has {len(self._ids)} tokens, the model's context is {min(known)}",
                hint="a shorter prompt leaves room for an answer",
            )
        tokens = {text: tokenizer.token_to_id(text) for text in stop}
        self._end = {*end_tokens, *(t for t in tokens.values() if t is not None)}
        self._stop = StopTexts(stop)
        self._text = Detokenizer(tokenizer, self._ids)
        self.timing = Timing(len(self._ids))
        self.ended_by = ""

    @property
    def has_caches(self) -> bool:
        """Whether a token costs one step of the model, not a run over the whole sequence."""
        return self._decoder.has_caches

    def __iter__(self) -> Iterator[str]:
        started = time.perf_counter()
        for token in self._tokens():
            self._note(time.perf_counter() - started)
            if token in self._end:
                self.ended_by = "end token"
                break
            if text := self._stop.add(self._text.add(token)):
                yield text
            self.ended_by = self._why_to_end()
            if self.ended_by:
                break
        if text := self.rest():
            yield text

    def _tokens(self) -> Iterator[int]:
        """What the sampler takes, until something has ended the text."""
        new = self._ids
        while not self.ended_by:
            draft = self._guess()
            logits = self._decoder.step_each([*new, *draft]) if draft else [self._decoder.step(new)]
            right = 0
            for row, guess in zip(logits, [*draft, None], strict=True):
                token = self._sampler(row)
                new = [token]
                right += token == guess
                self.timing.guessed += token == guess
                self._lookup.add(token)
                yield token
                if token != guess:
                    break
            if draft:
                self._decoder.take_back(len(draft) - right)

    def _guess(self) -> list[int]:
        """What may come after the token that runs next; no more than there is room for."""
        most = min(self._max_tokens, self._room) - self.timing.made - 1
        if not self.timing.made or min(self._draft, most) < 1:
            return []
        draft = self._lookup.draft(min(self._draft, most))
        self.timing.drafted += len(draft)
        return draft

    def rest(self) -> str:
        """What is held back of the text: an incomplete character, the beginning of a stop text."""
        return self._stop.add(self._text.rest()) + self._stop.rest()

    def _note(self, seconds: float) -> None:
        self.timing.made += 1
        self.timing.last = seconds
        if self.timing.made == 1:
            self.timing.first = seconds

    def _why_to_end(self) -> str:
        if self._stop.found:
            return "stop text"
        if self.timing.made >= self._max_tokens:
            return "max tokens"
        return "context" if self.timing.made >= self._room else ""


def _encode(tokenizer: Any, prompt: str, special_tokens: bool) -> list[int]:
    options = {} if special_tokens else {"add_special_tokens": False}
    try:
        ids = list(tokenizer.encode(prompt, **options).ids) if prompt else []
    except (TypeError, UnicodeError) as error:  # lone surrogates: bytes that are no UTF-8
        raise InputError("the prompt is no UTF-8 text") from error
    if not ids:
        raise InputError("the prompt is empty", hint="give at least one word to go on from")
    return ids


def _check_vocabulary(tokenizer: Any, ids: Sequence[int], size: int | None) -> None:
    """Tokens that were added later may have no row in a model that was never trained on them."""
    if size is None:
        return
    most = max(max(ids) + 1, tokenizer.get_vocab_size(with_added_tokens=False))
    if most > size:
        raise InputError(
            f"the tokenizer has {most} tokens, the model's vocabulary {size}",
            hint="it belongs to another model; --tokenizer names the right one",
        )
