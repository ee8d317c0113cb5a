"""`abqc.compile`: from an ONNX file to a shared library."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from abqc import __version__
from abqc.codegen.artifact import build_artifact
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import STAGES
from abqc.compiler.recipe import parse_recipe
from abqc.dialects.mlir import ir, make_context
from abqc.errors import AbqcError
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.runtime.model import Model, load

Progress = Callable[[str, int, int], None]


def compile(
    model: str | Path,
    *,
    quant: str | Path = "none",
    target: str = "cpu",
    output: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dump_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Compile an ONNX model into a shared library and load it.

    `quant` is a recipe (`w4a8`, `w4a4 rotate`, ...) or the path of a file of rules; `shapes` pins the
    shapes of inputs; `output` is where the library goes (default: beside the model, `.so`);
    `dump_dir` receives the IR after every pass; `progress(step, done, total)` is called as work goes
    on. Raises AbqcError, whose text says what to do; nothing is written then.
    """
    started = time.perf_counter()
    report = progress or (lambda step, done, total: None)
    source = Path(model)
    library = Path(output) if output is not None else source.with_suffix(".so")
    recipe = parse_recipe(quant)
    resolved = resolve_target(target)
    dump = Path(dump_dir) if dump_dir is not None else None
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="abqc-"))
    try:
        report("import", 0, 1)
        imported = import_model(source, shapes=shapes or {}, work_dir=work, keep_codes=True)
        recipe.check_used({node.name: node.kind for node in imported.nodes})
        unit = Unit(
            store=imported.store,
            recipe=recipe,
            target=resolved,
            node_kinds={node.name: node.kind for node in imported.nodes},
            dump_dir=dump,
            progress=report,
            inputs=imported.inputs,
            outputs=imported.outputs,
        )
        context = make_context()
        with context:
            module = ir.Module.parse(imported.bytecode)
        for stage, passes in STAGES.items():
            report(stage, 0, 1)
            run_pipeline(module.operation, passes, unit)
        manifest = describe(source, str(quant), unit, imported)
        build_artifact(
            module, unit, library, work=work, manifest=manifest, progress=report, started=started
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return load(library)


def resolve_target(name: str) -> CpuTarget:
    """The frozen description of a target; AbqcError names those that exist."""
    if name != "cpu":
        raise AbqcError(f"there is no target '{name}'", hint="the targets are: cpu")
    return CpuTarget()


def describe(source: Path, quant: str, unit: Unit, imported: Any) -> dict[str, Any]:
    """The manifest: what `abqc inspect` shows."""
    tables = [op for op in unit.operations if op["kind"] == "gather"]
    return {
        "abqc": __version__,
        "model": source.name,
        "target": unit.target.name,
        "recipe": quant,
        "opset": imported.opset,
        "producer": imported.producer,
        "inputs": [_tensor(spec) for spec in imported.inputs],
        "outputs": [_tensor(spec) for spec in imported.outputs],
        "ops": [op for op in unit.operations if op["kind"] != "gather"],
        "tables": tables,
        "float": unit.floats
        + [
            {"node": op["node"], "kind": op["kind"], "bytes": op["bytes"], "why": "the recipe"}
            for op in unit.operations
            if op["weight"] == "f32"
        ],
        "isas": [isa.name for isa in unit.target.isas],
    }


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
