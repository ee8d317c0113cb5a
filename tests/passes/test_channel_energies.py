"""Energies of channels against those of random inputs."""

from __future__ import annotations

import numpy as np
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.channels.energies import channel_energies
from abqc.passes.infrastructure import walk

HEADS, HEAD, K = 2, 8, 12

ROTARY = f"""
#id4 = affine_map<(b, h, m, d) -> (b, h, m, d)>
#one = affine_map<(b, h, m, d) -> (b, 0, m, d)>
#id3 = affine_map<(b, m, k) -> (b, m, k)>
#row = affine_map<(b, m, k) -> (k)>
func.func @main(%x: tensor<1x?x{K}xf32>, %cos: tensor<1x1x?x{HEAD}xf32>, %n: index)
    -> tensor<1x{HEADS}x?x{HEAD}xf32> {{
  %gain = "abq.weight"() {{sym = "gain"}} : () -> tensor<{K}xf32>
  %e = tensor.empty(%n) : tensor<1x?x{K}xf32>
  %g = linalg.generic {{indexing_maps = [#id3, #row, #id3],
      iterator_types = ["parallel", "parallel", "parallel"]}}
      ins(%x, %gain : tensor<1x?x{K}xf32>, tensor<{K}xf32>) outs(%e : tensor<1x?x{K}xf32>) {{
    ^bb0(%a: f32, %b: f32, %c: f32):
      %m = arith.mulf %a, %b : f32
      linalg.yield %m : f32
  }} -> tensor<1x?x{K}xf32>
  %w = "abq.weight"() {{sym = "w"}} : () -> tensor<{HEADS * HEAD}x{K}xf32>
  %y = "abq.matmul"(%g, %w) {{node = "k", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0>}}
      : (tensor<1x?x{K}xf32>, tensor<{HEADS * HEAD}x{K}xf32>) -> tensor<1x?x{HEADS * HEAD}xf32>
  %s = tensor.expand_shape %y [[0], [1], [2, 3]] output_shape [1, %n, {HEADS}, {HEAD}]
      : tensor<1x?x{HEADS * HEAD}xf32> into tensor<1x?x{HEADS}x{HEAD}xf32>
  %o = tensor.empty(%n) : tensor<1x{HEADS}x?x{HEAD}xf32>
  %t = linalg.transpose ins(%s : tensor<1x?x{HEADS}x{HEAD}xf32>)
      outs(%o : tensor<1x{HEADS}x?x{HEAD}xf32>) permutation = [0, 2, 1, 3]
  %lo = tensor.extract_slice %t[0, 0, 0, 0] [1, {HEADS}, %n, {HEAD // 2}] [1, 1, 1, 1]
      : tensor<1x{HEADS}x?x{HEAD}xf32> to tensor<1x{HEADS}x?x{HEAD // 2}xf32>
  %hi = tensor.extract_slice %t[0, 0, 0, {HEAD // 2}] [1, {HEADS}, %n, {HEAD // 2}] [1, 1, 1, 1]
      : tensor<1x{HEADS}x?x{HEAD}xf32> to tensor<1x{HEADS}x?x{HEAD // 2}xf32>
  %r = tensor.concat dim(3) %hi, %lo
      : (tensor<1x{HEADS}x?x{HEAD // 2}xf32>, tensor<1x{HEADS}x?x{HEAD // 2}xf32>)
      -> tensor<1x{HEADS}x?x{HEAD}xf32>
  %k = linalg.generic {{indexing_maps = [#id4, #one, #id4, #id4],
      iterator_types = ["parallel", "parallel", "parallel", "parallel"]}}
      ins(%t, %cos, %r : tensor<1x{HEADS}x?x{HEAD}xf32>, tensor<1x1x?x{HEAD}xf32>,
          tensor<1x{HEADS}x?x{HEAD}xf32>) outs(%o : tensor<1x{HEADS}x?x{HEAD}xf32>) {{
    ^bb0(%a: f32, %b: f32, %c: f32, %d: f32):
      %m = arith.mulf %a, %b : f32
      %s2 = arith.subf %m, %c : f32
      linalg.yield %s2 : f32
  }} -> tensor<1x{HEADS}x?x{HEAD}xf32>
  return %k : tensor<1x{HEADS}x?x{HEAD}xf32>
}}"""


def test_energies_of_rotated_pairs(tmp_path) -> None:
    store, rng = WeightStore(tmp_path), np.random.default_rng(0)
    w, gain = rng.standard_normal((HEADS * HEAD, K)), rng.uniform(0.1, 3, K)
    store.add("w", w.astype(np.float32))
    store.add("gain", gain.astype(np.float32))
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(ROTARY)
        (ret,) = walk(module.operation, "func.return")
        energies = channel_energies(ret.operands[0], store)
        x = ret.parent.regions[0].blocks[0].arguments[0]
        assert channel_energies(x, store).shape == (1, 1, 1)
    single = (w**2 @ gain**2).reshape(1, HEADS, 1, HEAD)
    assert energies.shape == single.shape
    assert np.allclose(energies, single + np.roll(single, HEAD // 2, axis=-1))
