"""Drafts of what a text goes on with: what followed its last tokens when they were there before.

Prompt lookup (Saxena, 2023): texts that answer, summarize or edit a prompt repeat parts of it. No
second model is asked, and drafts cost next to nothing; whoever runs the model on them sees in one
run which ones it would have taken.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2  # tokens that have to be there before


class PromptLookup:
    """The tokens of a text so far; `draft` says what may come next."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        # Where the last ones of these tokens were followed by what: the latest place of each.
        self._followed: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        for size in range(SHORTEST, min(LONGEST, len(self._tokens)) + 1):
            self._followed[tuple(self._tokens[-size:])] = len(self._tokens)
        self._tokens.append(token)

    def draft(self, count: int) -> list[int]:
        """`count` tokens, those that followed the longest known end of the text; none where none
        of its ends was there before."""
        for size in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            begin = self._followed.get(tuple(self._tokens[-size:]))
            if begin is not None:
                return self._from(begin, count)
        return []

    def _from(self, begin: int, count: int) -> list[int]:
        """`count` tokens from `begin` on; what repeats up to the end of the text goes on so."""
        period = len(self._tokens) - begin
        return [self._tokens[begin + i % period] for i in range(count)]
