"""Caches whose rows are written at places from data, in place where the buffers allow it."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import onnxruntime
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


QUERY_HEADS, CAPACITY = 4, 24


def grouped_queries(dtype: type) -> onnx.ModelProto:
    """onnxruntime's operator, whose past and present are one buffer of `capacity` rows."""
    kind = TYPES[dtype]
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"]
    widths = {"query": QUERY_HEADS * WIDTH, "key": HEADS * WIDTH, "value": HEADS * WIDTH}
    cache = ["b", HEADS, "capacity", WIDTH]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "present_key", "present_value"],
        domain="com.microsoft", num_heads=QUERY_HEADS, kv_num_heads=HEADS,
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info(n, kind, ["b", "s", w]) for n, w in widths.items()]
    inputs += [helper.make_tensor_value_info(n, kind, cache) for n in names[3:5]]
    inputs += [helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["b"])]
    inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [1])]
    outputs = [helper.make_tensor_value_info("y", kind, ["b", "s", QUERY_HEADS * WIDTH])]
    outputs += [
        helper.make_tensor_value_info(f"present_{n}", kind, cache) for n in ("key", "value")
    ]
    graph = helper.make_graph([node], "g", inputs, outputs)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


@pytest.mark.parametrize("dtype", list(TYPES), ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("batch", [1, 2])
def test_past_and_present_of_grouped_queries_share_a_buffer(
    tmp_path: Path, dtype: type, batch: int
) -> None:
    onnx.save(grouped_queries(dtype), tmp_path / "model.onnx")
    onnx.save(grouped_queries(np.float32), tmp_path / "f32.onnx")
    model = abqc.compile(tmp_path / "model.onnx", output=tmp_path / "model.so")
    oracle = onnxruntime.InferenceSession(tmp_path / "f32.onnx")
    rng = np.random.default_rng(batch)
    caches = {n: np.zeros((batch, HEADS, CAPACITY, WIDTH), dtype) for n in ("key", "value")}
    have = np.zeros(batch, np.int64)
    for rows in (5, 1, 1):  # a prompt, then tokens
        widths = {"query": QUERY_HEADS, "key": HEADS, "value": HEADS}
        inputs = {
            n: rng.standard_normal((batch, rows, w * WIDTH)).astype(dtype)
            for n, w in widths.items()
        }
        have += rows
        inputs |= {f"past_{n}": cache for n, cache in caches.items()}
        inputs["seqlens_k"] = (have - 1).astype(np.int32)
        inputs["total"] = have.max(keepdims=True).astype(np.int32)
        wide = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in inputs.items()}
        wanted = oracle.run(None, wide)
        y = model.run(inputs, outputs={f"present_{n}": cache for n, cache in caches.items()})[0]
        assert np.abs(y - wanted[0]).max() < (1e-5 if dtype is np.float32 else 5e-3)
        for cache, grown in zip(caches.values(), wanted[1:], strict=True):
            assert np.array_equal(cache, grown)


def test_a_gpu_gives_the_same(tmp_path: Path) -> None:
    onnx.save(scatter_model(np.float32), tmp_path / "model.onnx")
    on_gpu = abqc.compile(
        tmp_path / "model.onnx", target="sm_80", device="ptx-vm", output=tmp_path / "model.so"
    )
    for sizes in ((2, 5, 2), (1, 3, 0)):
        inputs = feeds(on_gpu, *sizes)
        assert np.array_equal(on_gpu.run(inputs)[0], expected(inputs))
