"""The importer: from ONNX to linalg + abq, with weights in a store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.onnx_import import ImportedModel, NodeInfo, TensorSpec, import_model
from abqc.dialects.mlir import ir
from onnx import TensorProto, helper
from onnx_models import node

LATEST = onnx.defs.onnx_opset_version()


def imported(proto: onnx.ModelProto, folder: Path, **options: object) -> ImportedModel:
    return import_model(models.save(proto, folder), work_dir=folder, **options)  # type: ignore[arg-type]


def text_of(result: ImportedModel) -> str:
    assert result.module.operation.verify()
    return result.module.operation.get_asm()


def operations(result: ImportedModel) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(op: ir.Operation) -> ir.WalkResult:
        counts[op.name] += 1
        return ir.WalkResult.ADVANCE

    result.module.operation.walk(count)
    return counts


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, LATEST])
def test_gemm_becomes_matmul_with_bias(opset: int, tmp_path: Path) -> None:
    proto = models.mlp(opset)
    result = imported(proto, tmp_path)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert operations(result)["abq.matmul"] == 2
    assert "linalg.matmul" not in operations(result)
    first, second = result.nodes
    assert (first.name, first.kind, first.weight_shape) == ("first", "matmul", (20, 8))
    np.testing.assert_array_equal(result.store.get(first.weight), weights["w1"].T)
    np.testing.assert_array_equal(result.store.get(second.weight), 0.5 * weights["w2"])
    assert result.inputs == [TensorSpec("x", "float32", ("n", 8))]
    assert result.outputs == [TensorSpec("y", "float32", ("n", 6))]
    assert (result.opset, result.producer) == (opset, "tests")


def test_tied_head_is_stored_once(tmp_path: Path) -> None:
    result = imported(models.tied_embedding(), tmp_path)
    assert list(result.store) == ["table"]
    assert result.nodes == [
        NodeInfo("embedding", "Gather", "gather", "table", (50, 24)),
        NodeInfo("head", "MatMul", "matmul", "table", (50, 24)),
    ]


def test_constant_on_the_left(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    proto = models.model(
        [node("MatMul", "w x", "y", "mm")],
        [("x", np.float32, ["b", 4, "n"])],
        [("y", np.float32, ["b", 3, "n"])],
        {"w": weight},
    )
    result = imported(proto, tmp_path)
    (info,) = result.nodes
    assert info == NodeInfo("mm", "MatMul", "matmul", "w", (3, 4))
    np.testing.assert_array_equal(result.store.get("w"), weight)


def test_convolution_takes_padding_and_normalization_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((6, 2, 3, 3), np.float32)}
    constants |= {n: rng.random(6, np.float32) + 0.5 for n in ("scale", "bias", "mean", "var")}
    nodes = [
        node("Conv", "x w", "c", "conv", group=2, strides=[2, 1], pads=[0, 1, 1, 1]),
        node("BatchNormalization", "c scale bias mean var", "y", "norm"),
    ]
    inputs = [("x", np.float32, ["b", 4, 9, "width"])]
    proto = models.model(nodes, inputs, [("y", np.float32, ["b", 6, 4, "width"])], constants)
    result = imported(proto, tmp_path)
    assert result.nodes == [NodeInfo("conv", "Conv", "conv", result.nodes[0].weight, (6, 2, 3, 3))]
    text = text_of(result)
    assert "pads = array<i64: 0, 1, 1, 1>" in text
    assert "strides = array<i64: 2, 1>" in text
    assert "groups = 2" in text
    factor = constants["scale"] / np.sqrt(constants["var"].astype(np.float64) + 1e-5)
    np.testing.assert_allclose(
        result.store.get(result.nodes[0].weight),
        constants["w"] * factor.reshape(-1, 1, 1, 1),
        rtol=1e-6,
    )
    assert operations(result)["linalg.generic"] == 0


def test_shape_arithmetic_becomes_views(tmp_path: Path) -> None:
    counts = operations(imported(models.attention(), tmp_path))
    assert counts["abq.matmul"] == 4
    assert counts["linalg.batch_matmul"] == 2
    assert counts["tensor.reshape"] == counts["tensor.from_elements"] == 0
    assert counts["tensor.dim"] == 2
    assert counts["arith.divsi"] == 0


def test_counts_of_a_tile_and_pads_are_followed(tmp_path: Path) -> None:
    """PyTorch's repeat_interleave takes the counts from a OneHot of sizes, its pads a transpose."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[b, s, 4] x) => (float[a, c, d] y, float[e, f, g] z)
        <int64[1] at = {1}, int64 depth = {3}, int64[1] one = {1}, int64[2] pairs = {-1, 2},
         int64[1] first = {0}, int64[1] last = {-1}, int64[1] end = {-9223372036854775807},
         int64[1] zero = {0}, int64[3] zeros = {0, 0, 0}, int64[1] all = {-1}>
        {
          s = Shape <start = 1, end = 2> (x)
          pair = Concat <axis = 0> (one, s)
          counts = OneHot (at, depth, pair)
          row = Reshape (counts, all)
          y = Tile (x, row)
          none = ConstantOfShape <value = int64[1] {0}> (zero)
          pads = Concat <axis = 0> (zeros, s, zero, zero, none)
          two = Reshape (pads, pairs)
          back = Slice (two, last, end, first, last)
          turned = Transpose <perm = [1, 0]> (back)
          whole = Reshape (turned, all)
          z = Pad (x, whole)
        }"""
    )
    shapes = [spec.shape for spec in imported(model, tmp_path).outputs]
    assert shapes == [("b", "s*s", 4), ("b", "2*s", 4)]


def test_one_hot_sizes_at_indices_of_few_bits(tmp_path: Path) -> None:
    """The depth is no number of the indices' type."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[b, s] x) => (int64[200, 2] y) <int8[2] at = {-1, 2}, int64 depth = {200}>
        { pair = Shape (x)
          y = OneHot <axis = 0> (at, depth, pair) }"""
    )
    assert imported(model, tmp_path).outputs[0].shape == (200, 2)


def test_pinned_shapes(tmp_path: Path) -> None:
    result = imported(models.attention(), tmp_path, shapes={"x": (1, 16, 8)})
    assert result.inputs[0].shape == result.outputs[0].shape == (1, 16, 8)
    assert operations(result)["tensor.dim"] == 0
    assert "?" not in text_of(result)


def test_external_data_is_mapped(tmp_path: Path) -> None:
    proto = models.mlp()
    expected = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    path = models.save(proto, tmp_path, external=True)
    result = import_model(path, work_dir=tmp_path)
    np.testing.assert_array_equal(result.store.get(result.nodes[0].weight), expected.T)
    assert not (tmp_path / "initializers.bin").exists()


def test_initializers_listed_as_inputs_are_none(tmp_path: Path) -> None:
    proto = models.mlp()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    assert [spec.name for spec in imported(proto, tmp_path).inputs] == ["x"]


def test_constants_are_folded_on_their_way_to_a_matmul(tmp_path: Path) -> None:
    codes = np.arange(-24, 24, dtype=np.int8).reshape(4, 2, 6)
    nodes = [
        node("Constant", "", "scale", value=onnx.numpy_helper.from_array(np.float32([0.5]))),
        node("Cast", "codes", "floats", to=models.FLOAT),
        node("Mul", "floats scale", "scaled"),
        node("Reshape", "scaled shape", "matrix"),
        node("Transpose", "matrix", "w", perm=[1, 0]),
        node("MatMul", "x w", "y", "mm"),
    ]
    constants = {"codes": codes, "shape": np.array([0, -1])}
    proto = models.model(
        nodes, [("x", np.float32, [3, 12])], [("y", np.float32, [3, 4])], constants
    )
    result = imported(proto, tmp_path)
    np.testing.assert_array_equal(
        result.store.get(result.nodes[0].weight), 0.5 * codes.reshape(4, 12).astype(np.float32)
    )
    assert len(result.store) == 1


@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("axis", [None, 1])
def test_integer_weights_keep_their_codes(
    zero: int | None, axis: int | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (8, 5)).astype(np.int8)
    shape = () if axis is None else (5,)
    constants = {"q": codes, "s": rng.random(shape, np.float32) + np.float32(0.1)}
    if zero is not None:
        constants["z"] = np.full(shape, zero, np.int8)
    nodes = [
        node("DequantizeLinear", "q s" + (" z" if zero is not None else ""), "w", axis=1),
        node("MatMul", "x w", "y", "mm"),
    ]
    proto = models.model(
        nodes, [("x", np.float32, ["n", 8])], [("y", np.float32, ["n", 5])], constants
    )
    result = imported(proto, tmp_path, keep_codes=True)
    symbol = result.nodes[0].weight
    tensor = result.store.quantized(symbol)
    assert tensor is not None
    assert tensor.scheme.symmetric == (not zero)
    values = (codes.astype(np.float32) - np.float32(zero or 0)) * constants["s"]
    np.testing.assert_array_equal(tensor.dequantize(), values.T)
    (tmp_path / "float").mkdir()
    plain = imported(proto, tmp_path / "float")
    assert plain.store.quantized(symbol) is None
    np.testing.assert_array_equal(plain.store.get(symbol), values.T)


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = helper.make_node("Double", ["x"], ["y"], name="call", domain="mine")
    proto = models.model(
        [call], [("x", np.float32, [3])], [("y", np.float32, [3])], functions=[function],
        domains=["mine"],
    )  # fmt: skip
    assert "arith.addf" in operations(imported(proto, tmp_path))


def test_unused_inputs_stay_and_unused_weights_go(tmp_path: Path) -> None:
    constants = {"unused": np.ones((30, 30), np.float32)}
    proto = models.model(
        [node("Relu", "x", "y"), node("MatMul", "x unused", "nobody", "dead")],
        [("spare", np.int64, ["k"]), ("x", np.float32, ["n", 30])],
        [("y", np.float32, ["n", 30])],
        constants,
    )
    result = imported(proto, tmp_path)
    assert [spec.name for spec in result.inputs] == ["spare", "x"]
    assert "%arg0: tensor<?xi64>, %arg1: tensor<?x30xf32>" in text_of(result)
    assert len(result.store) == 0


def test_element_types_of_inputs_and_outputs(tmp_path: Path) -> None:
    proto = models.model(
        [node("Not", "flag", "no"), node("Cast", "pixels", "floats", to=models.FLOAT)],
        [("flag", np.bool_, []), ("pixels", np.uint8, ["h", 3])],
        [("no", np.bool_, []), ("floats", np.float32, ["h", 3])],
    )
    result = imported(proto, tmp_path)
    assert [spec.dtype for spec in result.inputs] == ["bool", "uint8"]
    assert [spec.dtype for spec in result.outputs] == ["bool", "float32"]
    assert "arith.uitofp" in text_of(result)


@pytest.mark.parametrize("number", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_operators_of_older_opsets_take_halves(number: int, tmp_path: Path) -> None:
    """PyTorch writes convolutions of bf16 to any opset; ONNX's own have it from 22 on."""
    weight = helper.make_tensor("w", number, [4, 3, 1, 1], np.linspace(-1, 1, 12))
    x = helper.make_tensor_value_info("x", number, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", number, None)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    result = imported(model, tmp_path)
    assert [spec.dtype for spec in result.outputs] == [spec.dtype for spec in result.inputs]
    assert len(result.nodes) == 1


def test_only_upstream_dialects_and_ours_remain(tmp_path: Path) -> None:
    dialects = {name.split(".")[0] for name in operations(imported(models.attention(), tmp_path))}
    assert dialects <= {"abq", "arith", "builtin", "cf", "func", "linalg", "math", "scf", "tensor"}


def test_shapes_of_outputs_are_inferred_not_believed(tmp_path: Path) -> None:
    proto = models.model(
        [node("Relu", "x", "y")], [("x", np.float32, ["n", 4])], [("y", np.float32, [7, 1])]
    )
    assert imported(proto, tmp_path).outputs == [TensorSpec("y", "float32", ("n", 4))]


def test_input_without_rank_can_be_pinned(tmp_path: Path) -> None:
    proto = models.model([node("Relu", "x", "y")], [("x", np.float32, [])], [("y", np.float32, [])])
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    assert imported(proto, tmp_path, shapes={"x": (2, 3)}).outputs[0].shape == (2, 3)
