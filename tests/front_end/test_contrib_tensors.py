"""onnxruntime's gathers, crops, distances and others, beside its CPU kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from abqc.errors import ModelError
from front_end.contrib_forms import Form, check, floats, model_of
from front_end.oracle import compiled

F32, F64, I32, I64 = np.float32, np.float64, np.int32, np.int64
REGIONS = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [-0.3, 0.1, 1.2, 0.5], [0.8, 0.9, 0.1, 0]])


def crops(mode: str, height: int, width: int) -> Form:
    feeds = {
        "x": floats(2, 3, 5, 6), "rois": REGIONS.astype(F32), "images": np.array([0, 1, 0, 1], I32),
        "size": np.array([height, width], I32),
    }  # fmt: skip
    other = {**feeds, "x": floats(2, 3, 1, 4), "size": np.array([1, 2], I32)}
    return Form(
        "CropAndResize", [feeds, other], {"y": F32}, sizes={"x": "n c h w", "rois": "r _"},
        attributes={"mode": mode, "extrapolation_value": 7.0},
    )  # fmt: skip


def words(letters: list[list[int]]) -> dict[str, np.ndarray]:
    return {"words": np.array(letters, I32)}


FORMS = {
    "gather": Form(
        "GatherND",
        [{"x": floats(3, 4, 5), "at": np.array([[0, 1], [2, -1]])},
         {"x": floats(1, 7, 5), "at": np.array([[0, 6]])}],
        {"y": F32}, sizes={"x": "a b _", "at": "n _"},
    ),
    "triangle": Form(
        "Trilu", [{"x": floats(2, 4, 5)}, {"x": floats(1, 3, 3)}], {"y": F32},
        {"k": np.array(1)}, sizes={"x": "b m n"}, attributes={"upper": 0},
    ),
    "expanded": Form(
        "ExpandDims", [{"x": floats(3, 4)}, {"x": floats(2, 1)}], {"y": F32},
        {"axis": np.array(-2, I32)}, sizes={"x": "m n"},
    ),
    "grid": Form(
        "GridSample", [{"x": floats(1, 2, 4, 5), "grid": floats(1, 3, 2, 2)}] * 2, {"y": F32},
        sizes={"x": "_ c h w"}, attributes={"mode": "bicubic", "padding_mode": "reflection"},
    ),
    "unique": Form(
        "Unique",
        [{"x": np.array([2, 1, 1, 3, 4, 3], F32)}, {"x": np.array([5], F32)}],
        {"y": F32, "at": I64, "counts": I64}, sizes={"x": "n"},
    ),
    "unfolded": Form(
        "UnfoldTensor", [{"x": floats(3, 8, 2)}, {"x": floats(1, 3, 2)}], {"y": F32},
        sizes={"x": "m n _"}, attributes={"dim": -2, "size": 3, "step": 2},
    ),
    "echo": Form("SampleOp", [{"x": floats(3)}, {"x": floats(1)}], {"y": F32}, sizes={"x": "n"}),
    "distances": Form(
        "CDist", [{"a": floats(3, 4), "b": floats(6, 4)}, {"a": floats(1, 4), "b": floats(1, 4)}],
        {"y": F32}, sizes={"a": "m _", "b": "k _"}, attributes={"metric": "euclidean"},
        tolerance=1e-3,
    ),
    "squares": Form(
        "CDist", [{"a": floats(3, 4, dtype=F64)}] * 2, {"y": F64},
        {"b": floats(5, 4, dtype=F64)},
    ),
    "bilinear": crops("bilinear", 3, 4),
    "nearest": crops("nearest", 4, 1),
    "transposed": Form(
        "ConvTransposeWithDynamicPads",
        [{"x": floats(1, 4, 5, 6), "pads": np.array([1, 0, 0, 1])},
         {"x": floats(1, 4, 2, 3), "pads": np.array([0, 0, 0, 0])}],
        {"y": F32}, {"w": floats(4, 3, 3, 2), "bias": floats(3)}, ["x", "w", "pads", "bias"],
        {"x": "_ _ h w"}, {"strides": [2, 1]},
    ),
    "words": Form(
        "WordConvEmbedding",
        [words([[3, 4, 5, 0, 0], [1, 0, 0, 0, 0]]), words([[2, 3, 4, 5, 6]])], {"y": F32},
        {"w": floats(5, 1, 3, 4), "bias": floats(5), "table": floats(10, 4)},
        sizes={"words": "n _"},
    ),
}  # fmt: skip


def test_agrees_with_onnxruntime(tmp_path: Path) -> None:
    check(FORMS, tmp_path)


def test_a_mask_of_no_known_meaning_is_refused(tmp_path: Path) -> None:
    feeds = {"x": floats(1, 1, 4), "mask": np.ones((1, 1, 4), I32)}
    form = Form("MaxpoolWithMask", [feeds], {"y": F32}, attributes={"kernel_shape": [2]})
    with pytest.raises(ModelError, match="for internal use"):
        compiled(model_of({"pool": form}), tmp_path)


def test_a_metric_without_kernel_is_refused(tmp_path: Path) -> None:
    feeds = {"a": floats(2, 3), "b": floats(2, 3)}
    form = Form("CDist", [feeds], {"y": F32}, attributes={"metric": "cosine"})
    with pytest.raises(ModelError, match="'metric' is 'cosine'"):
        compiled(model_of({"apart": form}), tmp_path)
