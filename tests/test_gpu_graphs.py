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


@pytest.mark.parametrize(("quant", "target"), [("w4a8", "sm_90a"), ("w4a16", "sm_80")])
def test_steps_of_a_decoder(tmp_path: Path, quant: str, target: str) -> None:
    """Caches grow in place on the GPU; a graph is set anew in every step."""
    onnx.save(decoder(2, SIZES), tmp_path / "decoder.onnx")
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
            print(model.statistics)
    shape = model.statistics.graph
    assert shape is not None and watch.checked > shape.launches
    assert shape.path < shape.launches < shape.edges + shape.launches
