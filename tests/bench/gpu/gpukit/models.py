"""Part `models`: whole models through their own ABI, against what the CPU's artifact gave."""

from __future__ import annotations

import lzma
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from abqc.runtime.environment import CUDA_DEPENDENT_LAUNCH, CUDA_GRAPHS
from abqc.runtime.model import Model, load

from . import model_times
from .kit import MODEL, Kit, ModelFeed
from .pytorch import NoPyTorch
from .stand_in import device as default_device

RUNS = 20


@dataclass(frozen=True)
class Mode:
    """How runs are launched; what is behind the names of its records."""

    suffix: str
    graphs: bool = True
    early: bool = True  # kernels begin before those they depend on have ended


MODES = (
    Mode(""),
    Mode(", no early launches", early=False),
    Mode(", no graphs", graphs=False),
)


def names(kit: Kit) -> list[str]:
    return [f"{feed.model} {feed.name}{mode.suffix}" for feed in kit.feeds for mode in MODES]


def measure(kit: Kit, index: int, device: Any = None, runs: int = RUNS) -> dict[str, Any]:
    """The largest error, and seconds of a run (of a step where the caches grow): `host` with arrays
    on the host in and out, caches excepted that grow; `device` with PyTorch's tensors on the GPU
    in a stream of the caller's (None without PyTorch). `again`: when all sizes and places have been
    seen before. Outputs of all four are compared; `wrong` says so too where no run was a graph
    though it should. `shape`: of the last graph."""
    feed, mode = kit.feeds[index // len(MODES)], MODES[index % len(MODES)]
    device = default_device() if device is None else device
    inputs, expected = arrays_of(kit, feed)
    times: tuple[Any, Any] = (None, None)
    missing = ""
    with opened(kit.folder / "models" / feed.model, device, mode) as model:
        on_host, on_device = model_times.timers(model, feed, inputs, runs)
        given, host = on_host()
        # From the second run on a graph is launched.
        given_again, host_again = on_host()
        compared = [given, given_again]
        try:
            *times, given = on_device()  # type: ignore[assignment]
            compared.append(given)
        except NoPyTorch as error:
            missing = str(error)
        error = max(errors(feed, expected, outputs) for outputs in compared)
        runs_so_far, refused = model.statistics, graphs_missing(model, mode.graphs, device)
    wrong = "" if error <= feed.tolerance else f"error {error:.2e} of the output's range"
    return {
        "model": feed.model,
        "feed": feed.name,
        "mode": mode.suffix,
        "graphs": mode.graphs,
        "graph_runs": runs_so_far.graph_runs,
        "shape": asdict(runs_so_far.graph) if runs_so_far.graph else None,
        "deviation": error if np.isfinite(error) else None,
        "tolerance": feed.tolerance,
        "wrong": "; ".join(filter(None, [wrong, refused])),
        "host_seconds": host,
        "host_again_seconds": host_again,
        "device_seconds": times[0],
        "device_again_seconds": times[1],
        "device_missing": missing,
    }


def arrays_of(kit: Kit, feed: ModelFeed) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and expected outputs by name."""
    with np.load(kit.folder / "models" / feed.model / feed.file) as data:
        inputs = {name[3:]: data[name] for name in data.files if name.startswith("in_")}
        expected = {name[4:]: data[name] for name in data.files if name.startswith("out_")}
    return inputs, expected


def graphs_missing(model: Model, graphs: bool, device: Any) -> str:
    """What is to be said of graphs; empty where all is as it should be."""
    if not graphs or getattr(device, "separate_buffers", False):
        return ""
    runs = model.statistics
    if runs.graph_error:
        return f"the driver refused a graph: {runs.graph_error}"
    return "" if runs.graph_runs else "no run was a graph"


@contextmanager
def opened(folder: Path, device: Any, mode: Mode = MODES[0]) -> Iterator[Model]:
    """The model in a folder of the kit."""
    os.environ[CUDA_GRAPHS.name] = str(int(mode.graphs))
    os.environ[CUDA_DEPENDENT_LAUNCH.name] = str(int(mode.early))
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "model.so")
        library.write_bytes(lzma.decompress((folder / MODEL).read_bytes()))
        with load(library, device=device) as model:
            yield model


def errors(feed: ModelFeed, expected: dict[str, Any], outputs: dict[str, Any]) -> float:
    """The largest difference of an output, relative to its range; NaN counts as infinite unless it
    is expected."""
    worst = 0.0
    for name, want in expected.items():
        got = np.asarray(outputs[name])
        if rows := feed.new_rows.get(name):
            got = got[..., -rows:, :]
        if got.shape != want.shape or got.dtype != want.dtype:
            return np.inf
        if want.size:
            worst = max(worst, _error(got, want))
    return worst


def _error(got: np.ndarray, want: np.ndarray) -> float:
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    got, want = got[finite], want[finite]
    error = float(np.abs(got - want).max()) / (float(want.max() - want.min()) or 1.0)
    return error if np.isfinite(error) else np.inf
