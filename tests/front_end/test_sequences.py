"""Sequences and optionals are lists at compile time; those that loops make are rows of a tensor."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import onnx
import pytest
from abqc.errors import AbqcError
from front_end.support import check, model_of

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_elements_are_put_in_and_taken_out(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 at) => (float[m,4] y, int64 n, float[b,2] z, float[b,4] e)
        <int64 one = {1}, int64 last = {-1}, int64[2] sizes = {2, 2}, int64 size = {3}> {
          a = Neg(x)  c = Relu(x)
          s = SequenceConstruct(x, a)
          t = SequenceInsert(s, c, one)
          u = SequenceErase(t, last)
          y = ConcatFromSequence <axis = 0> (u)
          n = SequenceLength(t)
          halves = SplitToSequence <axis = 1> (x, sizes)
          z = SequenceAt(halves, last)
          e = SequenceAt(t, at)
        }"""
    )
    feeds = [{"x": normal(b, 4), "at": np.array(at)} for b, at in ((3, 0), (1, 2), (2, -3))]
    compiled = check(model, feeds, tmp_path)
    with pytest.raises(AbqcError, match="out of range"):
        compiled.run({"x": normal(3, 4), "at": np.array(3)})


def test_loop_adds_to_sequences(tmp_path: Path) -> None:
    """As PyTorch exports a list that a loop appends to."""
    model = model_of(
        """g (float[b,4] x, int64 n) => (float[n,b,4] y, float[m,4] z, int64 k, float[b,4] e)
        <bool c = {1}, int64 last = {-1}> {
          s0 = SequenceConstruct(x)  s1 = SequenceEmpty <dtype = 1> ()
          a, s, t = Loop (n, c, x, s0, s1) <
            body = t (int64 i, bool ci, float[b,4] a, seq(float[b,4]) p, seq(float[b,4]) q)
              => (bool co, float[b,4] ao, seq(float[b,4]) po, seq(float[b,4]) qo) {
              co = Identity(ci)  ao = Tanh(a)  po = SequenceInsert(p, ao)
              q1 = SequenceInsert(q, a)  na = Neg(a)  qo = SequenceInsert(q1, na) }>
          y = ConcatFromSequence <axis = 0, new_axis = 1> (s)
          z = ConcatFromSequence <axis = 0> (t)
          k = SequenceLength(t)
          e = SequenceAt(s, last)
        }"""
    )
    feeds = [{"x": normal(b, 4), "n": np.array(n)} for b, n in ((3, 4), (1, 1), (2, 9))]
    check(model, feeds, tmp_path)


def test_slices_of_an_open_axis(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, int64 at) => (float[4] y, int64 n, float[b,4] z) {
          s = SplitToSequence <axis = 0, keepdims = 0> (x)
          y = SequenceAt(s, at)  n = SequenceLength(s)
          z = ConcatFromSequence <axis = 0, new_axis = 1> (s)
        }"""
    )
    check(model, [{"x": normal(b, 4), "at": np.array(b - 1)} for b in (5, 1)], tmp_path)


def test_what_has_no_static_form_is_refused(tmp_path: Path) -> None:
    model = model_of(
        """g (float[b,4] x, bool c) => (int64 n) {
          s = If (c) <
            then_branch = t () => (seq(float[b,4]) p) { p = SequenceConstruct(x, x) },
            else_branch = e () => (seq(float[b,4]) q) { q = SequenceConstruct(x) }>
          n = SequenceLength(s)
        }"""
    )
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    with pytest.raises(AbqcError, match="length depends on the condition"):
        abqc.compile(source)
