"""A run with hostile sizes ends with an error: it neither crashes nor strays."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx_models as models
import pytest
from abqc.errors import AbqcError, InputError
from abqc.runtime.tensor_spec import TensorSpec
from ir_model import build
from onnx_models import node


def run(text: str, inputs: dict[str, np.ndarray], rank: int, path: Path) -> np.ndarray:
    specs = [TensorSpec(name, x.dtype.name, (None,) * x.ndim) for name, x in inputs.items()]
    output = TensorSpec("y", "int8", (None,) * rank)
    with abqc.load(build(text, specs, [output], path)) as model:
        return model.run(inputs)[0]


def endless(size: int, file: Path) -> np.ndarray:
    """An array of any size that takes no memory: of a file that is one hole. (Rows of stride 0
    would be copied.)"""
    with open(file, "wb") as hole:
        hole.truncate(size)
    return np.memmap(file, np.int8, "r", shape=(size,))


OUTER = """
#x = affine_map<(i, j) -> (i)>
#y = affine_map<(i, j) -> (j)>
#out = affine_map<(i, j) -> (i, j)>
func.func @main(%x: tensor<?xi8>, %y: tensor<?xi8>) -> tensor<?x?xi8> {
  %c0 = arith.constant 0 : index
  %n = tensor.dim %x, %c0 : tensor<?xi8>
  %m = tensor.dim %y, %c0 : tensor<?xi8>
  %nn = arith.muli %n, %n : index
  %empty = tensor.empty(%n, %m) : tensor<?x?xi8>
  %r = linalg.generic {indexing_maps = [#x, #y, #out], iterator_types = ["parallel", "parallel"]}
      ins(%x, %y : tensor<?xi8>, tensor<?xi8>) outs(%empty : tensor<?x?xi8>) {
  ^bb0(%a: i8, %b: i8, %o: i8):
    %s = arith.addi %a, %b : i8
    linalg.yield %s : i8
  } -> tensor<?x?xi8>
  return %r : tensor<?x?xi8>
}
"""


def test_products_of_sizes_that_wrap_around(tmp_path: Path) -> None:
    """2^33 * 2^31 bytes are 0 in 64 bits."""
    x, y = np.ones(3, np.int8), np.arange(5, dtype=np.int8)
    assert run(OUTER, {"x": x, "y": y}, 2, tmp_path / "y.so").tolist() == [[1, 2, 3, 4, 5]] * 3
    with pytest.raises(InputError, match="a tensor would be larger than any memory"):
        x, y = (endless(2**bits, tmp_path / f"{bits}") for bits in (33, 31))
        run(OUTER, {"x": x, "y": y}, 2, tmp_path / "y.so")


FROM_DATA = """
func.func @main(%k: tensor<i64>, %d: tensor<i64>) -> tensor<?xi8> {
  %ki = tensor.extract %k[] : tensor<i64>
  %n = arith.index_cast %ki : i64 to index
  %di = tensor.extract %d[] : tensor<i64>
  %by = arith.index_cast %di : i64 to index
  %part = affine.apply affine_map<()[n, d] -> (n floordiv d)>()[%n, %by]
  %one = arith.constant 1 : i8
  %empty = tensor.empty(%part) : tensor<?xi8>
  %y = linalg.fill ins(%one : i8) outs(%empty : tensor<?xi8>) -> tensor<?xi8>
  return %y : tensor<?xi8>
}
"""


def test_sizes_that_data_decide(tmp_path: Path) -> None:
    def result(k: int, d: int) -> int:
        inputs = {"k": np.array(k), "d": np.array(d)}
        return len(run(FROM_DATA, inputs, 1, tmp_path / "y.so"))

    assert result(7, 2) == 3
    assert result(7, 0) == 0  # a division by zero is guarded
    with pytest.raises(InputError, match="a size is negative"):
        result(-7, 2)
    with pytest.raises(InputError, match="larger than any memory"):
        result(2**62, 1)


@pytest.mark.parametrize("name", ["widen", 'größer "x" \\ y'])
def test_memory_that_is_not_there_is_of_a_node(name: str, tmp_path: Path) -> None:
    proto = models.model(
        [node("Expand", "x s", "wide", name), node("Transpose", "wide", "y", perm=[1, 0])],
        [("x", np.float32, ["n"]), ("s", np.int64, [2])],
        [("y", np.float32, ["a", "b"])],
    )
    with abqc.compile(models.save(proto, tmp_path)) as model:
        x = np.ones(4, np.float32)
        with pytest.raises(AbqcError) as caught:
            model.run({"x": x, "s": np.array([1 << 41, 4])})
        assert str(caught.value).startswith(
            f"node '{name}': out of memory for 35184372088832 bytes"
        )
        (y,) = model.run({"x": x, "s": np.array([3, 4])})
        assert y.shape == (4, 3)
