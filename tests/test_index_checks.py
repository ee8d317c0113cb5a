"""Checks inside of kernels: an index out of range is an error of the run that names the node."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.errors import InputError
from abqc.runtime.model import Model
from abqc.runtime.tensor_spec import TensorSpec
from ir_model import build

# y[r, c] = table[index[r], c] + bias[other[r]], two checks in one kernel; z: a sum of what a loop
# inside of the body finds.
TEXT = """
#id = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> (d0)>
#all = affine_map<(d0) -> (d0)>
#none = affine_map<(d0) -> ()>
func.func @main(%table: tensor<?x8xf32>, %index: tensor<?xi64>, %other: tensor<?xi64>,
                %bias: tensor<5xf32>) -> (tensor<?x8xf32>, tensor<f32>) {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %c5 = arith.constant 5 : index
  %zero = arith.constant 0.0 : f32
  %rows = tensor.dim %index, %c0 : tensor<?xi64>
  %size = tensor.dim %table, %c0 : tensor<?x8xf32>
  %empty = tensor.empty(%rows) : tensor<?x8xf32>
  %y = linalg.generic {indexing_maps = [#row, #row, #id], iterator_types = ["parallel", "parallel"]}
      ins(%index, %other : tensor<?xi64>, tensor<?xi64>) outs(%empty : tensor<?x8xf32>) {
  ^bb0(%i: i64, %j: i64, %out: f32):
    %at = arith.index_cast %i : i64 to index
    %ok = arith.cmpi ult, %at, %size : index
    cf.assert %ok, "node 'Gather_3': index out of range"
    %column = linalg.index 1 : index
    %v = tensor.extract %table[%at, %column] : tensor<?x8xf32>
    %to = arith.index_cast %j : i64 to index
    %fine = arith.cmpi ult, %to, %c5 : index
    cf.assert %fine, "node 'Gather_4': index out of range"
    %b = tensor.extract %bias[%to] : tensor<5xf32>
    %sum = arith.addf %v, %b : f32
    linalg.yield %sum : f32
  } -> tensor<?x8xf32>
  %start = tensor.empty() : tensor<f32>
  %filled = linalg.fill ins(%zero : f32) outs(%start : tensor<f32>) -> tensor<f32>
  %z = linalg.generic {indexing_maps = [#all, #none], iterator_types = ["reduction"]}
      ins(%index : tensor<?xi64>) outs(%filled : tensor<f32>) {
  ^bb0(%i: i64, %acc: f32):
    %at = arith.index_cast %i : i64 to index
    %last = scf.for %k = %c0 to %c5 step %c1 iter_args(%best = %zero) -> (f32) {
      %near = arith.remui %k, %size : index
      %both = arith.maxui %at, %near : index
      %ok = arith.cmpi ult, %both, %size : index
      cf.assert %ok, "node 'Loop_5': index out of range"
      %v = tensor.extract %table[%both, %c0] : tensor<?x8xf32>
      %more = arith.maximumf %best, %v : f32
      scf.yield %more : f32
    }
    %sum = arith.addf %acc, %last : f32
    linalg.yield %sum : f32
  } -> tensor<f32>
  return %y, %z : tensor<?x8xf32>, tensor<f32>
}
"""
INPUTS = [
    TensorSpec("table", "float32", ("size", 8)),
    TensorSpec("index", "int64", ("rows",)),
    TensorSpec("other", "int64", ("rows",)),
    TensorSpec("bias", "float32", (5,)),
]
OUTPUTS = [TensorSpec("y", "float32", ("rows", 8)), TensorSpec("z", "float32", ())]

TABLE = np.random.default_rng(0).random((7, 8), np.float32)
BIAS = np.arange(5, dtype=np.float32)


@pytest.fixture(scope="module", params=["cpu", "sm_80"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("checks") / "checks.so"
    build(TEXT, INPUTS, OUTPUTS, path, target=request.param)
    return abqc.load(path, threads=2, device=None if request.param == "cpu" else "ptx-vm")


def run(model: Model, index: list[int], other: list[int]) -> list[np.ndarray]:
    return model.run([TABLE, np.array(index, np.int64), np.array(other, np.int64), BIAS])


def check_results(model: Model, index: list[int], other: list[int]) -> None:
    y, z = run(model, index, other)
    np.testing.assert_array_equal(y, TABLE[index] + BIAS[other][:, None])
    expected = sum(TABLE[i:5, 0].max() if i < 5 else TABLE[i, 0] for i in index)
    np.testing.assert_allclose(z, expected, rtol=1e-5)


def test_indices_in_range(model: Model) -> None:
    check_results(model, [0, 6, 3], [4, 0, 1])
    check_results(model, [], [])


@pytest.mark.parametrize("bad", [7, -1, 2**62, -(2**63)])
def test_an_index_out_of_range_names_the_node(model: Model, bad: int) -> None:
    for index in ([bad, 0], [0, 0, bad], [1] * 3000 + [bad]):
        with pytest.raises(InputError, match=r"^node '(Gather_3|Loop_5)': index out of range$"):
            run(model, index, [0] * len(index))
    check_results(model, [1, 2], [3, 4])  # the next run starts afresh


def test_the_second_check_of_a_kernel(model: Model) -> None:
    with pytest.raises(InputError, match=r"^node 'Gather_4': index out of range$"):
        run(model, [1, 2, 3], [0, 5, 0])


def test_the_same_error_is_reported_whatever_the_order_of_threads(model: Model) -> None:
    messages = set()
    for _ in range(20):
        with pytest.raises(InputError) as caught:
            run(model, [1] * 5000 + [9], [7] + [1] * 5000)
        messages.add(str(caught.value))
    assert len(messages) == 1
