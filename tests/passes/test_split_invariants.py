import pytest
from abqc.passes.loops.generics import iterators
from facts import Facts, after

IMAGE = "tensor<?x8x?x?xf32>"
GATE = """%1 = arith.addf %g, %half : f32
  %2 = arith.maximumf %1, %zero : f32
  %3 = arith.minimumf %2, %one : f32
  %4 = arith.divf %3, %half : f32
"""


def split(body: str, gate: str = "b, c, 0") -> Facts:
    """A loop over an image %x and its channels' gates %s."""
    text = f"""func.func @main(%x: {IMAGE}, %s: tensor<?x8x1xf32>, %h: index, %w: index)
        -> {IMAGE} {{
      %half = arith.constant 0.5 : f32
      %c0 = arith.constant 0 : index
      %b = tensor.dim %x, %c0 : {IMAGE}
      %y = tensor.empty(%b, %h, %w) : {IMAGE}
      %z = linalg.generic {{indexing_maps = [affine_map<(b, c, h, w) -> (b, c, h, w)>,
          affine_map<(b, c, h, w) -> ({gate})>, affine_map<(b, c, h, w) -> (b, c, h, w)>],
          iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
        ins(%x, %s : {IMAGE}, tensor<?x8x1xf32>) outs(%y : {IMAGE}) {{
      ^bb0(%a: f32, %g: f32, %out: f32):
        %zero = arith.constant 0.0 : f32
        %one = arith.constant 1.0 : f32
        {body}
        linalg.yield %5 : f32
      }} -> {IMAGE}
      return %z : {IMAGE}
    }}"""
    return after(text, "split-invariants", "func.func(canonicalize,cse)")


def test_gates_of_channels_are_computed_once() -> None:
    facts = split(GATE + "%5 = arith.mulf %a, %4 : f32")
    few, all_ = facts("linalg.generic")
    assert len(iterators(few)) == 2 and len(iterators(all_)) == 4
    bodies = [[inner.operation.name for inner in op.regions[0].blocks[0]] for op in (few, all_)]
    made = ["arith.addf", "arith.maximumf", "arith.minimumf", "arith.divf", "linalg.yield"]
    assert bodies == [made, ["arith.mulf", "linalg.yield"]]
    assert str(few.results[0].type) == "tensor<?x8xf32>"


@pytest.mark.parametrize(
    "change",
    [
        {"body": "%5 = arith.mulf %a, %g : f32"},  # LLVM hoists what there is
        {"body": GATE + "%5 = arith.mulf %a, %4 : f32", "gate": "b, h, 0"},
        {"body": GATE + "%5 = arith.mulf %a, %4 : f32", "gate": "b, c, w"},
        {"body": GATE + "%6 = arith.mulf %a, %3 : f32\n%5 = arith.mulf %6, %4 : f32"},  # two
    ],
)
def test_others_stay(change: dict[str, str]) -> None:
    (op,) = split(**change)("linalg.generic")
    assert len(iterators(op)) == 4
