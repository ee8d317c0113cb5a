from __future__ import annotations

import numpy as np
import pytest
from abqc.compiler.read_recipe import parse_recipe
from abqc.errors import RecipeError
from abqc.passes.infrastructure import Unit
from abqc.passes.quantize_caches import _apart
from abqc.runtime.tensor_spec import TensorSpec
from facts import Facts, after, maker

FLOATS = "tensor<?x2x?x16xf32>"
HALVES = "tensor<?x2x?x16xf16>"


def quantized(
    recipe: str, body: str, *, type_: str = FLOATS, returned: str = "%y", more: str = ""
) -> tuple[Facts, Unit]:
    count = returned.count("%")
    unit = Unit(
        recipe=parse_recipe(recipe),
        inputs=[TensorSpec(name, "float32", ("b", 2, name, 16)) for name in ("past", "new")],
        outputs=[TensorSpec(f"out{i}", "float32", ("b", 2, "t", 16)) for i in range(count)],
    )
    text = f"""#id = affine_map<(a, b, c, d) -> (a, b, c, d)>
    func.func @main(%past: {type_}, %new: {type_}{more}) -> ({", ".join([type_] * count)}) {{
      {body}
      return {returned} : {", ".join([type_] * count)}
    }}"""
    return after(text, "quantize-caches", unit=unit), unit


def concat(type_: str = FLOATS, axis: int = 2) -> str:
    return f"%y = tensor.concat dim({axis}) %past, %new : ({type_}, {type_}) -> {type_}"


def doubled(name: str, of: str, type_: str = FLOATS, op: str = "arith.addf") -> str:
    return f"%{name} = {op} %{of}, %{of} : {type_}"


def test_the_signature_has_bytes() -> None:
    facts, unit = quantized("kv4:plain", concat() + "\n" + doubled("z", "y"), returned="%y, %z")
    past, new = facts.function().regions[0].blocks[0].arguments
    assert str(past.type) == "tensor<?x2x?x12xi8>" and str(new.type) == FLOATS
    grown, z = facts("func.return")[0].operands
    assert maker(grown) == "tensor.concat" and str(grown.type) == "tensor<?x2x?x12xi8>"
    assert [(s.dtype, s.shape[-1]) for s in (*unit.inputs, *unit.outputs)] == [
        ("uint8", 12), ("float32", 16), ("uint8", 12), ("float32", 16),
    ]  # fmt: skip
    assert unit.caches == [
        {"input": "past", "output": "out0", "format": "kv4:plain", "columns": 16, "row_bytes": 12,
         "float": "float32"}
    ]  # fmt: skip
    assert maker(z) == "arith.addf" and maker(z.owner.operands[0]) == "abq.dequantize_cache"


def test_new_rows_are_read_as_they_are_stored() -> None:
    facts, _ = quantized("kv8:plain", concat() + "\n" + doubled("z", "y"), returned="%y, %z")
    (rows,), (values,) = facts("abq.quantize_cache"), facts("abq.dequantize_cache")
    (grown,) = facts("tensor.concat")
    assert list(grown.operands)[1] == rows.results[0] and values.operands[0] == grown.results[0]


def test_rotation_stands_before_and_behind() -> None:
    facts, _ = quantized("kv4", concat() + "\n" + doubled("z", "y"), returned="%y, %z")
    assert [op.attributes["block"].value for op in facts("abq.hadamard")] == [16, 16]
    assert maker(facts("abq.quantize_cache")[0].operands[0]) == "abq.hadamard"
    (addition,) = facts("arith.addf")
    assert maker(addition.operands[0]) == "abq.hadamard"


def test_the_length_of_a_row_is_that_of_its_elements() -> None:
    body = f"""%c3 = arith.constant 3 : index
    %n = tensor.dim %past, %c3 : {FLOATS}
    %e = tensor.empty(%n, %n) : {FLOATS}
    {concat()}"""
    facts, _ = quantized("kv8", body, returned="%y, %e")
    length = facts("tensor.empty")[0].operands[0].owner
    assert length.name == "arith.constant" and length.attributes["value"].value == 16


def test_caches_of_halves_are_read_as_floats() -> None:
    widened = """%e = tensor.empty(%n, %n) : tensor<?x2x?x16xf32>
      %w = linalg.generic {indexing_maps = [#id, #id],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
          ins(%y : tensor<?x2x?x16xf16>) outs(%e : tensor<?x2x?x16xf32>) {
        ^bb0(%a: f16, %b: f32):
          %f = arith.extf %a : f16 to f32
          linalg.yield %f : f32
      } -> tensor<?x2x?x16xf32>
      %s = arith.addf %w, %w : tensor<?x2x?x16xf32>
      %h = arith.truncf %s : tensor<?x2x?x16xf32> to tensor<?x2x?x16xf16>"""
    facts, _ = quantized(
        "kv8:plain", concat(HALVES) + widened, type_=HALVES, returned="%y, %h", more=", %n: index"
    )
    (sum_,) = facts("arith.addf")
    assert maker(sum_.operands[0]) == "abq.dequantize_cache"


def test_halves_that_are_moved_before_they_are_widened_are_moved_as_floats() -> None:
    moved = """
      %c = tensor.collapse_shape %y [[0, 1], [2], [3]]
          : tensor<?x2x?x16xf16> into tensor<?x?x16xf16>
      %e = tensor.empty(%n, %n) : tensor<?x?x16xf32>
      %w = linalg.generic {indexing_maps = [affine_map<(a, b, c) -> (a, b, c)>,
              affine_map<(a, b, c) -> (a, b, c)>],
          iterator_types = ["parallel", "parallel", "parallel"]}
          ins(%c : tensor<?x?x16xf16>) outs(%e : tensor<?x?x16xf32>) {
        ^bb0(%a: f16, %b: f32):
          %f = arith.extf %a : f16 to f32
          linalg.yield %f : f32
      } -> tensor<?x?x16xf32>
      %s = tensor.expand_shape %w [[0, 1], [2], [3]] output_shape [%n, 2, %n, 16]
          : tensor<?x?x16xf32> into tensor<?x2x?x16xf32>
      %h = arith.truncf %s : tensor<?x2x?x16xf32> to tensor<?x2x?x16xf16>"""
    facts, _ = quantized(
        "kv8:plain", concat(HALVES) + moved, type_=HALVES, returned="%y, %h", more=", %n: index"
    )
    (collapse,) = facts("tensor.collapse_shape")
    assert maker(collapse.operands[0]) == "abq.dequantize_cache"


def test_readers_of_halves_get_halves() -> None:
    body = concat(HALVES) + "\n" + doubled("z", "y", HALVES)
    facts, _ = quantized("kv8:plain", body, type_=HALVES, returned="%y, %z")
    (sum_,) = facts("arith.addf")
    assert maker(sum_.operands[0]) == "linalg.generic"


def test_updates_write_bytes() -> None:
    body = f"""%y = "abq.update"(%past, %new, %begins, %n) {{axis = 2 : i64}}
      : ({FLOATS}, {FLOATS}, tensor<?xi64>, index) -> {FLOATS}"""
    facts, _ = quantized("kv8", body, more=", %begins: tensor<?xi64>, %n: index")
    (update,) = facts("abq.update")
    assert str(update.results[0].type) == "tensor<?x2x?x20xi8>"


def test_what_the_recipe_leaves_out_stays() -> None:
    facts, unit = quantized('kv8\n"past" none', concat())
    assert not facts("abq.quantize_cache") and not unit.caches
    assert unit.inputs[0].dtype == "float32"


def test_a_model_without_caches_is_refused() -> None:
    with pytest.raises(RecipeError, match="the model has no cache"):
        quantized("kv8", doubled("y", "new"))


def test_a_cache_that_grows_along_its_rows_is_refused() -> None:
    with pytest.raises(RecipeError, match="'past' cannot be stored in kv8: it grows along"):
        columns = "tensor<?x2x16x?xf32>"
        quantized("kv8", concat(columns, axis=3), type_=columns)


def test_groups_that_do_not_divide_rows_are_refused() -> None:
    type_ = "tensor<?x2x?x40xf32>"
    with pytest.raises(RecipeError, match="groups of 16 do not divide rows of 40"):
        quantized("kv8:g16", concat(type_), type_=type_)


def test_channels_that_no_weights_make_are_not_sorted() -> None:
    with pytest.raises(RecipeError, match="'past' cannot be sorted: no product with constant"):
        quantized("kv8:sort", concat())


def test_pairs_that_are_turned_lie_apart() -> None:
    energies = np.array([3.0, 1.0, 7.0, 3.0, 1.0, 7.0])
    assert list(_apart(energies)) == [2, 0, 1, 5, 3, 4]
