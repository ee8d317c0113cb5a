"""RNN, GRU and LSTM of all forms give onnxruntime's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.onnx_import.importer import import_model
from front_end.support import check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

INPUTS, HIDDEN = 5, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
# onnxruntime's ThresholdedRelu has another default alpha than ONNX's.
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid", "Softsign", "Softplus")


@dataclass(frozen=True)
class Form:
    op_type: str = "LSTM"
    direction: str = "forward"
    bias: bool = True
    lengths: bool = False
    states: bool = False
    peepholes: bool = False
    clip: float = 0.0
    activations: tuple[str, ...] = ()
    reset_behind: bool = False
    coupled: bool = False
    weights: bool = True  # constant

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def attributes(self) -> dict[str, Any]:
        made: dict[str, Any] = {"direction": self.direction, "hidden_size": HIDDEN}
        if self.clip:
            made["clip"] = self.clip
        if self.activations:
            made["activations"] = list(self.activations) * self.directions
        if self.op_type == "GRU":
            made["linear_before_reset"] = int(self.reset_behind)
        if self.op_type == "LSTM":
            made["input_forget"] = int(self.coupled)
        return made


def model_of(forms: list[Form], seed: int = 0) -> onnx.ModelProto:
    """A model with a node for each form; the last axes of inputs are steps `t` and batch `b`."""
    rng = np.random.default_rng(seed)
    inputs = {"x": ["t", "b", INPUTS]}
    kept: dict[str, np.ndarray] = {}
    nodes, outputs = [], []
    for n, form in enumerate(forms):
        gates, d = GATES[form.op_type], form.directions
        shapes = {
            "W": [d, gates * HIDDEN, INPUTS],
            "R": [d, gates * HIDDEN, HIDDEN],
            "B": [d, 2 * gates * HIDDEN] if form.bias else None,
        }
        names = ["x"]
        for name, shape in shapes.items():
            names.append(f"{name}{n}" if shape else "")
            if shape and form.weights:
                kept[names[-1]] = (rng.normal(size=shape) * 0.4).astype(np.float32)
            elif shape:
                inputs[names[-1]] = shape
        names.append("lengths" if form.lengths else "")
        for k in range(2 if form.op_type == "LSTM" else 1):
            names.append(f"h{n}_{k}" if form.states else "")
            if form.states:
                inputs[names[-1]] = [d, "b", HIDDEN]
        if form.peepholes:
            names.append(f"P{n}")
            kept[f"P{n}"] = (rng.normal(size=[d, 3 * HIDDEN]) * 0.4).astype(np.float32)
        made = [f"y{n}", f"yh{n}"] + ([f"yc{n}"] if form.op_type == "LSTM" else [])
        nodes.append(helper.make_node(form.op_type, names, made, **form.attributes()))
        outputs += made
    infos = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()]
    if any(form.lengths for form in forms):
        infos.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["b"]))
    graph = helper.make_graph(
        nodes,
        "recurrent",
        infos,
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs],
        [numpy_helper.from_array(array, name) for name, array in kept.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def feeds_of(model: onnx.ModelProto, steps: int, lengths: list[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(steps)
    sizes = {"t": steps, "b": len(lengths)}
    made = {}
    for value in model.graph.input:
        shape = [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
        made[value.name] = (rng.normal(size=shape) * 0.6).astype(np.float32)
    if "lengths" in made:
        made["lengths"] = np.array(lengths, np.int32)
    return made


SIZES = ((7, [7, 2, 5]), (1, [1]), (4, [1, 4]))


def agree(forms: list[Form], folder: Path, seed: int = 0) -> abqc.Model:
    model = model_of(forms, seed)
    return check(model, [feeds_of(model, t, n) for t, n in SIZES], folder)


def test_usual_forms(tmp_path: Path) -> None:
    agree(
        [
            Form("LSTM", "bidirectional", states=True),
            Form("GRU", "reverse", reset_behind=True),
            Form("RNN", activations=("Relu",)),
            Form("LSTM", "bidirectional", lengths=True, peepholes=True),
        ],
        tmp_path,
    )


def test_weights_of_the_run(tmp_path: Path) -> None:
    agree([Form("GRU", "bidirectional", weights=False), Form("LSTM", weights=False)], tmp_path)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    op_type = draw(st.sampled_from(sorted(GATES)))
    count = FUNCTIONS[op_type]
    chosen = st.lists(st.sampled_from(ACTIVATIONS), min_size=count, max_size=count)
    return Form(
        op_type,
        draw(st.sampled_from(["forward", "reverse", "bidirectional"])),
        bias=draw(st.booleans()),
        lengths=draw(st.booleans()),
        states=draw(st.booleans()),
        peepholes=op_type == "LSTM" and draw(st.booleans()),
        clip=draw(st.sampled_from([0.0, 0.3])),
        activations=tuple(draw(chosen)) if draw(st.booleans()) else (),
        reset_behind=draw(st.booleans()),
        coupled=draw(st.booleans()),
        weights=draw(st.booleans()),
    )


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(forms(), min_size=2, max_size=3), st.integers(0, 1000))
def test_random_forms(tmp_path: Path, drawn: list[Form], seed: int) -> None:
    agree(drawn, tmp_path, seed)


def test_recipes_quantize_both_products(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model_of([Form("LSTM", "bidirectional")]), source)
    quantized = abqc.compile(source, quant="w8a8")
    products = [(op["node"], op["weight"]) for op in quantized.manifest["ops"]]
    names = [f"LSTM_0/{name}" for name in ("W", "R", "W_reverse", "R_reverse")]
    assert sorted(products) == sorted((name, "w8:channel:sym") for name in names)
    exact = abqc.compile(source, output=tmp_path / "exact.so")
    feeds = feeds_of(onnx.load(source), 7, [7, 7])
    for got, wanted in zip(quantized.run(feeds), exact.run(feeds), strict=True):
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_lengths_are_checked(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(model_of([Form("RNN", lengths=True)]), source)
    model = abqc.compile(source)
    for wrong in (8, -1):
        with pytest.raises(abqc.AbqcError, match="length of a sequence is out of range"):
            model.run(feeds_of(onnx.load(source), 7, [7, wrong]))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_column", [True, False])
def test_dynamic_quantize_lstm(per_column: bool, direction: str, tmp_path: Path) -> None:
    """onnxruntime quantizes the state of each step over the whole batch, as we do."""
    rng = np.random.default_rng(3)
    d = 2 if direction == "bidirectional" else 1
    shape = (d, 4 * HIDDEN) if per_column else (d,)
    constants = {
        "W": rng.integers(-127, 128, (d, INPUTS, 4 * HIDDEN)).astype(np.int8),
        "R": rng.integers(-127, 128, (d, HIDDEN, 4 * HIDDEN)).astype(np.int8),
        "B": (rng.normal(size=(d, 8 * HIDDEN)) * 0.1).astype(np.float32),
        "ws": (0.005 + 0.005 * rng.random(shape)).astype(np.float32),
        "wz": np.zeros(shape, np.int8),
        "rs": (0.005 + 0.005 * rng.random(shape)).astype(np.float32),
        "rz": np.zeros(shape, np.int8),
    }
    names = ["x", "W", "R", "B", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y", "yh", "yc"], domain="com.microsoft",
        hidden_size=HIDDEN, direction=direction,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "b", INPUTS])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in ("y", "yh", "yc")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    check(model, [feeds_of(model, t, n) for t, n in SIZES], tmp_path, 2e-3)


def test_no_steps_and_no_sequences(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(
        model_of([Form("LSTM", "bidirectional", states=True), Form("GRU", "reverse")]), source
    )
    model = abqc.compile(source)
    for steps, batch in ((0, 3), (4, 0), (0, 0)):
        feeds = feeds_of(onnx.load(source), steps, [steps] * batch)
        y, last, _, y_gru, last_gru = model.run(feeds)
        assert y.shape == (steps, 2, batch, HIDDEN) and y_gru.shape == (steps, 1, batch, HIDDEN)
        if not steps:
            assert np.array_equal(last, feeds["h0_0"]) and not last_gru.any()


def _attributes(**changed: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[0]
        kept = [item for item in node.attribute if item.name not in changed]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items())

    return change


def _shape(name: str, shape: tuple[int, ...]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.float32), name))

    return change


WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "direction": (_attributes(direction="up"), "'direction' is 'up'"),
    "layout": (_attributes(layout=2), "'layout' is 2"),
    "activation": (_attributes(activations=["Sin", "Tanh", "Tanh"]), "'Sin' is none of ONNX's"),
    "activations": (_attributes(activations=["Tanh"]), "1 activations, expected 3"),
    "parameters": (_attributes(activations=["ScaledTanh", "Tanh", "Tanh"]), "activation_alpha"),
    "directions": (_attributes(direction="bidirectional"), "R must be"),
    "R": (_shape("R0", (1, 24, 5)), "R must be"),
    "W rows": (_shape("W0", (1, 23, INPUTS)), "W must be"),
    "W columns": (_shape("W0", (1, 24, 7)), "W must be"),
    "W rank": (_shape("W0", (24, INPUTS)), "W must be"),
    "B": (_shape("B0", (1, 47)), "B must be"),
    "P": (_shape("P0", (1, 17)), "P must be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_forms_are_refused(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    model = model_of([Form(peepholes=True)])
    change(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(abqc.AbqcError, match=message):
        import_model(tmp_path / "model.onnx", work_dir=tmp_path)
