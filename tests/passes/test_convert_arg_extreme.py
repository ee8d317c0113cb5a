from __future__ import annotations

import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import after

MAX = "%e = arith.maximumf %a, %b : f32\n %c = arith.cmpf ogt, %a, %b : f32"
MIN = "%e = arith.minsi %b, %a : i64\n %c = arith.cmpi slt, %a, %b : i64"
GPU = Unit(target=CudaTarget.named("sm_80"))
LOWEST, HIGHEST = "0xFF800000 : f32", "9223372036854775807 : i64"


def arg(
    body: str = MAX,
    start: str = LOWEST,
    n: str = "?",
    kinds: str = '"parallel", "reduction"',
    read: str = "(d0)",
    result: str = "%r#1 : tensor<?xi64>",
) -> str:
    element = start.split()[-1]
    x, best = f"tensor<?x{n}x{element}>", f"tensor<?x{element}>"
    axis = 1 if kinds.endswith('reduction"') else 0
    return f"""
#id = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> {read}>
func.func @main(%x: {x}, %m: {best}, %p: tensor<?xi64>) -> {result.split(" : ")[1]} {{
  %start = arith.constant {start}
  %zero = arith.constant 0 : i64
  %low = linalg.fill ins(%start : {element}) outs(%m : {best}) -> {best}
  %none = linalg.fill ins(%zero : i64) outs(%p : tensor<?xi64>) -> tensor<?xi64>
  %r:2 = linalg.generic {{indexing_maps = [#id, #row, #row], iterator_types = [{kinds}]}}
    ins(%x : {x}) outs(%low, %none : {best}, tensor<?xi64>) {{
  ^bb0(%a: {element}, %b: {element}, %q: i64):
    %i = linalg.index {axis} : index
    %j = arith.index_cast %i : index to i64
    {body}
    %s = arith.select %c, %j, %q : i64
    linalg.yield %e, %s : {element}, i64
  }} -> ({best}, tensor<?xi64>)
  return {result}
}}"""


@pytest.mark.parametrize(("text", "largest"), [(arg(), 1), (arg(MIN, HIGHEST), 0)])
def test_reductions_become_one_operation(text: str, largest: int) -> None:
    facts = after(text, "convert-arg-extreme", unit=GPU)
    (op,) = facts("abq.arg_extreme")
    assert (op.operands[0].arg_number, op.attributes["largest"].value) == (0, largest)
    assert not facts("linalg.generic")


VECTOR = f"""
#id = affine_map<(d0) -> (d0)>
#none = affine_map<(d0) -> ()>
func.func @main(%x: tensor<7xf32>, %m: tensor<f32>, %p: tensor<i64>) -> tensor<i64> {{
  %start = arith.constant {LOWEST}
  %low = linalg.fill ins(%start : f32) outs(%m : tensor<f32>) -> tensor<f32>
  %r:2 = linalg.generic {{indexing_maps = [#id, #none, #none], iterator_types = ["reduction"]}}
    ins(%x : tensor<7xf32>) outs(%low, %p : tensor<f32>, tensor<i64>) {{
  ^bb0(%a: f32, %b: f32, %q: i64):
    %i = linalg.index 0 : index
    %j = arith.index_cast %i : index to i64
    {MAX}
    %s = arith.select %c, %j, %q : i64
    linalg.yield %e, %s : f32, i64
  }} -> (tensor<f32>, tensor<i64>)
  return %r#1 : tensor<i64>
}}"""


def test_a_vector_is_one_row() -> None:
    facts = after(VECTOR, "convert-arg-extreme", unit=GPU)
    (op,) = facts("abq.arg_extreme")
    assert [list(v.type.shape) for v in (op.operands[0], op.results[0])] == [[1, 7], [1]]


@pytest.mark.parametrize(
    "text",
    [
        arg(start="0.0 : f32"),
        arg(MAX.replace("ogt", "oge")),
        arg(MAX.replace("ogt", "olt")),
        arg(MAX.replace("ogt, %a, %b", "ogt, %b, %a")),
        arg(MIN.replace("slt", "ult"), HIGHEST),
        arg(kinds='"reduction", "parallel"', read="(d1)"),
        arg(result="%r#0 : tensor<?xf32>"),
    ],
)
def test_other_reductions_stay(text: str) -> None:
    assert after(text, "convert-arg-extreme", unit=GPU)("linalg.generic")


def test_what_a_target_has_no_kernel_for_stays() -> None:
    unit = Unit(target=CpuTarget())
    assert after(arg(MIN, HIGHEST), "convert-arg-extreme", unit=unit)("linalg.generic")
    passes = ("convert-arg-extreme", "resolve-dims", "lower-abq")
    assert after(arg(), *passes, unit=unit).calls() == ["arg_max"]


@pytest.mark.parametrize(
    ("n", "calls"),
    [
        ("50257", ["argmax_f32_block"]),
        ("10", ["argmax_f32_warp"]),
        ("?", ["argmax_f32_warp", "argmax_f32_block"]),
    ],
)
def test_the_length_of_a_row_chooses_the_kernel(n: str, calls: list[str]) -> None:
    passes = ("convert-arg-extreme", "resolve-dims", "lower-abq")
    assert after(arg(n=n), *passes, unit=GPU).calls() == calls
