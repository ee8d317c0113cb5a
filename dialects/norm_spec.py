"""What kernels of normalizations depend on, on every target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["layer", "rms"]

MAX_COLUMNS = 16384  # of a row: longer ones have no kernel


@dataclass(frozen=True)
class NormSpec:
    """A layer norm or RMS norm over rows of `columns`; which operands it has; `keeps_sum`: x +
    residual is needed by others too."""

    kind: NormKind
    columns: int
    weight: bool = True
    bias: bool = False
    residual: bool = False
    keeps_sum: bool = False

    @property
    def name(self) -> str:
        """The name of its kernel."""
        flags = "".join(
            letter
            for letter, on in (
                ("r", self.residual),
                ("k", self.keeps_sum),
                ("w", self.weight),
                ("b", self.bias),
            )
            if on
        )
        return f"norm_{self.kind}_{self.columns}" + (f"_{flags}" if flags else "")

    def pointers(self, *, row: bool) -> list[str]:
        """The buffers among the arguments; `row`: y is one of them."""
        present = {
            "x": True,
            "residual": self.residual,
            "weight": self.weight,
            "bias": self.bias,
            "y": row,
            "sum": self.keeps_sum,
        }
        return [name for name, on in present.items() if on]
