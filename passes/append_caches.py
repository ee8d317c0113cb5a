"""Caches that grow: `output = concat(input, new)` and `abq.update` become `abq.append`.

The runtime writes only the new rows where the caller hands in one buffer for the input and the
output; the function does not return such outputs any more. On a GPU the places of an update are in
its memory, which the runtime does not read: there it stays a loop.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import func, ir

from .infrastructure import Unit, defining_op, main_function, register, walk
from .patterns.caches import appends_to_input


@register
def append_caches(module: ir.Operation, unit: Unit) -> None:
    """Turn outputs that are an input with something appended into abq.append."""
    main = main_function(module)
    entry = main.regions[0].blocks[0]
    inputs = {argument: i for i, argument in enumerate(entry.arguments)}
    (ret,) = walk(main, "func.return")
    if unit.kept_outputs is None:
        unit.kept_outputs = list(range(len(ret.operands)))
    on_device = unit.target is not None and unit.target.objects.on_device
    kept, replaced = [], []
    for position, value in enumerate(ret.operands):
        output = unit.kept_outputs[position]
        made = defining_op(value)
        # The places of an update are in the memory of a GPU.
        in_place = made is not None and not (on_device and made.name == "abq.update")
        if made is None or not in_place or not appends_to_input(made, inputs):
            kept.append((output, value))
            continue
        number = inputs[made.operands[0]]
        with ir.InsertionPoint(made), made.location:
            append = _append(made, number, output)
        unit.strided_inputs.add(unit.inputs[number].name)
        made.results[0].replace_all_uses_with(append)
        replaced.append(made)
    _return(main, ret, [value for _, value in kept])
    for made in replaced:
        made.erase()
    unit.kept_outputs = [output for output, _ in kept]


def _append(op: ir.Operation, number: int, output: int) -> ir.Value:
    i64 = ir.IntegerType.get_signless(64)
    places = [ir.IntegerAttr.get(i64, n) for n in (number, output)]
    type_ = op.results[0].type
    if op.name == "tensor.concat":
        return abq.AppendOp(op.operands[1], *places, op.attributes["dim"], type_).result
    _, rows, begins, capacity = op.operands
    axis = op.attributes["axis"]
    return abq.AppendOp(rows, *places, axis, type_, begins=begins, capacity=capacity).result


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
