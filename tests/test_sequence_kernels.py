"""Recurrences in one kernel: what they give on every instruction set and number of threads."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.codegen import isa as isas
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3}


def recurrent(op_type: str, hidden: int, folder: Path) -> Path:
    """A bidirectional layer over [t, b, 9] whose state comes from an input; all of its outputs."""
    rng = np.random.default_rng(0)
    rows = GATES[op_type] * hidden
    weights = {"W": (2, rows, 9), "R": (2, rows, hidden), "B": (2, 2 * rows)}
    arrays = {n: rng.uniform(-1, 1, s) / hidden**0.5 for n, s in weights.items()}
    outputs = ["y", "last", "cell"][: 2 + (op_type == "LSTM")]
    made = helper.make_node(op_type, ["x", "W", "R", "B", "", "h"], outputs, hidden_size=hidden,
                            direction="bidirectional")  # fmt: skip
    float_ = TensorProto.FLOAT
    graph = helper.make_graph(
        [made],
        "recurrent",
        [helper.make_tensor_value_info("x", float_, ["t", "b", 9]),
         helper.make_tensor_value_info("h", float_, [2, "b", hidden])],
        [helper.make_tensor_value_info(name, float_, None) for name in outputs],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    path = folder / f"{op_type}{hidden}.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def feeds(steps: int, batch: int, hidden: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(steps)
    shapes = {"x": (steps, batch, 9), "h": (2, batch, hidden)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_instruction_sets_agree(tmp_path: Path) -> None:
    """A layer that is launched once: both directions are one kernel."""
    available = isas.available()
    cpu = ",".join(isa.name for isa in available)
    library = tmp_path / "model.so"
    compiled = abqc.compile(recurrent("LSTM", 11, tmp_path), cpu=cpu, output=library)
    launches = [launch["kernel"] for launch in compiled.manifest["launches"]]
    assert len([name for name in launches if name.startswith("sequence_")]) == 1
    for steps, batch in ((5, 1), (4, 3), (1, 2)):
        given = feeds(steps, batch, 11)
        expected = compiled.run(given)
        for isa in available:
            with abqc.load(library, isa=isa.name) as model:
                for got, wanted in zip(model.run(given), expected, strict=True):
                    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("recipe", ["none", "w8a8"])
def test_both_versions_give_the_same_numbers(recipe: str, tmp_path: Path) -> None:
    """Steps that are too long for one thread where there are three: the host launches each."""
    library = tmp_path / "model.so"
    path = recurrent("GRU", 208, tmp_path)
    abqc.compile(path, quant=recipe, cpu="native", output=library)
    given = feeds(3, 6, 208)
    one, three = (abqc.load(library, threads=count).run(given) for count in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("recipe", "op_type"), [("none", "LSTM"), ("w8a8", "LSTM"), ("none", "GRU")]
)
def test_parts_of_a_batch_give_the_same_numbers(recipe: str, op_type: str, tmp_path: Path) -> None:
    """Each of four threads has rows of its own of one direction."""
    library = tmp_path / "model.so"
    abqc.compile(recurrent(op_type, 21, tmp_path), quant=recipe, cpu="native", output=library)
    given = feeds(3, 11, 21)
    one, four = (abqc.load(library, threads=count).run(given) for count in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_of_another_batch_are_refused(tmp_path: Path) -> None:
    model = abqc.compile(recurrent("GRU", 4, tmp_path), cpu="native")
    given = feeds(2, 3, 4) | {"h": np.zeros((2, 2, 4), np.float32)}
    with pytest.raises(abqc.AbqcError):
        model.run(given)
