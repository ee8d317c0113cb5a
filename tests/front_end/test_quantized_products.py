"""Products of codes: exact integers, by kernels for codes wherever a side is constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as models
import pytest
from front_end.oracle import compiled, expected, outputs
from onnx_models import node

MS = {"domain": "com.microsoft"}
F32 = np.float32
U8, S8 = np.uint8, np.int8


def codes(rng: np.random.Generator, dtype: type, *shape: int) -> np.ndarray:
    low = np.iinfo(dtype).min
    return rng.integers(low, low + 256, shape).astype(dtype)


def test_integers_are_exact_however_large_the_sum(tmp_path: Path) -> None:
    """All weights at their limits: sums beyond 2^24, which f32 does not hold, take the long way."""
    rng = np.random.default_rng(0)
    k, n = 1500, 20
    constants = {
        "large": np.where(rng.random((k, n)) < 0.9, -128, 127).astype(S8),
        "small": rng.integers(-3, 4, (k, n)).astype(S8),
        "unsigned": codes(rng, U8, k, n), "zeros": codes(rng, U8, n),
        "az": np.array(3, U8),
        "window": np.full((4, 60, 3, 3), -128, S8),
    }  # fmt: skip
    proto = models.model(
        [
            node("MatMulInteger", "a large az", "y0", "large"),
            node("MatMulInteger", "a small az", "y1", "small"),
            node("MatMulInteger", "a unsigned az zeros", "y2", "columns"),
            node("MatMulInteger", "a b az", "y3", "two tensors"),
            node("ConvInteger", "image window az", "y4", "image", pads=[1, 1, 1, 1]),
            node("MatMulInteger", "c d az", "y5", "unknown length"),
        ],
        [
            ("a", U8, ["m", k]), ("b", S8, [k, "n"]),
            ("image", U8, ["batch", 60, 7, "width"]),
            ("c", U8, ["m", "k"]), ("d", S8, ["k", "n"]),
        ],
        [(f"y{i}", np.int32, [None] * (4 if i == 4 else 2)) for i in range(6)],
        constants,
    )  # fmt: skip
    model = compiled(proto, tmp_path)
    kept = {op["node"]: (op["activation"], op["weight"]) for op in model.manifest["ops"]}
    assert kept["small"] == ("a8:tensor:asym", "w8:channel:sym")
    assert kept["columns"] == ("a8:tensor:asym", "w8:channel:asym")
    feeds = {
        "a": np.full((5, k), 255, U8), "b": codes(rng, S8, k, 3),
        "image": np.full((2, 60, 7, 5), 255, U8),
        "c": np.full((5, 600), 255, U8), "d": np.full((600, 3), -128, S8),
    }  # fmt: skip
    feeds["a"][1:] = codes(rng, U8, 4, k)
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_zero_point_for_every_row(tmp_path: Path) -> None:
    """ONNX allows it, onnxruntime does not."""
    rng = np.random.default_rng(6)
    w = codes(rng, S8, 12, 4)
    proto = models.model(
        [node("MatMulInteger", "a w zeros", "y")],
        [("a", U8, ["batch", 3, 12]), ("zeros", U8, [3])],
        [("y", np.int32, [None] * 3)],
        {"w": w},
    )
    a, zeros = codes(rng, U8, 2, 3, 12), codes(rng, U8, 3)
    (got,) = outputs(compiled(proto, tmp_path), {"a": a, "zeros": zeros})
    np.testing.assert_array_equal(got, (a.astype(int) - zeros[:, None]) @ w.astype(int))


@pytest.mark.parametrize("dtype", [U8, S8])
def test_a_dynamically_quantized_product_is_onnxruntimes_to_the_bit(
    dtype: type, tmp_path: Path
) -> None:
    """quantize_dynamic's form: DynamicQuantizeLinear, MatMulInteger, Cast, Mul."""
    rng = np.random.default_rng(1)
    k, n = 700, 33
    constants = {
        "w": codes(rng, dtype, k, n), "w_zero": np.array(5, dtype),
        "w_scale": np.array(0.01, F32),
    }  # fmt: skip
    proto = models.model(
        [
            node("DynamicQuantizeLinear", "x", "a a_scale a_zero"),
            node("MatMulInteger", "a w a_zero w_zero", "sums", "product"),
            node("Cast", "sums", "floats", to=onnx.TensorProto.FLOAT),
            node("Mul", "a_scale w_scale", "scale", "scales"),
            node("Mul", "floats scale", "y", "scaled"),
        ],
        [("x", F32, ["batch", "rows", k])],
        [("y", F32, [None] * 3)],
        constants,
    )
    model = compiled(proto, tmp_path)
    (entry,) = model.manifest["ops"]
    assert entry["activation"] == "a8:tensor:asym" and entry["weight"] == "w8:channel:asym"
    for sizes in ((1, 1), (2, 9), (1, 0)):
        feeds = {"x": rng.standard_normal((*sizes, k)).astype(F32)}
        (got,), (wanted,) = outputs(model, feeds), expected(proto, feeds)
        np.testing.assert_array_equal(got, wanted)


def test_fused_forms_of_onnxruntime(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    k, n = 90, 17
    constants = {
        "w": codes(rng, S8, k, n), "scales": rng.uniform(0.01, 0.1, n).astype(F32),
        "bias": rng.standard_normal(n).astype(F32), "zeros": np.zeros(n, S8),
        "a_scale": np.array(0.02, F32), "a_zero": np.array(130, U8),
    }  # fmt: skip
    proto = models.model(
        [
            node("DynamicQuantizeMatMul", "x w scales zeros bias", "y0", **MS),
            node("MatMulIntegerToFloat", "a w a_scale scales a_zero zeros bias", "y1", **MS),
        ],
        [("x", F32, ["rows", k]), ("a", U8, ["rows", k])],
        [("y0", F32, [None, n]), ("y1", F32, [None, n])],
        constants,
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    assert {op["activation"] for op in model.manifest["ops"]} == {"a8:tensor:asym"}
    feeds = {"x": rng.standard_normal((6, k)).astype(F32), "a": codes(rng, U8, 6, k)}
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((8, 6, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "point": ((5, 6, 1, 1), {}),
    "groups": ((6, 3, 3, 3), {"group": 2, "dilations": [2, 1]}),
    "depth": ((6, 1, 3, 3), {"group": 6, "auto_pad": "SAME_UPPER"}),
}


def test_qlinear_convolutions_are_onnxruntimes_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    constants = {
        "x_scale": np.array(0.02, F32), "x_zero": np.array(120, U8),
        "y_scale": np.array(0.7, F32), "y_zero": np.array(131, U8),
    }  # fmt: skip
    nodes = []
    for name, (shape, attributes) in CONVOLUTIONS.items():
        out = shape[0]
        constants |= {
            f"{name}_w": codes(rng, S8, *shape),
            f"{name}_scale": rng.uniform(0.001, 0.03, out).astype(F32),
            f"{name}_zero": np.zeros(out, S8),
            f"{name}_bias": rng.integers(-4000, 4000, out).astype(np.int32),
        }
        own = f"{name}_w {name}_scale {name}_zero"
        inputs = f"x x_scale x_zero {own} y_scale y_zero {name}_bias"
        nodes.append(node("QLinearConv", inputs, f"y_{name}", name, **attributes))
    proto = models.model(
        nodes,
        [("x", U8, ["batch", 6, 9, "width"])],
        [(f"y_{name}", U8, [None] * 4) for name in CONVOLUTIONS],
        constants,
    )
    model = compiled(proto, tmp_path)
    kept = {op["node"]: (op["activation"], op["weight"]) for op in model.manifest["ops"]}
    assert kept["plain"] == kept["point"] == ("a8:tensor:asym", "w8:channel:sym")
    for sizes in ((1, 8), (3, 5)):
        feeds = {"x": codes(rng, U8, sizes[0], 6, 9, sizes[1])}
        for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
            np.testing.assert_array_equal(got, wanted)


def qdq(x: np.dtype | type, w: np.dtype | type) -> onnx.ModelProto:
    """A product and a convolution between QuantizeLinear and DequantizeLinear."""
    rng = np.random.default_rng(4)
    asymmetric = np.iinfo(x).min + 121
    constants = {
        "x_scale": np.array(0.03, F32), "x_zero": np.array(asymmetric, x),
        "w": codes(rng, w, 40, 12), "w_scale": rng.uniform(0.01, 0.02, 12).astype(F32),
        "w_zero": rng.integers(-3, 3, 12).astype(w), "bias": rng.standard_normal(12).astype(F32),
        "k": codes(rng, w, 5, 3, 3), "k_scale": np.array(-0.01, F32), "k_zero": np.array(4, w),
    }  # fmt: skip
    return models.model(
        [
            node("QuantizeLinear", "x x_scale x_zero", "q", "q"),
            node("DequantizeLinear", "q x_scale x_zero", "d", "d"),
            node("DequantizeLinear", "w w_scale w_zero", "v", "weight", axis=1),
            node("MatMul", "d v", "product"),
            node("Add", "product bias", "y"),
            node("QuantizeLinear", "image x_scale x_zero", "qi", "qi"),
            node("DequantizeLinear", "qi x_scale x_zero", "di", "di"),
            node("DequantizeLinear", "k k_scale k_zero", "kd", "kernel"),
            node("Conv", "di kd", "z", "conv", pads=[1, 1]),
        ],
        [("x", F32, ["batch", "rows", 40]), ("image", F32, ["batch", 3, "length"])],
        [("y", F32, [None] * 3), ("z", F32, [None] * 3)],
        constants,
        opset=21,
    )


@pytest.mark.parametrize(("x", "w"), [(U8, S8), (S8, S8), (np.uint16, S8)])
def test_products_between_quantize_and_dequantize_take_the_codes(
    x: type, w: type, tmp_path: Path
) -> None:
    proto = qdq(x, w)
    model = compiled(proto, tmp_path)
    by_codes = "a8:tensor:asym" if x is not np.uint16 else "f32"
    assert {op["activation"] for op in model.manifest["ops"]} == {by_codes}
    assert {op["weight"] for op in model.manifest["ops"]} == {"w8:channel:asym"}
    rng = np.random.default_rng(5)
    feeds = {
        "x": rng.normal(0, 3, (2, 5, 40)).astype(F32),
        "image": rng.normal(0, 3, (2, 3, 11)).astype(F32),
    }
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_weight_that_the_model_rounds_itself_is_one_of_codes(tmp_path: Path) -> None:
    """QuantizeLinear and DequantizeLinear of a float weight, of ONNX and of com.microsoft."""
    rng = np.random.default_rng(7)
    constants = {"scale": np.array(0.02, F32), "zero": np.array(3, S8)}
    nodes = []
    for name, domain in (("onnx", ""), ("ms", "com.microsoft")):
        constants[f"w_{name}"] = rng.standard_normal((300, 240), F32)
        nodes += [
            node("QuantizeLinear", f"w_{name} scale zero", f"q_{name}", f"q_{name}", domain=domain),
            node("DequantizeLinear", f"q_{name} scale zero", f"d_{name}", f"d_{name}",
                 domain=domain),
            node("MatMul", f"x d_{name}", f"y_{name}", name),
        ]  # fmt: skip
    proto = models.model(
        nodes,
        [("x", F32, ["rows", 300])],
        [("y_onnx", F32, [None] * 2), ("y_ms", F32, [None] * 2)],
        constants,
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    assert [op["weight"] for op in model.manifest["ops"]] == ["w8:channel:asym"] * 2
    feeds = {"x": rng.standard_normal((3, 300), F32)}
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_a_recipe_of_fewer_bits_encodes_anew(tmp_path: Path) -> None:
    model = compiled(qdq(U8, S8), tmp_path, quant="w4a4")
    entries = {op["node"]: (op["weight"], op["activation"]) for op in model.manifest["ops"]}
    assert all(w.startswith("w4") and a.startswith("a4") for w, a in entries.values())
    mixed = compiled(qdq(U8, S8), tmp_path, quant="w4a8")
    entries = {op["node"]: (op["weight"], op["activation"]) for op in mixed.manifest["ops"]}
    assert all(w.startswith("w4") and a == "a8:tensor:asym" for w, a in entries.values())
