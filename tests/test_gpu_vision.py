"""Operators on images on GPUs, in the PTX machine, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.driver import compile_file
from front_end.image_graph import Graph, images

onnxruntime = pytest.importorskip("onnxruntime")


def test_images(tmp_path: Path) -> None:
    graph = Graph(channels=4)
    graph.add("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    graph.add("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    graph.add("GlobalAveragePool", "x")
    graph.add("ConvTranspose", "x", graph.constant(4, 3, 3, 3), strides=[2, 2])
    graph.add("Conv", "x", graph.constant(4, 1, 3, 3), group=4)
    half, twice = (graph.value(np.array([1, 1, *s], np.float32)) for s in ((1.5, 0.5), (2, 2)))
    graph.add("Resize", "x", "", half, mode="linear")
    graph.add("Resize", "x", "", twice, mode="nearest")
    graph.add("InstanceNormalization", "x", graph.constant(4), graph.constant(4))
    source = tmp_path / "model.onnx"
    onnx.save(graph.model(), source)
    library = compile_file(source, target="sm_90a", output=tmp_path / "model.so")
    model = abqc.load(library, device="ptx-vm")
    session = onnxruntime.InferenceSession(source)
    (feeds,) = images(graph, (2, 4, 6, 5))
    for wanted, got in zip(session.run(None, feeds), model.run(feeds), strict=True):
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-4, atol=1e-4)
