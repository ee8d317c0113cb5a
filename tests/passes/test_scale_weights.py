import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.abq_conv import conv_spec
from abqc.passes.infrastructure import Unit
from abqc.passes.loops.generics import expression, maps
from facts import Facts, after, maker

GATE = "%t = arith.maximumf %s, %zero : f32\n%z = arith.mulf %a, %t : f32"
# A factor of rows: the loop says nothing of it in its maps.
PLACE = """%i = linalg.index 2 : index
%n = arith.index_cast %i : index to i32
%t = arith.sitofp %n : i32 to f32
%z = arith.mulf %a, %t : f32"""


def gated(
    *,
    body: str = GATE,
    by: str = "b, 0, 0, c",
    size: str = "?x?",
    outputs: int = 16,
    extra: str = "",
) -> Facts:
    """A convolution of 1 x 1 over an image of 4 channels times what a number gives for each."""
    image, w = f"tensor<?x4x{size}xf32>", f"tensor<{outputs * 4}xf32>"
    text = f"""func.func @main(%x: {image}, %k: {w}, %bias: tensor<{outputs}xf32>, %empty: {image},
        %s: tensor<?x1x1x4xf32>, %h: index) -> tensor<?x{outputs}x{size}xf32> {{
      %zero = arith.constant 0.0 : f32
      %g = linalg.generic {{indexing_maps = [affine_map<(b, c, y, x) -> (b, c, y, x)>,
          affine_map<(b, c, y, x) -> ({by})>, affine_map<(b, c, y, x) -> (b, c, y, x)>],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
        ins(%x, %s : {image}, tensor<?x1x1x4xf32>) outs(%empty : {image}) {{
      ^bb0(%a: f32, %s1: f32, %out: f32):
        {body.replace("%s,", "%s1,")}
        linalg.yield %z : f32
      }} -> {image}
      %y = "abq.direct_conv"(%g, %k, %bias, %h, %h) ({{}}) {{
        groups = 1, window = array<i64: 1, 1>, strides = array<i64: 1, 1>,
        dilations = array<i64: 1, 1>, before = array<i64: 0, 0>, maps = [],
        operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0>}}
        : ({image}, {w}, tensor<{outputs}xf32>, index, index) -> tensor<?x{outputs}x{size}xf32>
      {extra}
      return %y : tensor<?x{outputs}x{size}xf32>
    }}"""
    return after(text, "scale-weights", unit=Unit(target=CpuTarget()))


def test_samples_have_weights() -> None:
    facts = gated()
    (conv,), (loop,) = facts("abq.direct_conv"), facts("linalg.generic")
    assert maker(conv.operands[0]) == "argument" and conv_spec(conv.opview).weights_by_sample
    assert maker(conv.operands[1]) == "tensor.collapse_shape"
    assert list(loop.results[0].type.shape)[1:] == [2, 4, 8]  # blocks, channels, outputs
    assert expression(loop)[0] == "arith.mulf" and ("in", 0) in expression(loop)
    assert [str(place) for place in maps(loop)[1].results] == ["d0", "0", "0", "d2"]


@pytest.mark.parametrize(
    "change",
    [
        {"by": "b, 0, 0, y"},
        {"body": "%z = arith.addf %a, %s1 : f32"},
        {"body": "%t = arith.negf %a : f32\n%z = arith.mulf %t, %s1 : f32"},
        {"body": PLACE},
        {"size": "3x5"},  # fewer than outputs
        {"outputs": 136},
        {"extra": "%again = tensor.dim %g, %h : tensor<?x4x?x?xf32>"},
    ],
    ids=str,
)
def test_others_stay(change: dict[str, str]) -> None:
    facts = gated(**change)  # type: ignore[arg-type]
    (conv,) = facts("abq.direct_conv")
    assert maker(conv.operands[0]) == "linalg.generic"
