"""Sequences and optionals as the tensors that they consist of."""

from __future__ import annotations

from collections.abc import Iterator

from .values import AnyValue, OptionalValue, SequenceValue, Value


def flattened(value: AnyValue | None) -> list[Value]:
    """The tensors in a value, in order."""
    if value is None:
        return []
    if isinstance(value, Value):
        return [value]
    if isinstance(value, OptionalValue):
        return flattened(value.element)
    return [leaf for element in value.elements for leaf in flattened(element)]


def rebuilt(shape: AnyValue, leaves: Iterator[Value]) -> AnyValue:
    """A value like `shape` of other tensors."""
    if isinstance(shape, Value):
        return next(leaves)
    if isinstance(shape, OptionalValue):
        element = None if shape.element is None else rebuilt(shape.element, leaves)
        return OptionalValue(element)  # type: ignore[arg-type]
    return SequenceValue([rebuilt(element, leaves) for element in shape.elements])  # type: ignore[misc]
