import pytest
from abqc.codegen.targets.cpu import CpuTarget
from abqc.dialects.abq_conv import pool_spec
from abqc.dialects.mlir import ir
from abqc.dialects.pool_spec import PoolSpec
from abqc.passes.infrastructure import Unit
from facts import Facts, after, maker

STEPS = "y * 2 + r, x * 3 + q * 2"
MAXIMUM = "%z = arith.maximumf %a, %top : f32"


def pooled(
    *,
    steps: str = STEPS,
    body: str = MAXIMUM,
    lowest: str = "0xFF800000",
    around: str = "0xFF800000",
    first: str = "0, 0, 1, 2",
) -> Facts:
    """A pool of %x, which lies in a larger image that is `around` elsewhere."""
    text = f"""func.func @main(%x: tensor<?x4x?x9xf32>, %b: index, %r: index, %h: index, %p: index)
        -> tensor<?x4x?x3xf32> {{
      %around = arith.constant {around} : f32
      %lowest = arith.constant {lowest} : f32
      %0 = tensor.empty(%b, %p) : tensor<?x4x?x12xf32>
      %1 = linalg.fill ins(%around : f32) outs(%0 : tensor<?x4x?x12xf32>) -> tensor<?x4x?x12xf32>
      %2 = tensor.insert_slice %x into %1[{first}] [%b, 4, %r, 9] [1, 1, 1, 1]
        : tensor<?x4x?x9xf32> into tensor<?x4x?x12xf32>
      %3 = tensor.empty(%b, %h) : tensor<?x4x?x3xf32>
      %4 = linalg.fill ins(%lowest : f32) outs(%3 : tensor<?x4x?x3xf32>) -> tensor<?x4x?x3xf32>
      %window = tensor.empty() : tensor<3x2x1xf32>
      %y = linalg.generic {{indexing_maps = [
          affine_map<(b, c, y, x, r, q) -> (b, c, {steps})>,
          affine_map<(b, c, y, x, r, q) -> (r, q, 0)>,
          affine_map<(b, c, y, x, r, q) -> (b, c, y, x)>],
          iterator_types = ["parallel", "parallel", "parallel", "parallel",
                            "reduction", "reduction"]}}
        ins(%2, %window : tensor<?x4x?x12xf32>, tensor<3x2x1xf32>)
        outs(%4 : tensor<?x4x?x3xf32>) {{
      ^bb0(%a: f32, %w: f32, %top: f32):
        {body}
        linalg.yield %z : f32
      }} -> tensor<?x4x?x3xf32>
      return %y : tensor<?x4x?x3xf32>
    }}"""
    return after(text, "convert-max-pool", unit=Unit(target=CpuTarget()))


def before(op: ir.Operation) -> list[int]:
    return list(ir.DenseI64ArrayAttr(op.attributes["before"]))


def test_what_is_around_the_image_is_part_of_the_pool() -> None:
    facts = pooled()
    (op,) = facts("abq.max_pool")
    assert pool_spec(op.opview) == PoolSpec((3, 2), (2, 3), (1, 2))
    assert before(op) == [1, 2] and maker(op.operands[0]) == "argument"
    assert not facts("linalg.generic") and not facts("tensor.insert_slice")


@pytest.mark.parametrize("change", [{"around": "0.0"}, {"first": "0, 0, %h, 2"}])
def test_other_surroundings_are_read(change: dict[str, str]) -> None:
    facts = pooled(**change)
    (op,) = facts("abq.max_pool")
    assert before(op) == [0, 0] and maker(op.operands[0]) == "tensor.insert_slice"


@pytest.mark.parametrize(
    "change",
    [
        {"lowest": "0.0"},
        {"body": "%z = arith.addf %a, %top : f32"},
        {"body": "%m = arith.negf %a : f32\n%z = arith.maximumf %m, %top : f32"},
        {"steps": "x * 2 + r, y * 3 + q"},
        {"steps": "y + r - 1, x + q"},
        {"steps": "y * 2 + r, x * 4000 + q"},  # which no kernel has on the stack
    ],
    ids=lambda change: ", ".join(change),
)
def test_other_loops_stay(change: dict[str, str]) -> None:
    facts = pooled(**change)
    assert len(facts("linalg.generic")) == 1 and not facts("abq.max_pool")
