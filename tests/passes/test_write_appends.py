"""Appended rows are written to the cache by loops."""

from __future__ import annotations

import pytest
from facts import Facts, after

APPEND = '"abqc_append.f32.4"'
ANY = "memref<?x?x?x?xf32, strided<[?, ?, ?, ?]>>"
GROWN = "memref<?x?x?x?xf32, strided<[?, ?, ?, 1]>>"
ROWS, BLOCKS = "memref<?x2x?x8xf32>", "memref<?x2x?x2x4xf32>"
ID5 = "affine_map<(a, b, c, d, e) -> (a, b, c, d, e)>"
FIVE = ", ".join(['"parallel"'] * 5)
COLLAPSE = f"%rows = memref.collapse_shape %made [[0], [1], [2], [3, 4]] : {BLOCKS} into {ROWS}"


def written(*, before: str = "", use: str = "", init: str = "%in") -> Facts:
    """Rows that a loop makes of %x are appended to input 0; `before` stands ahead of that, `use`
    behind."""
    return after(
        f"""func.func private @{APPEND}(i32, i32, i32, {ANY}) -> {GROWN}
    func.func private @other({BLOCKS}) attributes {{abq.kernel}}
    func.func @main(%b: index, %s: index, %x: {BLOCKS}) {{
      %i0 = arith.constant 0 : i32
      %i2 = arith.constant 2 : i32
      %made = memref.alloc(%b, %s) : {BLOCKS}
      linalg.generic {{indexing_maps = [{ID5}, {ID5}], iterator_types = [{FIVE}]}}
        ins(%x : {BLOCKS}) outs(%made : {BLOCKS}) {{
      ^bb0(%in: f32, %out: f32):
        %n = arith.negf {init} : f32
        linalg.yield %n : f32
      }}
      {before}
      {COLLAPSE}
      %any = memref.cast %rows : {ROWS} to {ANY}
      %grown = func.call @{APPEND}(%i0, %i0, %i2, %any) : (i32, i32, i32, {ANY}) -> {GROWN}
      {use}
      return
    }}""",
        "write-appends",
    )


def loops(facts: Facts) -> list[str]:
    """What each loop writes: who has made that."""
    return [op.operands[len(op.operands) - 1].owner.name for op in facts("linalg.generic")]


def test_a_loop_writes_into_the_cache() -> None:
    facts = written()
    assert facts.calls() == ["abqc_append.grow.f32.4"]
    assert loops(facts) == ["memref.expand_shape"]
    names = facts.names()
    assert names.index("func.call") < names.index("linalg.generic")
    (place,) = facts("memref.subview")
    assert list(place.attributes["static_sizes"])[1::2] == [2, 8]
    (call,) = facts("func.call")
    assert len(call.operands) == 3 + 4  # numbers and the sizes of the rows


@pytest.mark.parametrize(
    "broken",
    [
        {"use": f"func.call @other(%made) : ({BLOCKS}) -> ()"},
        {"before": f"func.call @other(%made) : ({BLOCKS}) -> ()"},
        {"before": f"func.call @other(%x) : ({BLOCKS}) -> ()"},
        {"init": "%out"},
    ],
    ids=["read again", "read before", "its input may be written", "reads what was there"],
)
def test_rows_that_must_be_made_apart_are_copied(broken: dict[str, str]) -> None:
    facts = written(**broken)
    assert loops(facts) == ["memref.alloc", "memref.subview"]


def test_transposed_rows_are_copied_by_a_loop() -> None:
    """They are no loop's: a kernel has made them."""
    facts = after(
        f"""func.func private @{APPEND}(i32, i32, i32, {ANY}) -> {GROWN}
    func.func @main(%rows: memref<?x?x2x8xf32>) {{
      %i0 = arith.constant 0 : i32
      %i2 = arith.constant 2 : i32
      %t = memref.transpose %rows (a, b, c, d) -> (a, c, b, d)
        : memref<?x?x2x8xf32> to memref<?x2x?x8xf32, strided<[?, 8, 16, 1]>>
      %any = memref.cast %t : memref<?x2x?x8xf32, strided<[?, 8, 16, 1]>> to {ANY}
      %grown = func.call @{APPEND}(%i0, %i0, %i2, %any) : (i32, i32, i32, {ANY}) -> {GROWN}
      return
    }}""",
        "write-appends",
    )
    (loop,) = facts("linalg.generic")
    assert loop.operands[0].owner.name == "memref.transpose" and loops(facts) == ["memref.subview"]


def test_a_transposed_loop_writes_through_the_transposed_place() -> None:
    facts = after(
        f"""func.func private @{APPEND}(i32, i32, i32, {ANY}) -> {GROWN}
    func.func @main(%b: index, %s: index, %x: memref<?x?x2x8xf32>) {{
      %i0 = arith.constant 0 : i32
      %i2 = arith.constant 2 : i32
      %made = memref.alloc(%b, %s) : memref<?x?x2x8xf32>
      linalg.generic {{indexing_maps = [affine_map<(a, b, c, d) -> (a, b, c, d)>,
          affine_map<(a, b, c, d) -> (a, b, c, d)>],
        iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
        ins(%x : memref<?x?x2x8xf32>) outs(%made : memref<?x?x2x8xf32>) {{
      ^bb0(%in: f32, %out: f32):
        linalg.yield %in : f32
      }}
      %t = memref.transpose %made (a, b, c, d) -> (a, c, b, d)
        : memref<?x?x2x8xf32> to memref<?x2x?x8xf32, strided<[?, 8, 16, 1]>>
      %any = memref.cast %t : memref<?x2x?x8xf32, strided<[?, 8, 16, 1]>> to {ANY}
      %grown = func.call @{APPEND}(%i0, %i0, %i2, %any) : (i32, i32, i32, {ANY}) -> {GROWN}
      return
    }}""",
        "write-appends",
    )
    assert loops(facts) == ["memref.transpose"]
