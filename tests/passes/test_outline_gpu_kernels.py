from __future__ import annotations

import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline
from facts import Facts
from test_outline_kernels import MAPS, fill, reduction

ARGUMENTS = "%x: memref<?x?xf32>, %y: memref<?xf32>, %z: memref<?xf32>"
COLUMNS = """  linalg.generic {
      indexing_maps = [affine_map<(i, j) -> (j, i)>, #row],
      iterator_types = ["parallel", "reduction"]}
      ins(%x : memref<?x?xf32>) outs(%y : memref<?xf32>) {
  ^bb0(%in: f32, %acc: f32):
    %s = arith.addf %acc, %in : f32
    linalg.yield %s : f32
  }
"""
# Not a plain reduction: what is accumulated is used twice.
SQUARES = reduction().replace("arith.addf %acc, %in", "arith.mulf %acc, %acc")


def outlined(body: str) -> tuple[Facts, str, str]:
    """The host, the kernels and their PTX."""
    unit = Unit()
    with make_context(), ir.Location.unknown():
        unit.outlined = ir.Module.parse("module {}")
        text = f"""{MAPS}
func.func @main({ARGUMENTS}) {{
  %zero = arith.constant 0.0 : f32
{body}
  return
}}"""
        module = ir.Module.parse(text)
        run_pipeline(module.operation, ["outline-gpu-kernels"], unit)
        kernels = unit.outlined_text
        ptx = compile_ptx(ir.Module.parse(kernels), SM_80).text
        return Facts(module.operation.get_asm()), kernels, ptx


def test_kernels_say_how_many_threads_they_want() -> None:
    host, kernels, ptx = outlined(fill("%y") + fill("%z"))
    assert len(host("func.call")) == 2
    assert kernels.count("abq.threads = 256") == 1
    assert ".reqntid 256" in ptx


def test_a_reduction_along_a_row_is_shared_by_a_warp() -> None:
    host, _, ptx = outlined(fill() + reduction())
    assert len(host("func.call")) == 1  # the fill is taken over
    assert ptx.count("shfl.sync.bfly") == 5


@pytest.mark.parametrize("body", [COLUMNS, SQUARES], ids=["columns", "not plain"])
def test_other_reductions_are_done_by_a_thread(body: str) -> None:
    assert "shfl" not in outlined(fill() + body)[2]


@pytest.mark.parametrize("op", ["addf", "mulf", "maximumf", "minimumf", "maxnumf", "minnumf"])
def test_reductions_that_warps_do(op: str) -> None:
    assert "shfl.sync.bfly" in outlined(fill() + reduction(op=op))[2]
