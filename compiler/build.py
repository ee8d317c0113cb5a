"""The work of a compile: import, passes, objects, link. Runs in a process of its own (`job.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from abqc import __version__
from abqc.codegen.artifact import build_artifact
from abqc.codegen.isa import of_cpu
from abqc.codegen.link import check_writable
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.target import Target
from abqc.compiler.failures import Source, keep
from abqc.compiler.job import Request
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import RECOGNIZE, stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import Recipe
from abqc.dialects.formats import FLOAT_BYTES
from abqc.errors import AbqcError, InputError, RecipeError
from abqc.passes.infrastructure import PassFailure, Unit, run_pipeline
from abqc.passes.quantization.scans import scan_nodes
from abqc.runtime.environment import CPU

Progress = Callable[[str, int, int], None]


def build(request: Request, report: Progress, on_pass: Callable[[str], None]) -> list[str]:
    """Compile and link; `on_pass` hears the name of every pass before it runs. Raises AbqcError.

    Returns the notes for the user.
    """
    recipe = parse_recipe(request.quant)
    if request.calib_workers is not None:
        from abqc.compiler.calibration.workers import check_workers

        check_workers(request.calib_workers)
        if request.calib is None:
            raise InputError("workers calibrate with data", hint="give these with --calib")
    if request.calib is not None:
        if request.last_logits:
            raise InputError(
                "calibration reads what all tokens give the head",
                hint="--last-logits and --calib exclude each other",
            )
        recipe = recipe.with_calibration()
    elif request.budget is not None:
        raise InputError(
            "a budget is spent by what calibration data show", hint="give them with --calib"
        )
    elif recipe.needs_data is not None:
        raise RecipeError(
            f"{recipe.needs_data} needs calibration data",
            hint="give them with --calib samples.npz, or ask for search, which needs none",
        )
    return build_with(request, recipe, report, on_pass)


def build_with(
    request: Request,
    recipe: Recipe,
    report: Progress,
    on_pass: Callable[[str], None],
    given: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """The same by a recipe that is read already. Weights for which it asks error feedback are
    rounded to nearest where the request has no calibration data; `given` is what the weight store
    has by symbol besides the model's weights."""
    started = time.perf_counter()
    target = resolve_target(request.target, request.cpu)
    check_writable(request.output)
    if request.dump_dir is not None:
        request.dump_dir.mkdir(parents=True, exist_ok=True)
    report("import", 0, 1)
    imported = import_model(
        request.model,
        shapes=request.shapes,
        work_dir=request.work,
        keep_codes=True,
        last_logits=request.last_logits,
    )
    unit = Unit(
        store=imported.store,
        recipe=recipe,
        target=target,
        node_kinds={node.name: node.kind for node in imported.nodes},
        dump_dir=request.dump_dir,
        progress=report,
        on_pass=on_pass,
        inputs=imported.inputs,
        outputs=imported.outputs,
        sized_outputs=imported.sized_outputs,
        notes=list(imported.notes),
        strict=request.strict,
    )
    for symbol, array in (given or {}).items():
        unit.store.add(symbol, array)
    module = imported.module
    calibration: dict[str, Any] = {}
    try:
        run_pipeline(module.operation, RECOGNIZE, unit)  # rules speak of what it finds, too
        unit.node_kinds |= dict.fromkeys(scan_nodes(module.operation), "scan")
        recipe.check_used(unit.node_kinds)
        if request.calib is not None:
            from abqc.compiler.calibration.calibrate import calibrate  # which most do not need

            calibration = calibrate(request, module, unit, report).manifest()
        for stage, passes in stages(target.objects.on_device).items():
            report(stage, 0, 1)
            run_pipeline(module.operation, passes, unit)
    except PassFailure as failure:
        model = request.model.resolve()
        source = Source(model, request.shapes, request.target, request.cpu, request.last_logits)
        keep(failure, unit, source)
        raise
    on_pass("code generation")
    build_artifact(
        module,
        unit,
        request.output,
        partial=request.partial,
        work=request.work,
        manifest=describe(request, unit, imported) | calibration,
        progress=report,
        started=started,
    )
    warning = [target.cost_model_warning] if target.cost_model_warning else []
    return warning + [f"node '{note['node']}' {note['note']}" for note in unit.notes]


def resolve_target(name: str, cpu: str | None = None) -> Target:
    """The frozen description of a target; AbqcError names those that exist. `cpu` says for which
    CPUs there are kernels (`isa.of_cpu`); None: as ABQC_CPU says, else for all."""
    if name == "cpu":
        return CpuTarget(isas=of_cpu(cpu or CPU.get() or "all"))
    if cpu is not None:
        raise AbqcError(f"--cpu is about kernels for CPUs, and the target is {name}")
    from abqc.codegen.targets.cuda import CudaTarget, target_names

    target = CudaTarget.named(name)
    if target is None:
        raise AbqcError(
            f"there is no target '{name}'",
            hint=f"the targets are: cpu, {target_names()}; several GPUs: sm_80,sm_90a",
        )
    return target


def describe(request: Request, unit: Unit, imported: Any) -> dict[str, Any]:
    """The manifest: what `abqc inspect` shows."""
    return {
        "abqc": __version__,
        "model": request.model.name,
        "target": unit.known_target.name,
        "cost_model": unit.known_target.cost_model_status,
        "recipe": unit.recipe.text,
        "last_logits": request.last_logits,
        "opset": imported.opset,
        "producer": imported.producer,
        "inputs": [_tensor(spec) for spec in unit.inputs],
        "outputs": [_tensor(spec) for spec in unit.outputs],
        "caches": unit.caches,
        "scans": unit.scans,
        "integers": dict(unit.integers),
        "ops": [op for op in unit.operations if op["kind"] != "gather"],
        "notes": unit.notes,
        "tables": [op for op in unit.operations if op["kind"] == "gather"],
        "float": [
            *({**entry, "by_recipe": False} for entry in unit.floats),
            *(_float_by_recipe(op) for op in unit.operations if op["weight"] in FLOAT_BYTES),
        ],
    }


def _float_by_recipe(op: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: op[key] for key in ("node", "kind", "bytes")}
    return {**about, "why": "the recipe", "by_recipe": True}


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
