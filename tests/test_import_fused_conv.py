"""com.microsoft::FusedConv as onnxruntime's optimizer writes it, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx_models
import pytest
from onnx_models import node

pytest.importorskip("onnxruntime")
from abqc.compiler.onnxruntime_peer import Peer

SHAPE = ["n", 3, 7, 8]


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        {"activation": "Relu"},
        {"activation": "LeakyRelu", "activation_params": [0.3]},
        {"activation": "Clip", "activation_params": [-0.5, 0.75]},
        {"activation": "HardSigmoid", "activation_params": [0.25, 0.4]},
        {"activation": "Sigmoid"},
        {},
    ],
    ids=lambda attributes: attributes.get("activation", "none"),
)
def test_fused_conv(attributes: dict[str, Any], summed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((3, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
    }
    fused = node(
        "FusedConv",
        "x w b z" if summed else "x w b",
        "y",
        domain="com.microsoft",
        pads=[1, 1, 1, 1],
        **attributes,
    )
    inputs = [("x", np.float32, SHAPE), ("z", np.float32, SHAPE)][: 1 + summed]
    proto = onnx_models.model(
        [fused], inputs, [("y", np.float32, SHAPE)], constants, domains=["com.microsoft"]
    )
    path = onnx_models.save(proto, tmp_path)
    feeds = {n: rng.standard_normal((2, 3, 7, 8)).astype(np.float32) for n, _, _ in inputs}
    (expected,) = Peer(path).run(feeds)
    (actual,) = abqc.compile(path, output=tmp_path / "model.so").run(feeds)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
