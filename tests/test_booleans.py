"""Booleans in memory are loaded and stored as bytes, so that loops over them are vectorized."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.booleans import move_booleans_as_bytes
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit, kernel_assembly, lower, to_llvm_ir
from abqc.dialects.mlir import ir
from kernel_cases import CONTEXT, ISAS

SOURCE = """
func.func @both(%i: index, %x: memref<?xf32> {llvm.noalias}, %m: memref<?xi1> {llvm.noalias},
                %y: memref<?xi1> {llvm.noalias}, %n: index) {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %nothing = arith.constant 0.0 : f32
  scf.for %j = %zero to %n step %one {
    %value = memref.load %x[%j] : memref<?xf32>
    %known = memref.load %m[%j] : memref<?xi1>
    %some = arith.cmpf une, %value, %nothing : f32
    %both = arith.andi %some, %known : i1
    memref.store %both, %y[%j] : memref<?xi1>
  }
  return
}
"""


def kernel() -> ir.Module:
    return ir.Module.parse(SOURCE, CONTEXT)


def test_no_single_bits_are_left_in_memory() -> None:
    module = kernel()
    lower(module)
    before = to_llvm_ir(module)
    assert "store i1" in before and "load i1" in before
    move_booleans_as_bytes(module)
    after = to_llvm_ir(module)
    assert "store i1" not in after and "load i1" not in after


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_loops_over_booleans(isa: Isa) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, 77).astype(np.float32)
    m, y = rng.integers(0, 2, 77).astype(bool), np.zeros(80, bool)
    y[77:] = True
    Jit(kernel(), isa, ["both"]).run("both", 1, [x, m.view(np.int8), y.view(np.int8), 77])
    np.testing.assert_array_equal(y[:77], (x != 0) & m)
    assert y[77:].all()
    packed = ("cmpneq", "cmpneqps", "vptestm")
    assert any(name in kernel_assembly(kernel(), isa, ["both"]) for name in packed)
