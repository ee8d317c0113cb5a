import pytest
from abqc.passes.loops.generics import iterators
from facts import Facts, after


def collapsed(x: str = "b, c, h, w", *, body: str = "", out: str = "b, c") -> Facts:
    text = f"""func.func @main(%x: tensor<?x8x?x?xf32>, %s: tensor<8xf32>, %y: tensor<?x8xf32>)
        -> tensor<?x8xf32> {{
      %z = linalg.generic {{indexing_maps = [affine_map<(b, c, h, w) -> ({x})>,
          affine_map<(b, c, h, w) -> (c)>, affine_map<(b, c, h, w) -> ({out})>],
          iterator_types = ["parallel", "parallel", "reduction", "reduction"]}}
        ins(%x, %s : tensor<?x8x?x?xf32>, tensor<8xf32>) outs(%y : tensor<?x8xf32>) {{
      ^bb0(%a: f32, %b: f32, %sum: f32):
        %m = arith.mulf %a, %b : f32
        {body}
        %t = arith.addf %m, %sum : f32
        linalg.yield %t : f32
      }} -> tensor<?x8xf32>
      return %z : tensor<?x8xf32>
    }}"""
    return after(text, "collapse-reductions")


def test_an_image_is_one_axis() -> None:
    facts = collapsed()
    (op,) = facts("linalg.generic")
    assert iterators(op) == ["parallel", "parallel", "reduction"]
    (joined,) = facts("tensor.collapse_shape")
    assert list(joined.results[0].type.shape)[1:] == [8, joined.results[0].type.shape[2]]


@pytest.mark.parametrize(
    "change",
    [{"x": "b, c, w, h"}, {"x": "h, c, b, w"}, {"body": "%i = linalg.index 2 : index"}],
)
def test_others_stay(change: dict[str, str]) -> None:
    facts = collapsed(**change)
    assert len(iterators(facts("linalg.generic")[0])) == 4 and not facts("tensor.collapse_shape")
