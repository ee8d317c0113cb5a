"""Integer-only graphs: compiled code against `dialects/fixed_point.py`, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.dialects import fixed_point, reference
from abqc.dialects.fixed_point import StaticCodes
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from abqc.dialects.reference import ConvGeometry, im2col
from abqc.runtime.ptx.driver import PtxDriver
from integer_cases import build, static
from onnx_models import model, node

ISAS = [isa.name for isa in isas.available()]
W8, A8 = parse_scheme("w8"), parse_scheme("a8:tensor")


def outputs(library: Path, x: np.ndarray) -> list[np.ndarray]:
    """What each instruction set computes."""
    found = []
    for isa in ISAS:
        with abqc.load(library, isa=isa) as loaded:
            found.append(loaded.run({"x": x})[0])
    return found


def conv(
    q: np.ndarray,
    x: StaticCodes,
    w: np.ndarray,
    bias: np.ndarray | None,
    y: StaticCodes,
    pads: Sequence[int] = (0, 0, 0, 0),
    groups: int = 1,
    bounds: tuple[int, int] | None = None,
) -> np.ndarray:
    """Codes of a convolution of codes [B, C, H, W]."""
    n, columns = len(w), int(np.prod(w.shape[1:]))
    weight = quantize_weight(w.reshape(n, columns), W8)
    geometry = ConvGeometry(w.shape[2:], (1, 1), (1, 1), tuple(pads))
    height, width = geometry.output_shape(q.shape[2:])
    centred = q.astype(np.int64) - x.zero
    step, out = q.shape[1] // groups, n // groups
    parts = []
    for g in range(groups):
        rows = im2col(centred[:, g * step : (g + 1) * step], geometry)
        parts.append(rows @ weight.codes[g * out : (g + 1) * out].astype(np.int64).T)
    acc = np.concatenate(parts, axis=2)
    units = x.scale * weight.scale[:, 0].astype(np.float64)
    bias = np.zeros(n) if bias is None else bias
    added, offset = fixed_point.bias_codes(bias, units, y)
    factor = fixed_point.fixed_point(units / y.scale)
    codes = fixed_point.requantize(acc, added, factor, y, bounds, offset)
    return np.moveaxis(codes.reshape(len(q), height, width, n), 3, 1)


def max_pool(q: np.ndarray) -> np.ndarray:
    """2 x 2, one row and column of padding behind."""
    padded = np.pad(q, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=-(1 << 20))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), axis=(2, 3))
    return windows.max(axis=(4, 5))


def gemm(q: np.ndarray, x: StaticCodes, weight: QuantizedTensor, bias: np.ndarray) -> np.ndarray:
    """The float result of the last product."""
    rows = len(q)
    zeros = np.full(rows, x.zero, np.int32)
    return reference.matmul(q, np.full(rows, x.scale, np.float32), zeros, weight, bias)


@pytest.mark.parametrize(
    "activation",
    [
        "a8:tensor",
        pytest.param("a8:tensor:sym", marks=pytest.mark.slow),
        pytest.param("a5:tensor", marks=pytest.mark.slow),
    ],
)
def test_a_network_is_computed_to_the_bit(tmp_path: Path, activation: str) -> None:
    rng = np.random.default_rng(len(activation))

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    w = {
        "w1": normal(7, 3, 3, 3), "b1": normal(7), "w2": normal(7, 7, 1, 1), "b2": normal(7),
        "w3": normal(7, 1, 3, 3), "b3": normal(7), "w4": normal(5, 14, 1, 1), "w5": normal(6, 5),
        "b5": normal(6), "half": np.array(0.5, np.float32), "low": np.array(-0.4, np.float32),
        "high": np.array(0.7, np.float32), "gain": normal(1, 5, 1, 1),
    }  # fmt: skip
    w["w3"][2] *= np.float32(1e-6)  # next to no weights: the bias is an offset of the codes
    nodes = [
        node("Conv", "x w1 b1", "c1", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1", "relu"),
        node("MaxPool", "r1", "p", "pool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        node("Conv", "p w2 b2", "c2", "conv2"),
        node("Add", "c2 p", "a", "add"),
        node("Sigmoid", "a", "s", "sigmoid"),
        node("Mul", "a s", "g", "silu"),
        node("Conv", "g w3 b3", "d", "depthwise", pads=[1, 1, 1, 1], group=7),
        node("Concat", "d p", "j", "join", axis=1),
        node("Conv", "j w4", "c4", "conv4"),
        node("Clip", "c4 low high", "k", "clip"),
        node("Mul", "k gain", "m", "gain"),
        node("Sub", "k m", "u", "sub"),
        node("ReduceMean", "u", "v", "mean", axes=[2, 3], keepdims=0),
        node("Gemm", "v w5 b5", "y", "fc", transB=1),
    ]
    proto = model(
        nodes, [("x", np.float32, ["n", 3, 9, "width"])], [("y", np.float32, ["n", 6])], w
    )
    middle = 0 if activation.endswith("sym") else (1 << (int(activation[1]) - 1)) - 3
    step = 0.02 if activation.startswith("a8") else 0.2
    names = "x relu conv2 add silu depthwise join clip gain sub mean"
    codes = {
        name: static(step * (1 + 0.1 * i), middle, activation)
        for i, name in enumerate(names.split())
    }
    library, notes = build(proto, tmp_path, codes, f"w8 {activation} rtn integer", strict=True)
    assert not notes
    x = rng.standard_normal((2, 3, 9, 6), np.float32)
    x[0, 0, 0, 0] = np.nan

    of_x, relu = codes["x"], codes["relu"]
    q = np.rint(np.nan_to_num(x, nan=-np.inf) / np.float32(of_x.scale)) + of_x.zero
    q = np.clip(q, of_x.low, of_x.high).astype(np.int64)
    bounds = (relu.zero, relu.high)
    p = max_pool(conv(q, of_x, w["w1"], w["b1"], relu, (1, 1, 1, 1), bounds=bounds))
    c2 = conv(p, relu, w["w2"], w["b2"], codes["conv2"])
    a = fixed_point.add(c2, codes["conv2"], p, relu, codes["add"])
    silu = fixed_point.table(lambda v: v / (1 + np.exp(-v)), codes["add"], codes["silu"])
    g = looked_up(silu, a, codes["silu"])
    d = conv(g, codes["silu"], w["w3"], w["b3"], codes["depthwise"], (1, 1, 1, 1), groups=7)
    j = np.concatenate(
        [
            looked_up(fixed_point.table(lambda v: v, of, codes["join"]), q, codes["join"])
            for q, of in ((d, codes["depthwise"]), (p, relu))
        ],
        axis=1,
    )
    clip = codes["clip"]
    bounds = tuple(int(clip.code(w[name].astype(np.float64))) for name in ("low", "high"))
    k = conv(j, codes["join"], w["w4"], None, clip, bounds=bounds)
    gain_scale = float(np.float32(np.abs(w["gain"]).max().astype(np.float64) / 32767))
    gain = StaticCodes(A8, gain_scale, 0)
    q_gain = np.rint(w["gain"].astype(np.float64) / gain_scale).astype(np.int64)
    m = fixed_point.multiply(k, clip, q_gain, gain, codes["gain"])
    u = fixed_point.add(k, clip, m, codes["gain"], codes["sub"], subtract=True)
    factor = fixed_point.fixed_point(codes["sub"].scale / codes["mean"].scale)
    total = (u - codes["sub"].zero).sum(axis=(2, 3))
    v = fixed_point.divide(total, 9 * 6, factor, codes["mean"])
    expected = gemm(v, codes["mean"], quantize_weight(w["w5"], W8), w["b5"])
    for y in outputs(library, x):
        np.testing.assert_array_equal(y, expected)


def looked_up(table: np.ndarray, q: np.ndarray, y: StaticCodes) -> np.ndarray:
    found = table[q & 255].astype(np.int64)
    return found if y.signed else found & 255


def test_a_gpu_computes_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": normal(9, 5, 2, 2), "b1": normal(9), "w2": normal(9, 1, 1, 3), "w3": normal(4, 9),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w1 b1", "c", "conv", pads=[0, 0, 1, 1]),
        node("Relu", "c", "r", "relu"),
        node("Conv", "r w2", "d", "depthwise", pads=[0, 1, 0, 1], group=9),
        node("Tanh", "d", "t", "tanh"),
        node("Add", "t r", "a", "add"),
        node("MaxPool", "a", "p", "pool", kernel_shape=[2, 2]),
        node("ReduceMean", "p", "v", "mean", axes=[2, 3], keepdims=0),
        node("Gemm", "v w3", "y", "fc", transB=1),
    ]
    proto = model(
        nodes, [("x", np.float32, ["n", 5, 3, "w"])], [("y", np.float32, ["n", 4])], constants
    )
    names = "x relu depthwise tanh add mean"
    codes = {name: static(0.02 + 0.003 * i, 90 + 7 * i) for i, name in enumerate(names.split())}
    x = rng.standard_normal((2, 5, 3, 6), np.float32)
    found = []
    for target in ("cpu", "sm_80"):
        (tmp_path / target).mkdir()
        library, _ = build(proto, tmp_path / target, codes, strict=True, target=target)
        device = PtxDriver((8, 0)) if target != "cpu" else None
        with abqc.load(library, device=device) as loaded:
            found.append(np.asarray(loaded.run({"x": x})[0]))
    np.testing.assert_array_equal(*found)
