"""Part `models`: whole models through their own ABI, against what the CPU's artifact gave."""

from __future__ import annotations

import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from abqc.errors import AbqcError
from abqc.runtime.model import Model, load

from .kit import MODEL, Kit, ModelFeed

GRAPHS = "ABQC_CUDA_GRAPHS"
RUNS = 20


def names(kit: Kit) -> list[str]:
    return [_name(feed, graphs) for feed in kit.feeds for graphs in (True, False)]


def _name(feed: ModelFeed, graphs: bool) -> str:
    return f"{feed.model} {feed.name}" + ("" if graphs else ", no graphs")


def measure(kit: Kit, index: int, device: Any = "cuda", runs: int = RUNS) -> dict[str, Any]:
    """The largest error, and seconds of a run: `host` with arrays on the host in and out, `device`
    with PyTorch's tensors on the GPU (None without PyTorch)."""
    feed, graphs = kit.feeds[index // 2], index % 2 == 0
    folder = kit.folder / "models" / feed.model
    with np.load(folder / feed.file) as data:
        inputs = {name[3:]: data[name] for name in data.files if name.startswith("in_")}
        expected = {name[4:]: data[name] for name in data.files if name.startswith("out_")}
    os.environ[GRAPHS] = "1" if graphs else "0"
    with _opened(folder, device) as model:
        first = dict(zip((o.name for o in model.outputs), model.run(inputs), strict=True))
        # From the second run on a graph is launched: its outputs count as well.
        again = dict(zip(first, model.run(inputs), strict=True))
        error = max(_errors(feed, expected, outputs) for outputs in (first, again))
        host = _median(lambda: model.run(inputs), runs)
        on_device, why = None, "not run by the CUDA driver"
        if device == "cuda":
            on_device, why = _try_on_device(model, inputs, first, runs)
    return {
        "model": feed.model,
        "feed": feed.name,
        "graphs": graphs,
        "deviation": error if np.isfinite(error) else None,
        "tolerance": feed.tolerance,
        "wrong": "" if error <= feed.tolerance else f"error {error:.2e} of the output's range",
        "host_seconds": host,
        "device_seconds": on_device,
        "device_missing": why,
    }


@contextmanager
def _opened(folder: Path, device: Any) -> Iterator[Model]:
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "model.so")
        library.write_bytes(lzma.decompress((folder / MODEL).read_bytes()))
        with load(library, device=device) as model:
            yield model


def _errors(feed: ModelFeed, expected: dict[str, Any], outputs: dict[str, Any]) -> float:
    """The largest difference of an output, relative to its range; NaN counts as infinite."""
    worst = 0.0
    for name, want in expected.items():
        got = np.asarray(outputs[name])
        if rows := feed.new_rows.get(name):
            got = got[..., -rows:, :]
        span = float(want.max() - want.min()) or 1.0
        error = float(np.abs(got.astype(np.float64) - want).max()) / span
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def _median(run: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _try_on_device(
    model: Model, inputs: dict[str, np.ndarray], outputs: dict[str, Any], runs: int
) -> tuple[float | None, str]:
    """Seconds with all tensors on the GPU, or None and why there are none."""
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed"
    if not torch.cuda.is_available():
        return None, "PyTorch finds no GPU"
    try:
        return _device_seconds(torch, model, inputs, outputs, runs), ""
    except AbqcError as error:  # the figures of the host stand
        return None, str(error)


def _device_seconds(
    torch: Any, model: Model, inputs: dict[str, np.ndarray], outputs: dict[str, Any], runs: int
) -> float:
    """Of one run: several in a stream, by events."""
    given = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    made = {name: torch.from_numpy(np.array(array)).cuda() for name, array in outputs.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.run(given, outputs=made, stream=stream.cuda_stream)
        begin.record()
        for _ in range(runs):
            model.run(given, outputs=made, stream=stream.cuda_stream)
        end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / runs
