"""Signal operators in the forms that published models have."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx_models
from onnx_models import node


def test_stft_of_a_signal_without_a_last_axis(tmp_path: Path) -> None:
    """onnxruntime takes [batch, length], so exporters write it; ONNX's text asks for a 1 behind."""
    proto = onnx_models.model(
        [node("STFT", "x step window", "y")],
        [("x", np.float32, ["batch", "n"])],
        [("y", np.float32, ["batch", "frames", 9, 2])],
        {"step": np.array(8), "window": np.hanning(16).astype(np.float32)},
    )
    model = abqc.compile(onnx_models.save(proto, tmp_path), output=tmp_path / "model.so")
    x = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    frames = np.stack([x[:, at : at + 16] for at in range(0, 50 - 15, 8)], 1)
    expected = np.fft.rfft(frames * np.hanning(16).astype(np.float32))
    (y,) = model.run({"x": x})
    np.testing.assert_allclose(y[..., 0] + 1j * y[..., 1], expected, atol=1e-5)
