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
