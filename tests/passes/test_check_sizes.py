import pytest
from facts import after

BYTES = "the model: a tensor would be larger than any memory"


def allocation(size: str) -> str:
    return f"""func.func @main(%x: memref<?xf32>, %a: index) {{
      %c0 = arith.constant 0 : index
      %c3 = arith.constant 3 : index
      %d = memref.dim %x, %c0 : memref<?xf32>
      %s = {size} : index
      %m = memref.alloc(%s) : memref<?xf32>
      %again = memref.alloc(%s) : memref<?xf32>
      return
    }}"""


@pytest.mark.parametrize(
    "size",
    ["arith.muli %d, %c3", "arith.addi %d, %d", "arith.maxsi %a, %c0", "arith.minsi %d, %c3"],
)
def test_the_sign_of_sizes_made_of_sizes_is_not_checked(size: str) -> None:
    assert after(allocation(size), "check-sizes").messages() == [BYTES]


@pytest.mark.parametrize("size", ["arith.subi %d, %c3", "arith.addi %a, %d", "arith.minsi %a, %d"])
def test_others_are_checked_once(size: str) -> None:
    facts = after(allocation(size), "check-sizes")
    assert facts.messages() == ["the model: a size is negative", BYTES]
    names = facts.names()
    assert names.index("cf.assert") < names.index("memref.alloc")


def test_bytes_are_counted_in_f64() -> None:
    """As `d * 3 - 3` is computed, but without wrapping around."""
    text = allocation("arith.muli %d, %c3").replace(
        "%again = memref.alloc(%s) : memref<?xf32>",
        "%t = arith.subi %s, %c3 : index\n%other = memref.alloc(%t) : memref<7x?xi16>",
    )
    facts = after(text, "check-sizes")
    assert facts.messages() == [BYTES, "the model: a size is negative", BYTES]
    first, second = facts("arith.cmpf")
    assert [op.operands[0].owner.name for op in (first, second)] == ["arith.mulf"] * 2
    assert "arith.subf" in facts.names()
    assert "1.400000e+01 : f64" in facts.text  # bytes of a row


def test_a_check_in_a_branch_does_not_count_after_it() -> None:
    facts = after(
        """func.func @main(%x: memref<?xf32>, %c: i1) {
          %c0 = arith.constant 0 : index
          %d = memref.dim %x, %c0 : memref<?xf32>
          scf.if %c {
            %m = memref.alloc(%d) : memref<?xf32>
            %again = memref.alloc(%d) : memref<?xf32>
          }
          %n = memref.alloc(%d) : memref<?xf32>
          scf.if %c {
            %m = memref.alloc(%d) : memref<?xf32>
          }
          return
        }""",
        "check-sizes",
    )
    assert facts.messages() == [BYTES, BYTES]


def test_sizes_computed_in_many_steps_are_looked_at_once() -> None:
    steps = "\n".join(f"%s{i + 1} = arith.addi %s{i}, %s{i} : index" for i in range(60))
    first = "%s0 = arith.addi %s, %s : index"
    text = allocation("arith.addi %d, %d").replace("%m =", f"{first}\n{steps}\n%m =")
    text = text.replace("%m = memref.alloc(%s)", "%m = memref.alloc(%s60)")
    assert after(text, "check-sizes").messages() == [BYTES, BYTES]
