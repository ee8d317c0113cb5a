"""Run one compiled model beside onnxruntime at both of its sizes. `run.py` calls it as a child.

    python tests/zoo/check.py NAME LIBRARY [RUNS]

prints one JSON object: {"runs": [{"sizes", "error", "cosine", "flips", "spread", "problem"}, ...]}.
The library agrees if it agrees with onnxruntime, with its optimizations or without: these are
`spread` apart, which for quantized models can be more than a step. A model of 16-bit floats may
agree with itself in f32 instead: onnxruntime rounds after every operator, which on deep models
moves its own results by more than the tolerance.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import abqc
import numpy as np
from abqc.compiler.evaluate import cosine, relative_error
from abqc.errors import AbqcError
from numpy.typing import NDArray
from zoo.entry import Entry, sizes_of
from zoo.feeds import make_feeds
from zoo.halves import has_halves, in_f32
from zoo.make import path_of
from zoo.table import BY_NAME

Array = NDArray[Any]


@dataclass
class Comparison:
    """One run. `error`: worst of the float outputs, of their range; `cosine`: their worst mean.

    `flips`: the largest share of different elements of an integer output.
    """

    sizes: dict[str, int]
    error: float = 0.0
    cosine: float = 1.0
    flips: float = 0.0
    spread: float = 0.0
    problem: str = ""


class Oracle:
    """onnxruntime on the CPU, twice: as it comes, and without its optimizations."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        def session(level: str) -> Any:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

        self.sessions = [session("ORT_ENABLE_ALL")]
        self.exact = self._in_f32(path)
        try:
            self.sessions.append(session("ORT_DISABLE_ALL"))
        except Exception:  # some models run only fused: then there is no spread
            self.sessions *= 2
        self.names = [output.name for output in self.sessions[0].get_outputs()]

    def _in_f32(self, path: Path) -> Any:
        """A session of the model without 16-bit floats; None if it has none."""
        import onnx
        import onnxruntime

        model = onnx.load(path)
        if not has_halves(model):
            return None
        in_f32(model)
        with tempfile.TemporaryDirectory() as scratch:
            wide = Path(scratch) / "model.onnx"
            onnx.save(model, wide, save_as_external_data=True, location="weights")
            return onnxruntime.InferenceSession(str(wide), providers=["CPUExecutionProvider"])

    def run_in_f32(self, feeds: dict[str, Array], like: dict[str, Array]) -> dict[str, Array]:
        """The outputs of the model in f32, rounded to the types of those of `like`."""
        wide = {n: a.astype(np.float32) if a.dtype.itemsize == 2 and a.dtype.kind in "fV" else a
                for n, a in feeds.items()}  # fmt: skip
        found = dict(zip(self.names, map(tensor, self.exact.run(None, wide)), strict=True))
        return {name: array.astype(like[name].dtype) for name, array in found.items()}

    def run(self, feeds: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        first, second = (
            {
                name: tensor(value)
                for name, value in zip(self.names, session.run(None, feeds), strict=True)
            }
            for session in self.sessions
        )
        return first, second


def tensor(value: Any) -> Array:
    """An output as an array; a ZipMap's list of dictionaries as their values, which are f32."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return np.array([list(row.values()) for row in value], np.float32)
    return np.asarray(value)


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


def check(entry: Entry, library: Path, runs: int = 2) -> list[Comparison]:
    """Both runs of `entry`, its library loaded once."""
    path = path_of(entry)
    assert path is not None, f"{entry.name} is not in the cache"
    oracle = Oracle(path)
    model = abqc.load(library)
    taken = {spec.name for spec in model.inputs}
    results = []
    for sizes in sizes_of(entry)[:runs]:
        result = Comparison(sizes)
        feeds = make_feeds(entry, path, sizes)
        plain, unfused = oracle.run(feeds)
        try:
            outputs = model.run({name: array for name, array in feeds.items() if name in taken})
        except AbqcError as error:
            result.problem = f"{type(error).__name__}: {error}"
        else:
            names = [spec.name for spec in model.outputs]
            actual = dict(zip(names, outputs, strict=True))
            compare(plain, actual, result, entry.span)
            if result.error or result.flips:
                other, spread = Comparison(sizes), Comparison(sizes)
                compare(unfused, actual, other, entry.span)
                compare(unfused, {name: plain[name] for name in names}, spread, entry.span)
                result = min(result, other, key=lambda r: (bool(r.problem), r.flips, r.error))
                result.spread = spread.error
            if oracle.exact is not None and result.error and not result.problem:
                exact = Comparison(sizes, spread=result.spread)
                compare(oracle.run_in_f32(feeds, plain), actual, exact, entry.span)
                result = min(result, exact, key=lambda r: (bool(r.problem), r.flips, r.error))
        results.append(result)
    return results


def main() -> None:
    name, library, runs = (*sys.argv[1:], "2")[:3]
    results = check(BY_NAME[name], Path(library), int(runs))
    print(json.dumps({"runs": [asdict(result) for result in results]}))


if __name__ == "__main__":
    main()
