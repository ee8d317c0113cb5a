import pytest
from facts import after


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
def test_sizes_made_of_sizes_are_not_checked(size: str) -> None:
    assert not after(allocation(size), "check-sizes").messages()


@pytest.mark.parametrize("size", ["arith.subi %d, %c3", "arith.addi %a, %d", "arith.minsi %a, %d"])
def test_others_are_checked_once(size: str) -> None:
    facts = after(allocation(size), "check-sizes")
    assert facts.messages() == ["the model: a size is negative"]
    names = facts.names()
    assert names.index("cf.assert") < names.index("memref.alloc")
