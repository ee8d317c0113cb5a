"""Caches that grow: `output = concat(input, new)` becomes `abq.append`.

The runtime writes only the new rows where the caller hands in one buffer for the input and the
output; the function does not return such outputs any more.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import func, ir

from .infrastructure import Unit, defining_op, main_function, register, users, walk


@register
def append_caches(module: ir.Operation, unit: Unit) -> None:
    """Turn outputs that are an input with something appended into abq.append."""
    main = main_function(module)
    entry = main.regions[0].blocks[0]
    inputs = {argument: i for i, argument in enumerate(entry.arguments)}
    (ret,) = walk(main, "func.return")
    if unit.kept_outputs is None:
        unit.kept_outputs = list(range(len(ret.operands)))
    kept = []
    for position, value in enumerate(ret.operands):
        output = unit.kept_outputs[position]
        concat = defining_op(value)
        if concat is None or not _appends_to_input(concat, inputs):
            kept.append((output, value))
            continue
        number = inputs[concat.operands[0]]
        with ir.InsertionPoint(concat), concat.location:
            i64 = ir.IntegerType.get_signless(64)
            append = abq.AppendOp(
                concat.operands[1],
                ir.IntegerAttr.get(i64, number),
                ir.IntegerAttr.get(i64, output),
                concat.attributes["dim"],
                value.type,
            )
        unit.strided_inputs.add(unit.inputs[number].name)
        concat.results[0].replace_all_uses_with(append.result)
    _return(main, ret, [value for _, value in kept])
    unit.kept_outputs = [output for output, _ in kept]


def _appends_to_input(op: ir.Operation, inputs: dict[ir.Value, int]) -> bool:
    """concat(input, new) where the input is used for nothing else but its sizes."""
    if op.name != "tensor.concat" or len(op.operands) != 2 or op.operands[0] not in inputs:
        return False
    others = [u.operation for u in users(op.operands[0]) if u.operation != op]
    returned = [u for u in users(op.results[0]) if u.operation.name == "func.return"]
    return all(u.name == "tensor.dim" for u in others) and len(returned) == 1


def _return(main: ir.Operation, ret: ir.Operation, values: list[ir.Value]) -> None:
    with ir.InsertionPoint(ret), ret.location:
        func.ReturnOp(values)
    ret.erase()
    type_ = ir.TypeAttr(main.attributes["function_type"]).value
    main.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(list(type_.inputs), [v.type for v in values])
    )
    if "res_attrs" in main.attributes:
        del main.attributes["res_attrs"]
