from facts import Facts, after

HEAD = "func.func private @use(memref<4xf32>)\n"


def forwarded(body: str, signature: str = "(%n: index)") -> Facts:
    return after(f"{HEAD}func.func @main{signature} {{\n{body}\nreturn\n}}", "forward-copies")


def test_a_buffer_that_ends_with_its_copy_is_the_copy() -> None:
    facts = forwarded("""%a = memref.alloc() : memref<4xf32>
      func.call @use(%a) : (memref<4xf32>) -> ()
      %b = memref.alloc() : memref<4xf32>
      memref.copy %a, %b : memref<4xf32> to memref<4xf32>
      func.call @use(%b) : (memref<4xf32>) -> ()""")
    assert not facts("memref.copy")
    (buffer,) = facts("memref.alloc")
    assert [call.operands[0] for call in facts("func.call")] == [buffer.results[0]] * 2


def test_what_a_loop_hands_on_is_not_copied() -> None:
    facts = forwarded(
        """%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %r = scf.for %i = %c0 to %n step %c1 iter_args(%x = %init) -> (memref<4xf32>) {
        %a = memref.alloc() : memref<2x2xf32>
        %v = memref.collapse_shape %a [[0, 1]] : memref<2x2xf32> into memref<4xf32>
        func.call @use(%v) : (memref<4xf32>) -> ()
        %b = memref.alloc() : memref<4xf32>
        memref.copy %v, %b : memref<4xf32> to memref<4xf32>
        scf.yield %b : memref<4xf32>
      }""",
        "(%n: index, %init: memref<4xf32>)",
    )
    assert not facts("memref.copy")
    (yielded,) = facts("scf.yield")
    assert yielded.operands[0] == facts("memref.collapse_shape")[0].results[0]


def test_a_buffer_that_is_used_again_stays() -> None:
    facts = forwarded("""%a = memref.alloc() : memref<4xf32>
      %b = memref.alloc() : memref<4xf32>
      memref.copy %a, %b : memref<4xf32> to memref<4xf32>
      func.call @use(%a) : (memref<4xf32>) -> ()
      func.call @use(%b) : (memref<4xf32>) -> ()""")
    assert len(facts("memref.copy")) == 1


READ_AGAIN = """%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %r = scf.for %i = %c0 to %n step %c1 iter_args(%x = %init) -> (memref<4xf32>) {
        %a = memref.alloc() : memref<4xf32>
        func.call @use(%a) : (memref<4xf32>) -> ()
        %b = memref.alloc() : memref<4xf32>
        memref.copy %a, %b : memref<4xf32> to memref<4xf32>
        memref.copy %a, %init : memref<4xf32> to memref<4xf32>
        scf.yield %b : memref<4xf32>
      }"""


def test_what_is_read_before_it_is_handed_on_is_not_copied() -> None:
    facts = forwarded(READ_AGAIN, "(%n: index, %init: memref<4xf32>)")
    (copy,) = facts("memref.copy")
    assert facts("scf.yield")[0].operands[0] == copy.operands[0]


def test_what_is_read_when_its_copy_has_changed_stays() -> None:
    body = READ_AGAIN.replace(
        "memref.copy %a, %init",
        "func.call @use(%b) : (memref<4xf32>) -> ()\n        memref.copy %a, %init",
    )
    facts = forwarded(body, "(%n: index, %init: memref<4xf32>)")
    assert len(facts("memref.copy")) == 2


def test_what_is_carried_stays() -> None:
    facts = forwarded(
        """%b = memref.alloc() : memref<4xf32>
      memref.copy %init, %b : memref<4xf32> to memref<4xf32>
      func.call @use(%b) : (memref<4xf32>) -> ()""",
        "(%n: index, %init: memref<4xf32>)",
    )
    assert len(facts("memref.copy")) == 1


def test_a_part_of_a_buffer_stays() -> None:
    facts = forwarded("""%a = memref.alloc() : memref<8xf32>
      %v = memref.reinterpret_cast %a to offset: [0], sizes: [4], strides: [1]
        : memref<8xf32> to memref<4xf32>
      %b = memref.alloc() : memref<4xf32>
      memref.copy %v, %b : memref<4xf32> to memref<4xf32>
      func.call @use(%b) : (memref<4xf32>) -> ()""")
    assert len(facts("memref.copy")) == 1


def test_a_target_that_was_used_before_stays() -> None:
    facts = forwarded("""%b = memref.alloc() : memref<4xf32>
      func.call @use(%b) : (memref<4xf32>) -> ()
      %a = memref.alloc() : memref<4xf32>
      memref.copy %a, %b : memref<4xf32> to memref<4xf32>
      func.call @use(%b) : (memref<4xf32>) -> ()""")
    assert len(facts("memref.copy")) == 1


def test_a_buffer_from_outside_of_the_loop_stays() -> None:
    facts = forwarded("""%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %a = memref.alloc() : memref<4xf32>
      scf.for %i = %c0 to %n step %c1 {
        %b = memref.alloc() : memref<4xf32>
        memref.copy %a, %b : memref<4xf32> to memref<4xf32>
        func.call @use(%b) : (memref<4xf32>) -> ()
      }""")
    assert len(facts("memref.copy")) == 1
