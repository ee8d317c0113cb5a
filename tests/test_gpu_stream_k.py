"""Stream-K by whole models: workspace and counters of products, alone and merged, run after run."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx_models as models
import pytest
from abqc.codegen.gpu.matmul import strategy as ranges
from abqc.codegen.gpu.matmul.schedule import Schedule
from abqc.codegen.gpu.tiles import strategy as tiles
from abqc.compiler.build import build
from abqc.compiler.job import Request
from graph_checks import GraphWatch
from onnx_models import node

SHARES = Schedule("wgmma", 16, 64, 128, 1, 4, 1, 3, 2, 3)  # three blocks, two of which share a tile
K = 260


def test_products_whose_blocks_share_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "wgmma_schedules", lambda *_: [SHARES])
    monkeypatch.setattr(tiles, "tile_schedules", lambda *_: [])
    monkeypatch.setattr(ranges, "RANGES", (8,))
    rng = np.random.default_rng(0)
    constants = {
        name: rng.standard_normal((k, n), np.float32) / 16
        for name, k, n in (("a", K, 70), ("b", K, 130), ("c", 130, 40))
    }
    nodes = [
        node("MatMul", "x a", "y", "first"),
        node("MatMul", "x b", "h", "second"),  # launched with the first
        node("MatMul", "h c", "z", "third"),
    ]
    outputs = [("y", np.float32, ["rows", 70]), ("z", np.float32, ["rows", 40])]
    proto = models.model(nodes, [("x", np.float32, ["rows", K])], outputs, constants)
    path = models.save(proto, tmp_path)
    library, work = tmp_path / "gpu.so", tmp_path / "work"
    work.mkdir()
    build(Request(path, "w4a16", "sm_90a", library, work), lambda *_: None, lambda _: None)
    assert SHARES.name.encode() in library.read_bytes()
    watch = GraphWatch()
    model, alone = abqc.load(library, device=watch.driver), abqc.load(library, device="ptx-vm")
    for rows in (20, 28, 28):
        x = rng.standard_normal((rows, K), np.float32)
        few = [alone.run({"x": x[at : at + 8]}) for at in range(0, rows, 8)]  # other kernels
        for expected, found in zip(zip(*few, strict=True), model.run({"x": x}), strict=True):
            np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-3)
        if watch.graph:
            watch.check()
    names = [launch.name for launch in watch.graph.values()]
    assert sum(name.endswith((SHARES.name, f"{SHARES.name}_x2")) for name in names) == 2, names
