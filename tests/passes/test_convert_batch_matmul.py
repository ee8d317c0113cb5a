from abqc.codegen.targets.cpu import CpuTarget
from abqc.passes.infrastructure import Unit
from facts import Facts, after, maker


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


WIDEN = """%k = linalg.generic {indexing_maps = [#map, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}
      ins(%c : tensor<2x4x8xTYPE>) outs(%e : tensor<2x4x8xf32>) {
    ^bb0(%i: TYPE, %o: f32):
      %w = arith.extf %i : TYPE to f32
      linalg.yield %w : f32
  } -> tensor<2x4x8xf32>"""


def widened_product(type_: str, read: str = "(d0, d1, d2)", unit: Unit | None = None) -> Facts:
    return after(
        f"""
#id = affine_map<(d0, d1, d2) -> (d0, d1, d2)>
#map = affine_map<(d0, d1, d2) -> {read}>
func.func @main(%a: tensor<2x?x4xf32>, %c: tensor<2x4x8x{type_}>, %e: tensor<2x4x8xf32>,
    %z: tensor<2x?x8xf32>) -> tensor<2x?x8xf32> {{
  %zero = arith.constant 0.0 : f32
  {WIDEN.replace("TYPE", type_)}
  %f = linalg.fill ins(%zero : f32) outs(%z : tensor<2x?x8xf32>) -> tensor<2x?x8xf32>
  %y = linalg.batch_matmul ins(%a, %k : tensor<2x?x4xf32>, tensor<2x4x8xf32>)
      outs(%f : tensor<2x?x8xf32>) -> tensor<2x?x8xf32>
  return %y : tensor<2x?x8xf32>
}}""",
        "convert-batch-matmul",
        "canonicalize",
        unit=unit or Unit(target=CpuTarget()),
    )


def test_what_is_stored_in_16_bits_is_read_so() -> None:
    for type_ in ("f16", "bf16"):
        facts = widened_product(type_)
        (op,) = facts("abq.batch_matmul")
        assert maker(op.operands[1]) == "argument" and not facts("linalg.generic")


def test_a_target_without_such_kernels_gets_f32() -> None:
    facts = widened_product("f16", unit=Unit(target=CpuTarget(cache_types=("f32",))))
    assert len(facts("linalg.generic")) == 1
