"""Softmaxes without a kernel become loops, which are recognized again."""

from __future__ import annotations

from facts import after

TIDY = "func.func(canonicalize,cse)"
TEXT = """func.func @main(%x: tensor<?x4x?xf32>) -> tensor<?x4x?xf32> {
  %y = "abq.softmax"(%x) : (tensor<?x4x?xf32>) -> tensor<?x4x?xf32>
  return %y : tensor<?x4x?xf32>
}"""


def test_loops_are_a_softmax_again() -> None:
    facts = after(TEXT, "decompose-softmax", TIDY)
    assert not facts("abq.softmax")
    assert len(facts("linalg.generic")) == 4
    assert len(after(TEXT, "decompose-softmax", TIDY, "fuse-norm", TIDY)("abq.softmax")) == 1
