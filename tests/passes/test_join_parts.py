from pathlib import Path

import numpy as np
from facts import Facts, after
from front_end.support import check, model_of

ROTATE = """%p = arith.mulf %a, %c : f32
      %q = arith.mulf %b, %s : f32
      %v = arith.subf %p, %q : f32"""
BY_COLUMN = """%d = linalg.index 2 : index
      %w = arith.index_cast %d : index to i64
      %f = arith.sitofp %w : i64 to f32
      %p = arith.mulf %a, %f : f32
      %q = arith.mulf %b, %s : f32
      %v = arith.subf %p, %q : f32"""


def rotated(
    *,
    low: str = "%x[0, 0, 0] [%n, 3, 4] [1, 1, 1]",
    operands: str = "%high, %low, %cos, %sin",
    body: str = ROTATE,
    concat: str = "dim(2) %first, %second",
    result: str = "tensor<?x3x8xf32>",
    used: str = "%r",
) -> Facts:
    """`concat(low * cos - high * sin, high * cos - low * sin)`."""
    return after(
        f"""
#id = affine_map<(d0, d1, d2) -> (d0, d1, d2)>
#of_all = affine_map<(d0, d1, d2) -> (d0, 0, d2)>
func.func @main(%n: index, %x: tensor<?x3x8xf32>, %cos: tensor<?x1x4xf32>,
    %sin: tensor<?x1x4xf32>) -> (tensor<?x3x4xf32>, {result}) {{
  %e = tensor.empty(%n) : tensor<?x3x4xf32>
  %high = tensor.extract_slice %x[0, 0, 4] [%n, 3, 4] [1, 1, 1]
      : tensor<?x3x8xf32> to tensor<?x3x4xf32>
  %low = tensor.extract_slice {low} : tensor<?x3x8xf32> to tensor<?x3x4xf32>
  %first = linalg.generic {{indexing_maps = [#id, #id, #of_all, #of_all, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%low, %high, %cos, %sin : tensor<?x3x4xf32>, tensor<?x3x4xf32>, tensor<?x1x4xf32>,
          tensor<?x1x4xf32>) outs(%e : tensor<?x3x4xf32>) {{
    ^bb0(%a: f32, %b: f32, %c: f32, %s: f32, %o: f32):
      {body}
      linalg.yield %v : f32
  }} -> tensor<?x3x4xf32>
  %second = linalg.generic {{indexing_maps = [#id, #id, #of_all, #of_all, #id],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins({operands} : tensor<?x3x4xf32>, tensor<?x3x4xf32>, tensor<?x1x4xf32>,
          tensor<?x1x4xf32>) outs(%e : tensor<?x3x4xf32>) {{
    ^bb0(%a: f32, %b: f32, %c: f32, %s: f32, %o: f32):
      {ROTATE}
      linalg.yield %v : f32
  }} -> tensor<?x3x4xf32>
  %r = tensor.concat {concat} : (tensor<?x3x4xf32>, tensor<?x3x4xf32>) -> {result}
  return %e, %r : tensor<?x3x4xf32>, {result}
}}""".replace("return %e", f"return {'%first' if used == '%first' else '%e'}"),
        "join-parts",
        "func.func(canonicalize,cse)",
    )


def test_rotated_halves_are_one_loop() -> None:
    facts = rotated()
    assert not facts("tensor.concat")
    (loop,) = facts("linalg.generic")
    assert len(loop.operands) == 5 and len(facts("arith.select")) == 1
    (block,) = facts("linalg.index")
    assert block.attributes["dim"].value == 2


def test_columns_of_a_part_count_within_it() -> None:
    facts = rotated(body=BY_COLUMN, operands="%high, %low, %sin, %cos")
    assert not facts("tensor.concat")
    (cast,) = facts("arith.index_cast")
    assert cast.operands[0].owner.attributes["dim"].value == 3


def test_other_concats_stay() -> None:
    """Of loops that read something else, that others read too, along a dynamic axis."""
    for facts in (
        rotated(operands="%high, %high, %cos, %cos"),
        rotated(used="%first"),
        rotated(concat="dim(0) %first, %second", result="tensor<?x3x4xf32>"),
    ):
        assert len(facts("tensor.concat")) == 1


def test_a_rotary_embedding(tmp_path: Path) -> None:
    """One kernel, with onnxruntime's numbers."""
    model = model_of("""
        rotary (float[b, 3, t, 10] x, float[b, 1, t, 5] cos, float[b, 1, t, 5] sin)
            => (float[b, 3, t, 10] y)
        {
            low, high = Split<axis = 3, num_outputs = 2>(x)
            a = Mul(low, cos) c = Mul(high, sin) first = Sub(a, c)
            d = Mul(high, cos) e = Mul(low, sin) second = Add(d, e)
            y = Concat<axis = -1>(first, second)
        }""")
    rng = np.random.default_rng(0)
    feeds = [
        {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in (("x", (b, 3, t, 10)), ("cos", (b, 1, t, 5)), ("sin", (b, 1, t, 5)))
        }
        for b, t in ((1, 1), (2, 7), (1, 70))
    ]
    compiled = check(model, feeds, tmp_path)
    assert len(compiled.manifest["launches"]) == 1
