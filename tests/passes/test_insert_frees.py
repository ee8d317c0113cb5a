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
    carried = """%c0 = arith.constant 0 : index
      %c1 = arith.constant 1 : index
      %a = memref.alloc(%n) : memref<?xf32>
      %r = scf.for %i = %c0 to %n step %c1 iter_args(%m = %a) -> (memref<?xf32>) {
        %b = memref.alloc(%n) : memref<?xf32>
        func.call @use(%m) : (memref<?xf32>) -> ()
        scf.yield %b : memref<?xf32>
      }
      func.call @use(%r) : (memref<?xf32>) -> ()"""
    assert not freed(carried)("memref.dealloc")


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
