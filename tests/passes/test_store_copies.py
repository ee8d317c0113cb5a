from __future__ import annotations

import pytest
from abqc.passes.kernels.loop_nest import read_nest
from facts import Facts, after

# A step of a recurrence: the new state goes to a row of the result, too.
STEP = """
  %y = memref.alloc(%n) : memref<?x16xf32>
  linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel"]}
    ins(%h : memref<?x16xf32>) outs(%y : memref<?x16xf32>) {
    ^bb0(%in: f32, %out: f32):
      %t = math.tanh %in : f32
      linalg.yield %t : f32
  }
  %wide = memref.expand_shape %y [[0, 1], [2]] output_shape [1, %n, 16]
    : memref<?x16xf32> into memref<1x?x16xf32>
  %row = memref.subview %rows[%i, 0, 0] [1, %n, 16] [1, 1, 1]
    : memref<?x?x16xf32> to memref<1x?x16xf32, strided<[?, 16, 1], offset: ?>>
  memref.copy %wide, %row
    : memref<1x?x16xf32> to memref<1x?x16xf32, strided<[?, 16, 1], offset: ?>>
  scf.yield %y : memref<?x16xf32>
"""


def stored(step: str = STEP) -> Facts:
    text = f"""#id = affine_map<(d0, d1) -> (d0, d1)>
      #turned = affine_map<(d0, d1) -> (d1, d0)>
      func.func private @use(memref<?x16xf32>)
      func.func @main(%n: index, %steps: index) -> memref<?x?x16xf32> {{
        %c0 = arith.constant 0 : index
        %c1 = arith.constant 1 : index
        %rows = memref.alloc(%steps, %n) : memref<?x?x16xf32>
        %first = memref.alloc(%n) : memref<?x16xf32>
        %last = scf.for %i = %c0 to %steps step %c1 iter_args(%h = %first) -> (memref<?x16xf32>) {{
          {step}
        }}
        return %rows : memref<?x?x16xf32>
      }}"""
    return after(text, "store-copies")


def test_a_loop_stores_its_result_twice() -> None:
    facts = stored()
    assert not facts("memref.copy")
    (loop,) = facts("linalg.generic")
    y, row = list(loop.operands)[1:]
    assert (y, row) == (facts("memref.alloc")[2].results[0], facts("memref.subview")[0].results[0])
    assert str(read_nest(loop).maps[-1]) == "(d0, d1) -> (0, d0, d1)"
    (end,) = facts("linalg.yield")
    assert end.operands[0] == end.operands[1] == facts("math.tanh")[0].results[0]


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("[#id, #id]", "[#id, #turned]"),
        ("linalg.yield %t", "linalg.yield %in"),  # moves elements
        ("%wide = ", "func.call @use(%y) : (memref<?x16xf32>) -> ()\n %wide = "),
        ("memref.copy %wide, %row", "memref.copy %row, %wide"),
    ],
)
def test_other_copies_stay(part: str, instead: str) -> None:
    step = STEP.replace(part, instead)
    if "yield" in part:
        step = step.replace("%t = math.tanh %in : f32", "")
    if "%row" in part:
        kinds = "memref<1x?x16xf32>", "memref<1x?x16xf32, strided<[?, 16, 1], offset: ?>>"
        step = step.replace(
            f": {kinds[0]} to {kinds[1]}\n  scf", f": {kinds[1]} to {kinds[0]}\n  scf"
        )
    assert len(stored(step)("memref.copy")) == 1


def test_a_loop_that_reads_what_is_copied_to_stays() -> None:
    begin, end = STEP.index("%row = "), STEP.index("memref.copy")
    step = STEP[begin:end] + STEP[:begin] + STEP[end:]
    step = step.replace("[#id, #id]", "[affine_map<(d0, d1) -> (0, d0, d1)>, #id]").replace(
        "ins(%h : memref<?x16xf32>)",
        "ins(%row : memref<1x?x16xf32, strided<[?, 16, 1], offset: ?>>)",
    )
    assert len(stored(step)("memref.copy")) == 1


def test_a_copy_between_sizes_that_are_known_of_one_side_stays() -> None:
    """The buffer has one row, or so says what is copied to."""
    step = STEP.replace("[%i, 0, 0] [1, %n, 16]", "[%i, 0, 0] [1, 1, 16]").replace(
        "to memref<1x?x16xf32, strided", "to memref<1x1x16xf32, strided"
    )
    assert len(stored(step)("memref.copy")) == 1


def test_a_loop_that_loads_from_what_is_copied_to_stays() -> None:
    step = STEP.replace("%t = math.tanh %in : f32",
                        "%old = memref.load %rows[%c0, %c0, %c0] : memref<?x?x16xf32>\n"
                        "%t = arith.addf %in, %old : f32")  # fmt: skip
    assert len(stored(step)("memref.copy")) == 1
