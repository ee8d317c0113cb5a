"""Small language models in ONNX with weights from a seed: `decoder.py` between an embedding and
logits, its causal mask from the sizes, with caches or without."""

from __future__ import annotations

import numpy as np
import onnx
from decoder import DecoderSizes, decoder
from onnx import TensorProto, helper, numpy_helper

SIZES = DecoderSizes(hidden=32, heads=4, cache_heads=2, head=8, inner=48)
CACHES = [f"past_{layer}_{name}" for layer in range(2) for name in ("key", "value")]


def language_model(vocabulary: int, *, caches: bool = True, seed: int = 0) -> onnx.ModelProto:
    """Two layers: input_ids, attention_mask, position_ids and caches in, logits and caches out.

    Without caches the sequence is a run by itself; weights and numbers are the same.
    """
    model = decoder(2, SIZES, seed)
    graph = model.graph
    rng = np.random.default_rng(seed + 1)
    constants = {
        "embedding": rng.standard_normal((vocabulary, SIZES.hidden)).astype(np.float32),
        "head": rng.standard_normal((SIZES.hidden, vocabulary)).astype(np.float32),
        "nought": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([1]),
        "outer": np.array([0, 1]),
        "shown": np.float32(0),
        "hidden": np.float32(-1e9),
    }
    before = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"], name="embed"),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Shape", ["input_ids"], ["ids_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["total"]),
        helper.make_node("Gather", ["ids_shape", "one"], ["new"]),
        helper.make_node("Sub", ["total", "new"], ["old"]),
        helper.make_node("Range", ["nought", "total", "one"], ["columns"]),
        helper.make_node("Range", ["old", "total", "one"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "axis"], ["row"]),
        helper.make_node("Greater", ["columns", "row"], ["later"]),
        helper.make_node("Where", ["later", "hidden", "shown"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "outer"], ["bias"]),
    ]
    after = [helper.make_node("MatMul", ["y", "head"], ["logits"], name="head")]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "P + S"]),
        *(i for i in graph.input if i.name == "position_ids" or i.name.startswith("past")),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", vocabulary]),
        *(o for o in graph.output if o.name.startswith("present")),
    ]
    if not caches:
        inputs, outputs = inputs[:3], outputs[:1]
        empty = np.zeros((1, SIZES.cache_heads, 0, SIZES.head), np.float32)
        constants |= dict.fromkeys(CACHES, empty)
    nodes = [*before, *graph.node, *after]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    whole = helper.make_graph(nodes, "lm", inputs, outputs, [*graph.initializer, *tensors])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def grouped_query_model(vocabulary: int, past: object, present: object) -> onnx.ModelProto:
    """One GroupQueryAttention as onnxruntime's exporters write it: the mask says how many tokens
    there are, caches have the sizes `past` and `present`."""
    rng = np.random.default_rng(0)
    heads, width = SIZES.cache_heads, SIZES.head
    columns = {"q": SIZES.heads * width, "k": heads * width, "v": heads * width}

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    constants = {
        "embedding": rng.standard_normal((vocabulary, SIZES.hidden)).astype(np.float32),
        "head": weight(columns["q"], vocabulary),
        "one": np.int64(1),
        "axis": np.array([1]),
        **{f"w_{name}": weight(SIZES.hidden, size) for name, size in columns.items()},
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"], name="embed"),
        *(helper.make_node("MatMul", ["x", f"w_{n}"], [n], name=n) for n in columns),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "one"], ["length"]),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "seqlens_k",
             "total"],
            ["mixed", "present.0.key", "present.0.value"],
            domain="com.microsoft", num_heads=SIZES.heads, kv_num_heads=heads, name="attention",
        ),
        helper.make_node("MatMul", ["mixed", "head"], ["logits"], name="head"),
    ]  # fmt: skip

    def caches(prefix: str, rows: object) -> list[onnx.ValueInfoProto]:
        shape = ["B", heads, rows, width]
        return [
            helper.make_tensor_value_info(f"{prefix}.0.{n}", TensorProto.FLOAT, shape)
            for n in ("key", "value")
        ]

    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"]),
        *caches("past_key_values", past),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", vocabulary]),
        *caches("present", present),
    ]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "gqa", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
