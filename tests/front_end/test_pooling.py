"""Pools, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from front_end.image_graph import Graph, images
from front_end.support import check
from onnx import TensorProto, helper


def test_pools_of_dynamic_images(tmp_path: Path) -> None:
    graph = Graph(channels=3)
    for operator in ("MaxPool", "AveragePool"):
        graph.add(
            operator, "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1
        )
        graph.add(operator, "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
        graph.add(operator, "x", kernel_shape=[2, 3], strides=[1, 3], auto_pad="SAME_LOWER")
    graph.add("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    graph.add("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 3])
    graph.add("LpPool", "x", kernel_shape=[3, 2], p=3, strides=[2, 1], pads=[1, 0, 1, 1])
    graph.add("GlobalAveragePool", "x")
    graph.add("GlobalMaxPool", "x")
    graph.add("GlobalLpPool", "x", p=1)
    check(graph.model(), images(graph, (2, 3, 9, 8), (1, 3, 6, 11), (0, 3, 6, 6)), tmp_path)


def test_a_window_beyond_the_padding_divides_by_what_it_has(tmp_path: Path) -> None:
    graph = Graph(channels=1, rank=1)
    graph.add(
        "AveragePool", "x",
        kernel_shape=[7], strides=[3], pads=[3, 3], ceil_mode=1, count_include_pad=1,
    )  # fmt: skip
    given = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 9)
    compiled = check(graph.model(opset=19), [], tmp_path)
    (result,) = compiled.run({"x": given})
    np.testing.assert_allclose(result[0, 0], [10 / 7, 4, 39 / 7, 4], rtol=1e-6)


def test_indices_of_maxima(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a", "ia"], kernel_shape=[2, 3], pads=[1, 1, 0, 1]),
        helper.make_node(
            "MaxPool", ["x"], ["b", "ib"],
            kernel_shape=[2, 2], strides=[2, 2], dilations=[1, 2], storage_order=1,
        ),
    ]  # fmt: skip
    types = {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT}
    outputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.INT64), None)
        for name in ("a", "ia", "b", "ib")
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "h", "w"])
    graph = helper.make_graph(nodes, "maxima", [x], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    random = np.random.default_rng(0)
    feeds = [{"x": random.integers(0, 5, (n, 2, 6, 7)).astype(np.float32)} for n in (1, 3)]
    check(model, feeds, tmp_path)
