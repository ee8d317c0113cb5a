"""The signature of a model: what its inputs and outputs are."""

from __future__ import annotations

from dataclasses import dataclass

Dim = int | str | None


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; `dtype` is numpy's name.

    A size in `shape` is a number, the name of a symbol (inputs that share one must agree on its
    size), or None where anything goes.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"
