from __future__ import annotations

from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import Unit, run_pipeline
from abqc.passes.outline_serial_code import NOTE
from facts import Facts

RUNNING_SUM = """
func.func @main(%x: memref<?xf32>, %y: memref<?xf32>, %n: index, %some: i1) {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %start = arith.constant 0.0 : f32
  memref.store %start, %y[%zero] : memref<?xf32>
  scf.if %some {
    scf.for %i = %one to %n step %one {
      %before = arith.subi %i, %one : index
      %a = memref.load %y[%before] : memref<?xf32>
      %b = memref.load %x[%i] : memref<?xf32>
      %c = arith.addf %a, %b : f32
      memref.store %c, %y[%i] : memref<?xf32>
    }
  } loc("sum")
  return
}
"""


def test_loops_over_buffers_leave_the_host() -> None:
    unit = Unit()
    with make_context(), ir.Location.unknown():
        module = ir.Module.parse(RUNNING_SUM)
        run_pipeline(module.operation, ["outline-serial-code"], unit)
        host = Facts(module.operation.get_asm())
        ptx = compile_ptx(ir.Module.parse(unit.outlined_text), SM_80).text
    assert len(host("func.call")) == 2
    assert not host("memref.store") and not host("scf.for")
    assert ptx.count(".visible .entry") == 2
    assert ptx.count(".reqntid 32") == 2
    assert unit.notes == [{"node": "sum", "note": NOTE}]
