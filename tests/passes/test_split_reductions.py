import pytest
from abqc.passes.loops.generics import expression, maps
from facts import Facts, after, maker
from test_fuse_epilogues import IMAGE, conv

BODY = """%s = arith.mulf %a, %c : f32
  %e = math.exp %s : f32"""


def split(body: str = BODY, *, extra: str = "") -> Facts:
    """The mean of what `body` makes of a convolution, times a number for each channel."""
    text = f"""func.func @main(%p: tensor<?x4x?x?xf32>, %k: tensor<288xf32>, %bias: tensor<8xf32>,
        %h: index, %w: index, %init: tensor<?x8xf32>, %slope: tensor<8xf32>)
        -> (tensor<?x8xf32>, {IMAGE}) {{
      {conv("x")}
      %y = linalg.generic {{indexing_maps = [affine_map<(b, c, y, x) -> (b, c, y, x)>,
          affine_map<(b, c, y, x) -> (c)>, affine_map<(b, c, y, x) -> (b, c)>],
          iterator_types = ["parallel", "parallel", "reduction", "reduction"]}}
        ins(%x, %slope : {IMAGE}, tensor<8xf32>) outs(%init : tensor<?x8xf32>) {{
      ^bb0(%a: f32, %c: f32, %sum: f32):
        {body}
        %z = arith.addf %e, %sum : f32
        linalg.yield %z : f32
      }} -> tensor<?x8xf32>
      %q = tensor.empty(%h, %h, %h) : {IMAGE}
      {extra}
      return %y, %q : tensor<?x8xf32>, {IMAGE}
    }}"""
    return after(text, "split-reductions")


def test_what_is_done_to_elements_is_a_loop() -> None:
    facts = split()
    elements, mean = facts("linalg.generic")
    assert maker(elements.operands[0]) == "abq.direct_conv"
    assert expression(elements) == ("math.exp", ("arith.mulf", ("in", 0), ("in", 1)))
    assert [list(map(str, map_.results)) for map_ in maps(elements)][1] == ["d1"]
    assert expression(mean) == ("arith.addf", ("in", 0), ("out",))
    assert mean.operands[0] == elements.results[0]


@pytest.mark.parametrize("also", ["", "%d = tensor.dim %wide, %h : tensor<?x8x1x?x?xf32>"])
def test_axes_of_size_1_are_added_again(also: str) -> None:
    text = f"""func.func @main(%p: tensor<?x4x?x?xf32>, %k: tensor<288xf32>, %bias: tensor<8xf32>,
        %h: index, %w: index, %init: tensor<?x8x1xf32>) -> tensor<?x8x1xf32> {{
      {conv("x")}
      %wide = tensor.expand_shape %x [[0], [1, 2], [3], [4]] output_shape [%h, 8, 1, %h, %w]
        : {IMAGE} into tensor<?x8x1x?x?xf32>
      {also}
      %y = linalg.generic {{indexing_maps = [affine_map<(b, c, u, y, x) -> (b, c, u, y, x)>,
          affine_map<(b, c, u, y, x) -> (b, c, u)>],
          iterator_types = ["parallel", "parallel", "parallel", "reduction", "reduction"]}}
        ins(%wide : tensor<?x8x1x?x?xf32>) outs(%init : tensor<?x8x1xf32>) {{
      ^bb0(%a: f32, %sum: f32):
        %e = math.exp %a : f32
        %z = arith.addf %e, %sum : f32
        linalg.yield %z : f32
      }} -> tensor<?x8x1xf32>
      return %y : tensor<?x8x1xf32>
    }}"""
    facts = after(text, "split-reductions")
    elements, mean = facts("linalg.generic")
    assert maker(elements.operands[0]) == "abq.direct_conv"
    assert maker(mean.operands[0]) == "tensor.expand_shape"
    assert len(facts("tensor.expand_shape")) == 1 + bool(also)  # which asks for a size


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ("%e = arith.addf %a, %sum : f32", ""),  # of the sum so far
        (
            "%i = linalg.index 3 : index\n%j = arith.index_cast %i : index to i32\n"
            "%f = arith.sitofp %j : i32 to f32\n%e = arith.mulf %a, %f : f32",
            "",
        ),
        (BODY, f"%again = tensor.cast %x : {IMAGE} to tensor<?x?x?x?xf32>"),  # others read it
    ],
)
def test_other_reductions_stay(body: str, extra: str) -> None:
    assert len(split(body, extra=extra)("linalg.generic")) == 1
