"""Transposes behind elementwise loops instead of before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from facts import Facts, after, maker
from operator_graph import Graph

RELU = """{{indexing_maps = [{reads}, #id],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins({given}) outs(%e : tensor<?x6x5x3xf32>) {{
    ^bb0(%i: f32, %g: f32, %o: f32):
      {body}
      %v = arith.addf %i, %g : f32
      linalg.yield %v : f32
  }} -> tensor<?x6x5x3xf32>"""


def sunk(
    reads: str = "#id, #channel",
    channel: str = "tensor<3xf32>",
    body: str = "",
    order: str = "[0, 2, 3, 1]",
    back: str = "[0, 3, 1, 2]",
) -> Facts:
    """(transpose, loop, transpose back) of %x; %c is what else the loop reads."""
    loop = RELU.format(reads=reads, body=body, given=f"%t, %c : tensor<?x6x5x3xf32>, {channel}")
    return after(
        f"""
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#channel = affine_map<(d0, d1, d2, d3) -> (d3)>
func.func @main(%x: tensor<?x3x6x5xf32>, %c: {channel}, %n: index) -> tensor<?x3x6x5xf32> {{
  %e = tensor.empty(%n) : tensor<?x6x5x3xf32>
  %f = tensor.empty(%n) : tensor<?x3x6x5xf32>
  %t = linalg.transpose ins(%x : tensor<?x3x6x5xf32>) outs(%e : tensor<?x6x5x3xf32>)
      permutation = {order}
  %y = linalg.generic {loop}
  %z = linalg.transpose ins(%y : tensor<?x6x5x3xf32>) outs(%f : tensor<?x3x6x5xf32>)
      permutation = {back}
  return %z : tensor<?x3x6x5xf32>
}}""",
        "sink-transposes",
        "func.func(canonicalize,cse)",
    )


def test_two_transposes_are_nothing() -> None:
    facts = sunk()
    assert not facts("linalg.transpose")
    (loop,) = facts("linalg.generic")
    assert maker(loop.operands[0]) == "argument"
    reads = [str(map_) for map_ in loop.attributes["indexing_maps"]]
    assert reads[1] == "affine_map<(d0, d1, d2, d3) -> (d1)>"


def test_what_is_read_in_the_loop_s_order_keeps_it() -> None:
    assert len(sunk("#id, #id", "tensor<?x6x5x3xf32>")("linalg.transpose")) == 2


def test_a_body_that_knows_its_place_keeps_it() -> None:
    assert len(sunk(body="%k = linalg.index 1 : index")("linalg.transpose")) == 2


def test_channels_last_between_convolutions(tmp_path: Path) -> None:
    """As models from TensorFlow have them, with a sum of two branches and gains of channels."""
    random = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    graph = Graph(x=("float32", "n", 7, 9, 3))

    def conv(x: str, w: np.ndarray) -> str:
        first = graph("Transpose", x, perm=[0, 3, 1, 2])
        return str(graph("Transpose", graph("Conv", first, w), perm=[0, 2, 3, 1]))

    a = graph("Relu", graph("Mul", conv("x", values(5, 3, 1, 1)), values(1, 1, 1, 5)))
    b = graph("Add", graph("Tanh", conv(a, values(5, 5, 1, 1))), a)
    graph("Mul", conv(graph("Relu", b), values(4, 5, 3, 3)), values(4))
    graph("ReduceMean", b, axes=[1, 2])
    graph.check(tmp_path, {"x": values(2, 7, 9, 3)})
