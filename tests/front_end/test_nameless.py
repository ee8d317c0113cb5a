"""Marks of unknown sizes are no names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from front_end.support import check
from onnx import TensorProto, helper


def test_equal_marks_are_no_equal_sizes(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["?", "?", "None", -1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["?", "?", "?", "?"])
    graph = helper.make_graph([node], "marks", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    feeds = [{"x": np.ones(shape, np.float32)} for shape in ((1, 2, 3, 4), (4, 3, 2, 1))]
    check(model, feeds, tmp_path)
