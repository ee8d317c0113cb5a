"""From the lowered host module and its kernels to the linked artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..dialects.mlir import ir
from ..passes.infrastructure import Unit
from ..passes.launch import kernel_names
from .cpu.polynomials import expand_math
from .elf import write_data_object
from .host import compile_host
from .isa import Isa
from .link import ArtifactMeta, link
from .llvm import compile_kernels

Progress = Callable[[str, int, int], None]


def build_artifact(
    module: ir.Module,
    unit: Unit,
    output: Path,
    *,
    work: Path,
    manifest: dict[str, Any],
    progress: Progress,
    started: float,
) -> None:
    """Compile the kernels for every form, the host function, the weights, and link them."""
    names = sorted(kernel_names(module.operation))
    objects = []
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(_kernels_object, unit, names, isa, work) for isa in unit.target.isas]
        progress("compile", 0, len(jobs) + 1)
        host = work / "host.o"
        host.write_bytes(compile_host(module, names, unit.kept_outputs))
        for done, job in enumerate(jobs):
            objects.append(job.result())
            progress("compile", done + 2, len(jobs) + 1)
    weights = work / "weights.o"
    weight_bytes = write_data_object(
        weights, ((name, unit.store.get(symbol)) for name, symbol in unit.weights.items())
    )
    code_bytes = sum(path.stat().st_size for path in [*objects, host])
    manifest["bytes"] = {"weights": weight_bytes, "code": code_bytes}
    manifest["kernels"] = len(names)
    manifest["compile_seconds"] = round(time.perf_counter() - started, 3)
    progress("link", 0, 1)
    link(
        [host, *objects, weights],
        output,
        meta=ArtifactMeta(
            inputs=unit.inputs,
            outputs=unit.outputs,
            isas=[isa.name for isa in unit.target.isas],
            strided_inputs=frozenset(unit.strided_inputs),
        ),
        manifest=manifest,
    )
    progress("link", 1, 1)


def _kernels_object(unit: Unit, names: list[str], isa: Isa, work: Path) -> Path:
    """One form of all kernels, emitted into a context of its own so that forms compile at once."""
    from ..dialects.mlir import make_context

    context = make_context()
    with context, ir.Location.unknown():
        module = ir.Module.create()
        if unit.outlined is not None:
            module = ir.Module.parse(unit.outlined_text)
        for name in names:
            kernel = unit.kernels[name]
            if kernel is not None:
                kernel.emit(module, isa)
        expand_math(module)
        code = compile_kernels(module, isa, names, f"abqc_kernels_{isa.name}", linkage="internal")
    path = work / f"kernels_{isa.name}.o"
    path.write_bytes(code)
    return path
