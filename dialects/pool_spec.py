"""What a pool of images is to the kernel that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolSpec:
    """Windows of images: their extent, the steps from one to the next and inside of one."""

    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]

    @property
    def name(self) -> str:
        """A part of the names of kernels."""

        def text(pair: Sequence[int]) -> str:
            return "x".join(map(str, pair))

        return f"w{text(self.window)}_s{text(self.strides)}_d{text(self.dilations)}"
