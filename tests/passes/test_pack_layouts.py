from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.weight_store import WeightStore
from abqc.errors import ModelError
from abqc.passes.infrastructure import Unit
from facts import Facts, after

SEGMENTS = "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>"
TWO_MATMULS = f"""func.func @main(%x: tensor<?x256xf32>) -> (tensor<?x5xf32>, tensor<?x5xf32>) {{
  %w = "abq.weight"() {{sym = "w"}} : () -> tensor<5x256xf32>
  %y = "abq.matmul"(%x, %w) {{node = "first", {SEGMENTS}}}
      : (tensor<?x256xf32>, tensor<5x256xf32>) -> tensor<?x5xf32>
  %z = "abq.matmul"(%x, %w) {{node = "other", {SEGMENTS}}}
      : (tensor<?x256xf32>, tensor<5x256xf32>) -> tensor<?x5xf32>
  return %y, %z : tensor<?x5xf32>, tensor<?x5xf32>
}}"""


def packed(folder: Path, recipe: str, weight: np.ndarray | None = None) -> tuple[Facts, Unit]:
    store = WeightStore(folder)
    random = np.random.default_rng(0).standard_normal((5, 256), np.float32)
    store.add("w", random if weight is None else weight)
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
    passes = ("quantize", "canonicalize", "pack-layouts", "canonicalize", "cse")
    return after(TWO_MATMULS, *passes, unit=unit), unit


def test_layouts_are_in_the_types(tmp_path: Path) -> None:
    facts, unit = packed(tmp_path, "w8a8")
    (pack,) = facts("abq.pack")  # one for both matmuls
    assert "abq.packed" in str(pack.results[0].type)
    matmul = facts("abq.matmul")[0]
    assert "abq.packed" in str(matmul.operands[1].type)
    assert {kernel.value for kernel in matmul.attributes["kernels"]} <= set(unit.kernels)


def test_one_weight_is_packed_once(tmp_path: Path) -> None:
    facts, unit = packed(tmp_path, "w8a8")
    assert len(facts("abq.weight")) == 1
    assert len({entry["symbol"] for entry in unit.operations}) == 1


def test_operations_are_listed_with_their_bits(tmp_path: Path) -> None:
    _, unit = packed(tmp_path, "w4a8")
    assert [entry["node"] for entry in unit.operations] == ["first", "other"]
    for entry in unit.operations:
        assert (entry["n"], entry["k"], entry["weight"]) == (5, 256, "w4:g128:sym")
        assert entry["bpw"] == pytest.approx(entry["bytes"] * 8 / (5 * 256), abs=1e-3)
        assert entry["strategy"] in entry["why"]


def test_weights_that_have_no_codes_name_their_node(tmp_path: Path) -> None:
    weight = np.ones((5, 256), np.float32)
    weight[2, 3] = np.nan
    with pytest.raises(ModelError, match="'first'"):
        packed(tmp_path, "w8a8", weight)
