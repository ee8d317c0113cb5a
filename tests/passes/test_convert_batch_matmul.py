from facts import Facts, after


def product(a: str, c: str, y: str, op: str = "linalg.batch_matmul", before: str = "") -> Facts:
    return after(
        f"""func.func @main(%a: tensor<{a}>, %c: tensor<{c}>, %e: tensor<{y}>,
            %h: tensor<?x?x2x4xf32>, %t: tensor<?x2x4x?xf32>) -> tensor<{y}> {{
          %zero = arith.constant 0.0 : f32
          {before}
          %f = linalg.fill ins(%zero : f32) outs(%e : tensor<{y}>) -> tensor<{y}>
          %y = {op} ins(%a, {"%k" if before else "%c"} : tensor<{a}>, tensor<{c}>)
              outs(%f : tensor<{y}>) -> tensor<{y}>
          return %y : tensor<{y}>
        }}""",
        "convert-batch-matmul",
        "canonicalize",
    )


def test_batch_matmul() -> None:
    facts = product("?x?x4xf32", "?x4x?xf32", "?x?x?xf32")
    (op,) = facts("abq.batch_matmul")
    assert op.attributes["transposed"].value == 0
    assert not facts("linalg.fill")


def test_matmul_gets_a_batch_of_one() -> None:
    facts = product("?x4xf32", "4x?xf32", "?x?xf32", op="linalg.matmul")
    (op,) = facts("abq.batch_matmul")
    assert op.results[0].type.shape[0] == 1
    assert len(facts("tensor.expand_shape")) == 2
    assert len(facts("tensor.collapse_shape")) == 1


def test_transposed_keys_are_read_by_rows() -> None:
    """[B, S, H, D] -> [B, H, D, S] of K becomes a move of whole rows and `transposed`."""
    before = """%k4 = linalg.transpose ins(%h : tensor<?x?x2x4xf32>)
              outs(%t : tensor<?x2x4x?xf32>) permutation = [0, 2, 3, 1]
          %k = tensor.collapse_shape %k4 [[0, 1], [2], [3]]
              : tensor<?x2x4x?xf32> into tensor<?x4x?xf32>"""
    facts = product("?x?x4xf32", "?x4x?xf32", "?x?x?xf32", before=before)
    (op,) = facts("abq.batch_matmul")
    assert op.attributes["transposed"].value == 1
    (transpose,) = facts("linalg.transpose")
    assert list(transpose.attributes["permutation"]) == [0, 2, 1, 3]


def test_other_accumulators_stay() -> None:
    facts = after(
        """func.func @main(%a: tensor<?x4xf32>, %c: tensor<4x?xf32>, %e: tensor<?x?xf32>)
            -> tensor<?x?xf32> {
          %y = linalg.matmul ins(%a, %c : tensor<?x4xf32>, tensor<4x?xf32>)
              outs(%e : tensor<?x?xf32>) -> tensor<?x?xf32>
          return %y : tensor<?x?xf32>
        }""",
        "convert-batch-matmul",
    )
    assert len(facts("linalg.matmul")) == 1
