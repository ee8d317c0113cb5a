"""Conv, ConvTranspose and what is folded into them, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from front_end.image_graph import Graph, images
from front_end.support import check


def test_convolutions_of_dynamic_images(tmp_path: Path) -> None:
    graph = Graph(channels=3)
    c = graph.constant
    graph.add("Conv", "x", c(8, 3, 3, 3), c(8), pads=[1, 1, 1, 1])
    graph.add("Conv", "x", c(4, 3, 5, 5), strides=[4, 4], pads=[2, 2, 2, 2], dilations=[1, 2])
    graph.add("Conv", "x", c(6, 1, 3, 2), c(6), group=3, strides=[2, 1], auto_pad="SAME_UPPER")
    graph.add("Conv", "x", c(4, 3, 3, 3), strides=[2, 3], auto_pad="SAME_LOWER")
    graph.add("Conv", "x", c(2, 3, 2, 2), auto_pad="VALID")
    graph.add("ConvTranspose", "x", c(3, 4, 2, 2), c(4), strides=[2, 2])
    graph.add("ConvTranspose", "x", c(3, 4, 3, 3), strides=[2, 3], auto_pad="SAME_UPPER")
    graph.add(
        "ConvTranspose", "x", c(3, 2, 4, 3), c(6),
        group=3, strides=[3, 2], pads=[0, 1, 2, 1], dilations=[2, 1], output_padding=[1, 0],
    )  # fmt: skip
    check(graph.model(), images(graph, (2, 3, 17, 13), (1, 3, 12, 21), (0, 3, 12, 12)), tmp_path)


def test_weights_that_only_a_run_knows(tmp_path: Path) -> None:
    graph = Graph(channels=4)

    for shape in ((6, 4, 3, 3), (8, 2, 3, 2)):
        weights = graph.add("Mul", graph.constant(*shape), _one(graph), show=False)
        graph.add("Conv", "x", weights, graph.constant(shape[0]), group=4 // shape[1])
    weights = graph.add("Mul", graph.constant(4, 3, 3, 2), _one(graph), show=False)
    graph.add("ConvTranspose", "x", weights, strides=[2, 3], dilations=[2, 1], pads=[1, 0, 0, 1])
    check(graph.model(), images(graph, (2, 4, 9, 8), (1, 4, 6, 11)), tmp_path)


def _one(graph: Graph) -> str:
    """1, which depends on the input: cos(0 * sum)."""
    total = graph.add("ReduceSum", "x", show=False, keepdims=0)
    zero = graph.value(np.array(0, np.float32))
    return graph.add("Cos", graph.add("Mul", total, zero, show=False), show=False)


def test_what_follows_is_folded_under_fresh_names(tmp_path: Path) -> None:
    """The model has initializers of the names that folding wants to make up."""
    graph = Graph(channels=3)
    c = graph.constant
    taken = c(5, 3, 1, 1, name="fc/weight")
    bias = c(5, name="fc/bias")
    y = graph.add("Conv", "x", c(5, 3, 3, 3), show=False, name="fc")
    variance = graph.value(np.abs(graph.numbers(5)) + np.float32(0.1))
    y = graph.add("BatchNormalization", y, c(5), c(5), c(5), variance, show=False)
    y = graph.add("Mul", y, c(5, 1, 1), show=False)
    graph.add("Add", y, c(1, 5, 1, 1))
    graph.add("Conv", "x", taken, bias)
    y = graph.add("ConvTranspose", "x", c(3, 5, 3, 3), show=False)
    graph.add("BatchNormalization", y, c(5), c(5), c(5), variance)
    check(graph.model(), images(graph, (2, 3, 7, 6)), tmp_path)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int, tmp_path: Path) -> None:
    graph = Graph(channels=2, rank=rank)
    window = [3, 2, 2][:rank]
    graph.add("Conv", "x", graph.constant(4, 2, *window), graph.constant(4), strides=[2] * rank)
    graph.add("ConvTranspose", "x", graph.constant(2, 3, *window), strides=[2] * rank)
    graph.add("MaxPool", "x", kernel_shape=window, strides=[2] * rank, ceil_mode=1)
    graph.add("AveragePool", "x", kernel_shape=window, pads=[1] * (2 * rank))
    check(graph.model(), images(graph, (1, 2, *[7, 5, 6][:rank])), tmp_path)


def test_what_follows_a_convolution_element_by_element(tmp_path: Path) -> None:
    graph = Graph(channels=8)
    c = graph.constant

    def conv(x: str, *shape: int, **attributes: object) -> str:
        return graph.add("Conv", x, c(*shape), c(shape[0]), show=False, **attributes)

    same = {"pads": [1, 1, 1, 1]}
    for activation in ("HardSwish", "Gelu", "Mish", "Softplus"):
        graph.add(activation, conv("x", 8, 8, 3, 3, **same))
    y = conv("x", 8, 8, 3, 3, **same)
    graph.add("Mul", y, graph.add("Sigmoid", y, show=False))
    graph.add("PRelu", conv("x", 12, 8, 1, 1), c(12, 1, 1))
    # A residual that is computed after the convolution, and one that is a convolution.
    y = graph.add("Relu", conv("x", 8, 8, 3, 3, **same), show=False)
    graph.add("Add", conv(y, 8, 1, 3, 3, group=8, **same), graph.add("Tanh", "x", show=False))
    graph.add("Relu", graph.add("Add", conv("x", 6, 8, 1, 1), conv("x", 6, 8, 1, 1), show=False))
    # Squeeze and excite: what is pooled is read again, what the gate is for elsewhere is not.
    y = graph.add("Relu", conv("x", 8, 8, 3, 3, **same), show=False)
    gate = conv(graph.add("GlobalAveragePool", y, show=False), 8, 8, 1, 1)
    gate = graph.add("HardSigmoid", gate, show=False)
    graph.add("Mul", y, gate)
    graph.add("Add", graph.add("Mul", conv("x", 8, 8, 1, 1), gate, show=False), "x")
    y = conv("x", 8, 2, 3, 3, group=4, strides=[2, 2], **same)
    graph.add("Mul", graph.add("Clip", y, show=False), graph.add("ReduceMean", "x", show=False))
    model = check(
        graph.model(20), images(graph, (2, 8, 17, 13), (1, 8, 12, 40), (3, 8, 4, 5)), tmp_path
    )
    kernels = [launch["kernel"] for launch in model.manifest["launches"]]
    assert sum("epilogue" in kernel for kernel in kernels) >= 11
    (feeds,) = images(graph, (2, 8, 33, 29))
    for one, two in zip(model.run(feeds, threads=1), model.run(feeds, threads=2), strict=True):
        assert np.array_equal(one, two)


def test_what_follows_a_convolution_of_one_axis(tmp_path: Path) -> None:
    graph = Graph(channels=4, rank=1)
    c = graph.constant
    y = graph.add("Conv", "x", c(4, 4, 5), c(4), pads=[2, 2], show=False)
    y = graph.add("Mul", y, graph.add("Sigmoid", y, show=False), show=False)
    graph.add("Add", y, "x")
    y = graph.add("Conv", "x", c(6, 4, 3), strides=[3], show=False)
    graph.add("Relu", graph.add("Add", y, c(6, 1), show=False))
    model = check(graph.model(), images(graph, (2, 4, 50), (1, 4, 333)), tmp_path)
    kernels = [launch["kernel"] for launch in model.manifest["launches"]]
    assert sum("epilogue" in kernel for kernel in kernels) == 2
