"""A constant vector that is added to a product becomes its bias, and nothing else does."""

from __future__ import annotations

import pytest
from facts import after

X, Y, VECTOR = "tensor<?x8xf32>", "tensor<?x4xf32>", "tensor<4xf32>"


def added(*, bias: str, map_: str = "(d1)", other_reader: bool = False) -> str:
    constant = (
        "" if bias == "%argument" else f'%bias = "abq.weight"() {{sym = "b"}} : () -> {VECTOR}'
    )
    returned = "%p, %y" if other_reader else "%y, %y"
    return f"""func.func @main(%x: {X}, %argument: {VECTOR}, %init: {Y}) -> ({Y}, {Y}) {{
      %w = "abq.weight"() {{sym = "w"}} : () -> tensor<4x8xf32>
      {constant}
      %p = "abq.matmul"(%x, %w) {{node = "product",
          operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}} : ({X}, tensor<4x8xf32>) -> {Y}
      %y = linalg.generic {{indexing_maps = [affine_map<(d0, d1) -> {map_}>,
          affine_map<(d0, d1) -> (d0, d1)>, affine_map<(d0, d1) -> (d0, d1)>],
          iterator_types = ["parallel", "parallel"]}}
          ins({bias}, %p : {VECTOR}, {Y}) outs(%init : {Y}) {{
      ^bb0(%a: f32, %b: f32, %o: f32):
        %s = arith.addf %a, %b : f32
        linalg.yield %s : f32
      }} -> {Y}
      return {returned} : {Y}, {Y}
    }}"""


def test_a_constant_vector_becomes_the_bias() -> None:
    facts = after(added(bias="%bias"), "fuse-bias")
    (matmul,) = facts("abq.matmul")
    assert matmul.opview.bias is not None
    assert not facts("linalg.generic")


@pytest.mark.parametrize(
    "text",
    [added(bias="%argument"), added(bias="%bias", other_reader=True)],
    ids=["not constant", "read elsewhere"],
)
def test_other_sums_stay(text: str) -> None:
    facts = after(text, "fuse-bias")
    assert facts("abq.matmul")[0].opview.bias is None
    assert len(facts("linalg.generic")) == 1
