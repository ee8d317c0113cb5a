from __future__ import annotations

import pytest
from abqc.codegen.gpu.lines.scan import ELEMENTS
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes import convert_scan
from abqc.passes.infrastructure import Unit
from facts import Facts, after


def scan(
    x: str = "tensor<?x?xf32>", body: str = "arith.addf", *, inclusive: bool = True, axis: int = 1,
    begin: str | None = None, returned: int = 0,
) -> str:  # fmt: skip
    """The loop that the front end makes of CumSum; `begin` is the number that it starts from."""
    element = x.rsplit("x", 1)[1].rstrip(">")
    size = x.removeprefix("tensor<").split("x")[1 - axis]
    totals = f"tensor<{size}x{element}>"
    zero = begin or ("0.0" if element.startswith("f") else "0")
    kinds = ["parallel", "parallel"]
    kinds[axis] = "reduction"
    result = [x, totals][returned]
    return f"""
func.func @main(%x: {x}, %y: {x}, %empty: {totals}) -> {result} {{
  %zero = arith.constant {zero} : {element}
  %t = linalg.fill ins(%zero : {element}) outs(%empty : {totals}) -> {totals}
  %r:2 = linalg.generic {{indexing_maps = [affine_map<(d0, d1) -> (d0, d1)>,
      affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d{1 - axis})>],
      iterator_types = ["{kinds[0]}", "{kinds[1]}"]}}
      ins(%x : {x}) outs(%y, %t : {x}, {totals}) {{
  ^bb0(%a: {element}, %o: {element}, %b: {element}):
    %c = {body} %b, %a : {element}
    linalg.yield {"%c" if inclusive else "%b"}, %c : {element}, {element}
  }} -> ({x}, {totals})
  return %r#{returned} : {result}
}}"""


def test_running_sums_become_one_operation() -> None:
    facts = after(scan(axis=0), "convert-scan")
    (op,) = facts("abq.scan")
    assert op.operands[0].arg_number == 0 and op.attributes["axis"].value == 0
    assert not facts("linalg.generic")


@pytest.mark.parametrize(
    "text",
    [
        scan(body="arith.mulf"),
        scan(inclusive=False),
        scan("tensor<?x?xi8>", "arith.addi"),
        scan(begin="1.0"),
        scan(returned=1),
    ],
)
def test_other_scans_stay(text: str) -> None:
    assert after(text, "convert-scan")("linalg.generic")


def lowered(x: str, axis: int) -> Facts:
    passes = ("convert-scan", "resolve-dims", "lower-abq", "func.func(canonicalize)")
    return after(scan(x, axis=axis), *passes, unit=Unit(target=CudaTarget.named("sm_80")))


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
