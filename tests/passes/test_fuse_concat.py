from facts import Facts, after

HIGH = "%x[0, 0, 4] [%n, 3, 4] [1, 1, 1]"


NEGATED = "%v = arith.negf %i : f32"
BY_COLUMN = """%d = linalg.index 2 : index
      %w = arith.index_cast %d : index to i64
      %f = arith.sitofp %w : i64 to f32
      %v = arith.mulf %i, %f : f32"""


def rotated(
    high: str = HIGH,
    parts: str = "%turned, %low",
    consumer: bool = True,
    body: str = NEGATED,
) -> Facts:
    """`concat(-x[.., 4:], x[.., :4])`, times `c`."""
    result = "y" if consumer else "r"
    return after(
        f"""
#id = affine_map<(d0, d1, d2) -> (d0, d1, d2)>
#of_all = affine_map<(d0, d1, d2) -> (d0, 0, d2)>
func.func @main(%n: index, %m: index, %z: tensor<?x3x8xf32>, %c: tensor<?x1x8xf32>,
    %e: tensor<?x3x4xf32>) -> tensor<?x3x8xf32> {{
  %empty = tensor.empty(%n) : tensor<?x3x8xf32>
  %x = linalg.generic {{indexing_maps = [#id, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%z : tensor<?x3x8xf32>) outs(%empty : tensor<?x3x8xf32>) {{
    ^bb0(%i: f32, %o: f32):
      %v = math.exp %i : f32
      linalg.yield %v : f32
  }} -> tensor<?x3x8xf32>
  %high = tensor.extract_slice {high} : tensor<?x3x8xf32> to tensor<?x3x4xf32>
  %low = tensor.extract_slice %x[0, 0, 0] [%n, 3, 4] [1, 1, 1]
      : tensor<?x3x8xf32> to tensor<?x3x4xf32>
  %turned = linalg.generic {{indexing_maps = [#id, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%high : tensor<?x3x4xf32>) outs(%e : tensor<?x3x4xf32>) {{
    ^bb0(%i: f32, %o: f32):
      {body}
      linalg.yield %v : f32
  }} -> tensor<?x3x4xf32>
  %r = tensor.concat dim(2) {parts}
      : (tensor<?x3x4xf32>, tensor<?x3x4xf32>) -> tensor<?x3x8xf32>
  %y = linalg.generic {{indexing_maps = [#id, #of_all, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%r, %c : tensor<?x3x8xf32>, tensor<?x1x8xf32>) outs(%empty : tensor<?x3x8xf32>) {{
    ^bb0(%i: f32, %j: f32, %o: f32):
      %d = linalg.index 2 : index
      %w = arith.index_cast %d : index to i64
      %f = arith.sitofp %w : i64 to f32
      %p = arith.mulf %i, %j : f32
      %v = arith.addf %p, %f : f32
      linalg.yield %v : f32
  }} -> tensor<?x3x8xf32>
  return %{result} : tensor<?x3x8xf32>
}}""",
        "fuse-concat",
        "func.func(canonicalize,cse,linalg-fuse-elementwise-ops,canonicalize,cse)",
    )


def test_halves_in_another_order_are_one_loop_with_what_reads_them() -> None:
    facts = rotated()
    assert not facts("tensor.concat") and not facts("tensor.extract_slice")
    _, loop = facts("linalg.generic")
    assert loop.operands[0] == loop.operands[1]  # both halves, from one tensor in blocks
    assert len(facts("arith.select")) == 1
    indices = [op.attributes["dim"].value for op in facts("linalg.index")]
    assert sorted(set(indices)) == [2, 3]  # the block, and for the reader's index both


def test_what_nothing_elementwise_reads_is_a_loop_all_the_same() -> None:
    facts = rotated(consumer=False)
    assert not facts("tensor.concat") and len(facts("arith.select")) == 1
    assert len(facts("tensor.collapse_shape")) == 1


def test_columns_of_a_part_count_within_it() -> None:
    facts = rotated(body=BY_COLUMN, consumer=False)
    assert not facts("tensor.concat")
    (cast,) = facts("arith.index_cast")
    assert cast.operands[0].owner.attributes["dim"].value == 3


def test_one_tensor_twice_needs_no_choice() -> None:
    facts = rotated(parts="%low, %low")
    assert not facts("tensor.concat") and not facts("arith.select")


def test_other_concats_stay() -> None:
    """Of several tensors, of slices that are no whole blocks, or cut along other axes too."""
    for facts in (
        rotated(parts="%turned, %e"),
        rotated(high="%x[0, 0, 3] [%n, 3, 4] [1, 1, 1]"),
        rotated(high="%x[1, 0, 4] [%n, 3, 4] [1, 1, 1]"),
        rotated(high="%x[0, 0, 0] [%n, 3, 4] [1, 1, 2]"),
        rotated(high="%x[0, 0, 4] [%m, 3, 4] [1, 1, 1]"),
    ):
        assert len(facts("tensor.concat")) == 1
