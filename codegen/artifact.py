"""From the lowered host module and its kernels to the linked artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..dialects.mlir import ir
from ..passes.infrastructure import Unit
from ..passes.kernels.launch import kernel_names
from .elf import loaded_bytes, write_data_object
from .host.compile import compile_host
from .host.launches import launch_table
from .kernel_job import running
from .link import ArtifactMeta, link

Progress = Callable[[str, int, int], None]


def build_artifact(
    module: ir.Module,
    unit: Unit,
    output: Path,
    *,
    partial: Path,
    work: Path,
    manifest: dict[str, Any],
    progress: Progress,
    started: float,
) -> None:
    """Compile the kernels for every ISA, the host function and the weights, and link them.

    `partial` is the library's name until it is whole; other files are made in `work`.
    """
    names = tuple(sorted(kernel_names(module.operation)))
    kernels = tuple(unit.kernels[name] for name in names)
    maker = unit.known_target.objects
    with running(maker.jobs(names, kernels, unit.outlined_text), work) as jobs:
        progress("compile", 0, len(jobs) + 1)
        if not maker.on_device:
            manifest["launches"] = launch_table(module, unit.weights, unit.node_kinds)
        host = work / "host.o"
        host.write_bytes(compile_host(module, names, unit.kept_outputs, on_device=maker.on_device))
        results = []
        for done, job in enumerate(jobs):
            progress("compile", done + 1, len(jobs) + 1)
            results.append(job.finish())
        code = maker.collect(results, names, work)
        progress("compile", len(jobs) + 1, len(jobs) + 1)
    weights = work / "weights.o"
    weight_bytes = write_data_object(
        weights, ((name, unit.store.get(symbol)) for name, symbol in unit.weights.items())
    )
    manifest["bytes"] = {
        "weights": weight_bytes,
        "code": code.code_bytes + loaded_bytes(host.read_bytes()),
    }
    manifest["kernels"] = len(names)
    if not maker.on_device:
        manifest["huge_pages"] = True  # the options of an instance have a flag for them
    manifest["interruptible"] = True  # the options of a run have flags
    manifest["profiles"] = True  # and a profile
    manifest |= code.manifest
    manifest["compile_seconds"] = round(time.perf_counter() - started, 3)
    progress("link", 0, 1)
    link(
        [host, *code.objects, weights],
        output,
        partial=partial,
        meta=ArtifactMeta(
            inputs=unit.inputs,
            outputs=unit.outputs,
            isas=code.isas,
            gpu=code.gpu,
            strided_inputs=frozenset(unit.strided_inputs),
            sized_outputs=unit.sized_outputs,
            weights=[(symbol, weight_bytes) for symbol in list(unit.weights)[:1]],
            messages=unit.messages,
        ),
        manifest=manifest,
    )
    progress("link", 1, 1)
