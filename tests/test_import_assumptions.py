"""Ranks that depend on sizes: what a model is compiled for, and what its runs then refuse."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import onnx_models
import pytest
from abqc.errors import InputError
from onnx import TensorProto, helper
from onnx_models import node

FLOAT = TensorProto.FLOAT


def squeeze_if_one(condition_axis: int) -> onnx.NodeProto:
    """PyTorch's x.squeeze(-1): squeezed if the size is 1, else as it is."""

    def branch(op: str, output: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(output, FLOAT, None)
        nodes = [node("Squeeze", "x last", output)] if op == "Squeeze" else [node(op, "x", output)]
        return helper.make_graph(nodes, op, [], [value])

    return helper.make_node(
        "If",
        ["is_one"],
        ["y"],
        name="the If",
        then_branch=branch("Squeeze", "a"),
        else_branch=branch("Identity", "b"),
    )


def conditional(rank: int) -> onnx.ModelProto:
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape last", "size"),
        node("Equal", "size one", "is_one"),
        squeeze_if_one(-1),
    ]
    constants = {"last": np.array([-1]), "one": np.array([1])}
    inputs = [("x", np.float32, ["n", "k"])]
    outputs = [("y", np.float32, ["n", "k"][:rank])]
    return onnx_models.model(nodes, inputs, outputs, constants)


def compiled(model: onnx.ModelProto, folder: Path) -> abqc.Model:
    return abqc.compile(onnx_models.save(model, folder), output=folder / "model.so")


def rows(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(("rank", "size", "other"), [(1, 1, 4), (2, 4, 1)])
def test_a_branch_is_chosen_by_the_rank_that_the_output_declares(
    rank: int, size: int, other: int, tmp_path: Path
) -> None:
    model = compiled(conditional(rank), tmp_path)
    x = rows(3, size)
    np.testing.assert_array_equal(model.run({"x": x})[0], x[:, 0] if rank == 1 else x)
    with pytest.raises(InputError, match=r"the If.*compiled for sizes"):
        model.run({"x": rows(3, other)})


def test_a_branch_is_chosen_by_what_the_rest_of_the_model_can_take(tmp_path: Path) -> None:
    proto = conditional(2)
    proto.graph.node.append(node("Transpose", "y", "z", perm=[1, 0]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", FLOAT, None))
    model = compiled(proto, tmp_path)
    np.testing.assert_array_equal(model.run({"x": rows(3, 4)})[0], rows(3, 4).T)


def test_squeeze_without_axes_keeps_axes_of_unknown_size(tmp_path: Path) -> None:
    proto = onnx_models.model(
        [node("Squeeze", "x", "y", "the Squeeze")],
        [("x", np.float32, ["n", 1, 5])],
        [("y", np.float32, ["n", 5])],
    )
    model = compiled(proto, tmp_path)
    assert model.run({"x": rows(3, 1, 5)})[0].shape == (3, 5)
    with pytest.raises(InputError, match=r"the Squeeze.*not 1"):
        model.run({"x": rows(1, 1, 5)})


def test_squeeze_without_axes_takes_those_away_that_the_output_does_not_have(
    tmp_path: Path,
) -> None:
    proto = onnx_models.model(
        [node("Squeeze", "x", "y", "the Squeeze")],
        [("x", np.float32, ["n", 1])],
        [("y", np.float32, [])],
    )
    model = compiled(proto, tmp_path)
    assert model.run({"x": rows(1, 1)})[0].shape == ()
    with pytest.raises(InputError, match=r"the Squeeze.*that is 1"):
        model.run({"x": rows(2, 1)})
