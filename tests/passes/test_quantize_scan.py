"""What the pass quantize does to selective scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.abq_recurrent import SCANNED
from abqc.dialects.weight_store import WeightStore
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit
from abqc.passes.quantization.scans import scan_scale_symbol
from facts import Facts, after

SCAN = """func.func @main(%x: tensor<?x?x6xf32>, %delta: tensor<?x?x6xf32>, %b: tensor<?x?x4xf32>,
    %c: tensor<?x?x4xf32>) -> tensor<?x?x6xf32> {
  %a = "abq.weight"() {sym = "a"} : () -> tensor<6x4xf32>
  %y, %state = "abq.selective_scan"(%x, %delta, %a, %b, %c) {node = "the scan", softplus = 1 : i64,
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0>}
      : (tensor<?x?x6xf32>, tensor<?x?x6xf32>, tensor<6x4xf32>, tensor<?x?x4xf32>,
         tensor<?x?x4xf32>) -> (tensor<?x?x6xf32>, tensor<?x6x4xf32>)
  return %y : tensor<?x?x6xf32>
}"""


def quantized(tmp_path: Path, recipe: str, scales: dict[str, tuple[float, int]]) -> tuple:
    store = WeightStore(tmp_path)
    for operand, pair in scales.items():
        store.add(scan_scale_symbol("the scan", operand), np.array(pair, np.float64))
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
    facts: Facts = after(SCAN, "quantize", unit=unit)
    (scan,) = facts("abq.selective_scan")
    return scan, unit, facts


SCALES = {name: (0.5 + number, 3 * number) for number, name in enumerate(SCANNED)}


@pytest.mark.parametrize(("recipe", "shift"), [("w8 a8:tensor", 128), ("w8 a5:tensor:sym", 0)])
def test_operands_become_bytes_with_their_scales(tmp_path: Path, recipe: str, shift: int) -> None:
    scan, unit, facts = quantized(tmp_path, recipe, SCALES)
    view = scan.opview
    for name, (scale, zero) in SCALES.items():
        assert str(getattr(view, name).type.element_type) == "i8"
        stored = [getattr(view, f"{name}_{part}").owner for part in ("scale", "zero")]
        values = [next(iter(op.attributes["value"])) for op in stored]
        assert values == [scale, zero - shift]
    assert str(view.a.type.element_type) == "f32" and view.softplus.value == 1
    assert len(facts("linalg.generic")) == 4 and not unit.notes
    (about,) = unit.scans
    assert about["operands"].startswith(recipe.split()[1]) and about["states"] == 4


@pytest.mark.parametrize("recipe", ["none", "w8a8", 'w8 a8:tensor\n"the scan" none'])
def test_scans_stay_float(tmp_path: Path, recipe: str) -> None:
    scan, unit, facts = quantized(tmp_path, recipe, SCALES)
    assert scan.opview.x_scale is None and not facts("linalg.generic") and not unit.notes
    assert [about["operands"] for about in unit.scans] == ["f32"]


def test_a_scan_without_scales_is_noted(tmp_path: Path) -> None:
    scan, unit, _ = quantized(tmp_path, "w8 a8:tensor", {})
    assert scan.opview.x_scale is None and [note["node"] for note in unit.notes] == ["the scan"]


def test_formats_without_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no integers"):
        quantized(tmp_path, "w8 a1:tensor:sym", SCALES)
