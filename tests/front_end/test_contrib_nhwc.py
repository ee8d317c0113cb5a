"""Convolutions with their channels last are those of ONNX's Conv, turned around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from front_end.contrib_forms import Arrays, Form, check, floats
from front_end.oracle import expected
from onnx import TensorProto, helper

F32 = np.float32


def convolved(x: np.ndarray, w: np.ndarray, bias: np.ndarray, **attributes: Any) -> np.ndarray:
    """onnxruntime's Conv of x [N, H, W, C], as [N, H, W, M]."""
    arrays = {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2)), "w": w, "b": bias}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in arrays.items()
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Conv", list(arrays), ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "graph", inputs, [y]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip
    return expected(model, arrays)[0].transpose(0, 2, 3, 1)


GROUPED = {"strides": [2, 1], "pads": [1, 0, 1, 2], "group": 2}


def grouped(a: Arrays) -> Sequence[np.ndarray]:
    w = np.ascontiguousarray(a["w"].transpose(0, 3, 1, 2))
    return [convolved(a["x"], w, a["bias"], **GROUPED)]


FORMS = {
    "conv": Form(
        "NhwcConv", [{"x": floats(2, 7, 6, 4)}, {"x": floats(1, 3, 3, 4)}], {"y": F32},
        {"w": floats(6, 3, 3, 2), "bias": floats(6)}, sizes={"x": "n h w _"},
        attributes={**GROUPED, "kernel_shape": [3, 3]}, reference=grouped,
    ),
    "fused": Form(
        "NhwcFusedConv", [{"x": floats(2, 7, 6, 4), "z": floats(2, 5, 4, 6)}] * 2, {"y": F32},
        {"w": floats(6, 4, 3, 3), "bias": floats(6)}, ["x", "w", "bias", "z"],
        attributes={"activation": "Relu"},
        reference=lambda a: [np.maximum(convolved(a["x"], a["w"], a["bias"]) + a["z"], 0)],
    ),
}  # fmt: skip


def test_agrees_with_conv(tmp_path: Path) -> None:
    check(FORMS, tmp_path)
