"""Weights, tables and caches of f16 and bf16 models lie in 16 bits and are computed with in f32."""

from __future__ import annotations

from pathlib import Path

import abqc
import ml_dtypes
import numpy as np
import onnx
import pytest
from abqc.runtime.model import Model
from onnx import TensorProto, helper, numpy_helper

HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
ONNX = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
TOLERANCE = {"f16": 2e-3, "bf16": 2e-2}  # outputs are rounded to the type
ROWS, COLUMNS, CHANNELS = 200, 96, 12
HEADS, GROUP, HEAD = 2, 3, 16

both = pytest.mark.parametrize("half", list(HALVES))


def weights(half: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "table": (ROWS, COLUMNS),
        "w": (COLUMNS, 64),
        "conv": (8, 3, 3, 3),
        "depthwise": (CHANNELS, 1, 3, 3),
    }
    made = {name: rng.standard_normal(shape) / 4 for name, shape in shapes.items()}
    return {name: array.astype(HALVES[half]) for name, array in made.items()}


def of_every_kind(half: str, *, cast: bool) -> onnx.ModelProto:
    """A table with a head tied to it, a product, a convolution, one in groups; with `cast` the
    model widens its weights itself and computes in f32."""
    kind = TensorProto.FLOAT if cast else ONNX[half]
    arrays = weights(half)
    nodes = [helper.make_node("Cast", [n], [f"{n}_"], to=kind) for n in arrays if cast]
    name = {n: f"{n}_" if cast else n for n in arrays}
    nodes += [
        helper.make_node("Gather", [name["table"], "ids"], ["rows"], name="gather"),
        helper.make_node("Transpose", [name["table"]], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "head"], ["tied"], name="tied"),
        helper.make_node("MatMul", ["rows", name["w"]], ["product"], name="product"),
        helper.make_node("Conv", ["image", name["conv"]], ["convolved"], name="conv"),
        helper.make_node(
            "Conv", ["channels", name["depthwise"]], ["each"], name="each", group=CHANNELS
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("image", kind, ["b", 3, "h", "w"]),
        helper.make_tensor_value_info("channels", kind, ["b", CHANNELS, "h", "w"]),
    ]
    outputs = [
        helper.make_tensor_value_info(n, kind, shape)
        for n, shape in [("tied", 2), ("product", 2), ("convolved", 4), ("each", 4)]
        for shape in [[None] * shape]
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def expected(half: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    arrays = {name: array.astype(np.float64) for name, array in weights(half).items()}
    rows = arrays["table"][feeds["ids"]]
    image, channels = (feeds[n].astype(np.float64) for n in ("image", "channels"))

    def windows(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))

    return [
        rows @ arrays["table"].T,
        rows @ arrays["w"],
        np.einsum("bchwij,ncij->bnhw", windows(image), arrays["conv"]),
        np.einsum("bchwij,cij->bchw", windows(channels), arrays["depthwise"][:, 0]),
    ]


def feeds(dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "ids": rng.integers(0, ROWS, 5),
        "image": rng.standard_normal((2, 3, 9, 7)).astype(dtype),
        "channels": rng.standard_normal((2, CHANNELS, 9, 7)).astype(dtype),
    }


def compiled(
    tmp_path: Path, model: onnx.ModelProto, quant: str = "none", target: str = "cpu"
) -> Model:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return abqc.compile(
        path,
        quant=quant,
        target=target,
        device="cpu" if target == "cpu" else "ptx-vm",
        output=tmp_path / "model.so",
    )


targets = pytest.mark.parametrize("target", ["cpu", "sm_80"])


@both
@targets
@pytest.mark.parametrize("cast", [False, True], ids=["", "cast"])
def test_weights_stay_in_16_bits(tmp_path: Path, half: str, target: str, cast: bool) -> None:
    model = compiled(tmp_path, of_every_kind(half, cast=cast), target=target)
    inputs = feeds(np.float32 if cast else HALVES[half])
    for y, exact in zip(model.run(inputs), expected(half, inputs), strict=True):
        assert np.abs(y.astype(np.float64) - exact).max() <= (
            (1e-5 if cast else TOLERANCE[half]) * np.abs(exact).max()
        )
    operations = {op["node"]: op for op in model.manifest["ops"] + model.manifest["tables"]}
    if target == "cpu":  # which computes it without patches
        assert operations.pop("conv")["weight"] == "f32"
    assert {op["weight"] for op in operations.values()} == {half}
    assert operations["product"]["bytes"] == 2 * COLUMNS * 64
    assert operations["gather"]["bytes"] == 0  # the head's weight
    count = sum(array.size for array in weights(half).values())
    assert model.manifest["bytes"]["weights"] < 2 * count + 4096


@both
def test_weights_in_16_bits_are_quantized_as_their_values(tmp_path: Path, half: str) -> None:
    model = compiled(tmp_path, of_every_kind(half, cast=False), "w8a8")
    inputs = feeds(HALVES[half])
    for y, exact in zip(model.run(inputs), expected(half, inputs), strict=True):
        assert np.abs(y.astype(np.float64) - exact).max() <= 0.03 * np.abs(exact).max()


def attention_with_cache(half: str) -> onnx.ModelProto:
    """Grouped queries on caches that grow, as exporters write it."""
    kind = ONNX[half]

    def tensor(name: str, heads: int, rows: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["b", heads, rows, HEAD])

    nodes = []
    for name in ("k", "v"):
        grown = f"present_{name}"
        nodes += [
            helper.make_node("Concat", [f"past_{name}", name], [grown], axis=2),
            helper.make_node("Unsqueeze", [grown, "two"], [f"{name}1"]),
            helper.make_node("Expand", [f"{name}1", "repeats"], [f"{name}2"]),
            helper.make_node("Reshape", [f"{name}2", "heads"], [f"{name}3"]),
        ]
    nodes += [
        helper.make_node("Transpose", ["k3"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v3"], ["y"]),
    ]
    inputs = [tensor("q", HEADS * GROUP, "s")]
    inputs += [tensor(n, HEADS, "s") for n in ("k", "v")]
    inputs += [tensor(n, HEADS, "past") for n in ("past_k", "past_v")]
    outputs = [tensor("y", HEADS * GROUP, "s")]
    outputs += [tensor(n, HEADS, "past + s") for n in ("present_k", "present_v")]
    constants = {"two": [2], "repeats": [1, 1, GROUP, 1, 1], "heads": [0, HEADS * GROUP, -1, HEAD]}
    graph = helper.make_graph(
        nodes, "g", inputs, outputs,
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@both
@targets
@pytest.mark.parametrize("batch", [1, 2])
def test_caches_grow_in_place(tmp_path: Path, half: str, target: str, batch: int) -> None:
    model = compiled(tmp_path, attention_with_cache(half), target=target)
    rng, dtype = np.random.default_rng(2), HALVES[half]
    caches = [np.full((batch, HEADS, 12, HEAD), np.nan, dtype) for _ in range(2)]
    past = 0
    for step in (4, 1, 1, 3):  # a prompt, tokens, several at once
        q = rng.standard_normal((batch, HEADS * GROUP, step, HEAD)).astype(dtype)
        new = [rng.standard_normal((batch, HEADS, step, HEAD)).astype(dtype) for _ in "kv"]
        names = ("past_k", "past_v")
        inputs = {"q": q, "k": new[0], "v": new[1]}
        inputs |= {n: c[:, :, :past] for n, c in zip(names, caches, strict=True)}
        grown = {f"present_{n}": c[:, :, : past + step] for n, c in zip("kv", caches, strict=True)}
        y = model.run(inputs, outputs=grown)[0]
        past += step
        for cache, rows in zip(caches, new, strict=True):
            assert np.array_equal(cache[:, :, past - step : past], rows)
            assert np.isnan(cache[:, :, past:].astype(np.float32)).all()
        k, v = (c[:, :, :past].astype(np.float64).repeat(GROUP, axis=1) for c in caches)
        scores = q.astype(np.float64) @ k.swapaxes(2, 3)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        exact = p / p.sum(axis=-1, keepdims=True) @ v
        assert np.abs(y.astype(np.float64) - exact).max() <= TOLERANCE[half] * np.abs(exact).max()
