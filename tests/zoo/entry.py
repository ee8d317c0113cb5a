"""One model of the zoo: where it comes from, what to feed it, how close the answer must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.fetch import Source

__all__ = ["Entry", "Product", "Script", "Source", "Values", "chosen", "sizes_of"]


@dataclass(frozen=True)
class Script:
    """A model that a function of this folder writes: `zoo.<module>.<function>`.

    `variant` is handed to it: the exporter's name for models of PyTorch.
    """

    module: str
    function: str
    variant: str = ""


@dataclass(frozen=True)
class Product:
    """What a tool of onnxruntime makes of the entry `base`: `zoo.products.<tool>`."""

    base: str
    tool: str


@dataclass(frozen=True)
class Values:
    """How the elements of an input are drawn.

    `ids`: integers in `low` up to, and without, `high`. `mask`: ones, the end of the last row
    zeros where there are several rows. `positions`: counted on from the sizes' `past`. `scaled`:
    normal, times `high`. `constant`: `high` everywhere. `lengths`: up to the size named `of`, the
    first row's equal to it. `page`: white with dark strokes, as a scanned page.
    """

    kind: str
    high: float = 1.0
    low: float = 0.0
    of: str = ""


@dataclass(frozen=True)
class Entry:
    """A model, its inputs and its tolerance.

    `sizes` has two values for each dynamic size, as in `batch=1,3 seq=5,17`; a size without a
    name of its own is `<input>.<axis>`. `values` says how inputs are drawn, by name or by pattern;
    without an entry floats are normal, integers and booleans 0 or 1. `tolerance` is the largest
    error of a float output, in parts of its range, which counts as at least `span` (1 for
    probabilities that may all be near 0); integer outputs are equal but for the share `flips` of
    their elements, which rounding may turn. `seconds` limits the compile and, again, the runs;
    `quick` models are in `make test`.
    """

    name: str
    source: Source | Script | Product
    what: str
    licence: str
    sizes: str = ""
    values: Mapping[str, Values] = field(default_factory=dict)
    tolerance: float = 1e-4
    span: float = 0.0
    flips: float = 0.0
    seconds: float = 300.0
    quick: bool = False


def sizes_of(entry: Entry) -> list[dict[str, int]]:
    """The sizes of the two runs: all first values, then all second ones."""
    pairs = dict(item.split("=") for item in entry.sizes.split())
    return [{name: int(v.split(",")[run]) for name, v in pairs.items()} for run in (0, 1)]


def chosen(entries: list[Entry], patterns: list[str]) -> list[Entry]:
    """The entries whose names match a pattern; all without patterns."""
    from fnmatch import fnmatchcase

    if not patterns:
        return entries
    return [e for e in entries if any(fnmatchcase(e.name, p) for p in patterns)]
