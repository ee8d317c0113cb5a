from abqc.dialects.mlir import ir
from facts import Facts, after

HEAD = """func.func private @use(memref<?xf32>)
func.func private @make(memref<?xf32>) -> memref<?xf32>
"""


def freed(body: str, signature: str = "(%n: index, %c: i1)", returned: str = "return") -> Facts:
    return after(f"{HEAD}func.func @main{signature} {{\n{body}\n{returned}\n}}", "insert-frees")


def before_free(facts: Facts) -> ir.Operation:
    """The operation right before the only free."""
    (free,) = facts("memref.dealloc")
    operations = [op.operation for op in free.block.operations]
    return operations[operations.index(free) - 1]


def test_after_the_last_use() -> None:
    facts = freed("""%a = memref.alloc(%n) : memref<?xf32>
      func.call @use(%a) : (memref<?xf32>) -> ()
      func.call @use(%a) : (memref<?xf32>) -> ()
      %other = arith.addi %n, %n : index""")
    assert before_free(facts) == facts("func.call")[1]


def test_uses_through_views_count() -> None:
    facts = freed("""%a = memref.alloc(%n) : memref<?xf32>
      %v = memref.subview %a[0] [%n] [1] : memref<?xf32> to memref<?xf32, strided<[1]>>
      %w = memref.cast %v : memref<?xf32, strided<[1]>> to memref<?xf32>
      %other = arith.addi %n, %n : index
      func.call @use(%w) : (memref<?xf32>) -> ()""")
    assert before_free(facts) == facts("func.call")[0]


def test_a_use_in_a_region_counts_as_one_of_its_operation() -> None:
    facts = freed("""%a = memref.alloc(%n) : memref<?xf32>
      scf.if %c {
        func.call @use(%a) : (memref<?xf32>) -> ()
      }""")
    assert before_free(facts) == facts("scf.if")[0]


def test_in_a_loop_every_iteration_frees_its_own() -> None:
    facts = freed("""%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      scf.for %i = %c0 to %n step %c1 {
        %a = memref.alloc(%n) : memref<?xf32>
        func.call @use(%a) : (memref<?xf32>) -> ()
      }""")
    assert facts("memref.dealloc")[0].block == facts("memref.alloc")[0].block


def test_what_is_never_used_is_freed_at_once() -> None:
    facts = freed("%a = memref.alloc(%n) : memref<?xf32>")
    assert before_free(facts) == facts("memref.alloc")[0]


def test_what_escapes_stays() -> None:
    yielded = """%a = memref.alloc(%n) : memref<?xf32>
      %b = memref.alloc(%n) : memref<?xf32>
      %r = scf.if %c -> memref<?xf32> {
        scf.yield %a : memref<?xf32>
      } else {
        scf.yield %b : memref<?xf32>
      }
      func.call @use(%r) : (memref<?xf32>) -> ()"""
    assert not freed(yielded)("memref.dealloc")
    returned = """%a = memref.alloc(%n) : memref<?xf32>
      %v = memref.subview %a[0] [%n] [1] : memref<?xf32> to memref<?xf32, strided<[1]>>
      %w = memref.cast %v : memref<?xf32, strided<[1]>> to memref<?xf32>"""
    signature = "(%n: index) -> memref<?xf32>"
    assert not freed(returned, signature, "return %w : memref<?xf32>")("memref.dealloc")


LOOP = """%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %a = memref.alloc(%n) : memref<?xf32>
      {before}
      %r = scf.for %i = %c0 to %n step %c1 iter_args(%m = %a) -> (memref<?xf32>) {{
        %b = memref.alloc(%n) : memref<?xf32>
        func.call @use(%m) : (memref<?xf32>) -> ()
        scf.yield {yielded} : memref<?xf32>
      }}
      func.call @use(%r) : (memref<?xf32>) -> ()
      {after}"""


def loop(before: str = "", yielded: str = "%b", after: str = "") -> Facts:
    return freed(LOOP.format(before=before, yielded=yielded, after=after))


def test_an_iteration_frees_what_it_was_given() -> None:
    facts = loop()
    (loop_,), (inside, behind) = facts("scf.for"), facts("memref.dealloc")
    assert inside.operands[0] == loop_.regions[0].blocks[0].arguments[1]
    assert behind.operands[0] == loop_.results[0]


def test_a_buffer_that_goes_round_is_freed_behind_the_loop() -> None:
    facts = loop(yielded="%m")
    freed_ = [free.operands[0] for free in facts("memref.dealloc")]
    assert facts("scf.for")[0].results[0] in freed_ and len(freed_) == 2  # and %b


def test_what_is_read_behind_the_loop_is_not_handed_to_it() -> None:
    assert not loop(after="func.call @use(%a) : (memref<?xf32>) -> ()")("memref.dealloc")


def test_what_comes_from_outside_is_not_handed_on() -> None:
    facts = loop(before="%o = memref.alloc(%n) : memref<?xf32>", yielded="%o")
    assert [free.operands[0] for free in facts("memref.dealloc")] == [
        facts("memref.alloc")[2].results[0]  # %b alone
    ]


def test_branches_hand_on_what_they_made() -> None:
    facts = freed("""%r = scf.if %c -> memref<?xf32> {
        %a = memref.alloc(%n) : memref<?xf32>
        scf.yield %a : memref<?xf32>
      } else {
        %b = memref.alloc(%n) : memref<?xf32>
        scf.yield %b : memref<?xf32>
      }
      func.call @use(%r) : (memref<?xf32>) -> ()""")
    (free,) = facts("memref.dealloc")
    assert free.operands[0] == facts("scf.if")[0].results[0]


def test_a_loop_with_a_condition_frees_too() -> None:
    facts = freed("""%a = memref.alloc(%n) : memref<?xf32>
      %r = scf.while (%m = %a) : (memref<?xf32>) -> memref<?xf32> {
        scf.condition(%c) %m : memref<?xf32>
      } do {
      ^bb0(%m: memref<?xf32>):
        %b = memref.alloc(%n) : memref<?xf32>
        func.call @use(%m) : (memref<?xf32>) -> ()
        scf.yield %b : memref<?xf32>
      }
      func.call @use(%r) : (memref<?xf32>) -> ()""")
    loop_ = facts("scf.while")[0]
    assert [free.operands[0] for free in facts("memref.dealloc")] == [
        loop_.regions[1].blocks[0].arguments[0],
        loop_.results[0],
    ]


def test_aliases_of_unknown_making_stay() -> None:
    chosen = """%a = memref.alloc(%n) : memref<?xf32>
      %b = memref.alloc(%n) : memref<?xf32>
      %r = arith.select %c, %a, %b : memref<?xf32>
      func.call @use(%r) : (memref<?xf32>) -> ()"""
    assert not freed(chosen)("memref.dealloc")
    called = """%a = memref.alloc(%n) : memref<?xf32>
      %r = func.call @make(%a) : (memref<?xf32>) -> memref<?xf32>
      func.call @use(%r) : (memref<?xf32>) -> ()"""
    assert not freed(called)("memref.dealloc")
