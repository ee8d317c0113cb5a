"""Loops that become GPU kernels: positions fit 32 bits, or the node is refused."""

from __future__ import annotations

import pytest
from abqc.passes.infrastructure import PassFailure
from abqc.passes.kernels.gpu_nest import MAX_LENGTH
from abqc.passes.pipeline import run_passes

ADD = """
#id = affine_map<(d0, d1) -> (d0, d1)>
func.func @main(%x: memref<{shape}xf32>, %y: memref<{shape}xf32>) {{
  linalg.generic {{indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel"]}}
      ins(%x : memref<{shape}xf32>) outs(%y : memref<{shape}xf32>) {{
    ^bb0(%a: f32, %b: f32):
      %c = arith.addf %a, %a : f32
      linalg.yield %c : f32
  }} loc("the node")
  return
}}
"""

SUM = """
#in = affine_map<(d0, d1) -> (d0, d1)>
#out = affine_map<(d0, d1) -> (d0)>
func.func @main(%x: memref<{shape}xf32>, %y: memref<{rows}xf32>) {{
  linalg.generic {{indexing_maps = [#in, #out], iterator_types = ["parallel", "reduction"]}}
      ins(%x : memref<{shape}xf32>) outs(%y : memref<{rows}xf32>) {{
    ^bb0(%a: f32, %b: f32):
      %c = arith.addf %b, %a : f32
      linalg.yield %c : f32
  }} loc("the node")
  return
}}
"""


def outlined(text: str, **sizes: str) -> str:
    return run_passes(text.format(**sizes), ["outline-gpu-kernels"])


def test_dynamic_loops_are_checked_by_the_host() -> None:
    text = outlined(ADD, shape="?x?")
    assert f"arith.constant {MAX_LENGTH} : index" in text
    assert "cf.assert" in text and "node 'the node': a GPU's kernel makes fewer than 2^31" in text


def test_reductions_are_checked_too() -> None:
    assert outlined(SUM, shape="?x?", rows="?").count("cf.assert") == 2
    assert outlined(SUM, shape="4x?", rows="4").count("cf.assert") == 1
    assert outlined(SUM, shape="?x4", rows="?").count("cf.assert") == 1


@pytest.mark.parametrize("shape", ["4x4", "32768x65535"])
def test_loops_that_are_known_to_fit_are_not(shape: str) -> None:
    assert "cf.assert" not in outlined(ADD, shape=shape)


@pytest.mark.parametrize("shape", ["65536x65536", "65536x32768", "1x4294967297"])
def test_loops_that_cannot_fit_are_refused_with_their_node(shape: str) -> None:
    """2^32 elements would wrap around to none."""
    with pytest.raises(PassFailure, match="node 'the node': a GPU's kernel makes fewer than"):
        outlined(ADD, shape=shape)


def test_reduction_that_cannot_fit_is_refused() -> None:
    with pytest.raises(PassFailure, match="node 'the node'"):
        outlined(SUM, shape="4x4294967296", rows="4")
