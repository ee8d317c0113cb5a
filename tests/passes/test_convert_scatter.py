from __future__ import annotations

import pytest
from abqc.codegen.gpu import scatter as kernels
from abqc.codegen.gpu.scatter import ScatterKernels, scatter_kernels
from abqc.passes import convert_scatter
from abqc.passes.infrastructure import Unit
from facts import after


def scatter(body: str = "", axes: str = "0, 1", element: str = "f32", updates: str = "?") -> str:
    x, u, i = f"tensor<?x?x{element}>", f"tensor<{updates}x{element}>", "tensor<?x2xi64>"
    if axes.count(",") == 0:
        i = "tensor<?x1xi64>"
    result = "%r" if body else "%a"
    return f"""
func.func @main(%x: {x}, %i: {i}, %u: {u}) -> {x} {{
  %y = tm_tensor.scatter {{dimension_map = array<i64: {axes}>}} unique_indices(false)
    ins(%u, %i : {u}, {i}) outs(%x : {x}) {{
  ^bb0(%a: {element}, %b: {element}):
    {body}
    tm_tensor.yield {result} : {element}
  }} -> {x}
  return %y : {x}
}}"""


class _Target:
    def scatter(self, rank: int, index: str, element: str, combine: str) -> ScatterKernels:
        return scatter_kernels(rank, index, element, combine)


@pytest.mark.parametrize(
    ("text", "combine"),
    [
        (scatter(), "replace"),
        (scatter(element="i1"), "replace"),
        (scatter("%r = arith.addf %a, %b : f32"), "addf"),
        (scatter("%r = arith.maxsi %b, %a : i64", element="i64"), "maxsi"),
    ],
)
def test_scatters_of_elements_become_one_operation(text: str, combine: str) -> None:
    facts = after(text, "convert-scatter")
    (op,) = facts("abq.scatter")
    assert op.attributes["combine"].value == combine
    assert [operand.arg_number for operand in op.operands] == [0, 1, 2]
    assert not facts("tm_tensor.scatter")


@pytest.mark.parametrize(
    "text",
    [
        scatter(axes="1, 0"),
        scatter(axes="0", updates="?x?"),
        scatter("%r = arith.subf %a, %b : f32"),
        scatter("%r = arith.addf %a, %a : f32"),
        scatter("%r = arith.ori %a, %b : i1", element="i1"),
    ],
)
def test_other_scatters_stay(text: str) -> None:
    assert after(text, "convert-scatter")("tm_tensor.scatter")


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ("", ["scatter_places_2_i64_claims", "scatter_claim", "scatter_replace_4"]),
        ("%r = arith.addf %a, %b : f32", ["scatter_places_2_i64", "scatter_addf_f32"]),
    ],
)
def test_lowering_copies_and_launches(body: str, calls: list[str]) -> None:
    passes = ("convert-scatter", "resolve-dims", "lower-abq")
    facts = after(scatter(body), *passes, unit=Unit(target=_Target()))
    assert len(facts("memref.copy")) == 1 and facts.calls() == calls


def test_what_is_converted_has_kernels() -> None:
    assert convert_scatter.COMBINERS == kernels.COMBINERS
    assert convert_scatter.ELEMENTS == kernels.ELEMENTS
