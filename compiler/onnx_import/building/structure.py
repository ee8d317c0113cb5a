"""Sequences and optionals as the tensors that they consist of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from abqc.errors import ModelError

from ..values.value import AnyValue, OptionalValue, SequenceValue, Value


class Stacked(SequenceValue):
    """A sequence that a loop has made: `before`, then the rows of one tensor."""

    def __init__(self, before: Sequence[Value], rows: Value) -> None:
        self.before = list(before)
        self.rows = rows

    @property
    def elements(self) -> Sequence[Value]:  # type: ignore[override]
        raise ModelError("only a run knows the length of a sequence that a loop has made")


class Growing(SequenceValue):
    """A sequence inside of the loop that makes it: what this iteration has put at its end."""

    def __init__(self, added: Sequence[Value] = ()) -> None:
        self.added = list(added)

    @property
    def elements(self) -> Sequence[Value]:  # type: ignore[override]
        raise ModelError(
            "a sequence that grows in a loop can only be added to there, at its end",
            hint="collect tensors as a scan output of the loop",
        )


def flattened(value: AnyValue | None) -> list[Value]:
    """The tensors in a value, in order."""
    if value is None:
        return []
    if isinstance(value, Value):
        return [value]
    if isinstance(value, OptionalValue):
        return flattened(value.element)
    if isinstance(value, Stacked):
        return [*value.before, value.rows]
    return [leaf for element in value.elements for leaf in flattened(element)]


def rebuilt(shape: AnyValue, leaves: Iterator[Value]) -> AnyValue:
    """A value like `shape` of other tensors."""
    if isinstance(shape, Value):
        return next(leaves)
    if isinstance(shape, OptionalValue):
        element = None if shape.element is None else rebuilt(shape.element, leaves)
        return OptionalValue(element)  # type: ignore[arg-type]
    if isinstance(shape, Stacked):
        before = [next(leaves) for _ in shape.before]
        return Stacked(before, next(leaves))
    return SequenceValue([rebuilt(element, leaves) for element in shape.elements])  # type: ignore[misc]
