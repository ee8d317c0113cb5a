"""Transposes in tiles: whole ones in registers, ragged ones element by element."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from operator_graph import Graph, normal

SHAPES = [(1, 16, 16), (2, 64, 80), (1, 17, 33), (3, 100, 7), (1, 1, 50), (1, 129, 70), (2, 0, 5)]


@pytest.mark.parametrize("dtype", ["float32", "int8", "float64", "bool"])
def test_sizes_and_types(tmp_path: Path, dtype: str) -> None:
    graph = Graph(x=(dtype, "a", "b", "c"))
    graph("Transpose", "x", perm=[0, 2, 1])
    model, _ = graph.compile(tmp_path)
    for isa in model.manifest["isas"]:
        loaded = abqc.load(model.path, isa=isa)
        for shape in SHAPES:
            x = (100 * normal(*shape)).astype(dtype)
            np.testing.assert_array_equal(loaded.run([x])[0], x.transpose(0, 2, 1))


@pytest.mark.parametrize("perm", [(3, 1, 2, 0), (0, 3, 1, 2), (2, 3, 0, 1), (3, 2, 1, 0)])
def test_with_other_operands(tmp_path: Path, perm: tuple[int, ...]) -> None:
    shape = (3, 20, 33, 18)
    graph = Graph(x=("float32", *shape), y=("float32", *(shape[p] for p in perm)))
    turned = graph("Transpose", "x", perm=list(perm))
    graph.outputs = [turned, graph("Add", turned, "y")]
    x, y = normal(*shape), normal(*(shape[p] for p in perm), seed=1)
    graph.check(tmp_path, {"x": x, "y": y})
