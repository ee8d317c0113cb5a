"""Tensors of types that numpy lacks go into onnxruntime and come back."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.compiler.onnxruntime_values import run_session
from onnx import TensorProto, helper

onnxruntime = pytest.importorskip("onnxruntime")
ml_dtypes = pytest.importorskip("ml_dtypes")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_there_and_back(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    number = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "main",
        [helper.make_tensor_value_info("x", number, ["n", 2])],
        [helper.make_tensor_value_info("y", number, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert number != TensorProto.UNDEFINED
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.array([[1, -2], [0.5, 3], [0, 4]]).astype(dtype)
    (y,) = run_session(session, {"x": x})
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))
