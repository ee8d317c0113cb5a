"""Llama-like decoders in ONNX with weights from a seed: RMS norms, rotary positions, grouped
queries, a cache, SwiGLU. The sizes of SmolLM2-135M are the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class DecoderSizes:
    """Columns, query heads, heads of the cache, columns of a head, columns between."""

    hidden: int = 576
    heads: int = 9
    cache_heads: int = 3
    head: int = 64
    inner: int = 1536


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        result = f"v{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [result], name=name or f"node {result}", **attributes)
        self.nodes.append(node)
        return result

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def linear(self, x: str, columns: int, inner: int, name: str) -> str:
        weight = self.rng.standard_normal((inner, columns)).astype(np.float32) / np.sqrt(inner)
        return self.op("MatMul", x, self.constant(weight.astype(np.float32)), name=name)

    def rms_norm(self, x: str, columns: int) -> str:
        square = self.op("Pow", x, self.constant(np.float32(2)))
        mean = self.op("ReduceMean", square, axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(np.float32(1e-5))))
        scaled = self.op("Mul", x, self.op("Reciprocal", root))
        gain = 1 + 0.1 * self.rng.standard_normal(columns)
        return self.op("Mul", self.constant(gain.astype(np.float32)), scaled)

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))


def decoder(
    layers: int = 1,
    sizes: DecoderSizes = DecoderSizes(),
    seed: int = 0,
) -> onnx.ModelProto:
    """`layers` layers: x [B, S, hidden], position_ids [B, S], bias [B, 1, S, P + S] and caches
    past_<i>_key, past_<i>_value [B, heads, P, head] in; y and the caches grown out."""
    g = _Graph(seed)
    x = "x"
    cos, sin = _angles(g, sizes)
    inputs = [
        _tensor("x", ["B", "S", sizes.hidden]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["B", "S"]),
        _tensor("bias", ["B", 1, "S", "P + S"]),
    ]
    outputs = []
    for i in range(layers):
        past = [f"past_{i}_key", f"past_{i}_value"]
        inputs += [_tensor(name, ["B", sizes.cache_heads, "P", sizes.head]) for name in past]
        x, present = _layer(g, sizes, x, past, cos, sin, i)
        for name, value in zip(("key", "value"), present, strict=True):
            g.nodes.append(helper.make_node("Identity", [value], [f"present_{i}_{name}"]))
            shape: Sequence[object] = ["B", sizes.cache_heads, "P + S", sizes.head]
            outputs.append(_tensor(f"present_{i}_{name}", shape))
    g.nodes.append(helper.make_node("Identity", [x], ["y"]))
    outputs.insert(0, _tensor("y", ["B", "S", sizes.hidden]))
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, g.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _tensor(name: str, shape: Sequence[object]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _angles(g: _Graph, sizes: DecoderSizes) -> tuple[str, str]:
    """Cosines and sines, [B, 1, S, head]."""
    frequencies = 1e5 ** -(np.arange(0, sizes.head, 2) / sizes.head)
    position = g.op("Cast", g.op("Unsqueeze", "position_ids", g.ints(1, 3)), to=TensorProto.FLOAT)
    angle = g.op("Mul", position, g.constant(frequencies.astype(np.float32)))
    both = g.op("Concat", angle, angle, axis=-1)
    return g.op("Cos", both), g.op("Sin", both)


def _heads(g: _Graph, x: str, heads: int, head: int) -> str:
    split = g.op("Reshape", x, g.ints(0, 0, heads, head))
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def _rotate(g: _Graph, x: str, cos: str, sin: str, head: int) -> str:
    low = g.op("Slice", x, g.ints(0), g.ints(head // 2), g.ints(3))
    high = g.op("Slice", x, g.ints(head // 2), g.ints(head), g.ints(3))
    turned = g.op("Concat", g.op("Neg", high), low, axis=-1)
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def _repeat(g: _Graph, cache: str, sizes: DecoderSizes) -> str:
    """Each head of the cache for its group of query heads."""
    group = sizes.heads // sizes.cache_heads
    apart = g.op("Unsqueeze", cache, g.ints(2))
    ones = g.ints(1, 1, group, 1, 1)
    return g.op("Reshape", g.op("Expand", apart, ones), g.ints(0, sizes.heads, -1, sizes.head))


def _layer(
    g: _Graph, sizes: DecoderSizes, x: str, past: Sequence[str], cos: str, sin: str, number: int
) -> tuple[str, list[str]]:
    name = f"layer.{number}"
    width, cache_width = sizes.heads * sizes.head, sizes.cache_heads * sizes.head
    normed = g.rms_norm(x, sizes.hidden)
    q = g.linear(normed, width, sizes.hidden, f"{name}.q_proj")
    k = g.linear(normed, cache_width, sizes.hidden, f"{name}.k_proj")
    v = g.linear(normed, cache_width, sizes.hidden, f"{name}.v_proj")
    q = _rotate(g, _heads(g, q, sizes.heads, sizes.head), cos, sin, sizes.head)
    k = _rotate(g, _heads(g, k, sizes.cache_heads, sizes.head), cos, sin, sizes.head)
    v = _heads(g, v, sizes.cache_heads, sizes.head)
    present = [g.op("Concat", old, new, axis=2) for old, new in zip(past, (k, v), strict=True)]
    keys, values = (_repeat(g, cache, sizes) for cache in present)
    scores = g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scaled = g.op("Mul", scores, g.constant(np.float32(sizes.head**-0.5)))
    weights = g.op("Softmax", g.op("Add", scaled, "bias"), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", weights, values), perm=[0, 2, 1, 3])
    joined = g.op("Reshape", mixed, g.ints(0, 0, width))
    x = g.op("Add", x, g.linear(joined, sizes.hidden, width, f"{name}.o_proj"))
    normed = g.rms_norm(x, sizes.hidden)
    gate = g.silu(g.linear(normed, sizes.inner, sizes.hidden, f"{name}.gate_proj"))
    up = g.linear(normed, sizes.inner, sizes.hidden, f"{name}.up_proj")
    down = g.linear(g.op("Mul", gate, up), sizes.hidden, sizes.inner, f"{name}.down_proj")
    return g.op("Add", x, down), present


def feeds(
    batch: int,
    rows: int,
    past: int,
    layers: int = 1,
    sizes: DecoderSizes = DecoderSizes(),
) -> dict[str, np.ndarray]:
    """Inputs for `rows` new positions after `past` old ones, with a causal mask."""
    rng = np.random.default_rng(1)
    total = past + rows
    later = np.arange(total)[None, :] > past + np.arange(rows)[:, None]
    bias = np.where(later, np.finfo(np.float32).min, 0).astype(np.float32)
    inputs = {
        "x": rng.standard_normal((batch, rows, sizes.hidden)).astype(np.float32),
        "position_ids": np.broadcast_to(np.arange(past, total), (batch, rows)).astype(np.int64),
        "bias": np.broadcast_to(bias, (batch, 1, rows, total)).copy(),
    }
    shape = (batch, sizes.cache_heads, past, sizes.head)
    for i in range(layers):
        for name in ("key", "value"):
            inputs[f"past_{i}_{name}"] = rng.standard_normal(shape).astype(np.float32)
    return inputs
