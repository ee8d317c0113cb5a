"""Small ONNX models, built by hand, for the tests of the importer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# (name, numpy dtype or ONNX element type, shape); sizes may be names.
Value = tuple[str, Any, Sequence[int | str]]


def node(op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> NodeProto:
    """A node; inputs and outputs are names separated by spaces, `_` for one left out."""
    split = [["" if n == "_" else n for n in names.split()] for names in (inputs, outputs)]
    return helper.make_node(op_type, *split, name=name or f"the {op_type}", **attributes)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "main",
        [_value(value) for value in inputs],
        [_value(value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=8, functions=list(functions), producer_name="tests"
    )


def save(proto: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    """Writes `model.onnx`, and `model.data` beside it if `external`."""
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="model.data", size_threshold=0)
    return path


def mlp(opset: int = 17) -> onnx.ModelProto:
    """Two Gemm layers with a Relu between, 8 -> 20 -> 6, the second one with all attributes."""
    rng = np.random.default_rng(opset)
    constants = {
        "w1": rng.standard_normal((8, 20), np.float32),
        "b1": rng.standard_normal(20, np.float32),
        "w2": rng.standard_normal((6, 20), np.float32),
        "b2": rng.standard_normal((1, 6)).astype(np.float32),
    }
    nodes = [
        node("Gemm", "x w1 b1", "h", "first"),
        node("Relu", "h", "r"),
        node("Gemm", "r w2 b2", "y", "second", alpha=0.5, beta=2.0, transB=1),
    ]
    return model(
        nodes, [("x", np.float32, ["n", 8])], [("y", np.float32, ["n", 6])], constants, opset
    )


def tied_embedding() -> onnx.ModelProto:
    """A table of 50 x 24 that is both embedding and head."""
    table = np.random.default_rng(0).standard_normal((50, 24), np.float32)
    nodes = [
        node("Gather", "table ids", "rows", "embedding"),
        node("Transpose", "table", "head_weight", perm=[1, 0]),
        node("MatMul", "rows head_weight", "logits", "head"),
    ]
    inputs = [("ids", np.int64, ["batch", "seq"])]
    return model(nodes, inputs, [("logits", np.float32, ["batch", "seq", 50])], {"table": table})


def attention(opset: int = 17) -> onnx.ModelProto:
    """Self-attention with 2 heads of 4, its shapes computed as exporters do."""
    rng = np.random.default_rng(0)
    constants = {n: rng.standard_normal((8, 8), np.float32) for n in ("wq", "wk", "wv", "wo")}
    constants |= {
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4]),
        "eight": np.array([8]),
    }  # fmt: skip
    nodes = [node("Shape", "x", "shape", "shape")]
    nodes += [node("Gather", "shape zero", "b", "b"), node("Gather", "shape one", "s", "s")]
    nodes += [node("Concat", "b s two four", "split", "split", axis=0)]
    nodes += [node("Concat", "b s eight", "merge", "merge", axis=0)]
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"x w{part}", f"{part}1", f"{part}_proj"),
            node("Reshape", f"{part}1 split", f"{part}2", f"{part}_split"),
            node("Transpose", f"{part}2", f"{part}3", f"{part}_heads", perm=perm),
        ]
    nodes += [
        node("MatMul", "q3 k3", "scores", "scores"),
        node("Softmax", "scores", "p", "softmax", axis=-1),
        node("MatMul", "p v3", "mixed", "mix"),
        node("Transpose", "mixed", "back", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back merge", "flat", "flat"),
        node("MatMul", "flat wo", "y", "o_proj"),
    ]
    shape = ["batch", "seq", 8]
    return model(nodes, [("x", np.float32, shape)], [("y", np.float32, shape)], constants, opset)


def _value(value: Value) -> onnx.ValueInfoProto:
    name, dtype, shape = value
    elem_type = (
        dtype if isinstance(dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    )
    return helper.make_tensor_value_info(name, elem_type, list(shape))


FLOAT, UINT8, UINT64, INT8 = (
    TensorProto.FLOAT, TensorProto.UINT8, TensorProto.UINT64, TensorProto.INT8,
)  # fmt: skip
