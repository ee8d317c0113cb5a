"""onnxruntime's operators without a kernel for CPUs, beside what its documentation says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from front_end.contrib_forms import Arrays, Form, check, floats

F16, F32 = np.float16, np.float32


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normalized(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int) -> np.ndarray:
    """Group by group, of [N, H, W, C]."""
    n, h, w, c = x.shape
    parts = x.astype(np.float64).reshape(n, h * w, groups, c // groups)
    centered = parts - parts.mean((1, 3), keepdims=True)
    scale = np.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-3)
    return (centered / scale).reshape(x.shape) * gamma + beta


def group_norm(dtype: Any) -> Form:
    return Form(
        "GroupNorm", [{"x": floats(2, 8, 3, 4, dtype=dtype)}] * 2, {"y": dtype},
        {"gamma": floats(8), "beta": floats(8)}, sizes={"x": "n _ h w"},
        attributes={"groups": 2, "activation": 0, "channels_last": 0, "epsilon": 1e-3},
        reference=lambda a: [
            normalized(a["x"].transpose(0, 2, 3, 1), a["gamma"], a["beta"], 2)
            .transpose(0, 3, 1, 2)
        ],
        tolerance=5e-3 if dtype is F16 else 1e-4,
    )  # fmt: skip


def skip_group_norm(dtype: Any, skip: tuple[int, ...], bias: bool) -> Form:
    def reference(a: Arrays) -> Sequence[np.ndarray]:
        total = a["x"].astype(np.float64) + a["skip"].reshape(2, *[1] * (4 - len(skip)), *skip[1:])
        total = total + (a["bias"] if bias else 0)
        y = normalized(total, a["gamma"], a["beta"], 4)
        return [y * sigmoid(y), total]

    names = ["x", "gamma", "beta", "skip", *(["bias"] if bias else [])]
    constants = {"gamma": floats(8), "beta": floats(8), "bias": floats(8, dtype=dtype)}
    return Form(
        "SkipGroupNorm",
        [{"x": floats(2, 3, 5, 8, dtype=dtype), "skip": floats(*skip, dtype=dtype)}] * 2,
        {"y": dtype, "sum": dtype}, {k: v for k, v in constants.items() if k in names}, names,
        {"x": "n h w _"}, {"groups": 4, "activation": 1, "epsilon": 1e-3},
        reference, 1e-2 if dtype is F16 else 1e-4,
    )  # fmt: skip


def split_gelu(a: Arrays) -> Sequence[np.ndarray]:
    left, right = np.split(a["x"] + a["bias"], 2, axis=-1)
    return [left * gelu(right)]


def gated_norm(a: Arrays) -> Sequence[np.ndarray]:
    heads = a["x"].reshape(*a["x"].shape[:-1], -1, a["scale"].size)
    scale = np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-3)
    return [(heads / scale * a["scale"]).reshape(a["x"].shape) * sigmoid(a["gate"])]


def turned(a: Arrays) -> Sequence[np.ndarray]:
    cos, sin = (f(a["angles"])[:, None] for f in (np.cos, np.sin))
    return [a[x].astype(F32) * cos + a[f"{x}2"].astype(F32) * sin for x in ("q", "k")]


def swiglu(gate: np.ndarray, linear: np.ndarray, limit: float) -> np.ndarray:
    gate, linear = np.minimum(gate, limit), np.clip(linear, -limit, limit)
    return gate * sigmoid(1.5 * gate) * (linear + 1)


def product(a: Arrays) -> np.ndarray:
    x = a["x"] @ a["w"] + a.get("bias", 0)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def parts(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], -1)


def whole(x: np.ndarray) -> np.ndarray:
    return x[..., 0] + 1j * x[..., 1]


def position_bias(a: Arrays, bidirectional: bool, farthest: int = 40) -> np.ndarray:
    buckets, heads = a["table"].shape
    table, length = a["table"].reshape(heads, buckets), int(a["queries"][0])
    y = np.zeros((1, heads, length, length))
    for row in range(length):
        for column in range(length):
            near = buckets // 2 if bidirectional else buckets
            begin = near if bidirectional and column > row else 0
            distance, exact = abs(column - row), near // 2
            if distance >= exact:
                far = math.log(distance / exact) / math.log(farthest / exact)
                distance = min(exact + int(far * (near - exact)), near - 1)
            y[0, :, row, column] = table[:, begin + distance]
    return y


def gated_positions(a: Arrays) -> Sequence[np.ndarray]:
    queries = (a["q"] + a["qb"]).reshape(2, 3, 2, 4).transpose(0, 2, 1, 3)
    sums = (queries @ a["w"] + a["wb"]).reshape(2, 2, 3, 2, 3).sum(-1)
    u, r = sigmoid(sums[..., :1]), sigmoid(sums[..., 1:])
    return [(u * (r * a["a"] - 1) + 2) * a["rel"]]


def bias_of(bidirectional: int) -> Form:
    feeds = [{"queries": np.array([n]), "keys": np.array([n])} for n in (30, 1)]
    return Form(
        "RelativePositionBias", feeds, {"y": F32}, {"table": floats(16, 3)},
        ["table", "queries", "keys"],
        attributes={"max_distance": 40, "is_bidirectional": bidirectional},
        reference=lambda a: [position_bias(a, bool(bidirectional))],
    )  # fmt: skip


COMPLEX = [{"a": floats(3, 4, 2), "b": floats(4, 2)}, {"a": floats(1, 4, 2), "b": floats(4, 2)}]

FORMS = {
    "norm": group_norm(F32),
    "half norm": group_norm(F16),
    "skip norm": skip_group_norm(F32, (2, 8), bias=True),
    "skip norm of images": skip_group_norm(F32, (2, 3, 5, 8), bias=False),
    "half skip norm": skip_group_norm(F16, (2, 1, 1, 8), bias=True),
    "split": Form(
        "BiasSplitGelu", [{"x": floats(2, 3, 8)}, {"x": floats(1, 1, 8)}], {"y": F32},
        {"bias": floats(8)}, sizes={"x": "n s _"}, reference=split_gelu,
    ),
    "gated": Form(
        "SwiGLU", [{"gate": floats(3, 8) * 3, "linear": floats(3, 8)}] * 2, {"y": F32},
        sizes={"gate": "n _"},
        attributes={"activation_alpha": 1.5, "activation_beta": 1.0, "limit": 2.0},
        reference=lambda a: [swiglu(a["gate"], a["linear"], 2.0)],
    ),
    "gated halves": Form(
        "SwiGLU", [{"x": floats(3, 8, dtype=F16)}] * 2, {"y": F16}, sizes={"x": "n _"},
        attributes={"activation_alpha": 1.5, "activation_beta": 1.0, "round_activation": 1},
        reference=lambda a: [swiglu(*np.split(a["x"].astype(F32), 2, -1), math.inf)],
        tolerance=2e-3,
    ),
    "gated norm": Form(
        "GatedRMSNorm", [{"x": floats(2, 3, 8), "gate": floats(2, 3, 8)},
                         {"x": floats(1, 1, 8), "gate": floats(1, 1, 8)}],
        {"y": F32}, {"scale": floats(4)}, ["x", "scale", "gate"], {"x": "b t _", "gate": "b t _"},
        {"epsilon": 1e-3, "activation": "sigmoid"}, gated_norm,
    ),
    "gates": Form(
        "LinearAttentionGate", [{"a": floats(2, 3, 4) * 9, "b": floats(2, 3, 4)}] * 2,
        {"decay": F32, "beta": F32}, {"bias": floats(4), "scale": -np.abs(floats(4))},
        ["a", "bias", "scale", "b"], {"a": "_ t _"},
        reference=lambda a: [np.logaddexp(a["a"] + a["bias"], 0) * a["scale"], sigmoid(a["b"])],
    ),
    "gated sum": Form(
        "GatedAdd", [{"x": floats(2, 3, 8), "y": floats(2, 3, 8) + 1, "gate": floats(2, 3, 1)}] * 2,
        {"y2": F32}, sizes={"x": "_ t _"}, reference=lambda a: [a["x"] + a["y"] * a["gate"]],
    ),
    "gated sum of a product": Form(
        "GatedAdd", [{"x": floats(2, 3, 8), "y": floats(2, 3, 8) + 1, "gate": floats(2, 3, 5)}] * 2,
        {"y2": F32}, {"w": floats(5, 1)},
        reference=lambda a: [a["x"] + a["y"] * sigmoid(a["gate"] @ a["w"])],
    ),
    "scaled": Form(
        "ScaledSiLU", [{"x": floats(3, 8)}] * 2, {"y": F32}, {"s": np.array(1.5, F32)},
        reference=lambda a: [a["x"] * 1.5 * sigmoid(a["x"] * 1.5)],
    ),
    "turned": Form(
        "GemmaRotaryEmbedding",
        [{"angles": floats(2, 3, 8) * 5, **{x: floats(2, 2, 3, 8, dtype=F16) / F16(n + 1)
                                            for n, x in enumerate(("q", "q2", "k", "k2"))}}] * 2,
        {"y": F16, "z": F16}, reference=turned, tolerance=5e-3,
    ),
    "product": Form(
        "GemmFastGelu", [{"x": floats(2, 3, 4)}, {"x": floats(1, 1, 4)}], {"y": F32},
        {"w": floats(4, 5), "bias": floats(5)}, sizes={"x": "n s _"},
        reference=lambda a: [product(a)],
    ),
    "product without bias": Form(
        "GemmFastGelu", [{"x": floats(2, 4), "w": floats(4, 5)}] * 2, {"y": F32},
        reference=lambda a: [product(a)],
    ),
    "spectrum": Form(
        "Rfft", [{"x": floats(3, 6, 8)}, {"x": floats(1, 6, 8)}], {"y": F32}, sizes={"x": "n _ _"},
        attributes={"signal_ndim": 2}, reference=lambda a: [parts(np.fft.rfft2(a["x"]))],
    ),
    "spectrum of any length": Form(
        "Rfft", [{"x": floats(2, 6)}, {"x": floats(2, 10)}], {"y": F32}, sizes={"x": "_ n"},
        reference=lambda a: [parts(np.fft.rfft(a["x"]))],
    ),
    "signal": Form(
        "Irfft", [{"x": floats(3, 4, 5, 2)}, {"x": floats(2, 4, 5, 2)}], {"y": F32},
        sizes={"x": "n _ _ _"}, attributes={"signal_ndim": 1},
        reference=lambda a: [np.fft.irfft(whole(a["x"]))],
    ),
    "image": Form(
        "Irfft", [{"x": parts(np.fft.rfft2(floats(2, 6, 8))).astype(F32)}] * 2, {"y": F32},
        attributes={"signal_ndim": 2}, reference=lambda a: [floats(2, 6, 8)],
    ),
    "complex": Form(
        "ComplexMul", COMPLEX, {"y": F32}, sizes={"a": "n _ _"},
        reference=lambda a: [parts(whole(a["a"]) * whole(a["b"]))],
    ),
    "conjugate": Form(
        "ComplexMulConj", COMPLEX, {"y": F32}, sizes={"a": "n _ _"},
        reference=lambda a: [parts(whole(a["a"]) * whole(a["b"]).conj())],
    ),
    "distances": bias_of(0),
    "distances in both directions": bias_of(1),
    "gated positions": Form(
        "GatedRelativePositionBias",
        [{"q": floats(2, 3, 8), "rel": floats(1, 2, 3, 3)}] * 2, {"y": F32},
        {"qb": floats(8), "w": floats(4, 6), "wb": floats(6), "a": floats(1, 2, 1, 1)},
        ["q", "qb", "rel", "w", "wb", "a"], {"q": "b _ _"}, {"num_heads": 2}, gated_positions,
    ),
    "embedding": Form(
        "TorchEmbedding", [{"at": np.array([[0, 1], [2, 4]])}, {"at": np.array([[3, 3]])}],
        {"y": F32}, {"table": floats(5, 7)}, ["table", "at"], {"at": "n _"},
        reference=lambda a: [a["table"][a["at"]]],
    ),
}  # fmt: skip


def test_agrees_with_the_documentation(tmp_path: Path) -> None:
    check(FORMS, tmp_path)
