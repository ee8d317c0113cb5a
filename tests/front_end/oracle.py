"""A compiled model's outputs, and onnxruntime's of every operator as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest

Arrays = Mapping[str, np.ndarray]


def compiled(proto: onnx.ModelProto, folder: Path, quant: str = "none") -> abqc.Model:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return abqc.compile(path, output=folder / "model.so", quant=quant)


def outputs(model: abqc.Model, feeds: Arrays) -> list[np.ndarray]:
    """In the order of the model."""
    return model.run(dict(feeds))


def expected(proto: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """onnxruntime's outputs without its fusions."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, dict(feeds))
