"""What kernels do to every element of a result before they store it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

FLOAT = "f32"

# Of convolutions; those of products read and make f32 alone.
READ = (FLOAT, "i8", "i32")
MADE = (FLOAT, "i8")

# Where an input's element lies: at the result's place, or at the same one for all elements of a
# channel of a sample, of a channel, of a sample, or of the result.
Read = Literal["element", "sample channel", "channel", "sample", "one"]


@dataclass(frozen=True)
class Epilogue:
    """`body` is the text of a module with a `func.func`: f32 of the element and a number of each
    input, to a number, by operations of arith and math on scalars. `reads` says how each input is
    read, `elements` what the result's and the inputs' numbers are; all are f32 where it is empty.
    """

    body: str
    reads: tuple[Read, ...]
    elements: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """The element type of what is stored."""
        return self.elements[0] if self.elements else FLOAT

    @property
    def inputs(self) -> tuple[str, ...]:
        """The element types of what is read."""
        return self.elements[1:] if self.elements else (FLOAT,) * len(self.reads)

    @property
    def name(self) -> str:
        """A part of the names of kernels that have it."""
        text = "\0".join((self.body, *self.reads))
        return f"epilogue_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Stage:
    """One of several products of the same x, of equal n, that a kernel computes one after another.

    `kernel` (a `codegen.strategy.Kernel`) is that of the product alone. `earlier` says of each
    input of the epilogue which stage's result it is; None: none, another tensor.
    """

    kernel: Any
    epilogue: Epilogue | None = None
    earlier: tuple[int | None, ...] = ()

    @property
    def sources(self) -> tuple[int | None, ...]:
        """`earlier`, None for all where it is not given."""
        reads = self.epilogue.reads if self.epilogue is not None else ()
        return self.earlier or (None,) * len(reads)


def name_with(kernel: str, epilogue: Epilogue | None) -> str:
    """The name of a kernel that has this epilogue, if any."""
    return kernel if epilogue is None else f"{kernel}_{epilogue.name}"
