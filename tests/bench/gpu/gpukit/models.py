"""Part `models`: whole models through their own ABI, against what the CPU's artifact gave."""

from __future__ import annotations

import lzma
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from abqc.runtime.environment import CUDA_GRAPHS
from abqc.runtime.model import Model, load

from . import model_times
from .kit import MODEL, Kit, ModelFeed

RUNS = 20


def names(kit: Kit) -> list[str]:
    return [_name(feed, graphs) for feed in kit.feeds for graphs in (True, False)]


def _name(feed: ModelFeed, graphs: bool) -> str:
    return f"{feed.model} {feed.name}" + ("" if graphs else ", no graphs")


def measure(kit: Kit, index: int, device: Any = "cuda", runs: int = RUNS) -> dict[str, Any]:
    """The largest error, and seconds of a run (of a step where the caches grow): `host` with arrays
    on the host in and out, caches excepted that grow; `device` with PyTorch's tensors on the GPU
    (None without PyTorch). `again`: when all sizes and places have been seen before."""
    feed, graphs = kit.feeds[index // 2], index % 2 == 0
    folder = kit.folder / "models" / feed.model
    with np.load(folder / feed.file) as data:
        inputs = {name[3:]: data[name] for name in data.files if name.startswith("in_")}
        expected = {name[4:]: data[name] for name in data.files if name.startswith("out_")}
    os.environ[CUDA_GRAPHS.name] = "1" if graphs else "0"
    with _opened(folder, device) as model:
        on_host, on_device = model_times.timers(model, feed, inputs, runs)
        first, host = on_host()
        # From the second run on a graph is launched: its outputs count as well.
        again, host_again = on_host()
        error = max(_errors(feed, expected, outputs) for outputs in (first, again))
        times, why = (None, None), "not run by the CUDA driver"
        if device == "cuda":
            times, why = _try(on_device)
    return {
        "model": feed.model,
        "feed": feed.name,
        "graphs": graphs,
        "deviation": error if np.isfinite(error) else None,
        "tolerance": feed.tolerance,
        "wrong": "" if error <= feed.tolerance else f"error {error:.2e} of the output's range",
        "host_seconds": host,
        "host_again_seconds": host_again,
        "device_seconds": times[0],
        "device_again_seconds": times[1],
        "device_missing": why,
    }


def _try(on_device: Any) -> tuple[Any, str]:
    """The seconds, or Nones and why there are none: the figures of the host stand."""
    try:
        return on_device(), ""
    except Exception as error:  # PyTorch's too
        return (None, None), f"{type(error).__name__}: {error}"


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
