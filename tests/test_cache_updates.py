"""Caches whose rows are written at places from data, in place where the buffers allow it."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.errors import InputError
from abqc.runtime.model import Model
from onnx import TensorProto, helper

HEADS, WIDTH = 2, 8
TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def scatter_model(dtype: type) -> onnx.ModelProto:
    """A cache, new rows and where they go; something reads the result too."""
    kind = TYPES[dtype]
    nodes = [
        helper.make_node("TensorScatter", ["past", "new", "begins"], ["present"], axis=2),
        helper.make_node("ReduceSum", ["present"], ["sum"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("past", kind, ["b", HEADS, "capacity", WIDTH]),
        helper.make_tensor_value_info("new", kind, ["b", HEADS, "s", WIDTH]),
        helper.make_tensor_value_info("begins", TensorProto.INT64, ["b"]),
    ]
    outputs = [
        helper.make_tensor_value_info("present", kind, ["b", HEADS, "capacity", WIDTH]),
        helper.make_tensor_value_info("sum", kind, []),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


@pytest.fixture(scope="module", params=list(TYPES), ids=lambda t: np.dtype(t).name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("update")
    onnx.save(scatter_model(request.param), folder / "model.onnx")
    return abqc.compile(folder / "model.onnx", output=folder / "model.so")


def feeds(model: Model, batch: int, capacity: int, rows: int) -> dict[str, np.ndarray]:
    rng, dtype = np.random.default_rng(rows), np.dtype(model.inputs[0].dtype)
    return {
        "past": rng.integers(-8, 9, (batch, HEADS, capacity, WIDTH)).astype(dtype),
        "new": rng.integers(-8, 9, (batch, HEADS, rows, WIDTH)).astype(dtype),
        "begins": rng.integers(0, capacity - rows + 1, batch),
    }


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Rows outside of the cache change nothing."""
    present = inputs["past"].copy()
    for sample, begin in enumerate(inputs["begins"]):
        for row in range(inputs["new"].shape[2]):
            if 0 <= begin + row < present.shape[2]:
                present[sample, :, begin + row] = inputs["new"][sample, :, row]
    return present


@pytest.mark.parametrize("sizes", [(1, 5, 1), (3, 9, 4), (2, 4, 4), (1, 3, 0)], ids=str)
def test_into_a_buffer_of_its_own(model: Model, sizes: tuple[int, int, int]) -> None:
    inputs = feeds(model, *sizes)
    past = inputs["past"].copy()
    present, total = model.run(inputs)
    assert np.array_equal(present, expected(inputs)) and total == expected(inputs).sum()
    assert np.array_equal(inputs["past"], past)


@pytest.mark.parametrize("sizes", [(1, 5, 1), (3, 9, 4), (2, 4, 4)], ids=str)
def test_into_the_buffer_of_the_past(model: Model, sizes: tuple[int, int, int]) -> None:
    inputs = feeds(model, *sizes)
    wanted = expected(inputs)
    present, total = model.run(inputs, outputs={"present": inputs["past"]})
    assert present is inputs["past"]
    assert np.array_equal(present, wanted) and total == wanted.sum()


def test_into_a_part_of_a_larger_buffer(model: Model) -> None:
    inputs = feeds(model, 2, 6, 2)
    wanted = expected(inputs)
    room = np.full((2, HEADS, 10, WIDTH), 99, inputs["past"].dtype)
    room[:, :, :6] = inputs["past"]
    inputs["past"] = room[:, :, :6]
    model.run(inputs, outputs={"present": room[:, :, :6]})
    assert np.array_equal(room[:, :, :6], wanted) and (room[:, :, 6:] == 99).all()


@pytest.mark.parametrize("begin", [-1, -2, -9, 4, 5, 9, 2**62, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_outside_of_the_cache_are_left_out(model: Model, begin: int, shared: bool) -> None:
    inputs = feeds(model, 2, 5, 2)
    inputs["begins"] = np.array([begin, 1])
    wanted = expected({**inputs, "begins": inputs["begins"].astype(object)})
    buffers = {"present": inputs["past"]} if shared else {}
    present, _ = model.run(inputs, outputs=buffers)
    assert np.array_equal(present, wanted)


def test_a_buffer_that_overlaps_otherwise_is_refused(model: Model) -> None:
    inputs = feeds(model, 1, 4, 1)
    memory = np.zeros(4 * HEADS * WIDTH + 8, inputs["past"].dtype)
    inputs["past"] = memory[: 4 * HEADS * WIDTH].reshape(inputs["past"].shape)
    shifted = memory[8:].reshape(inputs["past"].shape)
    with pytest.raises(InputError, match="overlaps input 'past'"):
        model.run(inputs, outputs={"present": shifted})


def test_batches_that_differ_are_refused(model: Model) -> None:
    inputs = feeds(model, 2, 4, 1)
    inputs["begins"] = inputs["begins"][:1]
    with pytest.raises(InputError):
        model.run(inputs)


def test_a_gpu_gives_the_same(tmp_path: Path) -> None:
    onnx.save(scatter_model(np.float32), tmp_path / "model.onnx")
    on_gpu = abqc.compile(
        tmp_path / "model.onnx", target="sm_80", device="ptx-vm", output=tmp_path / "model.so"
    )
    for sizes in ((2, 5, 2), (1, 3, 0)):
        inputs = feeds(on_gpu, *sizes)
        assert np.array_equal(on_gpu.run(inputs)[0], expected(inputs))
