from facts import Facts, after, maker


def transposed(order: str = "[0, 2, 1, 3]", shape: str = "?x4x?x8", more: str = "") -> Facts:
    return after(
        f"""
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#blocks = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3, d4)>
#swapped = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, 1, d4)>
func.func @main(%x: tensor<?x?x4x8xf32>, %b: index, %n: index, %e: tensor<{shape}xf32>,
    %e5: tensor<?x4x?x2x4xf32>, %k: tensor<{shape}xf32>)
    -> (tensor<{shape}xf32>, tensor<?x4x?x2x4xf32>, tensor<?x?x?x?xf32>) {{
  %t = linalg.transpose ins(%x : tensor<?x?x4x8xf32>) outs(%e : tensor<{shape}xf32>)
      permutation = {order}
  %y = linalg.generic {{indexing_maps = [#id, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins(%t : tensor<{shape}xf32>) outs(%e : tensor<{shape}xf32>) {{
    ^bb0(%i: f32, %o: f32):
      %v = math.exp %i : f32
      linalg.yield %v : f32
  }} -> tensor<{shape}xf32>
  {more}
  return %y, %z, %w : tensor<{shape}xf32>, tensor<?x4x?x2x4xf32>, tensor<?x?x?x?xf32>
}}""",
        "fold-transposes",
        "func.func(canonicalize,cse)",
    )


NOTHING = """%z = tensor.empty(%b, %n) : tensor<?x4x?x2x4xf32>
  %w = tensor.empty(%b, %b, %b, %b) : tensor<?x?x?x?xf32>"""
BLOCKS = """%t5 = tensor.expand_shape %t [[0], [1], [2], [3, 4]] output_shape [%b, 4, %n, 2, 4]
      : tensor<?x4x?x8xf32> into tensor<?x4x?x2x4xf32>
  %z = linalg.generic {indexing_maps = [#swapped, #blocks],
      iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]}
      ins(%t5 : tensor<?x4x?x2x4xf32>) outs(%e5 : tensor<?x4x?x2x4xf32>) {
    ^bb0(%i: f32, %o: f32):
      linalg.yield %i : f32
  } -> tensor<?x4x?x2x4xf32>
  %w = tensor.empty(%b, %b, %b, %b) : tensor<?x?x?x?xf32>"""
OTHER = """%z = tensor.empty(%b, %n) : tensor<?x4x?x2x4xf32>
  %w = tensor.cast %t : tensor<?x4x?x8xf32> to tensor<?x?x?x?xf32>"""


def reads(loop) -> list[str]:
    return [str(map_) for map_ in loop.attributes["indexing_maps"]]


def test_a_loop_reads_the_source() -> None:
    facts = transposed(more=NOTHING)
    assert not facts("linalg.transpose")
    (loop,) = facts("linalg.generic")
    assert maker(loop.operands[0]) == "argument"
    assert reads(loop)[0] == "affine_map<(d0, d1, d2, d3) -> (d0, d2, d1, d3)>"


def test_blocks_of_the_last_axis_are_read_in_place_too() -> None:
    facts = transposed(more=BLOCKS)
    assert not facts("linalg.transpose")
    _, loop = facts("linalg.generic")
    assert maker(loop.operands[0]) == "tensor.expand_shape"
    assert reads(loop)[0] == "affine_map<(d0, d1, d2, d3, d4) -> (d0, d2, d1, 1, d4)>"


def test_transposes_that_others_read_stay() -> None:
    assert len(transposed(more=OTHER)("linalg.transpose")) == 1


def test_transposes_of_the_last_axis_stay() -> None:
    facts = transposed("[0, 3, 1, 2]", "?x8x?x4", NOTHING)
    assert len(facts("linalg.transpose")) == 1
