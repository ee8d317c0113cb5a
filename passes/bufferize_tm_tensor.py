"""`tm_tensor` operations (scans, sorts, scatters) get buffers; upstream makes loops of them then.

Upstream's own pass reads and writes tensors in ways that one-shot bufferization takes only with a
word on aliasing: what it allocates is nobody else's.
"""

from __future__ import annotations

from abqc.dialects.mlir import PassManager, ir

from .infrastructure import Unit, defining_op, register, walk

DIALECT = "tm_tensor."


@register
def bufferize_tm_tensor(module: ir.Operation, unit: Unit) -> None:
    """Run tm-tensor-bufferize and mark its results as unaliased."""
    if not any(op.name.startswith(DIALECT) for op in walk(module)):
        return
    PassManager.parse("builtin.module(func.func(tm-tensor-bufferize))").run(module)
    for op in walk(module, "bufferization.to_tensor"):
        owner = defining_op(op.operands[0])
        if owner is not None and owner.name == "memref.alloc":
            op.attributes["restrict"] = ir.UnitAttr.get()
            op.attributes["writable"] = ir.UnitAttr.get()
