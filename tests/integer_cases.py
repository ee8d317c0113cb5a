"""Integer-only graphs for tests: models compiled with scales that are given, not calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from abqc.compiler.build import build_with
from abqc.compiler.job import Request
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.fixed_point import StaticCodes
from abqc.dialects.formats import parse_scheme
from onnx_models import save

RECIPE = "w8 a8:tensor rtn integer"


def static(scale: float, zero: int, text: str = "a8:tensor") -> StaticCodes:
    return StaticCodes(parse_scheme(text), float(np.float32(scale)), zero)


def build(
    proto: onnx.ModelProto,
    folder: Path,
    codes: Mapping[str, StaticCodes],
    recipe: str = "w8 a8:tensor rtn integer",
    *,
    strict: bool = False,
    target: str = "cpu",
) -> tuple[Path, list[str]]:
    """The library, with the scales that calibration would have fixed; the notes."""
    work, output = folder / "work", folder / "model.so"
    work.mkdir()
    given = {f"{name}.result": np.array([c.scale, c.zero]) for name, c in codes.items()}
    cpu = "all" if target == "cpu" else None
    request = Request(save(proto, folder), recipe, target, output, work, cpu=cpu, strict=strict)
    notes = build_with(request, parse_recipe(recipe), lambda *_: None, lambda _: None, given)
    return output, notes
