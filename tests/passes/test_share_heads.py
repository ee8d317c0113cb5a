from facts import Facts, after, maker


def repeated(
    sizes: str = "?x3x3x?x8",
    reads: str = "(d0, d1, 0, d3, d4)",
    source: str = "?x3x1x?x8",
    body: str = "linalg.yield %i : f32",
    argument: str = "",
    expand: str = "",
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
  %c = tensor.collapse_shape %w [[0, 1, 2], [3], [4]]
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
