"""If, Loop and Scan: what they carry, what they collect, how they end."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.errors import AbqcError
from front_end.support import check, model_of

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_branches_of_different_sizes(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, bool c) => (float[n,4] y, int64[k] s) {
          y, s = If (c) <
            then_branch = t () => (float[n,4] yt, int64[k] st) { yt = Relu(x)  st = Shape(x) },
            else_branch = e () => (float[m,4] ye, int64[k] se) {
              ye = Concat <axis = 0> (x, x)  q = Shape(x)  se = Add(q, q) }>
        }"""
    )
    feeds = [{"x": normal(n, 4), "c": np.array(c)} for n in (3, 1, 0) for c in (True, False)]
    check(model, feeds, tmp_path)


def test_condition_from_data_and_branches_that_return_what_is_outside(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, float t) => (float[n,4] y, float[n,4] z) <float limit = {0.5}> {
          c = Less(t, limit)
          y0, z = If (c) <
            then_branch = a () => (float[n,4] p, float[n,4] p2) { p = Identity(x) p2 = Neg(x) },
            else_branch = e () => (float[m,4] q, float[n,4] q2) { q = Neg(x) q2 = Identity(x) }>
          y = Add(y0, x)
        }"""
    )
    feeds = [{"x": normal(3, 4), "t": np.array(t, np.float32)} for t in (0.1, 0.9)]
    check(model, feeds, tmp_path)


def test_condition_of_sizes_decides_between_ranks(tmp_path: Path) -> None:
    text = """g (float[%s] x) => (float[n] y) <int64 one = {1}, int64[1] axes = {1}> {
        s = Shape(x)  d = Gather(s, one)  c = Equal(d, one)
        y = If (c) <
          then_branch = t () => (float[n] a) { a = Squeeze(x, axes) },
          else_branch = e () => (float[n,k] b) { b = Identity(x) }>
      }"""
    check(model_of(text % "3,1"), [{"x": normal(3, 1)}], tmp_path)
    source = tmp_path / "open.onnx"
    onnx.save(model_of(text % "n,k"), source)
    with pytest.raises(AbqcError, match="different rank"):
        abqc.compile(source)


def test_counted_loop_collects_rows(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[b,4] y, float[n,b,4] z) <bool c = {1}> {
          y, z = Loop (n, c, x) <
            body = t (int64 i, bool ci, float[b,4] a) => (bool co, float[b,4] ao, float[b,4] r) {
              co = Identity(ci)  t = Tanh(a)  i1 = Cast <to = 1> (i)  ao = Add(t, i1)
              r = Identity(ao) }>
        }"""
    )
    feeds = [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (1, 1), (0, 3), (2, 9))]
    check(model, feeds, tmp_path)


def test_loop_that_ends_early(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n, int64 k) => (float[b,4] y, int64 count, float[m,b,4] z)
        <bool c = {1}, int64 zero = {0}, int64 one = {1}> {
          y, count, z = Loop (n, c, x, zero) <
            body = t (int64 i, bool ci, float[b,4] a, int64 q)
              => (bool co, float[b,4] ao, int64 qo, float[b,4] r) {
              co = Less(i, k)  ao = Tanh(a)  qo = Add(q, one)  r = Neg(ao) }>
        }"""
    )
    feeds = [
        {"x": normal(2, 4), "n": np.array(n), "k": np.array(k)}
        for n, k in ((3, 9), (9, 3), (1, 0), (40, 30))
    ]
    check(model, feeds, tmp_path)


def test_carried_sizes_change(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[m,4] y, float[k,4] z) <bool c = {1}> {
          y, z = Loop (n, c, x, x) <
            body = t (int64 i, bool ci, float[p,4] a, float[q,4] d)
              => (bool co, float[r,4] ao, float[s,4] do) {
              co = Identity(ci)  ao = Concat <axis = 0> (a, x)  do = Tanh(a) }>
        }"""
    )
    feeds = [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (2, 0), (0, 3), (1, 7))]
    check(model, feeds, tmp_path)


def test_loops_and_branches_in_loops(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[b,4] y, int64 s, float[n,n,b,4] z)
        <int64 zero = {0}, int64 one = {1}, int64 limit = {3}, bool c = {1}> {
          y, s, z = Loop (n, c, x, zero) <
            body = t (int64 i, bool ci, float[b,4] a, int64 k)
              => (bool co, float[b,4] ao, int64 ko, float[n,b,4] r) {
              co = Identity(ci)
              ao, ko, r = Loop (n, c, a, k) <
                body = t2 (int64 j, bool cj, float[b,4] a2, int64 k2)
                  => (bool co2, float[b,4] a2o, int64 k2o, float[b,4] r2) {
                  k2o = Add(k2, one)  kf = Cast <to = 1> (k2o)  co2 = Identity(cj)
                  t = Tanh(a2)  cond = Less(k2o, limit)
                  a2o = If (cond) <
                    then_branch = tb () => (float[b,4] p) { p = Add(t, kf) },
                    else_branch = eb () => (float[b,4] q) { q = Sub(t, kf) }>
                  r2 = Neg(a2o) }> }>
        }"""
    )
    check(model, [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (1, 1))], tmp_path)


def test_memory_of_a_long_loop_is_bounded(tmp_path: Path) -> None:
    """Each iteration makes tensors of 1 MB; 4,000 of them would be 4 GB."""
    model = model_of(
        """g (float[k] x, int64 n) => (float[k] y) <bool c = {1}> {
          y = Loop (n, c, x) <
            body = t (int64 i, bool ci, float[k] a) => (bool co, float[k] ao) {
              co = Identity(ci)  t = Tanh(a)
              r = Concat <axis = 0> (t, t)  s = Shape(a)  z = Sub(s, s)  ao = Slice(r, z, s) }>
        }"""
    )
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    compiled = abqc.compile(source)
    before = _peak()
    compiled.run({"x": normal(1 << 18), "n": np.array(4000)})
    assert _peak() - before < 64 << 10  # KB


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_captured_name_that_is_none(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b] x, bool c) => (float[b] y) {
          y = If (c) <
            then_branch = t () => (float[b] p) { hidden = Neg(x)  p = Relu(hidden) },
            else_branch = e () => (float[b] q) { q = Identity(x) }>
        }"""
    )
    model.graph.node[0].attribute[1].g.node[0].input[0] = "hidden"  # of the other branch
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    with pytest.raises(AbqcError, match="hidden"):
        abqc.compile(source)
