"""Graphs rebuilt from public bug reports against other compilers, and names that collide."""

from __future__ import annotations

import numpy as np

from .graph import Graph, graph, node, normal


def pooling() -> dict[str, Graph]:
    """With ceil_mode the last window may leave the padded input; only what lies in it counts."""
    ramp = np.arange(1, 10, dtype=np.float32)[None, None]
    average = node(
        "AveragePool", "x", "y", kernel_shape=[7], strides=[3], pads=[3, 3], ceil_mode=1,
        count_include_pad=1,
    )  # fmt: skip
    means = np.array([[[10 / 7, 4, 39 / 7, 4]]], np.float32)
    largest = node(
        "MaxPool", "x", "y", kernel_shape=[3] * 3, strides=[3] * 3, pads=[1] * 6, ceil_mode=1
    )
    return {
        "average_pool_ceil": graph(
            [average], [("x", np.float32, [1, 1, 9])], "y", {}, [{"x": ramp}], 19, expected=[means]
        ),
        "average_pool_ceil_open": graph(
            [average], [("x", np.float32, [1, 1, "n"])], "y", {}, [{"x": ramp}], 19,
            expected=[means],
        ),
        "max_pool_3d_ceil": graph(
            [largest], [("x", np.float32, [1, 2, 3, 6, 5])], "y", {}, [{"x": normal(1, 2, 3, 6, 5)}]
        ),
    }  # fmt: skip


def transposed_convolution() -> dict[str, Graph]:
    """SAME_UPPER with strides and output_padding: 3x3 becomes 6x6."""
    made = node(
        "ConvTranspose", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3],
        output_padding=[1, 1],
    )  # fmt: skip
    x = [("x", np.float32, [1, 1, 3, 3])]
    feeds = [{"x": normal(1, 1, 3, 3)}]
    return {"conv_transpose_same": graph([made], x, "y", {"w": normal(1, 2, 3, 3)}, feeds)}


def quantized_weights() -> dict[str, Graph]:
    """MatMulNBits with zero points; DequantizeLinear in blocks."""
    rows, k, n = 3, 2048, 4
    constants = {
        "b": np.full((n, 4, 256), 0x22, np.uint8),  # two codes of 2 in a byte
        "s": np.full(n * 4, 0.5, np.float32),
        "z": np.full(n * 2, 0x33, np.uint8),
    }
    made = node(
        "MatMulNBits", "x b s z", "y", domain="com.microsoft", K=k, N=n, bits=4, block_size=512
    )
    x = normal(rows, k)
    sums = np.repeat(-0.5 * x.sum(axis=1, keepdims=True, dtype=np.float64), n, axis=1)
    blocked = node("DequantizeLinear", "x s z", "y", axis=1, block_size=2)
    codes = np.full((1, 8), 9, np.uint8)
    scales = np.array([[1, 2, 3, 4]], np.float32)
    values = np.array([[8, 8, 14, 14, 18, 18, 20, 20]], np.float32)
    return {
        "matmul_nbits": graph(
            [made], [("x", np.float32, ["m", k])], "y", constants, [{"x": x}],
            domains=("com.microsoft",), expected=[sums.astype(np.float32)],
        ),
        "dequantize_blocked": graph(
            [blocked], [("x", np.uint8, [1, 8])], "y",
            {"s": scales, "z": scales.astype(np.uint8)}, [{"x": codes}], 21, expected=[values],
        ),
    }  # fmt: skip


def equations() -> dict[str, Graph]:
    """Attention scores by Einsum on dynamic sizes."""
    made = node("Einsum", "q k", "y", equation="bhqd,bhkd->bhqk")
    inputs = [("q", np.float32, ["b", 2, "q", 8]), ("k", np.float32, ["b", 2, "k", 8])]
    feeds = [{"q": normal(b, 2, q, 8), "k": normal(b, 2, 5, 8)} for b, q in ((2, 3), (1, 1))]
    return {"einsum_scores": graph([made], inputs, "y", {}, feeds)}


def colliding_names() -> dict[str, Graph]:
    """A name made up by a rewrite was one of the model's: silently the wrong weight."""
    constants = {"w": normal(8, 6), "fc/weight": normal(8, 6, seed=1), "b": normal(6)}
    nodes = [
        node("Gemm", "x w b", "h", "fc", alpha=0.5),
        node("MatMul", "x fc/weight", "g", "other"),
        node("Add", "h g", "y"),
    ]
    x = [("x", np.float32, ["b", 8])]
    return {"colliding_names": graph(nodes, x, "y", constants, [{"x": normal(4, 8)}])}
