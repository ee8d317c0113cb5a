"""What the importer rewrites before the front end sees it computes what the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.onnx_import.importer import prepare
from abqc.compiler.onnx_import.load import load_model
from abqc.errors import ModelError
from onnx import TensorProto, helper
from onnx_models import node

RNG = np.random.default_rng(0)
F32 = np.float32


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, F32)


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(None, feeds)


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> onnx.ModelProto:
    """Compares `proto` with its rewritten form, which it returns."""
    model = load_model(models.save(proto, folder), folder)
    prepare(model, folder)
    rewritten = model.to_proto([])
    for value in rewritten.graph.output:
        value.type.tensor_type.ClearField("shape")
    for expected, actual in zip(run(proto, feeds), run(rewritten, feeds), strict=True):
        assert expected.dtype == actual.dtype
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
    return rewritten


def check_node(
    tested: onnx.NodeProto,
    feeds: dict[str, np.ndarray],
    folder: Path,
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    dynamic: bool = True,
) -> set[str]:
    """Checks a model of one node with dynamic sizes; returns the operators it became."""
    inputs = [
        (name, x.dtype, [f"{name}{axis}" if dynamic else size for axis, size in enumerate(x.shape)])
        for name, x in feeds.items()
    ]
    proto = models.model([tested], inputs, [("y", models.FLOAT, [])], constants, opset)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    inferred = onnx.shape_inference.infer_shapes(proto)
    return {n.op_type for n in check(inferred, feeds, folder).graph.node}


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("bias", [(), (5,), (1,), (3, 5), (1, 5)])
def test_gemm(trans_a: int, bias: tuple[int, ...], tmp_path: Path) -> None:
    x = random(4, 3) if trans_a else random(3, 4)
    constants = {"w": random(4, 5), "b": random(*bias)}
    gemm = node("Gemm", "x w b", "y", alpha=0.7, beta=1.3, transA=trans_a)
    ops = check_node(gemm, {"x": x}, tmp_path, constants)
    assert "Gemm" not in ops


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool, tmp_path: Path) -> None:
    shape = (6,) if axis == -1 else (5, 6)
    constants = {"scale": random(*shape), "bias": random(*shape)}
    tested = node("LayerNormalization", f"x scale{' bias' * bias}", "y", axis=axis, epsilon=1e-3)
    assert "LayerNormalization" not in check_node(
        tested, {"x": random(4, 5, 6)}, tmp_path, constants
    )


@pytest.mark.parametrize(("opset", "axis"), [(11, 2), (11, 1), (13, 1), (13, -1), (18, 0)])
def test_softmax(opset: int, axis: int, tmp_path: Path) -> None:
    x = 30 * random(3, 4, 5)
    check_node(node("Softmax", "x", "y", axis=axis), {"x": x}, tmp_path, opset=opset)


@pytest.mark.parametrize("opset", [7, 9, 15])
def test_batch_normalization(opset: int, tmp_path: Path) -> None:
    constants = {n: np.abs(random(3)) + F32(0.1) for n in ("scale", "bias", "mean", "var")}
    tested = node("BatchNormalization", "x scale bias mean var", "y", epsilon=1e-2)
    ops = check_node(tested, {"x": random(2, 3, 4, 5)}, tmp_path, constants, opset)
    assert ops == {"Mul", "Add"}


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Conv", {"auto_pad": "SAME_UPPER"}),
    ("Conv", {"auto_pad": "SAME_LOWER"}),
    ("Conv", {"auto_pad": "VALID"}),
    ("Conv", {"pads": [0, 1, 1, 0], "strides": [2, 1]}),
    ("MaxPool", {"auto_pad": "SAME_UPPER", "kernel_shape": [2, 3]}),
    ("MaxPool", {"pads": [1, 0, 0, 1], "kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", {"pads": [1, 0, 0, 1], "kernel_shape": [2, 2], "count_include_pad": 1}),
    ("AveragePool", {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 2]}),
]


@pytest.mark.parametrize(("op_type", "attributes"), WINDOWS)
def test_padding(op_type: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    constants = {"w": random(4, 3, 3, 2)} if op_type == "Conv" else {}
    inputs = "x w" if constants else "x"
    check_node(
        node(op_type, inputs, "y", **attributes), {"x": random(1, 3, 8, 9)}, tmp_path, constants
    )


def test_padding_of_strided_windows_needs_sizes(tmp_path: Path) -> None:
    tested = node("MaxPool", "x", "y", auto_pad="SAME_UPPER", kernel_shape=[3, 3], strides=[2, 2])
    check_node(tested, {"x": random(1, 3, 8, 9)}, tmp_path, dynamic=False)
    with pytest.raises(ModelError, match="pin the model's input"):
        check_node(tested, {"x": random(1, 3, 8, 9)}, tmp_path)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("opset", [11, 17, 18])
def test_global_pool(op_type: str, opset: int, tmp_path: Path) -> None:
    ops = check_node(node(op_type, "x", "y"), {"x": random(2, 3, 4, 5)}, tmp_path, opset=opset)
    assert op_type not in ops


@pytest.mark.parametrize("dtype", [F32, np.int64, np.bool_])
def test_expand(dtype: type, tmp_path: Path) -> None:
    feeds = {"x": random(1, 3).astype(dtype), "s": np.array([2, 4, 3])}
    assert "Expand" not in check_node(node("Expand", "x s", "y"), feeds, tmp_path)


def test_reciprocal(tmp_path: Path) -> None:
    x = np.array([0.5, -4, 0, np.inf], F32)
    assert check_node(node("Reciprocal", "x", "y"), {"x": x}, tmp_path) == {"Div"}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
@pytest.mark.parametrize("op_type", ["Div", "Mod"])
def test_unsigned_division(op_type: str, dtype: type, tmp_path: Path) -> None:
    top = np.iinfo(dtype).max
    feeds = {"a": np.array([top, 7, top], dtype), "b": np.array([2, 2, top], dtype)}
    if op_type == "Div" and dtype == np.uint8:
        assert _divided(feeds, tmp_path).tolist() == [127, 3, 1]  # onnxruntime has no such kernel
    else:
        check_node(node(op_type, "a b", "y"), feeds, tmp_path)


def _divided(feeds: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    inputs = [(name, x.dtype, ["n"]) for name, x in feeds.items()]
    proto = models.model([node("Div", "a b", "y")], inputs, [("y", np.uint8, ["n"])])
    model = load_model(models.save(proto, folder), folder)
    prepare(model, folder)
    return run(model.to_proto([]), feeds)[0]


def test_convolution_with_everything_behind_it(tmp_path: Path) -> None:
    constants = {"w": random(4, 3, 3, 3), "b": random(4), "k": random(4, 1, 1), "c": random(1)}
    constants |= {n: np.abs(random(4)) + F32(0.1) for n in ("scale", "bias", "mean", "var")}
    nodes = [
        node("Conv", "x w b", "c0", "conv"),
        node("Identity", "c0", "c1", "id"),
        node("Mul", "k c1", "c2", "mul"),
        node("BatchNormalization", "c2 scale bias mean var", "c3", "norm"),
        node("Add", "c3 c", "c4", "add"),
        node("Relu", "c4", "y", "relu"),
    ]
    x = random(1, 3, 6, 6)
    proto = models.model(
        nodes, [("x", F32, ["n", 3, "h", "w_"])], [("y", F32, ["n", 4, "h2", "w2"])], constants
    )
    rewritten = check(proto, {"x": x}, tmp_path)
    assert [n.op_type for n in rewritten.graph.node] == ["Conv", "Relu"]


def test_convolution_with_two_readers_is_left_alone(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", "conv"),
        node("Mul", "c k", "m", "mul"),
        node("Add", "c m", "y", "add"),
    ]
    constants = {"w": random(4, 3, 1, 1), "k": random(4, 1, 1)}
    proto = models.model(nodes, [("x", F32, [1, 3, 2, 2])], [("y", F32, [1, 4, 2, 2])], constants)
    assert len(check(proto, {"x": random(1, 3, 2, 2)}, tmp_path).graph.node) == 3


def test_identities_and_dropout_vanish(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "x", "a", "one"),
        node("Dropout", "a", "b", "two"),
        node("Identity", "b", "c", "three"),
        node("Relu", "c", "d", "four"),
        node("Identity", "d", "y", "five"),
    ]
    proto = models.model(nodes, [("x", F32, [3])], [("y", F32, [3])])
    rewritten = check(proto, {"x": random(3)}, tmp_path)
    assert "Dropout" not in {n.op_type for n in rewritten.graph.node}


def test_identity_read_by_a_branch_stays_visible(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info("z", models.FLOAT, [3])]
    then = helper.make_graph([node("Relu", "a", "z", "inner")], "then", [], value)
    other = helper.make_graph([node("Neg", "a", "z", "inner2")], "else", [], value)
    nodes = [
        node("Identity", "x", "a", "copy"),
        node("If", "c", "y", then_branch=then, else_branch=other),
    ]
    proto = models.model(nodes, [("x", F32, [3]), ("c", np.bool_, [])], [("y", F32, [3])])
    check(proto, {"x": random(3), "c": np.array(True)}, tmp_path)


def test_numbers_do_not_become_weights(tmp_path: Path) -> None:
    """A constant that expands to something large is left to be computed."""
    constants = {"shape": np.array([1000, 1000]), "zero": np.zeros((1,), F32)}
    nodes = [
        node("Expand", "zero shape", "big", "grow"),
        node("ReduceSum", "big", "total", "sum", keepdims=0),
        node("Add", "x total", "y", "add"),
    ]
    proto = models.model(nodes, [("x", F32, [2])], [("y", F32, [2])], constants)
    rewritten = check(proto, {"x": random(2)}, tmp_path)
    assert sum(np.prod(t.dims) for t in rewritten.graph.initializer) < 1000


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantize_and_dequantize(dtype: type, axis: int | None, tmp_path: Path) -> None:
    shape = () if axis is None else (4 + axis,)
    constants = {"s": RNG.random(shape, F32) + F32(0.01), "z": np.full(shape, 100).astype(dtype)}
    nodes = [
        node("QuantizeLinear", "x s z", "q", "quantize", axis=axis or 0),
        node("DequantizeLinear", "q s z", "y", "dequantize", axis=axis or 0),
    ]
    proto = models.model(nodes, [("x", F32, ["n", 5])], [("y", F32, ["n", 5])], constants)
    rewritten = check(proto, {"x": 3 * random(4, 5)}, tmp_path)
    assert not {n.op_type for n in rewritten.graph.node} & {"QuantizeLinear", "DequantizeLinear"}


def test_integer_product_becomes_a_float_one(tmp_path: Path) -> None:
    a = RNG.integers(0, 256, (3, 40)).astype(np.uint8)
    constants = {
        "b": RNG.integers(-128, 128, (40, 6)).astype(np.int8),
        "az": np.array(7, np.uint8),
        "bz": np.array(-3, np.int8),
    }
    ops = check_node(node("MatMulInteger", "a b az bz", "y"), {"a": a}, tmp_path, constants)
    assert ops == {"Cast", "Sub", "MatMul"}


def test_definitions_of_onnx_take_the_place_of_operators(tmp_path: Path) -> None:
    x = random(2, 3, 8)
    constants = {"scale": random(8)}
    tested = node("RMSNormalization", "x scale", "y", "rms")
    proto = models.model(
        [tested], [("x", F32, ["b", 3, 8])], [("y", F32, ["b", 3, 8])], constants, 23
    )
    model = load_model(models.save(proto, tmp_path), tmp_path)
    prepare(model, tmp_path)
    assert all(n.name.startswith("rms/") for n in model.nodes)
    expected = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * constants["scale"]
    (actual,) = run(model.to_proto([]), {"x": x})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_forms_that_the_front_end_misreads_are_refused(tmp_path: Path) -> None:
    weights = {n: random(1, 12, 4) for n in ("w", "r")} | {"p": random(1, 9)}
    tested = node("LSTM", "x w r _ _ _ _ p", "y", hidden_size=3)
    proto = models.model([tested], [("x", F32, [2, 1, 4])], [("y", F32, [2, 1, 1, 3])], weights)
    with pytest.raises(ModelError, match=r"with peepholes is not supported .*the LSTM"):
        prepare(load_model(models.save(proto, tmp_path), tmp_path), tmp_path)


def test_last_extremes_need_a_known_size(tmp_path: Path) -> None:
    tested = node("ArgMax", "x", "y", axis=1, select_last_index=1)
    for size in (3, "n"):
        proto = models.model([tested], [("x", F32, [2, size])], [("y", np.int64, [2, 1])])
        model = load_model(models.save(proto, tmp_path), tmp_path)
        if size == "n":
            with pytest.raises(ModelError, match="along an axis whose size is not known"):
                prepare(model, tmp_path)
        else:
            prepare(model, tmp_path)


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm", "Conv"])
def test_products_of_half_precision_are_computed_in_f32(op_type: str, tmp_path: Path) -> None:
    shape, weight = ((1, 4, 6, 6), (5, 4, 3, 3)) if op_type == "Conv" else ((3, 4), (4, 5))
    constants = {"w": random(*weight).astype(np.float16)}
    x = random(*shape).astype(np.float16)
    proto = models.model(
        [node(op_type, "x w", "y", "product")],
        [("x", np.float16, shape)],
        [("y", np.float16, ["a", "b", "c", "d"][: len(shape)])],
        constants,
    )
    model = load_model(models.save(proto, tmp_path), tmp_path)
    prepare(model, tmp_path)
    rewritten = model.to_proto([])
    assert [n.op_type for n in rewritten.graph.node][-1] == "Cast"
    assert "product" in {n.name for n in rewritten.graph.node}
    (weights,) = (t for t in rewritten.graph.initializer if len(t.dims) > 1)
    assert weights.data_type == models.FLOAT
    np.testing.assert_allclose(
        run(rewritten, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-2, atol=1e-2
    )


def written_for_three_axes(
    flat: str = "minus_one rows last", whole: str = "lead last rows", rank: int = 4
) -> onnx.ModelProto:
    """x.transpose(-2, -1) as PyTorch's attention has it."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape minus_one far", "last"),
        node("Slice", "shape minus_two minus_one", "rows"),
        node("Slice", "shape begin minus_two", "lead"),
        node("Concat", flat, "flat", axis=0),
        node("Concat", whole, "whole", axis=0),
        node("Reshape", "x flat", "x3"),
        node("Transpose", "x3", "x3t", perm=[0, 2, 1]),
        node("Reshape", "x3t whole", "y"),
    ]
    for tested in nodes:
        tested.name = tested.output[0]
    numbers = {"minus_one": -1, "minus_two": -2, "far": 2**63 - 1, "begin": -(2**63)}
    constants = {name: np.array([value], np.int64) for name, value in numbers.items()}
    shape = [f"d{i}" for i in range(rank)]
    return models.model(nodes, [("x", F32, shape)], [("y", F32, [None] * rank)], constants)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_transposes_written_for_three_axes(rank: int, tmp_path: Path) -> None:
    x = random(*range(2, 2 + rank))
    rewritten = check(written_for_three_axes(rank=rank), {"x": x}, tmp_path)
    (only,) = rewritten.graph.node
    order = list(only.attribute[0].ints)
    assert only.op_type == "Transpose" and order == [*range(rank - 2), rank - 1, rank - 2]


def test_other_reshapes_around_a_transpose_stay(tmp_path: Path) -> None:
    for flat, whole in (
        ("minus_one last rows", "lead last rows"),
        ("minus_one rows last", "lead rows last"),
    ):
        proto = written_for_three_axes(flat, whole)
        rewritten = check(proto, {"x": random(2, 3, 4, 5)}, tmp_path)
        assert sum(n.op_type == "Reshape" for n in rewritten.graph.node) == 2
