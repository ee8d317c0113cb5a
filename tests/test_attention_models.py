"""Attention as models spell it, fused, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto
from onnx_models import model, save
from onnx_models import node as plain_node

HEADS, COLUMNS = 3, 20


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """onnxruntime wants a name of its own for each."""
    return plain_node(op_type, inputs, output, f"the {output}", **attributes)


def rows_before_batch() -> onnx.ModelProto:
    """As PyTorch's MultiheadAttention: [T, B, H * D], the heads of values in the batch."""
    return model(
        [
            node("Reshape", "q heads", "q4"),
            node("Transpose", "q4", "qt", perm=[1, 2, 0, 3]),
            node("Mul", "qt scale", "qs"),
            node("Reshape", "k heads", "k4"),
            node("Transpose", "k4", "kt", perm=[1, 2, 3, 0]),
            node("Mul", "kt scale", "ks"),
            node("Reshape", "v flat", "v3"),
            node("Transpose", "v3", "vt", perm=[1, 0, 2]),
            node("MatMul", "qs ks", "s"),
            node("Add", "s mask", "masked"),
            node("Softmax", "masked", "p", axis=-1),
            node("Shape", "p", "last", start=2),
            node("Concat", "all last", "rows", axis=0),
            node("Reshape", "p rows", "p3"),
            node("MatMul", "p3 vt", "y"),
        ],
        [
            ("q", np.float32, ["m", "b", HEADS * COLUMNS]),
            ("k", np.float32, ["t", "b", HEADS * COLUMNS]),
            ("v", np.float32, ["t", "b", HEADS * COLUMNS]),
            ("mask", np.float32, ["b", 1, 1, "t"]),
        ],
        [("y", np.float32, ["bh", "m", COLUMNS])],
        {
            "heads": np.array([0, 0, HEADS, COLUMNS]),
            "flat": np.array([0, -1, COLUMNS]),
            "all": np.array([-1]),
            "scale": np.array(0.5, np.float32),
        },
    )


def test_rows_before_batch(tmp_path: Path) -> None:
    path = save(rows_before_batch(), tmp_path)
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(path)
    with abqc.compile(path, output=tmp_path / "model.so", cpu="native") as compiled:
        assert any("attention" in launch["kernel"] for launch in compiled.manifest["launches"])
        for m, t, b in ((5, 7, 2), (1, 70, 3), (70, 130, 1)):
            sizes = {"q": (m, b, 60), "k": (t, b, 60), "v": (t, b, 60), "mask": (b, 1, 1, t)}
            feeds = {name: rng.standard_normal(s, np.float32) for name, s in sizes.items()}
            (got,), (expected,) = compiled.run(feeds), session.run(None, feeds)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
