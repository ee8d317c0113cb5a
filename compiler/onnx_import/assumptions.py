"""Ranks that depend on sizes: for which sizes a model is compiled.

A tensor of a compiled model has one rank, but ONNX lets it depend on a size: Squeeze without axes
takes every axis of size 1 away, and PyTorch exports `x.squeeze(1)` as an If whose branches return
tensors of different rank. Each such place of a model is a question. The answers are those with
which the rest of the model can be lowered and its outputs have the ranks that the model declares;
what they assume is checked by every run.

The importer begins anew with other answers, so that no operator's function has to undo what it has
built.
"""

from __future__ import annotations

from abqc.errors import ModelError

# Sets of answers that are tried: 5 questions in all their combinations.
MAX_ATTEMPTS = 32


class Undecided(Exception):
    """Lowering met a new question, which is answered now: begin anew."""


class Assumptions:
    """Answers to questions, which come in the same order while the answers before are the same."""

    def __init__(self) -> None:
        self._answers: dict[int, bool] = {}
        self._other: set[int] = set()  # places whose first answer has failed
        self._place = 0
        self._attempts = 0

    def begin(self) -> None:
        """An attempt. Raises ModelError after too many."""
        if self._attempts == MAX_ATTEMPTS:
            raise ModelError(
                "too many of its ranks depend on the sizes of its inputs",
                hint="pin the shapes of the inputs with --shape",
            )
        self._attempts += 1
        self._place = 0

    def ask(self) -> tuple[int, bool | None]:
        """A place that may be a question: its number, and its answer if it has one."""
        place = self._place
        self._place += 1
        return place, self._answers.get(place)

    def settle(self, place: int, first: bool) -> None:
        """The place is a question; `first` is its answer until that fails."""
        self._answers[place] = first

    def reject(self) -> bool:
        """The answers have failed; whether there are others to begin with."""
        while self._answers:
            last = max(self._answers)
            if last not in self._other:
                self._other.add(last)
                self._answers[last] = not self._answers[last]
                return True
            self._other.discard(last)
            del self._answers[last]
        return False

    @property
    def any(self) -> bool:
        return bool(self._answers)
