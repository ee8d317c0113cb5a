from facts import after


def test_product_over_factor_is_the_other_factor() -> None:
    facts = after(
        """func.func @main(%a: index, %b: index) -> (index, index, index) {
          %c6 = arith.constant 6 : index
          %p = arith.muli %a, %b : index
          %q = arith.divsi %p, %b : index
          %r = arith.divui %p, %a : index
          %s = arith.muli %c6, %a : index
          %t = arith.floordivsi %s, %c6 : index
          return %q, %r, %t : index, index, index
        }""",
        "fold-sizes",
        "canonicalize",
    )
    a, b = facts.function().regions[0].blocks[0].arguments
    assert list(facts("func.return")[0].operands) == [a, b, a]


def test_other_quotients_stay() -> None:
    facts = after(
        """func.func @main(%a: index, %b: index) -> index {
          %c6 = arith.constant 6 : index
          %p = arith.muli %a, %c6 : index
          %q = arith.divsi %p, %b : index
          return %q : index
        }""",
        "fold-sizes",
    )
    assert len(facts("arith.divsi")) == 1


def test_elements_may_wrap_and_stay() -> None:
    facts = after(
        """#id = affine_map<(d0) -> (d0)>
        func.func @main(%x: tensor<?xi32>, %y: tensor<?xi32>) -> tensor<?xi32> {
          %r = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
              ins(%x : tensor<?xi32>) outs(%y : tensor<?xi32>) {
          ^bb0(%a: i32, %b: i32):
            %p = arith.muli %a, %b : i32
            %q = arith.divsi %p, %b : i32
            linalg.yield %q : i32
          } -> tensor<?xi32>
          return %r : tensor<?xi32>
        }""",
        "fold-sizes",
    )
    assert len(facts("arith.divsi")) == 1
