"""Resize, against onnxruntime; what it lacks, against onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from front_end.image_graph import Graph, images
from front_end.support import check, compare
from onnx.reference import ReferenceEvaluator

SHAPES = ((1, 2, 5, 6), (2, 2, 8, 3))


def _floats(graph: Graph, *numbers: float) -> str:
    return graph.value(np.array(numbers, np.float32))


def test_scales(tmp_path: Path) -> None:
    graph = Graph(channels=2)
    for scales in ((1, 1, 2, 3), (1, 1, 0.6, 1.7), (1, 1, 1, 0.5)):
        known = _floats(graph, *scales)
        for mode, transformation in (
            ("nearest", "half_pixel"), ("nearest", "asymmetric"), ("linear", "half_pixel"),
            ("linear", "pytorch_half_pixel"), ("cubic", "half_pixel"), ("cubic", "asymmetric"),
        ):  # fmt: skip
            graph.add(
                "Resize", "x", "", known, mode=mode, coordinate_transformation_mode=transformation
            )
    for rounding in ("floor", "ceil", "round_prefer_ceil"):
        graph.add("Resize", "x", "", _floats(graph, 1, 1, 2, 2), mode="nearest",
                  nearest_mode=rounding, coordinate_transformation_mode="asymmetric")  # fmt: skip
    graph.add("Resize", "x", "", _floats(graph, 1, 1, 0.8, 0.8), mode="cubic", exclude_outside=1,
              cubic_coeff_a=-0.5)  # fmt: skip
    check(graph.model(), images(graph, *SHAPES), tmp_path)


def test_sizes(tmp_path: Path) -> None:
    graph = Graph(channels=2)
    fixed = graph.value(np.array([7, 4], np.int64))
    for attributes in (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "nearest"},
        {"mode": "cubic"},
    ):
        graph.add("Resize", "x", "", "", fixed, axes=[2, 3], **attributes)
    # The size of another image, which only a run knows.
    shape = graph.add("Shape", "x", show=False)
    ends = [graph.value(np.array([n], np.int64)) for n in (2, 4)]
    sides = graph.add("Slice", shape, *ends, show=False)
    twice = graph.add("Mul", sides, graph.value(np.array([2], np.int64)), show=False)
    graph.add("Resize", "x", "", "", twice, axes=[2, 3], mode="linear")
    graph.add("Resize", "x", "", "", twice, axes=[2, 3], mode="nearest")
    check(graph.model(), images(graph, *SHAPES), tmp_path)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias(mode: str, tmp_path: Path) -> None:
    graph = Graph(channels=2)
    graph.add("Resize", "x", "", _floats(graph, 1, 1, 0.4, 0.7), mode=mode, antialias=1)
    graph.add("Resize", "x", "", _floats(graph, 1, 1, 0.4, 0.7), mode=mode, antialias=1,
              exclude_outside=1)  # fmt: skip
    sizes = graph.value(np.array([3, 9], np.int64))
    graph.add("Resize", "x", "", "", sizes, axes=[2, 3], mode=mode, antialias=1)
    model = graph.model()
    compiled = check(model, [], tmp_path)
    reference = ReferenceEvaluator(model)
    for feeds in images(graph, *SHAPES):
        compare(compiled, feeds, reference.run(None, feeds))


def test_old_operators(tmp_path: Path) -> None:
    for opset, operator in ((9, "Upsample"), (10, "Resize")):
        graph = Graph(channels=2)
        graph.add(operator, "x", _floats(graph, 1, 1, 2, 3), mode="nearest")
        graph.add(operator, "x", _floats(graph, 1, 1, 2, 2), mode="linear")
        folder = tmp_path / operator
        folder.mkdir()
        check(graph.model(opset), images(graph, *SHAPES), folder)


def test_a_scale_that_is_not_positive_is_refused(tmp_path: Path) -> None:
    import abqc
    import onnx

    graph = Graph(channels=2)
    graph.add("Resize", "x", "", _floats(graph, 1, 1, -1, 2), mode="nearest", name="up")
    onnx.save(graph.model(), tmp_path / "model.onnx")
    with pytest.raises(abqc.AbqcError, match=r"scale of axis 2 is -1\.0.*'up'"):
        abqc.compile(tmp_path / "model.onnx")
