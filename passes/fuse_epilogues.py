"""Loops over the result of a convolution or a product become its epilogue: what it stores is final.

That goes for convolutions of floats and of codes, and for products of both where the target has
kernels for it. A loop is taken where nothing else reads the result. It may read other tensors in
the same place, or numbers for each channel or sample (of a product: each row); the operation then
stands where the loop was, so that these are there. Loops one after another all go the same way.
Those of convolutions may read integers, and make bytes: codes become codes.
"""

from __future__ import annotations

from typing import Any

from abqc.dialects import abq
from abqc.dialects.abq_conv import EPILOGUE_INPUTS, CodeConvOp, DirectConvOp
from abqc.dialects.abq_products import FusedMatmulOp
from abqc.dialects.epilogue import Stage
from abqc.dialects.mlir import ir

from .infrastructure import Unit, constant_index, defining_op, register, users, walk
from .loops.epilogues import (
    PRODUCTS,
    Input,
    extend_epilogue,
    inputs_of,
    is_epilogue,
    other_inputs,
)
from .loops.generics import inputs
from .resolve_dims import dimension_or_query


@register
def fuse_epilogues(module: ir.Operation, unit: Unit) -> None:
    """Loops over results of convolutions and products become their epilogues."""
    for loop in walk(module, "linalg.generic"):
        if not is_epilogue(loop, codes=True):
            continue
        for conv in _producers(loop, unit):
            given = _inputs(conv, loop)
            if given is not None:
                _fuse(conv, loop, given)
                break


def _producers(loop: ir.Operation, unit: Unit) -> list[ir.Operation]:
    """The operations whose results this loop alone reads, the last one first."""
    found: list[ir.Operation] = []
    for value in inputs(loop):
        op = defining_op(value)
        if op is None or op.name not in _AGAIN or op in found or op.block != loop.block:
            continue
        readers = [user.operation for user in users(value)]
        alone = all(user == loop or user.name == "tensor.dim" for user in readers)
        able = op.name not in PRODUCTS or _has_kernels(op, unit)
        if alone and able and _same_place(value, loop.results[0], op):
            found.append(op)
    return sorted(found, key=lambda op: sum(op.is_before_in_block(other) for other in found))


def _same_place(value: ir.Value, made: ir.Value, op: ir.Operation) -> bool:
    """Whether what a loop makes of `value` can be stored where `op` has it."""
    if op.name in PRODUCTS:
        return value.type == made.type
    sums = not len(op.regions[0].blocks) and not isinstance(abq.element(value), ir.F32Type)
    return not sums and abq.shape(value) == abq.shape(made)


def _has_kernels(op: ir.Operation, unit: Unit) -> bool:
    """Whether a product's kernels can be followed by an epilogue."""
    if not abq.is_packed(op.opview.w):
        return False
    names = [ir.StringAttr(name).value for name in ir.ArrayAttr(op.attributes["kernels"])]
    alone = [[Stage(unit.kernels[name], None)] for name in names]
    return all(unit.known_target.fused_product(stages) is not None for stages in alone)


def _inputs(conv: ir.Operation, loop: ir.Operation) -> list[Input] | None:
    """What the epilogue of both reads; None where that cannot be."""
    given, more = inputs_of(conv), other_inputs(loop, conv.results[0])
    if more is None:
        return None
    given += [each for each in dict.fromkeys(more) if each not in given]
    return given if len(given) <= len(EPILOGUE_INPUTS) else None


def _fuse(conv: ir.Operation, loop: ir.Operation, given: list[Input]) -> None:
    view, result = conv.opview, conv.results[0]
    with ir.InsertionPoint(conv), conv.location:
        _resolve_dims(result)
    with ir.InsertionPoint(loop), ir.Location.fused([conv.location, loop.location]):
        fused = _AGAIN[conv.name](
            view,
            loop.results[0].type,
            maps=ir.ArrayAttr.get([ir.AffineMapAttr.get(each.map) for each in given]),
            **{name: each.value for name, each in zip(EPILOGUE_INPUTS, given, strict=False)},
        ).operation
    extend_epilogue(fused.regions[0], conv, loop, result, given)
    loop.results[0].replace_all_uses_with(fused.results[0])
    loop.erase()
    conv.erase()


def _resolve_dims(value: ir.Value) -> None:
    """Sizes of a result that moves are those of what makes it."""
    for user in list(users(value)):
        op = user.operation
        if op.name == "tensor.dim":
            axis = constant_index(op.operands[1])
            assert axis is not None, "axes are constants"
            op.results[0].replace_all_uses_with(dimension_or_query(value, axis))
            op.erase()


def _direct(view: Any, type_: ir.Type, **epilogue: Any) -> DirectConvOp:
    names = ("groups", "window", "strides", "dilations", "before")
    return DirectConvOp(
        *(view.planes, view.w, view.bias, view.height, view.width),
        *(view.operation.attributes[name] for name in names),
        type_,
        **epilogue,
    )


def _of_codes(view: Any, type_: ir.Type, **epilogue: Any) -> CodeConvOp:
    return CodeConvOp(
        *(view.planes, view.w, view.bias, view.rows, view.pitch, view.height, view.width),
        *(view.kernel, view.node, type_),
        **epilogue,
    )


def _product(view: Any, type_: ir.Type, **epilogue: Any) -> FusedMatmulOp:
    op = view.operation
    bias = {"bias": view.bias} if view.bias is not None else {}
    new = FusedMatmulOp(view.x, view.w, view.node, type_, **bias, **epilogue)
    for name in ("kernels", "max_rows", "n", "k"):
        new.operation.attributes[name] = op.attributes[name]
    return new


_AGAIN = {  # the same with an epilogue
    "abq.direct_conv": _direct,
    "abq.code_conv": _of_codes,
    **dict.fromkeys(PRODUCTS, _product),
}
