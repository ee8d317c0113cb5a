"""Models that cannot be imported: one clear line each, and no crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as models
import pytest
from abqc.compiler.onnx_import import import_model, registry
from abqc.compiler.onnx_import.registry import Entry, Node
from abqc.compiler.onnx_import.values.symbolic import Dim
from abqc.compiler.onnx_import.values.value import Value
from abqc.dialects.mlir import tensor
from abqc.errors import ModelError
from onnx import helper
from onnx_models import node


def message(path: Path, **options: Any) -> str:
    """The text of the error that importing `path` raises."""
    with pytest.raises(ModelError) as caught:
        import_model(path, work_dir=path.parent, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(proto: onnx.ModelProto, folder: Path, **options: Any) -> str:
    return message(models.save(proto, folder), **options)


def unary(*nodes: onnx.NodeProto, dtype: Any = np.float32, **options: Any) -> onnx.ModelProto:
    return models.model(nodes, [("x", dtype, [4])], [("y", dtype, [4])], **options)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "nothing.onnx")


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    assert "is not a file" in message(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"hello world, no model\n" * 9, "is not an ONNX model"),
        (b"\0" * 64, "is not"),
    ],
)
def test_not_a_model(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert expected in message(path)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_truncated(part: float, tmp_path: Path) -> None:
    path = models.save(models.mlp(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    assert "truncated" in message(path)


def test_missing_external_data(tmp_path: Path) -> None:
    path = models.save(models.mlp(), tmp_path, external=True)
    (tmp_path / "model.data").unlink()
    text = message(path)
    assert "'model.data'" in text
    assert "'w1' is missing" in text


def test_truncated_external_data(tmp_path: Path) -> None:
    path = models.save(models.mlp(), tmp_path, external=True)
    data = tmp_path / "model.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert "the file is truncated" in message(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("location", "../../etc/passwd", "outside of the model's directory"),
        ("location", "/etc/passwd", "outside of the model's directory"),
        ("offset", "-8", "lies at bytes"),
        ("offset", "99999999999999999999", "lies at bytes"),
        ("offset", "many", "no number"),
        ("length", "4", "has 4 bytes of data"),
        ("length", "-640", "bytes of data"),
    ],
)
def test_hostile_external_data(key: str, value: str, expected: str, tmp_path: Path) -> None:
    path = models.save(models.mlp(), tmp_path, external=True)
    proto = onnx.load(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == key).value = value
    path.write_bytes(proto.SerializeToString())
    assert expected in message(path)


@pytest.mark.parametrize("dims", [[8, 21], [1 << 40, 1 << 40], [-8, -20]])
def test_data_that_does_not_fit_its_shape(dims: Sequence[int], tmp_path: Path) -> None:
    proto = models.mlp()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    assert "initializer 'w1' has" in refused(proto, tmp_path)


def test_unknown_operator(tmp_path: Path) -> None:
    text = refused(unary(node("Frobnicate", "x", "y", "mill")), tmp_path)
    assert text.startswith("ONNX has no operator Frobnicate (node 'mill')")


def test_operator_of_a_later_opset(tmp_path: Path) -> None:
    text = refused(unary(node("Gelu", "x", "y", "act")), tmp_path)
    assert "there since 20 (node 'act')" in text


def test_unknown_domain(tmp_path: Path) -> None:
    proto = unary(node("Mill", "x", "y", "mill", domain="com.example"), domains=["com.example"])
    text = refused(proto, tmp_path)
    assert text.startswith("operator com.example::Mill is not supported (node 'mill')")


def test_unknown_operator_in_a_branch(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info("z", models.FLOAT, [4])]
    branch = helper.make_graph([node("Frobnicate", "x", "z", "mill")], "branch", [], value)
    proto = models.model(
        [node("If", "c", "y", then_branch=branch, else_branch=branch)],
        [("c", np.bool_, []), ("x", np.float32, [4])],
        [("y", np.float32, [4])],
    )
    assert "node 'mill'" in refused(proto, tmp_path)


def test_opset_of_the_future(tmp_path: Path) -> None:
    assert "upgrade the onnx package" in refused(unary(node("Relu", "x", "y"), opset=999), tmp_path)


def test_strings(tmp_path: Path) -> None:
    proto = unary(node("Identity", "x", "y"), dtype=onnx.TensorProto.STRING)
    assert "input 'x' has element type string" in refused(proto, tmp_path)


def test_value_that_nobody_makes(tmp_path: Path) -> None:
    text = refused(unary(node("Relu", "nowhere", "y", "act")), tmp_path)
    assert "input 'nowhere' of operator Relu is made by no node before it (node 'act')" in text


def test_recursive_function(tmp_path: Path) -> None:
    body = [helper.make_node("Loop", ["a"], ["b"], domain="mine")]
    function = helper.make_function(
        "mine", "Loop", ["a"], ["b"], body, [helper.make_opsetid("mine", 1)]
    )
    call = node("Loop", "x", "y", "call", domain="mine")
    text = refused(unary(call, functions=[function], domains=["mine"]), tmp_path)
    assert "mine::Loop of the model calls itself" in text


def test_shapes_that_do_not_match(tmp_path: Path) -> None:
    proto = models.model(
        [node("Relu", "a", "r"), node("MatMul", "r b", "y", "product")],
        [("a", np.float32, [4, 3]), ("b", np.float32, [4, 5])],
        [("y", np.float32, [4, 5])],
    )
    text = refused(proto, tmp_path)
    assert "MatMul" in text
    assert "product" in text


def test_an_operator_that_is_refused_says_why(tmp_path: Path) -> None:
    text = refused(
        unary(node("RegexFullMatch", "x", "y", "filter", pattern="a"), opset=20), tmp_path
    )
    assert text.startswith("operator RegexFullMatch is not supported: strings")
    assert text.endswith("(node 'filter')")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"nobody": (1,)}, "the model's inputs are x"),
        ({"x": (4, 8, 2)}, "has 3 sizes"),
        ({"x": (4, 9)}, "which the model fixes at 8"),
        ({"x": (-4, 8)}, "has a negative size"),
    ],
)
def test_shapes_that_cannot_be_pinned(
    shapes: dict[str, tuple[int, ...]], expected: str, tmp_path: Path
) -> None:
    assert expected in refused(models.mlp(), tmp_path, shapes=shapes)


def test_invalid_ir_names_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule does wrong, users hear at which node."""

    def cast_to_another_size(node: Node) -> Value:
        x = node.input(0)
        dims = (Dim.of(5),)
        cast = tensor.CastOp(node.b.type(x.dtype, dims), node.b.tensor(x))
        return Value(x.dtype, dims, ssa=cast.result)

    entry = Entry(1, cast_to_another_size)
    monkeypatch.setitem(registry.RULES, ("", "Relu"), [entry])
    text = refused(unary(node("Relu", "x", "y", "rectifier")), tmp_path)
    assert "'tensor.cast' op operand type" in text
    assert "(node 'rectifier')" in text


@pytest.mark.parametrize("error", [AssertionError, ZeroDivisionError, AttributeError, KeyError])
def test_rule_that_fails_names_the_node(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(node: Node) -> Value:
        raise error("unforeseen")

    monkeypatch.setitem(registry.RULES, ("", "Relu"), [Entry(1, fail)])
    text = refused(unary(node("Relu", "x", "y", "rectifier")), tmp_path)
    assert f"Relu: this form cannot be lowered ({error.__name__}" in text
    assert "(node 'rectifier')" in text


def test_input_without_a_type(tmp_path: Path) -> None:
    proto = unary(node("Relu", "x", "y"))
    proto.graph.input[0].ClearField("type")
    assert "input 'x' has no element type" in refused(proto, tmp_path)


def test_output_without_a_type_has_that_of_its_value(tmp_path: Path) -> None:
    proto = unary(node("Relu", "x", "y"))
    proto.graph.output[0].ClearField("type")
    imported = import_model(models.save(proto, tmp_path), work_dir=tmp_path)
    assert [(spec.dtype, spec.shape) for spec in imported.outputs] == [("float32", (4,))]


@pytest.mark.parametrize("sizes", [["batch", 0, 1], [0, 1], [0, 0, 1]])
def test_products_without_elements(sizes: list[str | int], tmp_path: Path) -> None:
    """They are reshaped although an unknown size stands beside the 0."""
    proto = models.model(
        [node("MatMul", "x z", "y")],
        [("x", np.int32, sizes), ("z", np.int32, [1, 6])],
        [("y", np.int32, [*sizes[:-1], 6])],
    )
    imported = import_model(models.save(proto, tmp_path), work_dir=tmp_path)
    assert imported.outputs[0].shape == (*sizes[:-1], 6)
