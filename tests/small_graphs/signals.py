"""Spectra as speech front ends write them, and pooling of dynamic images."""

from __future__ import annotations

import numpy as np

from .graph import Graph, graph, node, normal, scalar


def spectra() -> dict[str, Graph]:
    """STFT was refused, its static form crashed the kernel compiler; DFT was refused."""
    constants = {"hop": scalar(16), "w": np.hanning(64).astype(np.float32), "len": scalar(64)}
    flat = [node("STFT", "x hop w", "y", "stft", onesided=1)]
    deep = [node("STFT", "x hop w len", "y", "stft", onesided=1)]
    f32 = np.float32
    feeds_2d = [{"x": normal(1, 640)}]
    feeds_3d = [{"x": normal(1, 640, 1)}]
    graphs = {
        "stft_2d_open": graph(
            flat, [("x", f32, ["b", "n"])], "y", constants, [*feeds_2d, {"x": normal(2, 100)}]
        ),
        "stft_2d": graph(flat, [("x", f32, [1, 640])], "y", constants, feeds_2d),
        "stft_3d": graph(deep, [("x", f32, [1, 640, 1])], "y", constants, feeds_3d),
        "stft_3d_open": graph(
            deep, [("x", f32, ["b", "n", 1])], "y", constants, [*feeds_3d, {"x": normal(2, 99, 1)}]
        ),
    }
    padded = [node("DFT", "x len", "y", "dft", axis=2, onesided=1)]
    plain = [node("DFT", "x", "y", "dft", axis=2, onesided=1)]
    graphs["dft_padded"] = graph(
        padded, [("x", f32, ["b", "f", 400, 1])], "y", {"len": scalar(512)},
        [{"x": normal(2, 3, 400, 1)}],
    )  # fmt: skip
    graphs["dft_plain"] = graph(
        plain, [("x", f32, ["b", "f", 512, 1])], "y", {}, [{"x": normal(1, 2, 512, 1)}]
    )
    return graphs


def pool_same() -> dict[str, Graph]:
    """MaxPool with SAME_UPPER and strides on an image of dynamic size: refused."""
    made = node("MaxPool", "x", "y", "pool", kernel_shape=[2, 2], strides=[2, 2],
                auto_pad="SAME_UPPER")  # fmt: skip
    x = [("x", np.float32, ["n", 3, "h", "w"])]
    feeds = [{"x": normal(1, 3, 9, 12)}, {"x": normal(2, 3, 4, 1)}]
    return {"max_pool_same": graph([made], x, "y", {}, feeds, opset=12)}
