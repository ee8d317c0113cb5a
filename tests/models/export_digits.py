"""Train and export the two digits models, an MLP and a CNN, with 200 test samples.

    python tests/models/export_digits.py [OUT_DIR]

writes digits_mlp.onnx, digits_cnn.onnx and digits.npz (`images` f32 [200, 64], `labels` int64
[200]). The files are committed in tests/models/data, so that tests need neither scikit-learn nor
PyTorch; this script, which needs both and skl2onnx, tells where they come from. The data are
scikit-learn's copy of the UCI handwritten digits (8 x 8 pixels, 0 to 16), CC BY 4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from onnx.shape_inference import infer_shapes
from skl2onnx import to_onnx
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn

SAMPLES = 200


def export_mlp(x: np.ndarray, y: np.ndarray, path: Path) -> MLPClassifier:
    """64 -> 128 -> 64 -> 10 as skl2onnx writes it, without the labels' look-up (ai.onnx.ml)."""
    model = MLPClassifier((128, 64), random_state=0, max_iter=300).fit(x, y)
    onnx_model = to_onnx(model, x[:1], options={"zipmap": False}, target_opset=18)
    onnx_model = select_model_inputs_outputs(onnx_model, outputs=["probabilities"])
    onnx_model = infer_shapes(onnx_model)  # gives the output its type again
    path.write_bytes(onnx_model.SerializeToString())
    return model


class DigitsCNN(nn.Sequential):
    """Two convolutions, pooling and two linear layers over [batch, 1, 8, 8]; returns logits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def export_cnn(x: np.ndarray, y: np.ndarray, path: Path) -> nn.Module:
    """Train for 30 epochs and write the model with a dynamic batch."""
    torch.manual_seed(0)
    model = DigitsCNN()
    images = torch.from_numpy(x).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(30):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    program = torch.onnx.export(
        model,
        (images[:2],),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(path, external_data=False)
    return model


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    out.mkdir(parents=True, exist_ok=True)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.25, random_state=0)
    mlp = export_mlp(train_x, train_y, out / "digits_mlp.onnx")
    cnn = export_cnn(train_x, train_y, out / "digits_cnn.onnx")
    np.savez_compressed(out / "digits.npz", images=test_x[:SAMPLES], labels=test_y[:SAMPLES])
    with torch.no_grad():
        predicted = cnn(torch.from_numpy(test_x).reshape(-1, 1, 8, 8)).argmax(1).numpy()
    print(f"accuracy: MLP {mlp.score(test_x, test_y):.3f}, CNN {(predicted == test_y).mean():.3f}")


if __name__ == "__main__":
    main()
