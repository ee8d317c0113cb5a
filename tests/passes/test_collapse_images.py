import pytest
from abqc.passes.loops.generics import iterators
from facts import Facts, after


def collapsed(
    x: str = "b, c, h, w", s: str = "b, c", width: str = "?", init: str = "%y", body: str = ""
) -> Facts:
    image = f"tensor<?x8x?x{width}xf32>"
    sizes = "%n, %n, %n" if width == "?" else "%n, %n"
    text = f"""func.func @main(%x: {image}, %s: tensor<?x8xf32>, %given: {image}, %n: index)
        -> {image} {{
      %y = tensor.empty({sizes}) : {image}
      %z = linalg.generic {{indexing_maps = [affine_map<(b, c, h, w) -> ({x})>,
          affine_map<(b, c, h, w) -> ({s})>, affine_map<(b, c, h, w) -> (b, c, h, w)>],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
        ins(%x, %s : {image}, tensor<?x8xf32>) outs({init} : {image}) {{
      ^bb0(%a: f32, %b: f32, %out: f32):
        {body}
        %m = arith.mulf %a, %b : f32
        linalg.yield %m : f32
      }} -> {image}
      return %z : {image}
    }}"""
    return after(text, "collapse-images", "func.func(canonicalize,cse)")


@pytest.mark.parametrize("width", ["?", "6"])
def test_an_image_is_one_axis(width: str) -> None:
    facts = collapsed(width=width)
    (op,) = facts("linalg.generic")
    assert iterators(op) == ["parallel"] * 3
    assert len(facts("tensor.collapse_shape")) == len(facts("tensor.expand_shape")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"x": "b, c, w, h"},
        {"s": "b, w"},
        {"width": "64"},  # rows are long
        {"init": "%given"},
        {"body": "%i = linalg.index 2 : index"},
    ],
)
def test_others_stay(change: dict[str, str]) -> None:
    (op,) = collapsed(**change)("linalg.generic")
    assert len(iterators(op)) == 4


def test_a_loop_without_axes_stays() -> None:
    text = """func.func @main(%x: tensor<f32>) -> tensor<f32> {
      %y = tensor.empty() : tensor<f32>
      %z = linalg.generic {indexing_maps = [affine_map<() -> ()>, affine_map<() -> ()>],
          iterator_types = []} ins(%x : tensor<f32>) outs(%y : tensor<f32>) {
      ^bb0(%a: f32, %out: f32):
        %m = arith.mulf %a, %a : f32
        linalg.yield %m : f32
      } -> tensor<f32>
      return %z : tensor<f32>
    }"""
    assert len(after(text, "split-invariants", "collapse-images")("linalg.generic")) == 1
