"""Reductions, running sums, and products by an equation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from front_end.support import check, model_of

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


REDUCED = """g (float[n,m,k] x, int64[2] axes, int32[n,m,k] i, bool[n,m,k] t)
  => (float[a,b,c] run, float[d] fewer, float[n,k] mean, float[n,1,1] lse, float l2, int32[n,k] p,
      float[n,m,k] square, int32[m,k] largest) {
  run = ReduceSum (x, axes)
  fewer = ReduceMean <keepdims = 0> (x, axes)
  mean = ReduceMean <keepdims = 0> (x, middle)
  lse = ReduceLogSumExp (x, inner)
  l2 = ReduceL2 <keepdims = 0> (x)
  p = ReduceProd <keepdims = 0> (i, middle)
  square = ReduceSumSquare <noop_with_empty_axes = 1> (x)
  largest = ReduceMax <keepdims = 0> (i, first)
}"""


def test_reductions_over_axes_that_a_run_gives(tmp_path: Path) -> None:
    model = model_of(REDUCED)
    for name, axes in (("middle", [1]), ("inner", [1, -1]), ("first", [0])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes), name))
    feeds = [
        {
            "x": normal(*shape) * 50, "axes": np.array(axes),
            "i": RNG.integers(-3, 4, shape).astype(np.int32), "t": RNG.random(shape) < 0.5,
        }
        for shape, axes in (((2, 3, 4), [0, 2]), ((5, 1, 3), [-1, 1]), ((1, 6, 2), [0, 1]))
    ]  # fmt: skip
    check(model, feeds, tmp_path, tolerance=1e-3)


SCANS = """g (float[n,m] x, int64 axis, int64[n,m] i)
  => (float[n,m] a, float[n,m] b, float[n,m] c, int64[n,m] d) <int64 zero = {0}, int64 one = {1}> {
  a = CumSum (x, one)
  b = CumSum <exclusive = 1, reverse = 1> (x, zero)
  c = CumSum (x, axis)
  d = CumSum <reverse = 1> (i, one)
}"""


def test_running_sums(tmp_path: Path) -> None:
    feeds = [
        {"x": normal(n, m), "axis": np.array(axis), "i": RNG.integers(-9, 9, (n, m))}
        for n, m, axis in ((3, 5, 1), (70, 130, 0), (1, 1, -1), (0, 4, 0))
    ]
    check(model_of(SCANS), feeds, tmp_path)


EQUATIONS = (
    "bij,bjk->bik", "bij,jk->bik", "bhqd,bhkd->bhqk", "ij,ij->", "ij->ji", "ii->i", "iij->j",
    "i,j->ij", "...ij,...j->...i", "bij,bjk", "b...,b...->...", "ij,jk,kl->il", "abc,cd,bd->ad",
)  # fmt: skip


@pytest.mark.parametrize("group", range(4))
def test_equations(group: int, tmp_path: Path) -> None:
    sizes = dict(zip("abcdhijklq", (2, 3, 4, 5, 2, 3, 4, 5, 6, 7), strict=True))
    nodes, inputs, outputs, feeds = [], [], [], {}
    for number, equation in enumerate(EQUATIONS[group::4]):
        names = []
        for at, term in enumerate(equation.split("->")[0].split(",")):
            shape = [sizes[letter] for letter in term.replace("...", "h")]
            names.append(f"x{number}_{at}")
            feeds[names[-1]] = normal(*shape)
            symbols = [f"{names[-1]}.{axis}" for axis in range(len(shape))]
            inputs.append(onnx.helper.make_tensor_value_info(names[-1], 1, symbols))
        nodes.append(onnx.helper.make_node("Einsum", names, [f"y{number}"], equation=equation))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{number}", 1, None))
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    check(model, [feeds], tmp_path)
