"""Sampling of images, normalizations and patches, against onnxruntime or onnx's reference."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from front_end.image_graph import Graph, images
from front_end.support import check, compare
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def _model(
    nodes: list[onnx.NodeProto], shapes: dict[str, list[int | str]], opset: int = 20
) -> onnx.ModelProto:
    """Inputs are f32 but `indices`; every output of a node is one of the model."""
    types = {"indices": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
        for name, shape in shapes.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for node in nodes
        for name in node.output
    ]
    graph = helper.make_graph(nodes, "vision", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_grid_sample(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "GridSample", ["x", "grid"], [f"{mode}_{padding}_{corners}"],
            mode=mode, padding_mode=padding, align_corners=corners,
        )
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ]  # fmt: skip
    model = _model(nodes, {"x": ["b", 2, "h", "w"], "grid": ["b", "p", "q", 2]})
    random = np.random.default_rng(0)
    feeds = [
        {
            "x": random.standard_normal((batch, 2, *sides)).astype(np.float32),
            # Some points lie far outside.
            "grid": random.uniform(-2.5, 2.5, (batch, 3, 4, 2)).astype(np.float32),
        }
        for batch, sides in ((1, (5, 6)), (2, (3, 7)))
    ]
    check(model, feeds, tmp_path)


def test_regions_of_interest(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "RoiAlign", ["x", "rois", "indices"], [f"{mode}_{ratio}_{transformation}"], mode=mode,
            output_height=2, output_width=3, sampling_ratio=ratio, spatial_scale=0.5,
            coordinate_transformation_mode=transformation,
        )
        for mode in ("avg", "max")
        for ratio in (0, 2)
        for transformation in ("half_pixel", "output_half_pixel")
    ]  # fmt: skip
    nodes.append(
        helper.make_node(
            "MaxRoiPool", ["x", "boxes"], ["pool"], pooled_shape=[2, 3], spatial_scale=0.5
        )
    )
    shapes: dict[str, list[int | str]] = {
        "x": ["b", 2, "h", "w"], "rois": ["r", 4], "indices": ["r"], "boxes": ["k", 5],
    }  # fmt: skip
    random = np.random.default_rng(0)
    corners = random.uniform(0, 16, (5, 2, 2)).astype(np.float32)
    rois = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    indices = np.array([0, 1, 0, 1, 1], np.int64)
    feeds = {
        "x": random.standard_normal((2, 2, 9, 8)).astype(np.float32),
        "rois": rois,
        "indices": indices,
        "boxes": np.concatenate([indices[:, None].astype(np.float32), rois], axis=1),
    }
    check(_model(nodes, shapes), [feeds], tmp_path)


def test_an_image_that_is_not_there_is_an_error_of_the_run(tmp_path: Path) -> None:
    node = helper.make_node("RoiAlign", ["x", "rois", "indices"], ["y"], name="align")
    model = _model([node], {"x": ["b", 1, 4, 4], "rois": ["r", 4], "indices": ["r"]})
    compiled = check(model, [], tmp_path)
    feeds = {
        "x": np.ones((1, 1, 4, 4), np.float32),
        "rois": np.array([[0, 0, 2, 2]], np.float32),
        "indices": np.array([3], np.int64),
    }
    with pytest.raises(abqc.AbqcError, match=r"'align'.*out of range"):
        compiled.run(feeds)


def test_normalizations(tmp_path: Path) -> None:
    graph = Graph(channels=6)
    c = graph.constant
    variance = graph.value(np.abs(graph.numbers(6)) + np.float32(0.1))
    graph.add("BatchNormalization", "x", c(6), c(6), c(6), variance, epsilon=1e-3)
    graph.add("InstanceNormalization", "x", c(6), c(6))
    graph.add("GroupNormalization", "x", c(6), c(6), num_groups=3)
    graph.add("LRN", "x", size=3, alpha=0.5, beta=0.6, bias=1.5)
    graph.add("LRN", "x", size=4)
    model = graph.model(opset=21)
    onnx.save(model, tmp_path / "model.onnx")
    compiled = abqc.compile(tmp_path / "model.onnx")
    reference = ReferenceEvaluator(model)
    for feeds in images(graph, (2, 6, 4, 5), (1, 6, 3, 7)):
        # The reference's LRN takes the batch for the channels.
        expected = [*reference.run(None, feeds)[:3], _lrn(feeds["x"], 3, 0.5, 0.6, 1.5)]
        expected.append(_lrn(feeds["x"], 4, 1e-4, 0.75, 1.0))
        compare(compiled, feeds, expected)


def _lrn(x: np.ndarray, size: int, alpha: float, beta: float, bias: float) -> np.ndarray:
    low, channels = (size - 1) // 2, x.shape[1]
    sums = np.zeros_like(x)
    for c in range(channels):
        sums[:, c] = (x[:, max(0, c - low) : c + size - low] ** 2).sum(axis=1)
    return (x / (bias + alpha / size * sums) ** beta).astype(np.float32)


def test_pixels_as_channels_and_patches(tmp_path: Path) -> None:
    graph = Graph(channels=8)
    for mode in ("DCR", "CRD"):
        graph.add("DepthToSpace", "x", blocksize=2, mode=mode)
    graph.add("SpaceToDepth", "x", blocksize=2)
    check(graph.model(), images(graph, (2, 8, 4, 6), (1, 8, 2, 2)), tmp_path)


def test_deformed_convolution(tmp_path: Path) -> None:
    node = helper.make_node(
        "DeformConv", ["x", "w", "offset", "b", "mask"], ["y"],
        offset_group=2, group=2, pads=[1, 0, 1, 0], strides=[1, 2],
    )  # fmt: skip
    shapes: dict[str, list[int | str]] = {
        "x": ["n", 4, "h", "w"], "w": [6, 2, 3, 2], "offset": ["n", 24, "p", "q"], "b": [6],
        "mask": ["n", 12, "p", "q"],
    }  # fmt: skip
    model = _model([node], shapes)
    random = np.random.default_rng(0)
    sizes = {"x": (2, 4, 5, 6), "w": (6, 2, 3, 2), "offset": (2, 24, 5, 3), "b": (6,),
             "mask": (2, 12, 5, 3)}  # fmt: skip
    feeds = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    compiled = check(model, [], tmp_path)
    compare(compiled, feeds, ReferenceEvaluator(model).run(None, feeds))
