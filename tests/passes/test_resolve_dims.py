from facts import after


def test_rows_of_a_matmul_are_those_of_its_input() -> None:
    facts = after(
        """func.func @main(%x: tensor<?x8xf32>) -> index {
          %c0 = arith.constant 0 : index
          %w = "abq.weight"() {sym = "w"} : () -> tensor<5x8xf32>
          %y = "abq.matmul"(%x, %w) {node = "mm",
              operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}
              : (tensor<?x8xf32>, tensor<5x8xf32>) -> tensor<?x5xf32>
          %d = tensor.dim %y, %c0 : tensor<?x5xf32>
          return %d : index
        }""",
        "resolve-dims",
        "canonicalize",
    )
    (dim,) = facts("tensor.dim")
    assert dim.operands[0] == facts.function().regions[0].blocks[0].arguments[0]
    assert not facts("abq.matmul")  # pure, so dead by now


def test_sizes_of_a_collapse_are_products() -> None:
    """A cache would be copied for its collapse to be asked."""
    facts = after(
        """func.func @main(%x: tensor<?x3x?x8xf32>) -> (index, index) {
          %c0 = arith.constant 0 : index
          %c1 = arith.constant 1 : index
          %y = tensor.collapse_shape %x [[0, 1], [2], [3]]
              : tensor<?x3x?x8xf32> into tensor<?x?x8xf32>
          %d = tensor.dim %y, %c0 : tensor<?x?x8xf32>
          %e = tensor.dim %y, %c1 : tensor<?x?x8xf32>
          return %d, %e : index, index
        }""",
        "resolve-dims",
        "canonicalize",
    )
    assert not facts("tensor.collapse_shape")
    (heads,) = facts("arith.muli")
    returned = facts("func.return")[0].operands
    assert returned[0] == heads.results[0]
    assert returned[1] in [dim.results[0] for dim in facts("tensor.dim")]


def test_sizes_of_a_reshape_are_those_it_was_given() -> None:
    facts = after(
        """func.func @main(%x: tensor<?xf32>, %a: index, %b: i64) -> (index, index) {
          %c0 = arith.constant 0 : index
          %c1 = arith.constant 1 : index
          %i = arith.index_cast %a : index to i64
          %shape = tensor.from_elements %i, %b : tensor<2xi64>
          %y = tensor.reshape %x(%shape) : (tensor<?xf32>, tensor<2xi64>) -> tensor<?x?xf32>
          %d = tensor.dim %y, %c0 : tensor<?x?xf32>
          %e = tensor.dim %y, %c1 : tensor<?x?xf32>
          return %d, %e : index, index
        }""",
        "resolve-dims",
        "canonicalize",
    )
    assert not facts("tensor.dim")
    a = facts.function().regions[0].blocks[0].arguments[1]
    assert facts("func.return")[0].operands[0] == a
