"""Compiled under a recipe, a model answers what onnxruntime does with the rounding written out.

The rounding is that of tests/zoo/quantized.py, which shares no code with the passes.
"""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import onnx_models as models
import pytest
from onnx_models import node

pytest.importorskip("onnxruntime")
from zoo.check import Comparison
from zoo.entry import Entry, Source
from zoo.noise import rounds_at_run_time, with_noise
from zoo.oracle import Oracle
from zoo.run import judged_float, judged_quantized

F32, S8, U8 = np.float32, np.int8, np.uint8
RNG = np.random.default_rng(0)
X = [("x", F32, ["batch", 5, 96])]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F32)


def codes(dtype: type, *shape: int) -> np.ndarray:
    low = np.iinfo(dtype).min
    return RNG.integers(low, low + 256, shape).astype(dtype)


def products() -> onnx.ModelProto:
    """A table with the head tied to it, a layer on the table's rows."""
    return models.model(
        [
            node("Gather", "table ids", "rows", "embed"),
            node("MatMul", "rows w", "h", "layer"),
            node("Transpose", "table", "head", perm=[1, 0]),
            node("MatMul", "h head", "y", "logits"),
        ],
        [("ids", np.int64, ["batch", "seq"])],
        [("y", F32, [None] * 3)],
        {"table": normal(256, 96), "w": normal(96, 96)},
    )


def convolutions() -> onnx.ModelProto:
    """One scale an image; the second has groups and stays float, the third is transposed."""
    return models.model(
        [
            node("Conv", "x w b", "h", "dense", pads=[1, 1, 1, 1]),
            node("Conv", "h d", "g", "depthwise", group=8),
            node("ConvTranspose", "g t", "y", "transposed", strides=[2, 1]),
        ],
        [("x", F32, ["batch", 3, 9, "width"])],
        [("y", F32, [None] * 4)],
        {"w": normal(8, 3, 3, 3), "b": normal(8), "d": normal(8, 1, 3, 3), "t": normal(8, 5, 3, 2)},
    )


def decoded_weight() -> onnx.ModelProto:
    """Codes of 8 bits for both factors: w4a8 encodes the weight anew, and keeps those of x."""
    return models.model(
        [
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z", "r", "decode"),
            node("DequantizeLinear", "w ws wz", "v", axis=1),
            node("MatMul", "r v", "y", "product"),
        ],
        X,
        [("y", F32, [None] * 3)],
        {
            "s": np.array(0.03, F32), "z": np.array(120, U8), "w": codes(S8, 96, 24),
            "ws": np.abs(normal(24)) + F32(0.01), "wz": np.zeros(24, S8),
        },
    )  # fmt: skip


def dynamic_codes() -> onnx.ModelProto:
    """What onnxruntime's `quantize_dynamic` writes for a product."""
    return models.model(
        [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("MatMulInteger", "q w z wz", "sum", "product"),
            node("Cast", "sum", "float", to=onnx.TensorProto.FLOAT),
            node("Mul", "s ws", "scale", "both scales"),
            node("Mul", "float scale", "y"),
        ],
        X,
        [("y", F32, [None] * 3)],
        {"w": codes(S8, 96, 24), "wz": np.array(3, S8), "ws": np.array(0.02, F32)},
    )


def packed() -> onnx.ModelProto:
    """8 bits in blocks of 32, with zero points, and 4 without."""
    wide = {"domain": "com.microsoft", "bits": 8, "block_size": 32, "K": 96, "N": 24}
    return models.model(
        [
            node("MatMulNBits", "x w ws wz", "y", "eight", **wide),
            node("MatMulNBits", "x v vs", "y4", "four", **wide | {"bits": 4}),
        ],
        X,
        [("y", F32, [None] * 3), ("y4", F32, [None] * 3)],
        {
            "w": codes(U8, 24, 3, 32), "ws": np.abs(normal(72)), "wz": codes(U8, 72),
            "v": codes(U8, 24, 3, 16), "vs": np.abs(normal(72)),
        },
    )  # fmt: skip


FEEDS = {
    "ids": RNG.integers(0, 256, (2, 7)),
    "x": normal(2, 5, 96),
    "image": normal(2, 3, 9, 7),
}


@pytest.mark.parametrize("quant", ["w8a8", "w4a8"])
@pytest.mark.parametrize("make", [products, convolutions, packed])
def test_floats_are_rounded_as_the_recipe_says(make, quant: str, tmp_path: Path) -> None:
    agrees(make(), quant, tmp_path)


@pytest.mark.parametrize("make", [decoded_weight, dynamic_codes])
def test_fewer_bits_than_the_model_has_encode_anew(make, tmp_path: Path) -> None:
    agrees(make(), "w4a8", tmp_path)


def agrees(proto: onnx.ModelProto, quant: str, folder: Path) -> None:
    """To 1e-5 of the range, but for few elements that one activation's next code moves."""
    path = models.save(proto, folder)
    (name,) = (value.name for value in proto.graph.input)
    rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
    feeds = {name: FEEDS["image" if rank == 4 else name]}
    expected = Oracle(path).by_recipe(quant, feeds)[0]
    model = abqc.compile(path, quant=quant)
    for spec, got in zip(model.outputs, model.run(feeds), strict=True):
        wanted = expected[spec.name]
        assert np.mean(np.abs(got - wanted) > 1e-5 * np.ptp(wanted)) < 0.05
        np.testing.assert_allclose(got, wanted, atol=2e-2 * np.ptp(wanted))


def test_noise_moves_weights_but_no_scales() -> None:
    proto = decoded_weight()
    moved = with_noise(proto, seed=0)
    pairs = zip(proto.graph.initializer, moved.graph.initializer, strict=True)
    changed = [old.name for old, new in pairs if old.raw_data != new.raw_data]
    assert changed == ["ws"]
    assert rounds_at_run_time(proto) and not rounds_at_run_time(products())


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ({"error": 1e-5}, "ok"),
        ({"error": 1e-2}, "disagrees"),
        ({"error": 1e-2, "noise": 2e-2}, "ok"),
        ({"error": 1e-2, "flips": 0.1, "noise": 2e-2}, "disagrees"),
    ],
)
def test_a_float_model_may_be_as_far_as_it_is_from_itself(run: dict, state: str) -> None:
    entry = Entry("e", Source("", ""), "", "")
    assert judged_float(entry, vars(Comparison({})) | run)[0] == state


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ({"cosine": 0.95, "error": 1.0}, "ok"),
        ({"cosine": 0.5, "error": 1.0}, "disagrees"),
        ({"cosine": 0.5, "error": 1e-3}, "ok"),
        ({"cosine": 0.5, "error": 1.0, "recipe": 0.52, "reference": 0.9}, "ok"),
        ({"cosine": 0.5, "error": 1.0, "recipe": 0.8, "reference": 0.6}, "disagrees"),
    ],
)
def test_a_quantized_model_may_lose_what_its_recipe_loses(run: dict, state: str) -> None:
    entry = Entry("e", Source("", ""), "", "")
    assert judged_quantized(entry, vars(Comparison({})) | run)[0] == state
