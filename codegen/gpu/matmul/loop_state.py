"""What a K loop carries: lists of values by name, and all of them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from abqc.codegen.builder import Value


@dataclass(frozen=True)
class LoopState:
    """Every field of a state is a list of values."""

    @property
    def parts(self) -> list[list[Value]]:
        return [getattr(self, field.name) for field in fields(self)]

    @property
    def values(self) -> list[Value]:
        return [value for part in self.parts for value in part]

    def with_values(self, values: Sequence[Value]) -> Self:
        """The same state with other values, in the order of `values`."""
        parts, at = [], 0
        for part in self.parts:
            parts.append(list(values[at : at + len(part)]))
            at += len(part)
        return type(self)(*parts)
