from facts import after


def test_rows_of_a_float_table_are_loops() -> None:
    facts = after(
        """func.func @main(%i: tensor<?x3xi64>) -> tensor<?x3x8xf32> {
          %t = "abq.weight"() {sym = "t"} : () -> tensor<50x8xf32>
          %y = "abq.gather"(%t, %i) {node = "embed", operandSegmentSizes = array<i32: 1, 1, 0, 0>}
              : (tensor<50x8xf32>, tensor<?x3xi64>) -> tensor<?x3x8xf32>
          return %y : tensor<?x3x8xf32>
        }""",
        "decompose-gather",
    )
    (loops,) = facts("linalg.generic")
    assert len(loops.attributes["iterator_types"]) == 3
    (extract,) = facts("tensor.extract")
    assert extract.operands[0].owner.name == "abq.weight"
    assert not facts("abq.gather")
