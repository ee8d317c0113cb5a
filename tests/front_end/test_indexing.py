"""Slices, gathers, scatters, pads and their like, with sizes and indices that only a run knows."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from front_end.support import check, model_of

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


SLICES = """g (float[n,m] x, int64[2] starts, int64[2] ends, int64[2] steps)
  => (float[a,b] run, float[c,d] back, float[e,f] end, float[h,i] none, float[j,k] known) {
  run = Slice (x, starts, ends, axes, steps)
  back = Slice (x, beyond, before, first, minus)
  end = Slice (x, one, endless, first)
  none = Slice (x, beyond, endless, first)
  known = Slice (x, last, endless, first, one)
}"""


def test_slices_begin_and_end_anywhere(tmp_path: Path) -> None:
    model = model_of(SLICES)
    constants = {
        "axes": ints(0, -1), "first": ints(0), "beyond": ints(100), "before": ints(-100),
        "minus": ints(-2), "one": ints(1), "endless": ints(2**63 - 1), "last": ints(-2),
    }  # fmt: skip
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    feeds = [
        {"x": normal(n, m), "starts": ints(*starts), "ends": ints(*ends), "steps": ints(*steps)}
        for (n, m), starts, ends, steps in (
            ((5, 7), (1, -3), (4, 100), (1, 2)),
            ((5, 7), (100, -1), (-100, 0), (-1, -3)),
            ((5, 7), (3, 3), (1, 3), (1, 1)),
            ((1, 4), (0, 0), (-(2**63), 2**63 - 1), (-1, 1)),
        )
    ]
    check(model, feeds, tmp_path)


GATHERS = """g (float[n,m,k] x, int64[p] i, int32[n,q,k] e, int64[r,2] nd, int64[n,t,1] batch)
  => (float[n,p,k] a, float[n,q,k] b, float[r,k] c, float[n,t,k] d, float[n,m] one) {
  a = Gather <axis = 1> (x, i)
  b = GatherElements <axis = 1> (x, e)
  c = GatherND (x, nd)
  d = GatherND <batch_dims = 1> (x, batch)
  last = Constant <value = int64 {-1}> ()
  one = Gather <axis = 2> (x, last)
}"""


def gather_feeds(n: int, m: int, k: int, count: int) -> dict[str, np.ndarray]:
    def indices(*shape: int) -> np.ndarray:
        return RNG.integers(-m, m, shape)

    tuples = np.stack([RNG.integers(-n, n, count), indices(count)], -1)
    return {
        "x": normal(n, m, k), "i": indices(count), "e": indices(n, count, k).astype(np.int32),
        "nd": tuples, "batch": indices(n, count, 1),
    }  # fmt: skip


def test_gathers(tmp_path: Path) -> None:
    feeds = [gather_feeds(2, 3, 4, 5), gather_feeds(1, 7, 1, 1), gather_feeds(3, 2, 2, 0)]
    model = check(model_of(GATHERS), feeds, tmp_path)
    for name in ("i", "e", "nd", "batch"):
        wrong = gather_feeds(2, 3, 4, 5)
        wrong[name].reshape(-1)[-1] = 3
        with pytest.raises(abqc.errors.AbqcError, match="an index is out of range"):
            model.run(wrong)
    empty = gather_feeds(2, 3, 4, 5) | {"x": normal(2, 0, 4)}
    with pytest.raises(abqc.errors.AbqcError, match="the axis is empty"):
        model.run(empty)


TABLE = """g (int64[b,s] ids) => (float[b,s,8] rows) { rows = Gather (table, ids) }"""


def test_a_row_beyond_a_table_is_an_error(tmp_path: Path) -> None:
    model = model_of(TABLE)
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(10, 8), "table"))
    feeds = [{"ids": np.array([[0, 9, -1], [-10, 3, 3]])}, {"ids": np.zeros((0, 3), np.int64)}]
    compiled = check(model, feeds, tmp_path)
    for wrong in (10, -11, 2**40):
        with pytest.raises(abqc.errors.AbqcError, match="out"):
            compiled.run({"ids": np.array([[wrong]])})


SCATTERS = """g (float[n,m] x, int64[p,m] i, float[p,m] u, int64[q,1] rows, float[q,m] slices,
      int64[q,2] cells, float[q] single)
  => (float[n,m] a, float[n,m] b, float[n,m] c, float[n,m] d, float[n,m] e) {
  a = ScatterElements <axis = 0> (x, i, u)
  b = ScatterElements <axis = 0, reduction = "add"> (x, i, u)
  c = ScatterND (x, rows, slices)
  d = ScatterND <reduction = "max"> (x, rows, slices)
  e = ScatterND <reduction = "mul"> (x, cells, single)
}"""


def test_scatters_in_order(tmp_path: Path) -> None:
    def feeds(n: int, m: int, p: int, q: int) -> dict[str, np.ndarray]:
        cells = np.stack([RNG.integers(-n, n, q), RNG.integers(-m, m, q)], -1)
        return {
            "x": normal(n, m), "i": RNG.permutation(n)[:p, None].repeat(m, 1), "u": normal(p, m),
            "rows": RNG.integers(-n, n, (q, 1)), "slices": normal(q, m),
            "cells": cells, "single": normal(q),
        }  # fmt: skip

    check(model_of(SCATTERS), [feeds(4, 5, 3, 6), feeds(9, 3, 9, 1), feeds(3, 2, 1, 0)], tmp_path)


SHAPES = """g (float[n,m] x, int64[2] times, float number)
  => (float[a,b] t, float[c,d] zero, float[e,f] reflect, float[h,i] edge, float[j,k] low,
      float[j,k] up)
  <int64[4] pads = {1, 2, 3, -1}, int64 k = {-1}> {
  t = Tile (x, times)
  zero = Pad (x, pads, number)
  reflect = Pad <mode = "reflect"> (x, pads)
  edge = Pad <mode = "edge"> (x, pads)
  low = Trilu <upper = 0> (x, k)
  up = Trilu <upper = 1> (x)
}"""


def test_tiles_pads_and_triangles(tmp_path: Path) -> None:
    feeds = [
        {"x": normal(n, m), "times": ints(*times), "number": np.array(2.5, np.float32)}
        for (n, m), times in (((4, 5), (2, 3)), ((7, 6), (1, 0)), ((4, 9), (3, 1)))
    ]
    check(model_of(SHAPES), feeds, tmp_path)


WRAP = """g (float[n] x, int64[2] pads) => (float[m] y) { y = Pad <mode = "wrap"> (x, pads) }"""


def test_a_pad_wraps_around_more_than_once(tmp_path: Path) -> None:
    onnx.save(model_of(WRAP, opset=19), tmp_path / "model.onnx")
    model = abqc.compile(tmp_path / "model.onnx")
    for n, low, high in ((3, 7, 11), (4, 0, 1), (1, 2, 3)):
        x = normal(n)
        (y,) = model.run({"x": x, "pads": ints(low, high)})
        np.testing.assert_array_equal(y, np.pad(x, (low, high), mode="wrap"))
    with pytest.raises(abqc.errors.AbqcError, match="nothing to repeat"):
        model.run({"x": normal(0), "pads": ints(1, 0)})
