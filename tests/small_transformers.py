"""Transformers of two small layers in ONNX, with weights and gains from a seed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, INNER, ROWS = 48, 64, 40


class Transformer:
    """A graph that is built up: `norm` is "rms" (spelled out), "layer", "layer spelled out"
    or "adaptive", an RMS norm whose gains come from its input."""

    def __init__(self, norm: str, *, width: int = WIDTH, post: bool = False, seed: int = 0) -> None:
        self.norm_kind = norm
        self.width = width
        self.post = post
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    # Beginnings

    def tokens(self) -> str:
        """Rows of an embedding table plus rows of positions; the input is ids [2, 5]."""
        self.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 5]))
        table = self.constant(self.normal(ROWS, self.width) + 1, "table")
        tokens = self.op("Gather", table, "ids", name="embed")
        positions = self.constant(self.normal(5, self.width))
        return self.op("Add", tokens, positions, name="positions")

    def patches(self) -> str:
        """Patches of an image [2, 3, 8, 8] by a convolution, behind a class token."""
        self.inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 8, 8]))
        w, b = (
            self.constant(self.normal(self.width, 3, 4, 4)),
            self.constant(self.normal(self.width)),
        )
        found = self.op("Conv", "image", w, b, strides=[4, 4], name="patches")
        flat = self.op("Reshape", found, self.ints(2, self.width, 4))
        rows = self.op("Transpose", flat, perm=[0, 2, 1])
        token = self.op(
            "Expand", self.constant(self.normal(1, 1, self.width)), self.ints(2, 1, self.width)
        )
        rows = self.op("Concat", token, rows, axis=1)
        return self.op("Add", rows, self.constant(self.normal(1, 5, self.width)), name="positions")

    # Layers

    def layers(self, x: str) -> str:
        for i in range(2):
            x = self.branch(x, f"attention.{i}", self.attention)
            x = self.branch(x, f"mlp.{i}", self.mlp)
        return x

    def branch(self, x: str, name: str, function: object) -> str:
        assert callable(function)
        if self.post:
            return self.norm(self.op("Add", x, function(x, name), name=f"{name}.add"), name)
        return self.op("Add", x, function(self.norm(x, name), name), name=f"{name}.add")

    def attention(self, x: str, name: str) -> str:
        q, k, v = (
            self.linear(x, self.width, self.width, f"{name}.{part}", bias=True) for part in "qkv"
        )
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 1]))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.linear(mixed, self.width, self.width, f"{name}.out", bias=True)

    def mlp(self, x: str, name: str) -> str:
        inner = self.op("Relu", self.linear(x, self.width, INNER, f"{name}.up", bias=False))
        return self.linear(inner, INNER, self.width, f"{name}.down", bias=False)

    def linear(self, x: str, k: int, n: int, name: str, *, bias: bool) -> str:
        y = self.op("MatMul", x, self.constant(self.normal(k, n) / np.sqrt(k)), name=name)
        return self.op("Add", y, self.constant(self.normal(n))) if bias else y

    def norm(self, x: str, name: str) -> str:
        gain = self.constant(1 + 0.3 * self.normal(self.width))
        bias = self.constant(self.normal(self.width))
        if self.norm_kind == "layer":
            return self.op("LayerNormalization", x, gain, bias, epsilon=1e-5, name=f"{name}.norm")
        if self.norm_kind == "adaptive":
            gain = self.op("ReduceMean", x, axes=[0, 1], keepdims=0)
        if self.norm_kind in ("rms", "adaptive"):
            return self.op("Mul", gain, self.normalized(x))
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]), name=f"{name}.centre")
        return self.op("Add", self.op("Mul", self.normalized(centred), gain), bias)

    def normalized(self, x: str) -> str:
        two = self.constant(np.float32(2))
        square = self.op("Pow", x, two) if self.norm_kind == "rms" else self.op("Mul", x, x)
        mean = self.op(
            "Add", self.op("ReduceMean", square, axes=[-1]), self.constant(np.float32(1e-5))
        )
        return self.op("Div", x, self.op("Sqrt", mean))

    # Ends

    def head(self, x: str, *, tied: bool = False) -> str:
        if tied:
            return self.op("MatMul", x, self.op("Transpose", "table", perm=[1, 0]), name="head")
        return self.linear(x, self.width, ROWS, "head", bias=False)

    def model(self, result: str, shape: list[int]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "small", self.inputs, [output], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    # Parts

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def constant(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def ints(self, *values: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        result = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [result], name=name or f"node {result}", **attributes)
        )
        return result


def decoder(
    norm: str = "rms", *, width: int = WIDTH, tied: bool = False, post: bool = False
) -> onnx.ModelProto:
    """ids [2, 5] to y [2, 5, rows]."""
    t = Transformer(norm, width=width, post=post)
    x = t.layers(t.tokens())
    return t.model(t.head(x if post else t.norm(x, "last"), tied=tied), [2, 5, ROWS])


def encoder(norm: str, *, normalized: bool) -> onnx.ModelProto:
    """x [2, WIDTH, 5] to y [2, 5, WIDTH]: the stream begins behind a Relu and is returned, or what
    the last norm makes of it."""
    t = Transformer(norm)
    t.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, WIDTH, 5]))
    x = t.layers(t.op("Transpose", t.op("Relu", "x", name="stem"), perm=[0, 2, 1]))
    return t.model(t.norm(x, "last") if normalized else x, [2, 5, WIDTH])


def vision() -> onnx.ModelProto:
    """image [2, 3, 8, 8] to y [2, rows], from the first row behind the last norm."""
    t = Transformer("layer")
    x = t.norm(t.layers(t.patches()), "last")
    first = t.op("Squeeze", t.op("Slice", x, t.ints(0), t.ints(1), t.ints(1)), t.ints(1))
    return t.model(t.head(first), [2, ROWS])
