from facts import Facts, after, maker


def repeated(
    sizes: str = "?x3x3x?x8",
    reads: str = "(d0, d1, 0, d3, d4)",
    source: str = "?x3x1x?x8",
    body: str = "linalg.yield %i : f32",
    argument: str = "",
    expand: str = "",
    steps: str = "",
) -> Facts:
    """`%k`, of `argument` and expanded to `source`, repeated to `sizes`."""
    matrix = f"?x{sizes.split('x')[3]}x8"
    return after(
        f"""
#id = affine_map<(d0, d1, d2, d3, d4) -> (d0, d1, d2, d3, d4)>
#repeat = affine_map<(d0, d1, d2, d3, d4) -> {reads}>
func.func @main(%q: tensor<?x?x8xf32>, %{"k0" if expand else "k"}: tensor<{argument or source}xf32>,
    %e: tensor<{sizes}xf32>, %b: index, %t: index) -> tensor<?x?x?xf32> {{
  {expand}
  %w = linalg.generic {{indexing_maps = [#repeat, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]}}
      ins(%k : tensor<{source}xf32>) outs(%e : tensor<{sizes}xf32>) {{
    ^bb0(%i: f32, %o: f32):
      {body}
  }} -> tensor<{sizes}xf32>
  {steps}
  %c = tensor.collapse_shape %{"z" if steps else "w"} [[0, 1, 2], [3], [4]]
      : tensor<{sizes}xf32> into tensor<{matrix}xf32>
  %y = "abq.batch_matmul"(%q, %c) {{transposed = 1 : i64}}
      : (tensor<?x?x8xf32>, tensor<{matrix}xf32>) -> tensor<?x?x?xf32>
  return %y : tensor<?x?x?xf32>
}}""",
        "share-heads",
        "func.func(canonicalize,cse)",
    )


def test_repeated_heads_are_shared() -> None:
    """The cache [B, Hk, T, D] itself is the batch."""
    expand = """%k = tensor.expand_shape %k0 [[0], [1], [2, 3], [4]] output_shape [%b, 3, 1, %t, 8]
        : tensor<?x3x?x8xf32> into tensor<?x3x1x?x8xf32>"""
    facts = repeated(argument="?x3x?x8", expand=expand)
    (product,) = facts("abq.batch_matmul")
    collapse = product.operands[1].owner
    assert collapse.name == "tensor.collapse_shape" and maker(collapse.operands[0]) == "argument"
    assert not facts("linalg.generic") and not facts("tensor.expand_shape")


def test_a_source_that_was_not_expanded() -> None:
    facts = repeated()
    assert not facts("linalg.generic") and len(facts("tensor.collapse_shape")) == 1


STEPS = """
  %e1 = tensor.empty(%b, %t) : tensor<?x3x3x8x?xf32>
  %e2 = tensor.empty(%b, %t) : tensor<?x3x3x?x8xf32>
  %t1 = linalg.transpose ins(%w : tensor<?x3x3x?x8xf32>) outs(%e1 : tensor<?x3x3x8x?xf32>)
      permutation = [0, 1, 2, 4, 3]
  %half = arith.constant 0.5 : f32
  %s = linalg.generic {indexing_maps = [#id, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel"]}
      ins(%t1 : tensor<?x3x3x8x?xf32>) outs(%e1 : tensor<?x3x3x8x?xf32>) {
    ^bb0(%i: f32, %o: f32):
      INDEX
      %m = arith.mulf %i, %f : f32
      linalg.yield %m : f32
  } -> tensor<?x3x3x8x?xf32>
  %z = linalg.transpose ins(%s : tensor<?x3x3x8x?xf32>) outs(%e2 : tensor<?x3x3x?x8xf32>)
      permutation = ORDER
"""
ALIKE = "%f = arith.mulf %half, %half : f32"
BY_HEAD = """%d = linalg.index 2 : index
      %w64 = arith.index_cast %d : index to i64
      %f = arith.sitofp %w64 : i64 to f32"""


def with_steps(index: str = ALIKE) -> Facts:
    return repeated(steps=STEPS.replace("INDEX", index).replace("ORDER", "[0, 1, 2, 4, 3]"))


def test_what_is_done_to_every_matrix_is_done_once() -> None:
    facts = with_steps()
    (loop,) = facts("linalg.generic")
    assert list(loop.results[0].type.shape)[1:3] == [3, 8]  # heads of the cache, columns
    assert len(facts("linalg.transpose")) == 2 and len(facts("arith.mulf")) == 1


def test_what_differs_by_head_stays() -> None:
    facts = with_steps(BY_HEAD)
    assert len(facts("linalg.generic")) == 2


def test_one_head_for_all() -> None:
    assert not repeated("?x1x9x?x8", source="?x1x1x?x8")("linalg.generic")


def test_other_repetitions_stay() -> None:
    """Of the outer axis (heads that follow each other do not share), with arithmetic, of rows."""
    outer = repeated("?x3x4x?x8", "(d0, 0, d2, d3, d4)", "?x1x4x?x8")
    negated = repeated(body="%n = arith.negf %i : f32\n linalg.yield %n : f32")
    rows = repeated("?x3x3x5x8", "(d0, d1, d2, 0, d4)", "?x3x3x1x8")
    swapped = repeated("?x?x3x?x8", "(d1, d0, 0, d3, d4)", "?x?x1x?x8")
    for facts in outer, negated, rows, swapped:
        assert len(facts("linalg.generic")) == 1
