from __future__ import annotations

import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, constant_index
from abqc.passes.version_loops import MOST_BYTES, MOST_STEPS
from facts import Facts, after

HEAD = """
func.func private @product(index, memref<?xf32>, memref<?xi8>, memref<?xf32>, memref<?xf32>,
                           index, index) attributes {abq.kernel}
func.func private @other(index)
memref.global "public" constant @w : memref<1024xi8> {alignment = 64 : i64}
memref.global "public" constant @bias : memref<16xf32> {alignment = 64 : i64}
"""

# A step: a product with the state, then a loop that makes the next state of it in a new buffer.
STEP = """
    %rows = memref.dim %h, %c0 : memref<?x16xf32>
    %flat = memref.collapse_shape %h [[0, 1]] : memref<?x16xf32> into memref<?xf32>
    %wide = arith.muli %rows, %c16 : index
    %y = memref.alloc(%wide) {alignment = 64 : i64} : memref<?xf32>
    %w = memref.get_global @w : memref<1024xi8>
    %bytes = memref.cast %w : memref<1024xi8> to memref<?xi8>
    %b = memref.get_global @bias : memref<16xf32>
    %flat_b = memref.cast %b : memref<16xf32> to memref<?xf32>
    func.call @product(%rows, %flat, %bytes, %flat_b, %y, %rows, %c16)
      : (index, memref<?xf32>, memref<?xi8>, memref<?xf32>, memref<?xf32>, index, index) -> ()
    %square = memref.expand_shape %y [[0, 1]] output_shape [%rows, 16]
      : memref<?xf32> into memref<?x16xf32>
    %next = memref.alloc(%n) {alignment = 64 : i64} : memref<?x16xf32>
    linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel"]}
      ins(%square : memref<?x16xf32>) outs(%next : memref<?x16xf32>) {
      ^bb0(%in: f32, %out: f32):
        %t = math.tanh %in : f32
        linalg.yield %t : f32
    }
    scf.yield %next : memref<?x16xf32>
"""

CARRY = "iter_args(%h = %init) -> (memref<?x16xf32>)"


def loop(result: str, step: str = STEP, carry: str = CARRY) -> str:
    return f"%{result} = scf.for %i = %c0 to %steps step %c1 {carry} {{{step}}}\n"


def versioned(
    *loops: str, results: str = "%r", signature: str = "%init: memref<?x16xf32>"
) -> Facts:
    types = ", ".join("memref<?x16xf32>" for _ in results.split(","))
    text = f"""#id = affine_map<(d0, d1) -> (d0, d1)>
      #turned = affine_map<(d0, d1) -> (d0, 15 - d1)>
      #first = affine_map<(d0, d1) -> (0, d1)>
      {HEAD}
      func.func @main({signature}, %steps: index, %n: index) -> ({types}) {{
        %c0 = arith.constant 0 : index
        %c1 = arith.constant 1 : index
        %c16 = arith.constant 16 : index
        {"".join(loops)}
        return {results} : {types}
      }}"""
    return after(text, "version-loops", unit=Unit(target=CpuTarget()))


def test_a_version_allocates_and_carries_nothing() -> None:
    facts = versioned(loop("r"))
    (choice,) = facts("scf.if")
    sequence, usual = facts("scf.for")
    assert "abq.sequence" in sequence.attributes and "abq.sequence" not in usual.attributes
    assert not sequence.results and len(usual.results) == 1
    assert "memref.alloc" not in [op.name for op in _inside(sequence)]
    assert [op.name for op in _inside(usual)].count("memref.alloc") == 2
    # The next state is made where the last one was, which nothing reads any more.
    state, _ = (op for op in facts("memref.copy"))
    (generic, _) = facts("linalg.generic")
    assert generic.operands[1] == state.operands[1]
    assert list(facts("func.return")[0].operands) == list(choice.results)


@pytest.mark.parametrize(("maps", "copies"), [("#id", 0), ("#turned", 1)])
def test_a_state_that_is_read_while_the_next_one_is_made(maps: str, copies: int) -> None:
    """It is copied, but where each iteration reads the element that it writes."""
    step = STEP.replace("ins(%square :", "ins(%h :").replace("[#id, #id]", f"[{maps}, #id]")
    facts = versioned(loop("r", step))
    sequence, _ = facts("scf.for")
    assert [op.name for op in _inside(sequence)].count("memref.copy") == copies


def test_a_state_that_is_loaded_from_while_the_next_one_is_made() -> None:
    step = STEP.replace("%t = math.tanh %in : f32",
                        "%other = memref.load %h[%c0, %c1] : memref<?x16xf32>\n"
                        "%t = arith.addf %in, %other : f32")  # fmt: skip
    facts = versioned(loop("r", step))
    sequence, _ = facts("scf.for")
    assert [op.name for op in _inside(sequence)].count("memref.copy") == 1


def test_no_version_runs_long_without_asking_for_interrupts() -> None:
    facts = versioned(loop("r"))
    limits = [constant_index(op.operands[1]) for op in facts("arith.cmpi")]
    assert {MOST_STEPS, MOST_BYTES} <= set(limits)


def test_loops_side_by_side_are_one_choice() -> None:
    facts = versioned(
        loop("r"),
        loop("s", carry=CARRY.replace("%init", "%other")),
        results="%r, %s",
        signature="%init: memref<?x16xf32>, %other: memref<?x16xf32>",
    )
    assert len(facts("scf.if")) == 1 and len(facts("scf.for")) == 4


def test_a_loop_behind_another_one_is_a_choice_of_its_own() -> None:
    facts = versioned(loop("q"), loop("r", carry=CARRY.replace("%init", "%q")))
    assert len(facts("scf.if")) == 2


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("memref.alloc(%wide)", "memref.alloc(%i)"),
        ("scf.yield %next", "func.call @other(%c0) : (index) -> ()\n scf.yield %next"),
        ("scf.yield %next", "scf.yield %init"),
        ("memref.alloc(%n)", "memref.alloc(%i)"),
    ],
)
def test_other_loops_stay(part: str, instead: str) -> None:
    facts = versioned(loop("r", STEP.replace(part, instead)))
    assert not facts("scf.if") and len(facts("scf.for")) == 1


def test_numbers_that_are_carried_stay() -> None:
    step = STEP.replace("scf.yield %next : memref<?x16xf32>",
                        "%m = arith.addi %k, %c1 : index\n"
                        "scf.yield %next, %m : memref<?x16xf32>, index")  # fmt: skip
    carry = "iter_args(%h = %init, %k = %c0) -> (memref<?x16xf32>, index)"
    assert not versioned(loop("r:2", step, carry), results="%r#0")("scf.if")


# The same step with a kernel that does rows one by one, and an input of its rows.
BY_ROWS = (
    STEP.replace("func.call @product(%rows, %flat, %bytes, %flat_b, %y, %rows, %c16)",
                 "func.call @product(%rows, %flat, %bytes, %flat_b, %y, %rows, %c16) {abq.by_rows}")
    .replace("[#id, #id]", "[#id, #id, #id]")
    .replace("ins(%square : memref<?x16xf32>)",
             "ins(%square, %other : memref<?x16xf32>, memref<?x16xf32>)")
    .replace("^bb0(%in: f32, ", "^bb0(%in: f32, %more: f32, ")
)  # fmt: skip
SIGNATURE = "%init: memref<?x16xf32>, %other: memref<?x16xf32>"


def test_parts_of_rows_run_side_by_side() -> None:
    facts = versioned(loop("r", BY_ROWS), signature=SIGNATURE)
    outer, steps, usual = facts("scf.for")
    assert "abq.parts" in outer.attributes and "abq.sequence" in outer.attributes
    assert steps.operands[1] != usual.operands[0] and not steps.attributes
    # Buffers of the step are bytes of the part; other tensors are read from its first row on.
    inside = _inside(outer)
    assert [op.name for op in inside].count("memref.view") == 2
    state, temporary = (op.results[0] for op in inside if op.name == "memref.view")
    product, _ = (call for call in facts("func.call") if len(call.operands) == 7)
    own = facts("arith.subi")[-1].results[0]
    assert product.operands[4] == temporary
    assert product.operands[0] == product.operands[5] == own
    (generic, _) = facts("linalg.generic")
    views = [op.owner for op in generic.operands]
    assert [view.name for view in views] == ["memref.subview"] * 3
    offsets = [list(view.attributes["static_offsets"]) for view in views]
    assert offsets == [[0, 0], [ir.ShapedType.get_dynamic_size(), 0], [0, 0]]
    assert views[2].operands[0] == state and all(own in list(view.operands) for view in views)


def test_a_state_that_is_made_in_place_is_one_buffer() -> None:
    """Its kernel would otherwise ask in every run whether both overlap, which they do."""
    facts = versioned(loop("r", BY_ROWS.replace("%square, %other", "%square, %h")))
    (generic, _) = facts("linalg.generic")
    assert "abq.parts" in facts("scf.for")[0].attributes
    assert generic.operands[1] == generic.operands[2]


LESS = """%less = arith.subi %rows, %c1 : index
    %some = memref.subview %square[0, 0] [%less, 16] [1, 1]
      : memref<?x16xf32> to memref<?x16xf32, strided<[16, 1]>>
    %next = """
WRITE = "memref.copy %square, %other : memref<?x16xf32> to memref<?x16xf32>"
SHARE = """%number = arith.index_cast %rows : index to i32
    %share = arith.sitofp %number : i32 to f32
    %next = """


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (" {abq.by_rows}", ""),
        ("%next = ", f"{WRITE}\n%next = "),
        ("output_shape [%rows, 16]", "output_shape [%wide, 16]"),  # other rows than those
        ("%rows, %c16) {abq", "%n, %c16) {abq"),
        ("[#id, #id, #id]", "[#first, #id, #id]"),
        ("%t = math.tanh %in", "%row = linalg.index 0 : index\n %t = math.tanh %in"),
    ],
)
def test_rows_that_may_depend_on_each_other_stay_together(part: str, instead: str) -> None:
    assert part in BY_ROWS
    step = BY_ROWS.replace(part, instead)
    facts = versioned(loop("r", step), signature=SIGNATURE)
    assert not [op for op in facts("scf.for") if "abq.parts" in op.attributes]


def test_what_looks_at_some_rows_or_at_their_number_has_no_parts() -> None:
    some = BY_ROWS.replace("%next = ", LESS).replace(
        "ins(%square, %other : memref<?x16xf32>",
        "ins(%some, %other : memref<?x16xf32, strided<[16, 1]>>",
    )
    mean = BY_ROWS.replace("%next = ", SHARE).replace(
        "%t = math.tanh %in", "%t = arith.divf %in, %share"
    )
    for step in some, mean:
        facts = versioned(loop("r", step), signature=SIGNATURE)
        loops = facts("scf.for")
        assert len(loops) == 2 and not any("abq.parts" in op.attributes for op in loops)


def test_parts_of_states_are_of_equally_many_rows() -> None:
    step = BY_ROWS.replace("scf.yield %next : memref<?x16xf32>",
                           "scf.yield %next, %g : memref<?x16xf32>, memref<?x16xf32>")  # fmt: skip
    carry = "iter_args(%h = %init, %g = %other) -> (memref<?x16xf32>, memref<?x16xf32>)"
    facts = versioned(loop("r:2", step, carry), results="%r#0", signature=SIGNATURE)
    assert "abq.parts" in facts("scf.for")[0].attributes
    sizes = {op.results[0]: op.operands[0] for op in facts("memref.dim")}
    compared = [[sizes[x] for x in op.operands if x in sizes] for op in facts("arith.cmpi")]
    assert any(len(set(pair)) == 2 for pair in compared)


def _inside(loop: ir.Operation) -> list[ir.OpView]:
    return list(loop.regions[0].blocks[0].operations)
