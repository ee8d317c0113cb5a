"""Small graphs of real models and bug reports (`small_graphs/`) compile and agree."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import onnxruntime
import pytest
from operator_graph import compare
from small_graphs import all_graphs

GRAPHS = all_graphs()
TOLERANCE = 1e-5  # of the range
# What onnxruntime computes in another way: its integers, or transforms that it rounds elsewhere.
TOLERANCES = {"dynamic_quantize_lstm": 5e-3, "matmul_nbits": 1e-4}


@pytest.mark.parametrize("name", GRAPHS)
def test_agrees(name: str, tmp_path: Path) -> None:
    case = GRAPHS[name]
    source = tmp_path / "model.onnx"
    onnx.save(case.model, source)
    model = abqc.compile(source)
    for feeds in case.feeds:
        actual = model.run(feeds)
        expected = case.expected if feeds is case.feeds[0] and case.expected else None
        if expected is None:
            expected = run_onnxruntime(source, feeds)
        wrong = compare(model, expected, actual, TOLERANCES.get(name, TOLERANCE))
        shapes = {k: array.shape for k, array in feeds.items()}
        assert not wrong, "\n".join([f"with {shapes}:", *wrong])


@pytest.mark.parametrize("kind", ["direct", "identity", "transposed"])
def test_shared_weight_is_stored_once(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(GRAPHS[f"shared_weight_{kind}"].model, source)
    assert abqc.compile(source).manifest["bytes"]["weights"] < 1.2 * 512 * 512 * 4


def run_onnxruntime(source: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(source, options).run(None, feeds)
