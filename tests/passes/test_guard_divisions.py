import pytest
from facts import after


def division(op: str, divisor: str = "%b") -> str:
    return f"""func.func @main(%a: i32, %b: i32) -> i32 {{
      %c5 = arith.constant 5 : i32
      %c1 = arith.constant 1 : i32
      %m = arith.maxsi %b, %c1 : i32
      %q = arith.{op} %a, {divisor} : i32
      return %q : i32
    }}"""


@pytest.mark.parametrize("op", ["divsi", "remsi", "floordivsi", "ceildivsi", "divui", "remui"])
def test_divisors_are_replaced_where_they_would_trap(op: str) -> None:
    facts = after(division(op), "guard-divisions")
    (found,) = facts(f"arith.{op}")
    assert found.operands[1].owner.name == "arith.select"
    assert facts("func.return")[0].operands[0].owner.name == "arith.select"


@pytest.mark.parametrize("divisor", ["%c5", "%m"])
def test_harmless_divisors_stay(divisor: str) -> None:
    assert not after(division("divsi", divisor), "guard-divisions")("arith.select")
