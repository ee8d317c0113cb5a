from facts import after


def test_shapes_in_tensors_become_scalars() -> None:
    """Concat(Gather(Shape(x), 0), 4) + 1, as a reshape would take it."""
    facts = after(
        """#id = affine_map<(d0) -> (d0)>
        func.func @main(%x: tensor<?x8xf32>) -> tensor<2xi64> {
          %c0 = arith.constant 0 : index
          %four = arith.constant dense<4> : tensor<1xi64>
          %one = arith.constant 1 : i64
          %d = tensor.dim %x, %c0 : tensor<?x8xf32>
          %i = arith.index_cast %d : index to i64
          %n = tensor.from_elements %i : tensor<1xi64>
          %shape = tensor.concat dim(0) %n, %four
              : (tensor<1xi64>, tensor<1xi64>) -> tensor<2xi64>
          %e = tensor.empty() : tensor<2xi64>
          %r = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
              ins(%shape : tensor<2xi64>) outs(%e : tensor<2xi64>) {
          ^bb0(%in: i64, %out: i64):
            %s = arith.addi %in, %one : i64
            linalg.yield %s : i64
          } -> tensor<2xi64>
          return %r : tensor<2xi64>
        }""",
        "scalarize-shapes",
        "canonicalize",
    )
    assert not facts("linalg.generic") and not facts("tensor.concat")
    (elements,) = facts("tensor.from_elements")
    first, second = elements.operands
    assert first.owner.name == "arith.addi"
    assert second.owner.name == "arith.constant"
    assert second.owner.attributes["value"].value == 5


def test_unknown_elements_stay_in_tensors() -> None:
    facts = after(
        """func.func @main(%x: tensor<2xi64>) -> tensor<1xi64> {
          %y = tensor.extract_slice %x[1] [1] [1] : tensor<2xi64> to tensor<1xi64>
          return %y : tensor<1xi64>
        }""",
        "scalarize-shapes",
    )
    assert len(facts("tensor.extract_slice")) == 1


def test_floats_and_long_tensors_stay() -> None:
    facts = after(
        """func.func @main() -> (tensor<2xf32>, tensor<17xi64>) {
          %x = arith.constant dense<1.0> : tensor<2xf32>
          %y = arith.constant dense<1> : tensor<17xi64>
          return %x, %y : tensor<2xf32>, tensor<17xi64>
        }""",
        "scalarize-shapes",
    )
    assert not facts("tensor.from_elements")
