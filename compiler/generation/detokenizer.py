"""Tokens to text as they come: whole characters only, and nothing of what ends the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decodes for a character that is not complete
CONTEXT = 6  # tokens of the prompt that the first ones are decoded with


class Decodes(Protocol):
    """The part of a `tokenizers.Tokenizer` that makes text; special tokens are left out."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """The text that each token adds.

    Tokens are decoded together with those before them, the last of the prompt at first, because
    some tokenizers drop the space in front of a text. Text that ends within a character is held
    back until the character is complete.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT:])
        self._begin = 0  # what is decoded begins here
        self._told = len(self._ids)  # tokens whose text is out

    def add(self, token: int) -> str:
        """The text that is complete with this token and was not before; often a word, or empty."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT) or not text:
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return text

    def rest(self) -> str:
        """What is held back; a character that stayed incomplete is a replacement character."""
        text = self._new_text()
        self._begin = self._told = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._begin : self._told])
        return self._tokenizer.decode(self._ids[self._begin :])[len(before) :]


class StopTexts:
    """Passes a text on up to the first of some texts, which is not passed on."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be passed on: not the end of it that may be the beginning of a stop text."""
        if self.found:
            return ""
        self._held += text
        places = [at for stop in self._texts if (at := self._held.find(stop)) >= 0]
        self.found = bool(places)
        out = self._held[: min(places)] if places else self._held[: self._safe()]
        self._held = "" if places else self._held[len(out) :]
        return out

    def rest(self) -> str:
        """What is held back, once no more text comes."""
        text, self._held = self._held, ""
        return text

    def _safe(self) -> int:
        """How many characters cannot belong to a stop text."""
        held = self._held
        longest = max((len(text) for text in self._texts), default=1)
        for begin in range(max(len(held) - longest + 1, 0), len(held)):
            if any(text.startswith(held[begin:]) for text in self._texts):
                return begin
        return len(held)
