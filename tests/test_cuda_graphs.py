"""Edges of CUDA graphs: which launches follow which, and which may begin early."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import abqc
import fake_gpu
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.errors import InputError
from abqc.runtime.ptx.driver import Graph
from abqc.runtime.statistics import GraphShape
from abqc.runtime.tensor_spec import TensorSpec
from fake_gpu import FakeMachine, driver

READ, WRITTEN, EARLY = 1, 2, 4

# scale(x, w, y, columns): y = 2 x + w. `second` lies where `first` has lain.
HOST = """
#include "shim.h"
extern const float layer_w[16];

static float *scale(abqc_ctx *ctx, const void *x, const void *w, void *y) {
    const uint64_t args[] = {(uint64_t)x, (uint64_t)w, (uint64_t)y, 16};
    abqc_rt_launch(ctx, 0, 1, args);
    return y;
}

int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *x = abqc_rt_input(ctx, 0);
    const void *weight = abqc_rt_weight(ctx, layer_w);
    float *first = abqc_rt_alloc(ctx, 64), *a = abqc_rt_alloc(ctx, 64), *b = abqc_rt_alloc(ctx, 64);
    float *sum = abqc_rt_alloc(ctx, 64);
    scale(ctx, x->data, weight, first);
    scale(ctx, first, weight, a);
    scale(ctx, first, weight, b);
    scale(ctx, a, b, sum);
    abqc_rt_free(ctx, first);
    float *second = scale(ctx, x->data, weight, abqc_rt_alloc(ctx, 64));
    abqc_rt_check(ctx, first == second, "the memory is not used again");
    abqc_rt_output(ctx, 0, sum, 2, x->sizes, x->strides);
    abqc_rt_output(ctx, 1, second, 2, x->sizes, x->strides);
    return 0;
}
"""
EDGES = {(0, 1), (0, 2), (1, 3), (2, 3), (1, 4), (2, 4)}


@cache
def library(known: bool, waits: bool) -> Path:
    tensor = {"dtype": "float32", "shape": (1, 16)}
    meta = ArtifactMeta(
        [TensorSpec("x", **tensor)], [TensorSpec(name, **tensor) for name in ("sum", "second")]
    )
    return fake_gpu.build(
        handmade.folder() / f"edges_{known}_{waits}.so",
        HOST,
        meta,
        kernels=["scale"],
        weights=[("layer_w", handmade.LAYER_WEIGHTS)],
        accesses={"scale": (READ, READ | EARLY, WRITTEN, 0)} if known else None,
        waits=waits,
    )


class Runs:
    """Runs the model as a graph, and keeps its edges as pairs of numbers of launches."""

    def __init__(self, *, known: bool = True, waits: bool = True, **options) -> None:
        self.graph: Graph = {}
        machine = FakeMachine((9, 0))
        self.driver = driver(machine, schedule=self._schedule, **options)
        with abqc.load(library(known, waits), device=self.driver) as model:
            x = np.arange(16, dtype=np.float32)[None]
            for _ in range(2):
                outputs = model.run({"x": x})
            self.statistics = model.statistics
        weights = handmade.LAYER_WEIGHTS
        first = 2 * x + weights
        np.testing.assert_array_equal(outputs[0], 3 * (2 * first + weights))
        np.testing.assert_array_equal(outputs[1], first)

    def _schedule(self, graph: Graph) -> list[int]:
        self.graph = graph
        return list(graph)

    def edges(self, *, overlapped: bool = False) -> set[tuple[int, int]]:
        numbers = {handle: number for number, handle in enumerate(self.graph)}
        return {
            (numbers[other], numbers[handle])
            for handle, node in self.graph.items()
            for other in (node.overlapped if overlapped else node.before)
        }


def test_launches_follow_those_whose_memory_they_touch() -> None:
    runs = Runs(waits=False)
    assert runs.edges() == EDGES and not runs.edges(overlapped=True)
    assert runs.statistics.graph == GraphShape(launches=5, path=3, edges=6, dependent=0)


def test_what_is_not_known_of_a_kernel_orders_it() -> None:
    """All that an argument leads to counts as read and written."""
    assert Runs(known=False).edges() == {(0, 1), (1, 2), (2, 3), (2, 4)}


def test_launches_begin_early_but_for_those_whose_weight_is_none() -> None:
    runs = Runs()
    assert runs.edges() == EDGES
    assert runs.edges(overlapped=True) == EDGES - {(1, 3), (2, 3)}
    assert runs.statistics.graph == GraphShape(launches=5, path=3, edges=6, dependent=4)


def test_a_driver_without_programmatic_edges() -> None:
    runs = Runs(without={"cuGraphAddDependencies_v2"})
    assert runs.edges() == EDGES and not runs.edges(overlapped=True)
    assert runs.statistics.graph_error is None


@pytest.mark.parametrize("function", ["cuGraphAddDependencies_v2", "cuGraphInstantiateWithFlags"])
def test_a_driver_that_refuses_programmatic_edges(function: str) -> None:
    """The graph is made without them, and statistics tell why."""
    asked = []

    def intercept(name, arguments):
        asked.extend([name] if name == function else [])
        return 801 if name == function and len(asked) == 1 else None

    runs = Runs(intercept=intercept)
    assert runs.edges() == EDGES and not runs.edges(overlapped=True)
    assert runs.statistics.graph_runs == 1
    assert runs.statistics.graph_error == f"{function}: CUDA_ERROR_NOT_SUPPORTED"


def test_the_environment_turns_early_launches_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CUDA_DEPENDENT_LAUNCH", "0")
    assert not Runs().edges(overlapped=True)
    monkeypatch.setenv("ABQC_CUDA_DEPENDENT_LAUNCH", "2")
    with pytest.raises(InputError, match="ABQC_CUDA_DEPENDENT_LAUNCH is '2', expected 0 or 1"):
        Runs()
