"""Mixtures of experts give what onnxruntime's CPU kernels give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_models as models
import pytest
from abqc.errors import ModelError
from front_end.oracle import compiled, expected, outputs
from front_end.test_nbits import pack
from onnx_models import node

MS = {"domain": "com.microsoft"}
F32 = np.float32
EXPERTS, HIDDEN, INNER = 3, 64, 32
SWIGLU = {
    "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702,
    "activation_beta": 1.0, "swiglu_limit": 1.5,
}  # fmt: skip


class Case:
    """A node, its constants and inputs; `wide` is 2 where fc1 has gate and linear part."""

    def __init__(self, name: str, wide: int = 1, **attributes: Any) -> None:
        self.name, self.wide, self.attributes = name, wide, attributes
        self.rng = np.random.default_rng(len(name))
        self.constants: dict[str, np.ndarray] = {}
        self.inputs = ["x", "scores"]

    def constant(self, part: str, array: np.ndarray) -> None:
        self.constants[f"{self.name}_{part}"] = array
        self.inputs.append(f"{self.name}_{part}")

    def node(self, op_type: str) -> Any:
        return node(op_type, " ".join(self.inputs), self.name, self.name, **self.attributes, **MS)


def of_floats(name: str, wide: int = 1, **attributes: Any) -> Any:
    case = Case(name, wide, **attributes)
    for layer, (n, k) in enumerate(((wide * INNER, HIDDEN), (HIDDEN, INNER))):
        case.constant(f"w{layer}", case.rng.standard_normal((EXPERTS, n, k), F32) / 8)
        case.constant(f"b{layer}", case.rng.standard_normal((EXPERTS, n), F32))
    return case


def of_codes(
    name: str, bits: int, block: int = 0, zeros: bool = False, wide: int = 1, **attributes: Any
) -> Any:
    attributes |= {"expert_weight_bits": bits, "weights_prepacked": 0}
    attributes |= {"block_size": block} if block else {}
    case = Case(name, wide, **attributes)
    packed_zeros = []
    for layer, (n, k) in enumerate(((wide * INNER, HIDDEN), (HIDDEN, INNER))):
        blocks = k // block if block else 1
        case.constant(f"w{layer}", pack(case.rng.integers(0, 1 << bits, (EXPERTS, n, k)), bits))
        scale = case.rng.uniform(0.001, 0.02, (EXPERTS, n, blocks)).astype(F32)
        case.constant(f"s{layer}", scale if block else scale[..., 0])
        case.inputs.append("_")
        zero = case.rng.integers(0, 1 << bits, (EXPERTS, n, blocks))
        packed_zeros.append(pack(zero if block else zero[..., 0], bits))
    case.inputs += ["_"] * 3
    if zeros:
        case.constant("z0", packed_zeros[0])
        case.constant("z1", packed_zeros[1])
    return case


FLOATS = [
    of_floats("gelu", k=2, activation_type="gelu", normalize_routing_weights=1),
    of_floats("swiglu", wide=2, k=1, **SWIGLU),
]
CODES = [
    of_codes("four_blocks", 4, 16, zeros=True, wide=2, k=2, **SWIGLU),
    of_codes("two", 2, k=1, activation_type="relu"),
    of_codes("eight", 8, zeros=True, k=3, activation_type="silu"),
]


@pytest.mark.parametrize(("op_type", "cases"), [("MoE", FLOATS), ("QMoE", CODES)])
def test_mixtures_of_experts(op_type: str, cases: list[Case], tmp_path: Path) -> None:
    proto = models.model(
        [case.node(op_type) for case in cases],
        [("x", F32, ["rows", HIDDEN]), ("scores", F32, ["rows", EXPERTS])],
        [(case.name, F32, [None, None]) for case in cases],
        {key: array for case in cases for key, array in case.constants.items()},
        domains=["com.microsoft"],
    )
    model = compiled(proto, tmp_path)
    rng = np.random.default_rng(0)
    for rows in (1, 7, 0):
        feeds = {
            "x": rng.standard_normal((rows, HIDDEN), F32),
            "scores": rng.standard_normal((rows, EXPERTS), F32),
        }
        got = outputs(model, feeds)
        if not rows:
            assert all(y.shape == (0, HIDDEN) for y in got)
            continue
        for case, y, wanted in zip(cases, got, expected(proto, feeds), strict=True):
            np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4, err_msg=case.name)
    weights = {entry["weight"] for entry in model.manifest["ops"]}
    kept = {"w4:g16:asym", "w2:channel:sym", "w8:channel:asym"}
    assert weights == (kept if op_type == "QMoE" else {"f32"})


def of_float8(name: str, block: int, **attributes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A case of 8-bit floats and the f32 weights that these stand for."""
    case = Case(name, quant_type="fp8", k=1, activation_type="relu", **attributes)
    case.attributes |= {"block_size": block} if block else {}
    wide, scales = {}, []
    for layer, (n, k) in enumerate(((INNER, HIDDEN), (HIDDEN, INNER))):
        codes = case.rng.standard_normal((EXPERTS, n, k)).astype(ml_dtypes.float8_e4m3fn)
        case.constant(f"w{layer}", codes)
        grid = (-(-n // block), -(-k // block)) if block else ()
        scale = case.rng.uniform(0.1, 0.2, (EXPERTS, *grid)).astype(F32)
        scales.append(scale)
        if block:
            case.constant(f"s{layer}", scale)
            each = scale.repeat(block, axis=1).repeat(block, axis=2)[:, :n, :k]
        else:
            case.inputs.append("_")
            each = scale[:, None, None]
        case.inputs.append("_")
        wide[f"w{layer}"] = codes.astype(F32) * each
    if not block:
        case.inputs += ["_"] * 7
        case.constant("g0", scales[0])
        case.constant("g1", scales[1])
    return case, wide


def test_experts_of_8_bit_floats(tmp_path: Path) -> None:
    pairs = [of_float8("blocks", 24), of_float8("whole", 0)]
    proto = models.model(
        [case.node("QMoE") for case, _ in pairs],
        [("x", F32, ["rows", HIDDEN]), ("scores", F32, ["rows", EXPERTS])],
        [(case.name, F32, [None, None]) for case, _ in pairs],
        {key: array for case, _ in pairs for key, array in case.constants.items()},
        domains=["com.microsoft"],
    )
    rng = np.random.default_rng(0)
    x, scores = (rng.standard_normal((5, n), F32) for n in (HIDDEN, EXPERTS))
    got = outputs(compiled(proto, tmp_path), {"x": x, "scores": scores})
    for (case, wide), y in zip(pairs, got, strict=True):
        wanted = [
            wide["w1"][e] @ np.maximum(wide["w0"][e] @ row, 0)
            for row, e in zip(x, scores.argmax(1), strict=True)
        ]
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4, err_msg=case.name)


def mixed(case: Case, x: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The sparse mixer's two experts of each row; gates are GELU by tanh, or cut behind SiLU."""
    w = [case.constants[f"{case.name}_{part}"] for part in ("w0", "b0", "w1", "b1")]
    y = np.zeros_like(x)
    for t, row in enumerate(scores):
        left = row.copy()
        for _ in range(2):
            e = int(left.argmax())
            near = left[e] - row <= 0.02 * np.maximum(np.abs(row), left[e])
            share = 1 / np.exp(left - left[e])[near].sum()
            gate, linear = np.split(w[0][e] @ x[t] + w[1][e], 2)
            if case.name == "geglu":
                cubic = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
                hidden = 0.5 * gate * (1 + np.tanh(cubic)) * linear
            else:
                silu = np.minimum(gate / (1 + np.exp(-gate)), 0.1)
                hidden = silu * np.clip(linear, -0.1, 0.1)
            y[t] += share * (w[2][e] @ hidden + w[3][e])
            left[e] = -np.inf
    return y


def test_what_onnxruntime_has_for_gpus_alone(tmp_path: Path) -> None:
    common = {"wide": 2, "k": 2, "swiglu_fusion": 2, "use_sparse_mixer": 1}
    cases = [
        of_floats("geglu", activation_type="geglu", **common),
        of_floats("cut", activation_type="swiglu", swiglu_limit=0.1,
                  swiglu_limit_after_activation=1, **common),
    ]  # fmt: skip
    proto = models.model(
        [case.node("MoE") for case in cases],
        [("x", F32, ["rows", HIDDEN]), ("scores", F32, ["rows", EXPERTS])],
        [(case.name, F32, [None, None]) for case in cases],
        {key: array for case in cases for key, array in case.constants.items()},
        domains=["com.microsoft"],
    )
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((6, HIDDEN), F32),
        "scores": (1 + 0.02 * rng.standard_normal((6, EXPERTS))).astype(F32),
    }
    got = outputs(compiled(proto, tmp_path), feeds)
    for case, y in zip(cases, got, strict=True):
        np.testing.assert_allclose(y, mixed(case, **feeds), rtol=1e-4, atol=1e-4)


def test_experts_laid_out_for_a_device_are_refused(tmp_path: Path) -> None:
    case = of_codes("four", 4, k=1)
    case.attributes["weights_prepacked"] = 1
    proto = models.model(
        [case.node("QMoE")],
        [("x", F32, ["rows", HIDDEN]), ("scores", F32, ["rows", EXPERTS])],
        [("four", F32, [None, None])],
        case.constants,
        domains=["com.microsoft"],
    )
    with pytest.raises(ModelError, match="laid out for one kind of device"):
        compiled(proto, tmp_path)


@pytest.mark.parametrize(("k", "columns", "message"), [(4, 3, "k is 4"), (1, 5, "of 3 experts")])
def test_scores_must_fit_the_experts(k: int, columns: int, message: str, tmp_path: Path) -> None:
    case = of_floats("few", k=k)
    proto = models.model(
        [case.node("MoE")],
        [("x", F32, ["rows", HIDDEN]), ("scores", F32, ["rows", columns])],
        [("few", F32, [None, None])],
        case.constants,
        domains=["com.microsoft"],
    )
    with pytest.raises(ModelError, match=message):
        compiled(proto, tmp_path)


@pytest.mark.parametrize("with_past", [False, True])
def test_qattention(with_past: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    heads, size, batch, length = 2, 16, 2, 5
    hidden = heads * size
    constants = {
        "w": rng.integers(-127, 128, (hidden, 3 * hidden)).astype(np.int8),
        "bias": rng.standard_normal(3 * hidden, F32),
        "x_scale": np.array(0.02, F32), "x_zero": np.array(125, np.uint8),
        "w_scale": np.array(0.01, F32), "w_zero": np.array(0, np.int8),
    }  # fmt: skip
    inputs = "x w bias x_scale w_scale mask x_zero w_zero" + (" past" if with_past else "")
    sizes = [2, "batch", heads, "past", size]
    proto = models.model(
        [
            node("QAttention", inputs, "y present" if with_past else "y", num_heads=heads,
                 unidirectional=int(with_past), **MS)
        ],
        [
            ("x", np.uint8, ["batch", "length", hidden]),
            ("mask", np.int32, ["batch", "past + length" if with_past else "length"]),
            *([("past", F32, sizes)] if with_past else []),
        ],
        [("y", F32, [None] * 3), *([("present", F32, [None] * 5)] if with_past else [])],
        constants,
        domains=["com.microsoft"],
    )  # fmt: skip
    feeds = {
        "x": rng.integers(0, 256, (batch, length, hidden)).astype(np.uint8),
        "mask": np.ones((batch, length + 3 * with_past), np.int32),
    }
    feeds["mask"][1, -2:] = 0
    if with_past:
        feeds["past"] = rng.standard_normal((2, batch, heads, 3, size), F32)
    model = compiled(proto, tmp_path)
    assert model.manifest["ops"][0]["activation"] == "a8:tensor:asym"
    for got, wanted in zip(outputs(model, feeds), expected(proto, feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
