"""Kernels of updates at positions that come from data, as a GPU has them."""

from __future__ import annotations

from dataclasses import dataclass

from .strategy import Kernel


@dataclass(frozen=True)
class Replacing:
    """Kernels of updates that replace elements, in the order in which they run."""

    places: Kernel
    claim: Kernel
    replace: Kernel


@dataclass(frozen=True)
class Combining:
    """Kernels of updates that are combined with elements, by spans of at least `min_span` elements,
    of which `max_spans` are enough."""

    places: Kernel
    combine: Kernel
    min_span: int
    max_spans: int


ScatterKernels = Replacing | Combining
