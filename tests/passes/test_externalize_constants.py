from __future__ import annotations

from pathlib import Path

import numpy as np
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.dialects.weight_store import WeightStore
from abqc.passes.infrastructure import Unit, run_pipeline

TEXT = """
memref.global "private" constant @a : memref<2x2xf32> = dense<[[1.0, -2.0], [0.5, 0.0]]>
memref.global "private" constant @b : memref<3xi64> = dense<7>
memref.global "private" constant @c : memref<2xi1> = dense<[true, false]>
memref.global "public" constant @w : memref<4xi8>
func.func @main() -> (memref<2x2xf32>, memref<3xi64>, memref<2xi1>, memref<4xi8>) {
  %a = memref.get_global @a : memref<2x2xf32>
  %b = memref.get_global @b : memref<3xi64>
  %c = memref.get_global @c : memref<2xi1>
  %w = memref.get_global @w : memref<4xi8>
  return %a, %b, %c, %w : memref<2x2xf32>, memref<3xi64>, memref<2xi1>, memref<4xi8>
}
"""


def test_constants_become_weights(tmp_path: Path) -> None:
    unit = Unit(store=WeightStore(tmp_path))
    with make_context():
        module = ir.Module.parse(TEXT)
        run_pipeline(module.operation, ["externalize-constants"], unit)
        text = module.operation.get_asm()
    assert "dense" not in text
    stored = [unit.store.get(symbol) for symbol in unit.weights.values()]
    np.testing.assert_array_equal(stored[0], np.array([[1, -2], [0.5, 0]], np.float32))
    np.testing.assert_array_equal(stored[1], np.full(3, 7, np.int64))
    np.testing.assert_array_equal(stored[2], np.array([1, 0], np.uint8))
    assert stored[0].dtype == np.float32
    assert all(f"get_global @{name}" in text for name in unit.weights)
    assert "get_global @w" in text
