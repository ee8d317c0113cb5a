"""The work of a compile: import, passes, objects, link. Runs in a process of its own (`job.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from abqc import __version__
from abqc.codegen.artifact import build_artifact
from abqc.codegen.link import check_writable
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.failures import Source, keep
from abqc.compiler.job import Request
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import stages
from abqc.compiler.recipe import parse_recipe
from abqc.dialects.formats import FLOAT_BYTES
from abqc.errors import AbqcError, InputError, RecipeError
from abqc.passes.infrastructure import PassFailure, Unit, run_pipeline

Progress = Callable[[str, int, int], None]


def build(request: Request, report: Progress, on_pass: Callable[[str], None]) -> list[str]:
    """Compile and link; `on_pass` hears the name of every pass before it runs. Raises AbqcError.

    Returns the notes for the user.
    """
    started = time.perf_counter()
    recipe = parse_recipe(request.quant)
    if request.calib is not None:
        recipe = recipe.with_calibration()
    elif request.budget is not None:
        raise InputError(
            "a budget is spent by what calibration data show", hint="give them with --calib"
        )
    elif recipe.calibrated:
        raise RecipeError(
            "gptq, error feedback, needs calibration data",
            hint="give them with --calib samples.npz, or ask for search, which needs none",
        )
    target = resolve_target(request.target)
    check_writable(request.output)
    if request.dump_dir is not None:
        request.dump_dir.mkdir(parents=True, exist_ok=True)
    report("import", 0, 1)
    imported = import_model(
        request.model, shapes=request.shapes, work_dir=request.work, keep_codes=True
    )
    recipe.check_used({node.name: node.kind for node in imported.nodes})
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
        notes=list(imported.notes),
    )
    module = imported.module
    calibration: dict[str, Any] = {}
    try:
        if request.calib is not None:
            from abqc.compiler.calibration.calibrate import calibrate  # which most do not need

            calibration = calibrate(request, module, unit, report).manifest()
        for stage, passes in stages(target.objects.on_device).items():
            report(stage, 0, 1)
            run_pipeline(module.operation, passes, unit)
    except PassFailure as failure:
        keep(failure, unit, Source(request.model.resolve(), request.shapes, request.target))
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
    return [f"node '{note['node']}' {note['note']}" for note in unit.notes]


def resolve_target(name: str) -> Any:
    """The frozen description of a target; AbqcError names those that exist."""
    if name == "cpu":
        return CpuTarget()
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
        "target": unit.target.name,
        "cost_model": unit.target.cost_model_status,
        "recipe": unit.recipe.text,
        "opset": imported.opset,
        "producer": imported.producer,
        "inputs": [_tensor(spec) for spec in imported.inputs],
        "outputs": [_tensor(spec) for spec in imported.outputs],
        "ops": [op for op in unit.operations if op["kind"] != "gather"],
        "notes": unit.notes,
        "tables": [op for op in unit.operations if op["kind"] == "gather"],
        "float": unit.floats
        + [
            {"node": op["node"], "kind": op["kind"], "bytes": op["bytes"], "why": "the recipe"}
            for op in unit.operations
            if op["weight"] in FLOAT_BYTES
        ],
    }


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
