from __future__ import annotations

import pytest
from abqc.codegen.gpu.top_k import top_k_kernels
from abqc.codegen.strategy import Variant
from abqc.passes.infrastructure import Unit
from facts import after, maker

TIDY = "func.func(canonicalize,cse)"


def top_k(
    compare: str = "arith.cmpf oge, %a, %b : f32",
    place: str = "linalg.index 1",
    sliced: str = "[0, 0] [%n, %k] [1, 1]",
    places_sliced: str = "[0, 0] [%n, %k] [1, 1]",
    element: str = "f32",
) -> str:
    x = f"tensor<?x?x{element}>"
    return f"""
#id = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: {x}, %k: index, %l: index) -> ({x}, tensor<?x?xi64>) {{
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %n = tensor.dim %x, %zero : {x}
  %m = tensor.dim %x, %one : {x}
  %e = tensor.empty(%n, %m) : tensor<?x?xi64>
  %i = linalg.generic {{indexing_maps = [#id], iterator_types = ["parallel", "parallel"]}}
    outs(%e : tensor<?x?xi64>) {{
  ^bb0(%o: i64):
    %p = {place} : index
    %q = arith.index_cast %p : index to i64
    linalg.yield %q : i64
  }} -> tensor<?x?xi64>
  %s:2 = tm_tensor.sort dimension(1) outs(%x, %i : {x}, tensor<?x?xi64>) {{
  ^bb0(%a: {element}, %b: {element}, %c: i64, %d: i64):
    %keep = {compare}
    tm_tensor.yield %keep : i1
  }} -> {x}, tensor<?x?xi64>
  %v = tensor.extract_slice %s#0{sliced} : {x} to {x}
  %w = tensor.extract_slice %s#1{places_sliced} : tensor<?x?xi64> to tensor<?x?xi64>
  return %v, %w : {x}, tensor<?x?xi64>
}}"""


@pytest.mark.parametrize(
    ("compare", "element", "largest"),
    [
        ("arith.cmpf oge, %a, %b : f32", "f32", 1),
        ("arith.cmpf ole, %a, %b : f16", "f16", 0),
        ("arith.cmpi sge, %a, %b : i64", "i64", 1),
    ],
)
@pytest.mark.parametrize("before", [(), ("keep-nans",)], ids=["", "keep-nans"])
def test_slices_of_sorted_lines_become_one_operation(
    before: tuple[str, ...], compare: str, element: str, largest: int
) -> None:
    facts = after(top_k(compare, element=element), *before, "convert-top-k", TIDY)
    (op,) = facts("abq.top_k")
    assert [operand.arg_number for operand in op.operands] == [0, 1]
    assert (op.attributes["axis"].value, op.attributes["largest"].value) == (1, largest)
    (ret,) = facts("func.return")
    assert {maker(value) for value in ret.operands} == {"abq.top_k"}
    assert not facts("tm_tensor.sort") and not facts("tensor.extract_slice")


@pytest.mark.parametrize(
    "change",
    [
        {"compare": "arith.cmpf oge, %b, %a : f32"},
        {"compare": "arith.cmpf une, %a, %b : f32"},
        {"compare": "arith.cmpi uge, %a, %b : i32", "element": "i32"},
        {"compare": "arith.cmpi sge, %c, %d : i64"},
        {"place": "linalg.index 0"},
    ],
)
def test_other_sorts_stay(change: dict[str, str]) -> None:
    assert after(top_k(**change), "convert-top-k")("tm_tensor.sort")


@pytest.mark.parametrize(
    "slices",
    [
        {"sliced": "[0, 0] [%n, %l] [1, 1]"},
        {"sliced": "[0, 1] [%n, %k] [1, 1]"},
        {"places_sliced": "[0, 0] [%n, %k] [1, 2]"},
    ],
)
def test_other_slices_are_of_whole_lines(slices: dict[str, str]) -> None:
    facts = after(top_k(**slices), "convert-top-k")
    (op,) = facts("abq.top_k")
    assert maker(op.operands[1]) == "tensor.dim"
    assert len(facts("tensor.extract_slice")) == 2


def test_a_part_of_the_lines_stays_a_slice() -> None:
    facts = after(top_k(sliced="[1, 0] [%l, %k] [1, 1]"), "convert-top-k")
    (op,) = facts("abq.top_k")
    assert op.operands[1].arg_number == 1
    assert [part.operands[0].owner.name for part in facts("tensor.extract_slice")] == ["abq.top_k"]


class _Target:
    def top_k(self, element: str, *, largest: bool) -> tuple[Variant, ...]:
        return top_k_kernels(element, largest=largest)


def test_lowering_chooses_by_the_length() -> None:
    passes = ("convert-top-k", "resolve-dims", "lower-abq")
    facts = after(top_k(), *passes, unit=Unit(target=_Target()))
    assert facts.calls() == ["top_k_f32_largest_256", "top_k_f32_largest_1024"]
