"""Epilogues in kernels: a body of scalars, applied to vectors.

`math` operations stay as they are: of the whole kernel they become polynomials
(`arithmetic/expand_math.py`), the same as in loops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..dialects.epilogue import Epilogue
from ..dialects.mlir import ir
from .builder import Value, constant, vec


def apply_epilogue(epilogue: Epilogue, value: Value, inputs: Sequence[Value]) -> Value:
    """What the elements of the vector `value` become, with those of `inputs` beside them."""
    module = ir.Module.parse(epilogue.body)
    block = module.body.operations[0].regions[0].blocks[0]
    known = dict(zip(block.arguments, [value.ir, *(v.ir for v in inputs)], strict=True))
    for inner in block.operations:
        op = inner.operation
        if op.name == "func.return":
            return Value(known[op.operands[0]])
        (result,) = op.results
        known[result] = _on_vectors(op, vec(value.lanes, result.type), known)
    raise AssertionError("a function ends in func.return")


def arithmetic_of(epilogue: Epilogue) -> float:
    """How many operations of arithmetic it is; infinity where functions are among them."""
    module = ir.Module.parse(epilogue.body)
    block = module.body.operations[0].regions[0].blocks[0]
    names = [op.operation.name for op in block.operations]
    counted = [name for name in names if name not in ("arith.constant", "func.return")]
    return len(counted) if all(name.startswith("arith.") for name in counted) else math.inf


def _on_vectors(
    op: ir.Operation, type_: ir.VectorType, known: dict[ir.Value, ir.Value]
) -> ir.Value:
    if op.name == "arith.constant":
        return constant(op.attributes["value"].value, type_).ir
    operands = [known[operand] for operand in op.operands]
    attributes = {name: op.attributes[name] for name in op.attributes}
    return ir.Operation.create(
        op.name, results=[type_], operands=operands, attributes=attributes
    ).results[0]
