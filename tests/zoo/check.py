"""Run one compiled model beside onnxruntime at both of its sizes. `run.py` calls it as a child.

    python tests/zoo/check.py NAME LIBRARY QUANT RUNS

prints one JSON object: {"runs": [...]}, each a Comparison. The library agrees if it agrees with
onnxruntime, with its optimizations or without: these are `spread` apart, which for quantized
models can be more than a step. A model of 16-bit floats may agree with itself in f32 instead.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
from abqc.compiler.evaluation.metrics import cosine, relative_error
from abqc.errors import AbqcError
from numpy.typing import NDArray
from zoo.entry import Entry, sizes_of
from zoo.feeds import make_feeds
from zoo.make import path_of
from zoo.oracle import Oracle, Outputs
from zoo.table import BY_NAME

Array = NDArray[Any]
COSINE = 0.9  # below this a quantized model is far from the float one


@dataclass
class Comparison:
    """One run. `error`: worst of the float outputs, of their range; `cosine`: their worst mean.

    `flips`: the largest share of different elements of an integer output. `noise`: how far
    onnxruntime's own answer moves with noise on the weights; 0 where the library is near enough
    or the model has no codes. `recipe`: the cosine of the recipe's own rounding, done by
    onnxruntime, the lowest with and without noise, and `reference` that of the library to it;
    None where `cosine` is high, or the model has no such form.
    """

    sizes: dict[str, int]
    error: float = 0.0
    cosine: float = 1.0
    flips: float = 0.0
    spread: float = 0.0
    noise: float = 0.0
    recipe: float | None = None
    reference: float | None = None
    problem: str = ""
    died: bool = False


def compare(
    expected: dict[str, Array], actual: dict[str, Array], into: Comparison, span: float
) -> None:
    """Fill `into` with how far `actual` is from `expected`, whose range is `span` at least."""
    if not actual:
        into.problem = "the library has no outputs"
    for name, b in actual.items():
        a = expected[name]
        if a.shape != b.shape:
            into.problem = f"output '{name}' has shape {b.shape}, expected {a.shape}"
            return
        if a.dtype.kind in "USO":
            continue  # labels that are strings, here the numbers of their classes
        if a.dtype != b.dtype:
            into.problem = f"output '{name}' is {b.dtype}, expected {a.dtype}"
            return
        if a.dtype.kind != "f":
            into.flips = max(into.flips, float(np.mean(a != b)) if a.size else 0.0)
            continue
        finite = np.isfinite(a)
        if not np.array_equal(
            np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True
        ):
            wrong = int(np.sum(~np.isfinite(b)))
            into.problem = (
                f"output '{name}': {wrong} of {b.size} not finite, expected {np.sum(~finite)}"
            )
            return
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        into.error = max(into.error, relative_error(a, b) * narrowness(a, span))
        if a.ndim and a.size:
            into.cosine = min(into.cosine, float(np.mean(cosine(a, b))))


def narrowness(values: Array, span: float) -> float:
    """The range of `values` over `span` where that is the larger one."""
    actual = float(np.ptp(values)) if values.size else 0.0
    return actual / span if 0 < actual < span else 1.0


def check(entry: Entry, library: Path, quant: str = "none", runs: int = 2) -> list[Comparison]:
    """The runs of `entry`, its library loaded once."""
    path = path_of(entry)
    assert path is not None, f"{entry.name} is not in the cache"
    oracle = Oracle(path)
    model = abqc.load(library)
    taken = {spec.name for spec in model.inputs}
    results = []
    for sizes in sizes_of(entry)[:runs]:
        feeds = make_feeds(entry, path, sizes)
        try:
            outputs = model.run({name: array for name, array in feeds.items() if name in taken})
        except AbqcError as error:
            problem = f"{type(error).__name__}: {error}"
            results.append(Comparison(sizes, problem=problem, died=True))
            continue
        names = [spec.name for spec in model.outputs]
        actual = dict(zip(names, outputs, strict=True))
        judge = _Judge(entry, oracle, feeds, actual, sizes)
        results.append(judge.float() if quant == "none" else judge.quantized(quant))
    return results


@dataclass
class _Judge:
    """One run's outputs beside those of the oracle."""

    entry: Entry
    oracle: Oracle
    feeds: Outputs
    actual: Outputs
    sizes: dict[str, int]

    def float(self) -> Comparison:
        """The nearest of the forms that a right answer may be near to, and the noise."""
        plain = self.oracle.plain(self.feeds)
        result = self._beside(plain)
        if result.error or result.flips:
            unfused = self.oracle.unfused(self.feeds)
            spread = self._compared(unfused, {name: plain[name] for name in self.actual})
            result = _nearer(result, self._beside(unfused))
            wide = self.oracle.in_f32(self.feeds, plain)
            if wide is not None and not result.problem:
                result = _nearer(result, self._beside(wide))
            result.spread = spread.error
        if result.error > self.entry.tolerance and not result.problem:
            result.noise = self._noise()
        return result

    def quantized(self, recipe: str) -> Comparison:
        """Beside the float model; where it is far from it, beside the recipe's rounding too."""
        plain = self.oracle.plain(self.feeds)
        result = self._beside(plain)
        if result.problem or result.cosine >= COSINE:
            return result
        forms = self.oracle.by_recipe(recipe, self.feeds)
        kept = [{name: form[name] for name in self.actual} for form in forms]
        if kept:
            result.recipe = min(self._compared(plain, form).cosine for form in kept)
            result.reference = self._beside(kept[0]).cosine
        result.noise = self._noise()
        return result

    def _noise(self) -> float:
        unfused = self.oracle.unfused(self.feeds)
        moved = (
            self._compared(unfused, {name: noisy[name] for name in self.actual}).error
            for noisy in self.oracle.with_noise(self.feeds)
        )
        return max(moved, default=0.0)

    def _beside(self, expected: Outputs) -> Comparison:
        return self._compared(expected, self.actual)

    def _compared(self, expected: Outputs, actual: Outputs) -> Comparison:
        result = Comparison(self.sizes)
        compare(expected, actual, result, self.entry.span)
        return result


def _nearer(a: Comparison, b: Comparison) -> Comparison:
    return min(a, b, key=lambda result: (bool(result.problem), result.flips, result.error))


def main() -> None:
    name, library, quant, runs = sys.argv[1:]
    results = check(BY_NAME[name], Path(library), quant, int(runs))
    print(json.dumps({"runs": [asdict(result) for result in results]}))


if __name__ == "__main__":
    main()
