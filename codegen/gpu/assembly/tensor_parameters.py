"""Tensor maps among the parameters of kernels: where they lie, and how LLVM is told.

The 8-byte slots that a launch fills come first, the maps of 128 bytes that it makes of these behind
them (runtime/tensor_parameter.py). `__grid_constant__`: a kernel reads its parameter where it is,
not a copy of each thread's.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.dialects.mlir import ir
from abqc.runtime.tensor_parameter import TensorParameter

from ..builder import TENSOR_MAP
from .accesses import Access

GRID_CONSTANT = "nvvm.grid_constant"


def move_tensor_parameters(function: ir.Operation) -> tuple[TensorParameter, ...]:
    """Move the tensor maps among the arguments of a `func.func` behind the others; they."""
    if "arg_attrs" not in function.attributes:
        return ()
    attributes = list(ir.ArrayAttr(function.attributes["arg_attrs"]))
    maps = [i for i, each in enumerate(attributes) if TENSOR_MAP in ir.DictAttr(each)]
    if not maps:
        return ()
    block = function.regions[0].blocks[0]
    for number in maps:
        old = block.arguments[number]
        old.replace_all_uses_with(block.add_argument(old.type, function.location))
    for number in reversed(maps):
        block.erase_argument(number)
    order = [i for i in range(len(attributes)) if i not in maps] + maps
    types = [argument.type for argument in block.arguments]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(types, []))
    function.attributes["arg_attrs"] = ir.ArrayAttr.get([attributes[i] for i in order])
    found = (ir.DictAttr(attributes[i])[TENSOR_MAP] for i in maps)
    return tuple(TensorParameter.of_numbers(list(ir.DenseI64ArrayAttr(each))) for each in found)


def mark_tensor_parameters(function: ir.Operation) -> None:
    """Of a kernel that is lowered, and has the attribute of kernels."""
    attributes = []
    for each in ir.ArrayAttr(function.attributes["arg_attrs"]):
        known = {named.name: named.attr for named in ir.DictAttr(each)}
        if known.pop(TENSOR_MAP, None) is not None:
            known[GRID_CONSTANT] = ir.UnitAttr.get()
        attributes.append(ir.DictAttr.get(known))
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)


def accesses_of_slots(
    accesses: Sequence[Access], parameters: Sequence[TensorParameter]
) -> tuple[Access, ...]:
    """By slot, of accesses by parameter: by a map a kernel touches its tensor."""
    slots = list(accesses[: len(accesses) - len(parameters)])
    for parameter, access in zip(parameters, accesses[len(slots) :], strict=True):
        slots[parameter.pointer] |= access
    return tuple(slots)
