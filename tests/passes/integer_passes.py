"""What the passes of integer-only graphs make of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.onnx_import.importer import import_model
from abqc.compiler.pipeline import TIDY
from abqc.compiler.read_recipe import parse_recipe
from abqc.compiler.recipe import FLOAT
from abqc.passes.infrastructure import Unit, run_pipeline
from facts import Facts
from integer_cases import RECIPE
from onnx_models import save


def passed(
    proto: onnx.ModelProto, folder: Path, recipe: str = RECIPE, *, strict: bool = False
) -> tuple[Facts, Facts, Facts, Unit]:
    """The model with marks; with codes, all of scale 0.02; and without the recipe."""
    imported = import_model(save(proto, folder), shapes={}, work_dir=folder)
    unit = Unit(
        store=imported.store,
        recipe=parse_recipe(recipe),
        target=CpuTarget(),
        inputs=imported.inputs,
        strict=strict,
    )
    module = imported.module.operation
    run_pipeline(module, (TIDY, "insert-fake-quantize"), unit)
    marked = Facts(module.get_asm())
    for mark in marked("abq.fake_quantize"):
        unit.store.add(mark.attributes["symbol"].value, np.array([0.02, 100.0]))
    in_float = module.clone()
    run_pipeline(module, (TIDY, "quantize", "integer-only", TIDY), unit)
    floats = Unit(store=imported.store, recipe=FLOAT, target=CpuTarget(), inputs=imported.inputs)
    run_pipeline(in_float, ("quantize", "integer-only", TIDY), floats)
    return marked, Facts(module.get_asm()), Facts(in_float.get_asm()), unit


def nodes_of(marked: Facts) -> list[str]:
    """The nodes of the marks, in order."""
    return [mark.attributes["node"].value for mark in marked("abq.fake_quantize")]
