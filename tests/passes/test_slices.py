"""Slices whose elements are no neighbours in memory are copied for kernels."""

from __future__ import annotations

import pytest
from abqc.codegen.targets.cuda import CudaTarget
from abqc.passes.infrastructure import Unit
from facts import after


def softmax(source: str, cut: str, result: str) -> str:
    return f"""func.func @main(%x: {source}, %k: index) -> {result} {{
      %one = arith.constant 1 : index
      %m = tensor.dim %x, %one : {source}
      %s = tensor.extract_slice %x{cut} : {source} to {result}
      %y = "abq.softmax"(%s) : ({result}) -> {result}
      return %y : {result}
    }}"""


@pytest.mark.parametrize(
    ("source", "cut", "result", "copied"),
    [
        ("tensor<?x?x8xf32>", "[0, 0, 0] [2, %m, 8] [1, 1, 1]", "tensor<2x?x8xf32>", False),
        ("tensor<?x?x8xf32>", "[1, %k, 0] [1, 3, 8] [1, 1, 1]", "tensor<1x3x8xf32>", False),
        ("tensor<?x?x8xf32>", "[1, %k, 0] [1, 3, 8] [1, 1, 1]", "tensor<3x8xf32>", False),
        ("tensor<?x?x8xf32>", "[0, 0, 0] [2, %k, 8] [1, 1, 1]", "tensor<2x?x8xf32>", True),
        ("tensor<?x?x8xf32>", "[0, 1, 0] [2, %m, 8] [1, 1, 1]", "tensor<2x?x8xf32>", True),
        ("tensor<?x?x8xf32>", "[0, 0, 0] [2, %m, 8] [2, 1, 1]", "tensor<2x?x8xf32>", True),
        ("tensor<?x?x8xf32>", "[0, 0, 2] [2, %m, 4] [1, 1, 1]", "tensor<2x?x4xf32>", True),
        ("tensor<1x?x8xf32>", "[0, 0, 0] [1, %k, 4] [1, 1, 1]", "tensor<1x?x4xf32>", True),
    ],
)
def test_parts_of_a_buffer(source: str, cut: str, result: str, copied: bool) -> None:
    facts = after(
        softmax(source, cut, result), "lower-abq", unit=Unit(target=CudaTarget.named("sm_80"))
    )
    assert bool(facts("bufferization.alloc_tensor")) == copied
    assert facts.calls() == ["softmax"]
