"""Kernels that were built to be measured, as a folder: machine code and `jobs.json`.

Reading and writing it needs neither MLIR nor a GPU. docs/cost-model.md describes the format.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abqc.costmodel.interface import KernelFeatures
from abqc.costmodel.samples import features_from_json
from abqc.errors import InputError
from abqc.runtime.tensor_parameter import TensorParameter

FORMAT = "abqc-tune-jobs-1"
FILE = "jobs.json"


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel's image, a cubin or PTX beside `jobs.json`, and how it is launched."""

    name: str
    image: Path
    threads: int
    shared_bytes: int  # dynamic
    maps: tuple[TensorParameter, ...] = ()


@dataclass(frozen=True)
class GpuJob:
    """One matmul: a launch of `grid` blocks and, after a split, the reduction's. Blocks that share
    tiles have `slots_bytes` of a workspace and so many `counters`, together."""

    kernel: BuiltKernel
    grid: int
    features: KernelFeatures
    reduce: BuiltKernel | None = None
    reduce_grid: int = 0
    slots_bytes: int = 0
    counters: int = 0


def write(folder: Path, target: str, jobs: Sequence[GpuJob]) -> None:
    """Write `jobs.json`; the images are there already."""
    kernels = {k.name: k for job in jobs for k in (job.kernel, job.reduce) if k}
    data = {
        "format": FORMAT,
        "target": target,
        "kernels": {
            name: {
                "image": kernel.image.name,
                "threads": kernel.threads,
                "shared_bytes": kernel.shared_bytes,
                "maps": [parameter.numbers for parameter in kernel.maps],
            }
            for name, kernel in kernels.items()
        },
        "jobs": [
            {
                "kernel": job.kernel.name,
                "grid": job.grid,
                "reduce": job.reduce.name if job.reduce else None,
                "reduce_grid": job.reduce_grid,
                "slots_bytes": job.slots_bytes,
                "counters": job.counters,
                "features": dataclasses.asdict(job.features),
            }
            for job in jobs
        ],
    }
    (folder / FILE).write_text(json.dumps(data, indent=1))


def read(folder: Path, target: str) -> list[GpuJob]:
    """The jobs of a folder. InputError where it holds none for `target`."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT or data["target"] != target:
            raise ValueError(f"it is {data['format']} for {data['target']}")
        kernels = {
            name: BuiltKernel(
                name,
                folder / str(k["image"]),
                int(k["threads"]),
                int(k["shared_bytes"]),
                tuple(TensorParameter.of_numbers(numbers) for numbers in k.get("maps", ())),
            )
            for name, k in data["kernels"].items()
        }
        return [_job(entry, kernels) for entry in data["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no jobs for {target}: {error}",
            hint=f"`abqc tune --target {target} --build-only {folder}` writes it",
        ) from error


def _job(entry: Mapping[str, Any], kernels: Mapping[str, BuiltKernel]) -> GpuJob:
    features = features_from_json("kernel", entry["features"])
    assert isinstance(features, KernelFeatures)
    return GpuJob(
        kernel=kernels[entry["kernel"]],
        grid=int(entry["grid"]),
        features=features,
        reduce=kernels[entry["reduce"]] if entry["reduce"] else None,
        reduce_grid=int(entry["reduce_grid"]),
        slots_bytes=int(entry["slots_bytes"]),
        counters=int(entry["counters"]),
    )
