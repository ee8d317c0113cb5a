"""Artifacts from MLIR text: what the front end would hand to the passes, written by hand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from abqc.codegen.artifact import build_artifact
from abqc.compiler.build import resolve_target
from abqc.compiler.pipeline import stages
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.runtime.tensor_spec import TensorSpec


def build(
    text: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    output: Path,
    *,
    target: str = "cpu",
) -> Path:
    """Compile `@main` of tensors to the library `output`, without a recipe."""
    with tempfile.TemporaryDirectory(prefix="abqc-ir-") as name:
        work = Path(name)
        unit = Unit(
            store=WeightStore(work / "weights"),
            recipe=parse_recipe("none"),
            target=resolve_target(target),
            inputs=list(inputs),
            outputs=list(outputs),
        )
        with make_context():
            module = ir.Module.parse(text)
        for passes in stages(unit.target.objects.on_device).values():
            run_pipeline(module.operation, passes, unit)
        build_artifact(
            module,
            unit,
            output,
            partial=output.with_name(f".{output.name}.partial"),
            work=work,
            manifest={"model": output.stem, "target": target},
            progress=lambda *_: None,
            started=time.perf_counter(),
        )
    return output
