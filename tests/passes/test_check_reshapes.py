from facts import after


def reshape(size: str, divisor: int) -> str:
    return f"""func.func @main(%x: tensor<?xf32>, %n: index) -> tensor<?x4xf32> {{
      %c6 = arith.constant 6 : index
      %d = arith.constant {divisor} : index
      %p = arith.muli %n, %c6 : index
      %s = {size}
      %y = tensor.expand_shape %x [[0, 1]] output_shape [%s, 4] : tensor<?xf32> into tensor<?x4xf32>
      return %y : tensor<?x4xf32>
    }}"""


def test_a_quotient_is_checked_for_a_remainder() -> None:
    facts = after(reshape("arith.divsi %p, %d : index", 4), "check-reshapes")
    assert facts.messages() == ["the model: a reshape changes the number of elements"]
    (rest,), (quotient,) = facts("arith.remsi"), facts("arith.divsi")
    assert list(rest.operands) == list(quotient.operands)


def test_a_factor_that_divides_needs_no_check() -> None:
    assert not after(reshape("arith.divsi %p, %d : index", 3), "check-reshapes").messages()


def test_plain_sizes_need_no_check() -> None:
    assert not after(reshape("arith.addi %p, %d : index", 4), "check-reshapes").messages()
