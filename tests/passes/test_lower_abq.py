from pathlib import Path
from typing import Any

import numpy as np
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cuda import CudaTarget
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit
from facts import Facts, after

MATMUL = """func.func @main(%x: tensor<?x256xf32>) -> tensor<?x5xf32> {
  %w = "abq.weight"() {sym = "w"} : () -> tensor<5x256xf32>
  %y = "abq.matmul"(%x, %w) {node = "mm", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}
      : (tensor<?x256xf32>, tensor<5x256xf32>) -> tensor<?x5xf32>
  return %y : tensor<?x5xf32>
}"""
APPEND = """func.func @main(%x: tensor<1x2x?x4xf32>) {
  %y = "abq.append"(%x) {input = 0 : i64, output = 3 : i64, axis = 2 : i64,
      operandSegmentSizes = array<i32: 1, 0, 0>}
      : (tensor<1x2x?x4xf32>) -> tensor<1x2x?x4xf32>
  return
}"""


def lowered(
    text: str, folder: Path, recipe: str = "w8a8", target: Any = None, n: int = 5
) -> tuple[Facts, Unit]:
    store = WeightStore(folder)
    store.add("w", np.random.default_rng(0).standard_normal((n, 256), np.float32))
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=target or CpuTarget())
    passes = ("quantize", "canonicalize", "pack-layouts", "canonicalize", "lower-abq")
    return after(text, *passes, unit=unit), unit


def test_a_matmul_packs_and_then_picks_a_kernel_by_rows(tmp_path: Path) -> None:
    facts, unit = lowered(MATMUL, tmp_path)
    pack, *matmuls = facts.calls()
    assert set(facts.calls()) <= set(unit.kernels)
    assert len(matmuls) == len(facts("scf.if")) + 1
    (weight,) = facts("memref.get_global")[:1]
    assert weight.attributes["name"].value in unit.weights
    assert not [name for name in facts.names() if name.startswith("abq.")]
    for declaration in facts("func.func"):
        if declaration.attributes["sym_name"].value in (pack, *matmuls):
            assert "abq.kernel" in declaration.attributes


def test_without_a_bias_zeros_are_added(tmp_path: Path) -> None:
    _, unit = lowered(MATMUL, tmp_path)
    assert "abqc.zeros.5" in unit.weights.values()
    np.testing.assert_array_equal(unit.store.get("abqc.zeros.5"), np.zeros(5, np.float32))


def test_grids_of_blocks_that_stay_are_bounded(tmp_path: Path) -> None:
    text = MATMUL.replace("5x256", "4096x256").replace("?x5x", "?x4096x")
    facts, unit = lowered(text, tmp_path, "w8a8", CudaTarget.named("sm_90a"), 4096)
    bounds = {kernel.most_blocks for kernel in unit.kernels.values()}
    assert bounds == {0, 132}
    bounded = [name for name in facts.calls() if unit.kernels[name].most_blocks]
    assert len(facts("arith.minui")) == len(bounded)


def test_an_append_is_a_call_by_numbers(tmp_path: Path) -> None:
    facts, _ = lowered(APPEND, tmp_path)
    (call,) = facts("func.call")
    assert call.attributes["callee"].value == "abqc_append.f32.4"
    numbers = [value.owner.attributes["value"].value for value in list(call.operands)[:3]]
    assert numbers == [0, 3, 2]
