import pytest
from facts import after


def clamp(predicate: str) -> str:
    return f"""func.func @main(%x: f32, %low: f32) -> f32 {{
      %c = arith.cmpf {predicate}, %x, %low : f32
      %r = arith.select %c, %low, %x : f32
      return %r : f32
    }}"""


@pytest.mark.parametrize(
    ("predicate", "extreme"), [("ult", "arith.maximumf"), ("ugt", "arith.minimumf")]
)
def test_unordered_clamps_become_extremes(predicate: str, extreme: str) -> None:
    facts = after(clamp(predicate), "keep-nans")
    (op,) = facts(extreme)
    assert list(op.operands) == list(facts.function().regions[0].blocks[0].arguments)
    assert not facts("arith.select")


@pytest.mark.parametrize("predicate", ["olt", "ogt", "ule", "ueq"])
def test_other_selects_stay(predicate: str) -> None:
    assert len(after(clamp(predicate), "keep-nans")("arith.select")) == 1


@pytest.mark.parametrize(("predicate", "nan"), [("oge", 0), ("ole", 1)])
def test_sorts_give_nan_a_place(predicate: str, nan: int) -> None:
    facts = after(
        f"""func.func @main(%x: tensor<?xf32>) -> tensor<?xf32> {{
          %y = tm_tensor.sort dimension(0) outs(%x : tensor<?xf32>) {{
          ^bb0(%a: f32, %b: f32):
            %c = arith.cmpf {predicate}, %a, %b : f32
            tm_tensor.yield %c : i1
          }} -> tensor<?xf32>
          return %y : tensor<?xf32>
        }}""",
        "keep-nans",
    )
    (end,) = facts("tm_tensor.yield")
    either = end.operands[0].owner
    assert either.name == "arith.ori"
    assert [value.arg_number for value in either.operands[0].owner.operands] == [nan, nan]
