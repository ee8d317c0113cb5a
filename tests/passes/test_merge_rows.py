"""Loops that hand rows to each other become one kernel."""

from __future__ import annotations

import pytest
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline
from facts import Facts

ROWS, ROW = "memref<?x96xf32>", "memref<?xf32>"
MAPS = """#id = affine_map<(i, j) -> (i, j)>
#row = affine_map<(i, j) -> (i)>
#first = affine_map<(i, j) -> (0, j)>
#line = affine_map<(i) -> (i)>
"""


def fill(out: str) -> str:
    return f"""linalg.generic {{indexing_maps = [affine_map<(i) -> ()>, #line],
        iterator_types = ["parallel"]}} ins(%zero : f32) outs(%{out} : {ROW}) {{
      ^bb0(%a: f32, %o: f32):
        linalg.yield %a : f32
      }}
    """


def total(source: str, out: str) -> str:
    return f"""linalg.generic {{indexing_maps = [#id, #row],
        iterator_types = ["parallel", "reduction"]}} ins(%{source} : {ROWS}) outs(%{out} : {ROW}) {{
      ^bb0(%a: f32, %o: f32):
        %r = arith.addf %a, %o : f32
        linalg.yield %r : f32
      }}
    """


def minus(x: str, row: str, out: str, map_: str = "id") -> str:
    return f"""linalg.generic {{indexing_maps = [#{map_}, #row, #id],
        iterator_types = ["parallel", "parallel"]}} ins(%{x}, %{row} : {ROWS}, {ROW})
        outs(%{out} : {ROWS}) {{
      ^bb0(%a: f32, %b: f32, %o: f32):
        %r = arith.subf %a, %b : f32
        linalg.yield %r : f32
      }}
    """


def merged(*body: str) -> tuple[Facts, Facts]:
    """The host and the kernels of a function of %x, and %z of other rows, with buffers %s and %t of
    a number a row, and %c and %y of rows, which is returned."""
    unit = Unit()
    with make_context():
        unit.outlined = ir.Module.parse("module {}")
        text = f"""{MAPS}func.func private @read({ROWS})
    func.func @main(%x: {ROWS}, %z: {ROWS}, %m: index) -> {ROWS} {{
      %c0 = arith.constant 0 : index
      %zero = arith.constant 0.0 : f32
      %n = memref.dim %x, %c0 : {ROWS}
      %s = memref.alloc(%n) : {ROW}
      %t = memref.alloc(%n) : {ROW}
      %c = memref.alloc(%n) : {ROWS}
      %y = memref.alloc(%n) : {ROWS}
      {"".join(body)}
      return %y : {ROWS}
    }}"""
        module = ir.Module.parse(text)
        run_pipeline(module.operation, ["merge-rows", "func.func(canonicalize)"], unit)
        return Facts(module.operation.get_asm()), Facts(unit.outlined_text)


NORM = (fill("t"), fill("s"), total("x", "s"), minus("x", "s", "c"), total("c", "t"))


def test_a_chain_over_rows_is_one_launch() -> None:
    host, kernels = merged(*NORM, minus("c", "t", "y"))
    assert len(host("func.call")) == 1 and not host("linalg.generic")
    assert len(host("memref.alloc")) == 1  # the result
    assert [str(op.results[0].type) for op in kernels("memref.alloca")] == [
        "memref<f32>",
        "memref<96xf32>",
        "memref<f32>",
    ]
    assert len(kernels("scf.for")) == 4


def test_what_others_read_stays_in_memory() -> None:
    call = f"func.call @read(%c) : ({ROWS}) -> ()"
    host, kernels = merged(*NORM, minus("c", "t", "y"), call)
    assert len(host("func.call")) == 2 and len(host("memref.alloc")) == 2
    assert len(kernels("memref.alloca")) == 2


def test_a_launch_between_ends_a_chain() -> None:
    host, _ = merged(*NORM, f"func.call @read(%c) : ({ROWS}) -> ()\n", minus("c", "t", "y"))
    assert len(host("func.call")) == 2 and len(host("linalg.generic")) == 1


@pytest.mark.parametrize("last", [minus("c", "t", "y", "first"), minus("z", "t", "y")])
def test_other_rows_are_left_alone(last: str) -> None:
    """The first row for all; as many rows as another tensor has."""
    host, _ = merged(*NORM, last)
    assert len(host("func.call")) == len(host("linalg.generic")) == 1


def test_what_may_be_the_memory_of_a_loop_is_read_after_it() -> None:
    """The first row of what is x or c for all rows of y."""
    choice = f"""%p = arith.cmpi eq, %m, %c0 : index
      %e = arith.select %p, %c, %x : {ROWS}
    """
    host, _ = merged(*NORM, choice, minus("e", "t", "y", "first"))
    assert len(host("func.call")) == len(host("linalg.generic")) == 1


def test_loops_of_nothing_in_common_are_left_alone() -> None:
    host, _ = merged(minus("x", "s", "c"), minus("x", "t", "y"))
    assert not host("func.call") and len(host("linalg.generic")) == 2


def test_sizes_may_be_computed() -> None:
    count = f"""%k = arith.addi %m, %n : index
      %d = memref.alloc(%k) : {ROWS}
      %e = memref.alloc(%k) : {ROW}
    """
    host, _ = merged(count, total("d", "e"), minus("d", "e", "d"), minus("x", "s", "y"))
    assert len(host("func.call")) == len(host("linalg.generic")) == 1
