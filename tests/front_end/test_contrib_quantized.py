"""com.microsoft's operators on codes give onnxruntime's codes, to one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_models as models
import pytest
from front_end.oracle import compiled, expected, outputs
from onnx import NodeProto
from onnx_models import node

MS = {"domain": "com.microsoft"}
F32 = np.float32

# name, scale and zero point of the tensors that the nodes below read and make
GRIDS = {"x": (0.021, 131), "y": (0.017, 97), "z": (0.033, 120), "p": (1 / 256, 0)}


def grid(name: str) -> str:
    return f"{name}_scale {name}_zero"


NODES: dict[str, NodeProto] = {
    "add": node("QLinearAdd", f"x {grid('x')} y {grid('y')} {grid('z')}", "add", **MS),
    "add_row": node(
        "QLinearAdd", f"x {grid('x')} row {grid('y')} {grid('z')}", "add_row", "to a row", **MS
    ),
    "mul": node("QLinearMul", f"x {grid('x')} y {grid('y')} {grid('z')}", "mul", **MS),
    "sigmoid": node("QLinearSigmoid", f"x {grid('x')} {grid('p')}", "sigmoid", **MS),
    "leaky": node("QLinearLeakyRelu", f"x {grid('x')} {grid('z')}", "leaky", alpha=0.2, **MS),
    "softmax": node(
        "QLinearSoftmax", f"x {grid('x')} {grid('p')}", "softmax", axis=-1, opset=13, **MS
    ),
    "concat": node(
        "QLinearConcat", f"{grid('z')} x {grid('x')} y {grid('y')}", "concat", axis=1, **MS
    ),
    "average": node(
        "QLinearAveragePool", f"x {grid('x')} {grid('z')}", "average", kernel_shape=[3, 3],
        pads=[1, 0, 1, 0], strides=[1, 2], count_include_pad=0, **MS,
    ),
    "average_last": node(
        "QLinearAveragePool", f"x {grid('x')} {grid('z')}", "average_last", "last",
        kernel_shape=[2, 2], channels_last=1, **MS,
    ),
    "image": node("QLinearGlobalAveragePool", f"x {grid('x')} {grid('z')}", "image", **MS),
    "image_last": node(
        "QLinearGlobalAveragePool", f"x {grid('x')} {grid('z')}", "image_last", "channels last",
        channels_last=1, **MS,
    ),
    "where": node(
        "QLinearWhere", f"c x {grid('x')} y {grid('y')} {grid('z')}", "where", **MS
    ),
    "pool": node("NhwcMaxPool", "x", "pool", kernel_shape=[2, 3], strides=[2, 1], **MS),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_codes_are_those_of_onnxruntime_to_one_step(dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = np.iinfo(dtype).min
    constants: dict[str, np.ndarray] = {"row": rng.integers(low, low + 256, 7).astype(dtype)}
    for name, (scale, zero) in GRIDS.items():
        constants[f"{name}_scale"] = np.array(scale, F32)
        constants[f"{name}_zero"] = np.array(zero + low, dtype)
    shape = ["batch", 4, 6, 7]
    proto = models.model(
        list(NODES.values()),
        [("x", dtype, shape), ("y", dtype, shape), ("c", bool, shape)],
        [(name, dtype, [None] * 4) for name in NODES],
        constants,
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    for batch in (1, 3):
        sizes = (batch, 4, 6, 7)
        feeds = {
            "x": rng.integers(low, low + 256, sizes).astype(dtype),
            "y": rng.integers(low, low + 256, sizes).astype(dtype),
            "c": rng.random(sizes) < 0.5,
        }
        for name, got, wanted in zip(
            NODES, outputs(model, feeds), expected(proto, feeds), strict=True
        ):
            assert got.shape == wanted.shape and got.dtype == wanted.dtype, name
            steps = np.abs(got.astype(int) - wanted.astype(int))
            assert steps.max() <= 1, f"{name}: {steps.max()} steps"
            assert (steps > 0).mean() < 0.02, name


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
def test_values_halfway_between_two_codes_round_as_in_onnxruntime(
    op_type: str, tmp_path: Path
) -> None:
    """Scales that are multiples of each other: with those of a GELU every other sum is a tie."""
    cases = [(2, 128, 1, 0, 2, 0), (1, 186, 1, 161, 2, 139), (3, 5, 5, 77, 6, 130)]
    constants, nodes = {}, []
    for number, (a, a_zero, c, c_zero, y, y_zero) in enumerate(cases):
        names = [f"{part}{number}" for part in ("as", "az", "cs", "cz", "ys", "yz")]
        for name, value in zip(names, (a, a_zero, c, c_zero, y, y_zero), strict=True):
            is_scale = name[1] == "s"
            constants[name] = np.array(
                value / 255 if is_scale else value, F32 if is_scale else "u1"
            )
        inputs = f"a {names[0]} {names[1]} c {' '.join(names[2:])}"
        nodes.append(node(op_type, inputs, f"y{number}", f"case {number}", **MS))
    proto = models.model(
        nodes,
        [("a", np.uint8, [256, 1]), ("c", np.uint8, [1, 256])],
        [(n.output[0], np.uint8, [256, 256]) for n in nodes],
        constants,
        domains=["com.microsoft"],
    )
    codes = np.arange(256, dtype=np.uint8)
    feeds = {"a": codes[:, None], "c": codes[None]}
    for got, wanted in zip(
        outputs(compiled(proto, tmp_path), feeds), expected(proto, feeds), strict=True
    ):
        assert (got != wanted).mean() < 5e-3  # without FMA some ties go the other way


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("to_codes", [False, True])
def test_qgemm(transposed: bool, to_codes: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    k, n = 70, 9
    w = rng.integers(-128, 128, (n, k) if transposed else (k, n)).astype(np.int8)
    constants = {
        "a_scale": np.array(0.01, F32), "a_zero": np.array(120, np.uint8), "w": w,
        "w_scale": rng.uniform(0.001, 0.02, n).astype(F32), "w_zero": np.zeros(n, np.int8),
        "c": rng.integers(-5000, 5000, n).astype(np.int32),
        "y_scale": np.array(0.3, F32), "y_zero": np.array(128, np.uint8),
    }  # fmt: skip
    inputs = "a a_scale a_zero w w_scale w_zero c" + (" y_scale y_zero" if to_codes else "")
    proto = models.model(
        [node("QGemm", inputs, "y", transB=int(transposed), alpha=1.0, **MS)],
        [("a", np.uint8, ["rows", k])],
        [("y", np.uint8 if to_codes else F32, [None, None])],
        constants,
        domains=["com.microsoft"],
    )
    feeds = {"a": rng.integers(0, 256, (5, k)).astype(np.uint8)}
    (got,) = outputs(compiled(proto, tmp_path), feeds)
    (wanted,) = expected(proto, feeds)
    if to_codes:
        assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_integers_of_16_bits_and_sums_of_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    proto = models.model(
        [
            node("MatMulInteger16", "a b", "y", **MS),
            node("ReduceSumInteger", "x", "s", axes=[-1], keepdims=0, **MS),
        ],
        [("a", np.int16, ["n", 5]), ("b", np.int16, [5, 3]), ("x", np.uint8, ["n", 9])],
        [("y", np.int32, [None, 3]), ("s", np.int32, [None])],
        domains=["com.microsoft"],
    )
    feeds = {
        "a": rng.integers(-9000, 9000, (4, 5)).astype(np.int16),
        "b": rng.integers(-9000, 9000, (5, 3)).astype(np.int16),
        "x": rng.integers(0, 256, (4, 9)).astype(np.uint8),
    }
    product, total = outputs(compiled(proto, tmp_path), feeds)
    np.testing.assert_array_equal(product, feeds["a"].astype(int) @ feeds["b"].astype(int))
    np.testing.assert_array_equal(total, feeds["x"].astype(int).sum(axis=1))


def test_embeddings_of_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    width, rows = 32, {"word": 40, "position": 12, "segment": 2}
    constants: dict[str, np.ndarray] = {}
    for name in (*rows, "gamma", "beta"):
        shape = (rows[name], width) if name in rows else (width,)
        constants[name] = rng.integers(0, 256, shape).astype(np.uint8)
        constants[f"{name}_scale"] = np.array(rng.uniform(0.005, 0.02), F32)
        constants[f"{name}_zero"] = np.array(rng.integers(100, 150), np.uint8)
    names = list(constants)[::3]
    scales, zeros = (" ".join(f"{name}_{part}" for name in names) for part in ("scale", "zero"))
    proto = models.model(
        [
            node(
                "QEmbedLayerNormalization", f"ids segments {' '.join(names)} mask {scales} {zeros}",
                "y mask_index", epsilon=1e-6, **MS,
            )
        ],
        [(name, np.int32, ["batch", "length"]) for name in ("ids", "segments", "mask")],
        [("y", F32, [None] * 3), ("mask_index", np.int32, [None])],
        constants,
        domains=["com.microsoft"],
    )  # fmt: skip
    feeds = {
        "ids": rng.integers(0, 40, (2, 7)).astype(np.int32),
        "segments": rng.integers(0, 2, (2, 7)).astype(np.int32),
        "mask": np.ones((2, 7), np.int32),
    }
    got, wanted = outputs(compiled(proto, tmp_path), feeds), expected(proto, feeds)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[1], wanted[1])


def test_mul_integer(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    proto = models.model(
        [node("MulInteger", "a a_zero b b_zero", "y", **MS)],
        [("a", np.uint8, ["n", 3]), ("b", np.int8, [3])],
        [("y", np.int32, [None, None])],
        {"a_zero": np.array(100, np.uint8), "b_zero": np.array(-3, np.int8)},
        domains=["com.microsoft"],
    )
    a, b = rng.integers(0, 256, (4, 3)).astype(np.uint8), np.array([-128, 0, 127], np.int8)
    (got,) = outputs(compiled(proto, tmp_path), {"a": a, "b": b})
    np.testing.assert_array_equal(got, (a.astype(int) - 100) * (b.astype(int) + 3))
    assert got.dtype == np.int32
