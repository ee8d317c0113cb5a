from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.compiler.read_recipe import parse_recipe
from abqc.dialects.weight_store import WeightStore
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit
from facts import Facts, after

TWO_MATMULS = """func.func @main(%x: tensor<?x256xf32>) -> (tensor<?x5xf32>, tensor<?x5xf32>) {
  %w = "abq.weight"() {sym = "w"} : () -> tensor<5x256xf32>
  %y = "abq.matmul"(%x, %w) {node = "first", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}
      : (tensor<?x256xf32>, tensor<5x256xf32>) -> tensor<?x5xf32>
  %z = "abq.matmul"(%x, %w) {node = "other", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}
      : (tensor<?x256xf32>, tensor<5x256xf32>) -> tensor<?x5xf32>
  return %y, %z : tensor<?x5xf32>, tensor<?x5xf32>
}"""


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    store = WeightStore(tmp_path)
    store.add("w", np.random.default_rng(0).standard_normal((5, 256), np.float32))
    return store


def quantized(store: WeightStore, recipe: str, *passes: str) -> tuple[Facts, Unit]:
    unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
    return after(TWO_MATMULS, "quantize", *passes, unit=unit), unit


def code(op: object, operand: int) -> str:
    return str(op.operands[operand].type.element_type)  # type: ignore[attr-defined]


def test_formats_are_in_the_types(store: WeightStore) -> None:
    facts, unit = quantized(store, "w4a8")
    matmul = facts("abq.matmul")[0]
    assert "a8:token:asym" in code(matmul, 0)
    assert "w4:g128:sym" in code(matmul, 1)
    scale = matmul.opview.w_scale
    assert list(scale.type.shape) == [5, 2]  # rows x groups
    assert matmul.opview.w_zero is None and matmul.opview.x_zero is not None
    assert [encoding.source for encoding in unit.encodings.values()] == ["w"]


def test_equal_quantizations_become_one(store: WeightStore) -> None:
    facts, _ = quantized(store, "w4a8", "canonicalize", "cse")
    assert len(facts("abq.quantize")) == 1
    assert len(facts("abq.matmul")) == 2  # of two nodes


def test_float_activations_that_are_rounded_to_bf16_say_so(store: WeightStore) -> None:
    facts, _ = quantized(store, '"*" w4a16\n"first" w4a16:bf16', "canonicalize", "cse")
    first, other = facts("abq.matmul")
    assert first.attributes["half"].value == "bf16" and "half" not in other.attributes
    facts, _ = quantized(store, '"*" none\n"first" none:bf16')
    assert [m.attributes["half"].value for m in facts("abq.matmul") if "half" in m.attributes] == [
        "bf16"
    ]


def test_none_changes_nothing(store: WeightStore) -> None:
    facts, unit = quantized(store, "none")
    assert not facts("abq.quantize") and not unit.encodings


def test_rotation_comes_before_the_codes(store: WeightStore) -> None:
    facts, unit = quantized(store, "w4a4 rotate")
    (rotation, _), (quantize, _) = facts("abq.hadamard"), facts("abq.quantize")
    assert quantize.operands[0] == rotation.results[0]
    assert rotation.attributes["block"].value == 256
    (encoding,) = unit.encodings.values()
    rotated = encoding.encode(store)
    assert rotated.codes.shape == (5, 256)


def test_a_rule_for_a_head_whose_table_decides_is_told(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.add("w", np.ones((64, 256), np.float32))
    text = """func.func @main(%i: tensor<?xi64>, %x: tensor<?x256xf32>)
        -> (tensor<?x256xf32>, tensor<?x64xf32>) {
      %w = "abq.weight"() {sym = "w"} : () -> tensor<64x256xf32>
      %e = "abq.gather"(%w, %i) {node = "lookup", operandSegmentSizes = array<i32: 1, 1, 0, 0>}
          : (tensor<64x256xf32>, tensor<?xi64>) -> tensor<?x256xf32>
      %y = "abq.matmul"(%x, %w) {
          node = "head", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>
      } : (tensor<?x256xf32>, tensor<64x256xf32>) -> tensor<?x64xf32>
      return %e, %y : tensor<?x256xf32>, tensor<?x64xf32>
    }"""
    rule = 'w8a8\n"head" w4a8'
    for recipe, told in ((rule, 1), (rule + " embed=w4", 1), ("w4a8", 0), ('"head" w8a8', 0)):
        unit = Unit(store=store, recipe=parse_recipe(recipe), target=CpuTarget())
        after(text, "quantize", unit=unit)
        notes = [(n["node"], n["note"]) for n in unit.notes]
        assert len(notes) == told, recipe
        assert all(n == "head" and "w8:channel:sym, the format" in note for n, note in notes)
    unit = Unit(store=store, recipe=parse_recipe(rule), target=CpuTarget(), strict=True)
    with pytest.raises(RecipeError, match=r"not in w4:g128:sym as rule .*\(line 2\)"):
        after(text, "quantize", unit=unit)


def test_rows_whose_length_only_a_run_knows_are_rotated(store: WeightStore) -> None:
    """A model may check what its weights have, as a Reshape to a length out of a Concat does."""
    text = TWO_MATMULS.replace("tensor<?x256xf32>", "tensor<?x?xf32>")
    unit = Unit(store=store, recipe=parse_recipe("w4a8 rotate"), target=CpuTarget())
    facts = after(text, "quantize", unit=unit)
    assert [list(op.results[0].type.shape)[1] for op in facts("abq.hadamard")] == [256, 256]


def test_activations_that_stay_float_are_rotated_in_short_blocks(store: WeightStore) -> None:
    facts, unit = quantized(store, "w4a16 rotate")
    (rotation, _) = facts("abq.hadamard")
    assert rotation.attributes["block"].value == 128 and not facts("abq.quantize")
    assert {use.owner.name for use in rotation.results[0].uses} == {"abq.matmul"}
    (encoding,) = unit.encodings.values()
    assert encoding.hadamard_block == 128


TABLE = """func.func @main(%i: tensor<?xi64>) -> tensor<?x64xf32> {
  %w = "abq.weight"() {sym = "w"} : () -> tensor<512x64xf32>
  %y = "abq.gather"(%w, %i) {node = "lookup", operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (tensor<512x64xf32>, tensor<?xi64>) -> tensor<?x64xf32>
  return %y : tensor<?x64xf32>
}"""


def test_tables_are_no_trellis_codes(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.add("w", np.ones((512, 64), np.float32))
    unit = Unit(store=store, recipe=parse_recipe("w2v a8 embed=w2v"), target=CpuTarget())
    with pytest.raises(RecipeError, match=r"no single row can be read.*embed=w8") as error:
        after(TABLE, "quantize", unit=unit)
    assert error.value.node == "lookup"
