"""Nodes that come behind those that read them, as onnxruntime's float16 converter leaves them."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx_models
import pytest
from abqc.compiler.onnx_import.graph.ordering import in_order
from abqc.errors import ModelError
from onnx import TensorProto, helper
from onnx_models import node


def names(nodes: list) -> list[str]:
    return [each.name for each in in_order(nodes)]


def test_nodes_in_order_stay_where_they_are() -> None:
    nodes = [node("Relu", "x", "a", "1"), node("Abs", "x", "b", "2"), node("Add", "a b", "c", "3")]
    assert names(nodes) == ["1", "2", "3"]


def test_makers_come_before_readers() -> None:
    nodes = [node("Add", "a b", "c", "3"), node("Abs", "x", "b", "2"), node("Relu", "x", "a", "1")]
    assert names(nodes) == ["2", "1", "3"]


def test_what_a_subgraph_reads_comes_before_it() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", "late", "y")], "branch", [], [value])
    chosen = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)
    assert names([chosen, node("Relu", "x", "late", "1")]) == ["1", "if"]


def test_a_cycle_is_an_error_that_names_a_node() -> None:
    with pytest.raises(ModelError, match=r"cycle.*'first'"):
        in_order([node("Relu", "b", "a", "first"), node("Relu", "a", "b", "second")])


def test_a_model_out_of_order_compiles(tmp_path: Path) -> None:
    nodes = [node("Neg", "r", "y"), node("Relu", "x", "r")]
    proto = onnx_models.model(nodes, [("x", np.float32, ["n"])], [("y", np.float32, ["n"])])
    model = abqc.compile(onnx_models.save(proto, tmp_path), output=tmp_path / "model.so")
    np.testing.assert_array_equal(model.run({"x": np.array([-1, 2], np.float32)})[0], [0, -2])
