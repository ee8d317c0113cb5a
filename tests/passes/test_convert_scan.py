from __future__ import annotations

import pytest
from abqc.codegen.gpu.scan import ELEMENTS, scan_kernels
from abqc.codegen.strategy import Variant
from abqc.passes import convert_scan
from abqc.passes.infrastructure import Unit
from facts import Facts, after


def scan(
    x: str = "tensor<?x?xf32>", body: str = "arith.addf", *, inclusive: bool = True, axis: int = 1
) -> str:
    element = x.rsplit("x", 1)[1].rstrip(">")
    totals = f"tensor<?x{element}>"
    return f"""
func.func @main(%x: {x}, %y: {x}, %t: {totals}) -> {x} {{
  %r:2 = tm_tensor.scan dimension({axis}) inclusive({str(inclusive).lower()})
    ins(%x : {x}) outs(%y, %t : {x}, {totals}) {{
  ^bb0(%a: {element}, %b: {element}):
    %c = {body} %a, %b : {element}
    tm_tensor.yield %c : {element}
  }} -> {x}, {totals}
  return %r#0 : {x}
}}"""


class _Target:
    def scan(self, element: str) -> tuple[Variant, ...]:
        return scan_kernels(element)


def test_running_sums_become_one_operation() -> None:
    facts = after(scan(axis=0), "convert-scan")
    (op,) = facts("abq.scan")
    assert op.operands[0].arg_number == 0 and op.attributes["axis"].value == 0
    assert not facts("tm_tensor.scan")


@pytest.mark.parametrize(
    "text",
    [
        scan(body="arith.mulf"),
        scan(inclusive=False),
        scan("tensor<?x?xi8>", "arith.addi"),
    ],
)
def test_other_scans_stay(text: str) -> None:
    assert after(text, "convert-scan")("tm_tensor.scan")


def test_totals_that_are_read_are_none_of_ours() -> None:
    text = scan().replace("-> tensor<?x?xf32> {", "-> tensor<?xf32> {", 1)
    text = text.replace("return %r#0 : tensor<?x?xf32>", "return %r#1 : tensor<?xf32>")
    assert after(text, "convert-scan")("tm_tensor.scan")


def lowered(x: str, axis: int) -> Facts:
    passes = ("convert-scan", "resolve-dims", "lower-abq", "func.func(canonicalize)")
    return after(scan(x, axis=axis), *passes, unit=Unit(target=_Target()))


@pytest.mark.parametrize(
    ("x", "axis", "calls"),
    [
        ("tensor<?x?xf32>", 1, ["scan_rows_f32"]),
        ("tensor<?x40xf32>", 0, ["scan_columns_f32"]),
        ("tensor<?x?xf32>", 0, ["scan_rows_f32", "scan_columns_f32"]),
    ],
)
def test_neighbouring_lines_choose_the_kernel(x: str, axis: int, calls: list[str]) -> None:
    assert lowered(x, axis).calls() == calls


def test_elements_are_those_of_the_kernels() -> None:
    assert convert_scan.ELEMENTS == ELEMENTS
