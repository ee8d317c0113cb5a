"""onnxruntime's attention, norms and fusions, beside onnxruntime itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from front_end.oracle import compiled, expected, outputs
from onnx import TensorProto, helper, numpy_helper

HEADS, WIDTH, LENGTH = 4, 16, 5
ALL = HEADS * WIDTH

rng = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def angles(function: Any) -> np.ndarray:
    return function(np.arange(32)[:, None] * 0.1 * np.arange(1, WIDTH // 2 + 1)).astype(np.float32)


@dataclass
class Form:
    """A node: the names of its inputs and outputs, what is fed, what is constant."""

    op: str
    inputs: list[str]
    outputs: list[str]
    feeds: dict[str, np.ndarray]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()  # outputs of the node that the model does not return

    def model(self) -> onnx.ModelProto:
        """Every size of every input is dynamic, but for those that give a head its width."""
        graph = helper.make_graph(
            [helper.make_node(self.op, self.inputs, self.outputs, "node",
                              domain="com.microsoft", **self.attributes)],
            "graph",
            [helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(x.dtype),
                [f"{name}{axis}" if 0 < axis < x.ndim - 1 else size
                 for axis, size in enumerate(x.shape)])
             for name, x in self.feeds.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
             for name in self.outputs if name and name not in self.unused],
            [numpy_helper.from_array(x, name) for name, x in self.constants.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def grouped(length: int, past: int, **attributes: Any) -> Form:
    rotary = bool(attributes.get("do_rotary"))
    return Form(
        "GroupQueryAttention",
        ["q", "k", "v", "pk", "pv", "lengths", "total", *(["cos", "sin"] if rotary else [])],
        ["y", "keys", "values"],
        {
            "q": floats(1, length, ALL), "k": floats(1, length, 2 * WIDTH),
            "v": floats(1, length, 2 * WIDTH), "pk": floats(1, 2, past, WIDTH),
            "pv": floats(1, 2, past, WIDTH),
            "lengths": np.full((1,), past + length - 1, np.int32),
            "total": np.array(past + length, np.int32),
        },
        {"cos": angles(np.cos), "sin": angles(np.sin)} if rotary else {},
        {"num_heads": HEADS, "kv_num_heads": 2, **attributes},
    )  # fmt: skip


def embeddings() -> Form:
    return Form(
        "EmbedLayerNormalization",
        ["ids", "segments", "words", "positions", "kinds", "gamma", "beta"],
        ["y", "mask_index"],
        {"ids": rng.integers(0, 20, (2, 5)).astype(np.int32),
         "segments": rng.integers(0, 2, (2, 5)).astype(np.int32)},
        {"words": floats(20, 8), "positions": floats(10, 8), "kinds": floats(2, 8),
         "gamma": floats(8), "beta": floats(8)},
        unused=("mask_index",),
    )  # fmt: skip


FORMS = {
    "heads with a bias": Form(
        "MultiHeadAttention", ["q", "k", "v", "b"], ["y"],
        {"q": floats(2, 5, ALL), "k": floats(2, 7, ALL), "v": floats(2, 7, ALL)},
        {"b": floats(3 * ALL)}, {"num_heads": HEADS},
    ),
    "heads with masks and a past": Form(
        "MultiHeadAttention", ["q", "k", "v", "", "mask", "bias", "pk", "pv"], ["y", "k2", "v2"],
        {
            "q": floats(2, 5, ALL), "k": floats(2, 5, ALL), "v": floats(2, 5, ALL),
            "mask": rng.integers(0, 2, (2, 8)).astype(np.int32), "bias": floats(1, HEADS, 5, 8),
            "pk": floats(2, HEADS, 3, WIDTH), "pv": floats(2, HEADS, 3, WIDTH),
        },
        {}, {"num_heads": HEADS, "unidirectional": 1},
    ),
    "packed, lengths": Form(
        "Attention", ["x", "w", "b", "m"], ["y"],
        {"x": floats(2, 5, 16), "m": np.array([3, 5], np.int32)},
        {"w": floats(16, 3 * ALL), "b": floats(3 * ALL)}, {"num_heads": HEADS},
    ),
    "packed, mask and past": Form(
        "Attention", ["x", "w", "b", "m", "past"], ["y", "present"],
        {"x": floats(2, 5, 16), "m": rng.integers(0, 2, (2, 7)).astype(np.int32),
         "past": floats(2, 2, HEADS, 2, WIDTH)},
        {"w": floats(16, 3 * ALL), "b": floats(3 * ALL)},
        {"num_heads": HEADS, "unidirectional": 1},
    ),
    "rotary rows": Form(
        "RotaryEmbedding", ["x", "p", "c", "s"], ["y"],
        {"x": floats(2, 5, ALL), "p": rng.integers(0, 32, (2, 5))},
        {"c": angles(np.cos), "s": angles(np.sin)},
    ),
    "rotary heads, interleaved": Form(
        "RotaryEmbedding", ["x", "p", "c", "s"], ["y"],
        {"x": floats(2, HEADS, 5, WIDTH), "p": np.array([4])},
        {"c": angles(np.cos), "s": angles(np.sin)}, {"interleaved": 1},
    ),
    "grouped, first prompt": grouped(LENGTH, 0, do_rotary=1),
    "grouped, one step": grouped(1, 6, do_rotary=1),
    "grouped, several steps": grouped(3, 6, do_rotary=1, rotary_interleaved=1),
    "grouped, window and cap": grouped(LENGTH, 6, local_window_size=4, softcap=2.0),
    "grouped, smooth": grouped(1, 8, smooth_softmax=1),
    "product of transposes": Form(
        "FusedMatMul", ["a", "b"], ["y"], {"a": floats(2, 3, 4), "b": floats(2, 5, 4)},
        {}, {"transB": 1, "alpha": 0.5},
    ),
    "gemm and relu": Form(
        "FusedGemm", ["a", "b", "c"], ["y"], {"a": floats(3, 4)},
        {"b": floats(4, 5), "c": floats(5)}, {"activation": "Relu"},
    ),
    "bias and gelu": Form("BiasGelu", ["a", "b"], ["y"], {"a": floats(3, 4), "b": floats(4)}),
    "fast gelu": Form("FastGelu", ["a", "b"], ["y"], {"a": floats(3, 4), "b": floats(4)}),
    "quick gelu": Form("QuickGelu", ["a"], ["y"], {"a": floats(3, 4)}),
    "sum and layer norm": Form(
        "SkipLayerNormalization", ["a", "b", "g", "be", "bi"], ["y", "", "", "s"],
        {"a": floats(2, 3, 8), "b": floats(2, 3, 8)},
        {"g": floats(8), "be": floats(8), "bi": floats(8)},
    ),
    "sum and RMS norm": Form(
        "SkipSimplifiedLayerNormalization", ["a", "b", "g"], ["y", "", "", "s"],
        {"a": floats(2, 3, 8), "b": floats(2, 3, 8)}, {"g": floats(8)},
    ),
    "embeddings": embeddings(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_agrees_with_onnxruntime(form: Form, tmp_path: Path) -> None:
    proto = form.model()
    wanted = expected(proto, form.feeds)
    actual = outputs(compiled(proto, tmp_path), form.feeds)
    for got, reference in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-5, strict=True)
