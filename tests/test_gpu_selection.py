"""Sizes that depend on data, on GPUs: counted by kernels, read by the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from operator_graph import Feeds, Graph, normal
from test_gpu_operators import check


def test_chosen_elements(tmp_path: Path) -> None:
    g = Graph(x=("float32", "n", "m"), c=("bool", "m"))
    g("NonZero", "x")
    g("Compress", "x", "c", axis=1)
    g("Unique", "x", results=4)

    def feeds(n: int, m: int) -> Feeds:
        return {"x": normal(n, m).round(), "c": np.arange(m) % 3 == 1}

    check(g, tmp_path, feeds(3, 5), feeds(1, 40))


def test_boxes(tmp_path: Path) -> None:
    g = Graph(boxes=("float32", "b", "s", 4), scores=("float32", "b", "c", "s"))
    g("NonMaxSuppression", "boxes", "scores", *_limits())

    def feeds(b: int, c: int, s: int) -> Feeds:
        random = np.random.default_rng(s)
        boxes, scores = random.random((b, s, 4)), random.random((b, c, s))
        return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}

    check(g, tmp_path, feeds(2, 3, 20), feeds(1, 1, 3))


def _limits() -> list[np.ndarray]:
    return [np.array([4]), np.array([0.2], np.float32), np.array([0.3], np.float32)]
