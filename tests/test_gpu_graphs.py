"""Graphs of launches: real dependencies, checked against what kernels do; dependent launches."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.compiler.driver import compile_file
from decoder import DecoderSizes, decoder
from fake_gpu import GpuTensor
from graph_checks import GraphWatch
from operator_graph import Graph, integers, normal
from small_transformers import WIDTH, encoder

SIZES = DecoderSizes(64, 4, 2, 32, 96)


def small_feeds(batch: int, rows: int, past: int, layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(past)
    total = past + rows
    caches = {
        f"past_{i}_{kind}": rng.standard_normal((batch, SIZES.cache_heads, past, SIZES.head))
        for i in range(layers)
        for kind in ("key", "value")
    }
    return {
        "x": rng.standard_normal((batch, rows, SIZES.hidden)).astype(np.float32),
        "position_ids": np.arange(past, total)[None].repeat(batch, 0),
        "bias": np.zeros((batch, 1, rows, total), np.float32),
    } | {name: cache.astype(np.float32) for name, cache in caches.items()}


def single_steps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Of one sample and one position, which needs few kernels."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("B", "S"):
                dim.dim_value = 1
            elif dim.dim_param == "P + S":
                dim.dim_param = "P + 1"
    return model


@pytest.mark.parametrize(
    ("quant", "target"),
    [("w4a8", "sm_90a"), pytest.param("w4a16", "sm_80", marks=pytest.mark.slow)],
)
def test_steps_of_a_decoder(tmp_path: Path, quant: str, target: str) -> None:
    """Caches grow in place on the GPU; a graph is set anew in every step."""
    onnx.save(single_steps(decoder(2, SIZES)), tmp_path / "decoder.onnx")
    library = compile_file(
        tmp_path / "decoder.onnx", quant=quant, target=target, output=tmp_path / "model.so"
    )
    watch = GraphWatch((9, 0) if target == "sm_90a" else (8, 0))
    machine = watch.driver.machine
    model, checked = abqc.load(library, device=watch.driver), abqc.load(library, device="ptx-vm")
    first = small_feeds(1, 1, 3, 2)
    caches = {}
    for name, past in first.items():
        if name.startswith("past"):
            whole = np.zeros((1, SIZES.cache_heads, 16, SIZES.head), np.float32)
            whole[:, :, :3] = past
            caches[name[5:]] = GpuTensor(machine, whole)
    for past in range(3, 7):
        old, new = np.s_[:, :, :past], np.s_[:, :, : past + 1]
        inputs = {k: v for k, v in small_feeds(1, 1, past, 2).items() if "past" not in k}
        pasts = {f"past_{name}": cache.numpy()[old] for name, cache in caches.items()}
        expected = checked.run(inputs | pasts)
        given = {f"past_{name}": cache.slice(old) for name, cache in caches.items()}
        grown = {f"present_{name}": cache.slice(new) for name, cache in caches.items()}
        outputs = model.run(inputs | given, outputs=grown, device="cpu")
        for got, wanted in zip(outputs, expected, strict=True):
            got = got.numpy() if isinstance(got, GpuTensor) else got
            np.testing.assert_array_equal(got, wanted)
        if past > 3:
            watch.check()
    shape = model.statistics.graph
    assert shape is not None and watch.checked > shape.launches
    assert 0 < shape.path < shape.launches
    assert shape.dependent == (shape.edges if target == "sm_90a" else 0)
    forget(watch)


def forget(watch: GraphWatch) -> None:
    """Without a node's edges the check must fail."""
    next(node for node in reversed(watch.graph.values()) if node.before).before.clear()
    with pytest.raises(AssertionError, match="touch the same memory unordered"):
        watch.check()


def test_an_encoder(tmp_path: Path) -> None:
    onnx.save(encoder("layer", normalized=True), tmp_path / "encoder.onnx")
    check(tmp_path, "w8a8", {"x": normal(2, WIDTH, 5)})


def test_operators(tmp_path: Path) -> None:
    """Atomics and the error flag among them."""
    g = Graph(x=("float32", 3, 40), i=("int64", 3, 4), data=("float32", 30, 8))
    sums = g("CumSum", "x", np.array(1))
    places, _ = g("TopK", sums, np.array([4]), results=2)
    chosen = g("GatherElements", "x", g("ArgMax", sums, axis=1), axis=1)
    g("Concat", places, chosen, g("Softmax", "x"), axis=1)
    g("ScatterElements", sums, "i", places, axis=1, reduction="add")
    g("Gather", "data", "i")
    inputs = {"x": normal(3, 40), "i": integers(3, 4, low=0, high=30), "data": normal(30, 8)}
    onnx.save(g.build(), tmp_path / "operators.onnx")
    check(tmp_path, "none", inputs)


def check(folder: Path, quant: str, inputs: dict[str, np.ndarray]) -> None:
    """The only model in `folder`: as a graph what it is launch by launch, and ordered."""
    (source,) = folder.glob("*.onnx")
    library = compile_file(source, quant=quant, target="sm_90a", output=folder / "model.so")
    watch = GraphWatch()
    model = abqc.load(library, device=watch.driver)
    expected = abqc.load(library, device="ptx-vm").run(inputs)
    for number in range(3):
        for got, wanted in zip(model.run(inputs), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        if number:
            watch.check()
    assert model.statistics.graph_runs == 2 and watch.checked
