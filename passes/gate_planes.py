"""Channels are multiplied by their gates where images are measured and quantized.

    h = x * sigmoid(s), s a number for each channel      gate = sigmoid(s)
    measure(h), pack_planes(h)                           measure(x, gate), pack_planes(x, gate)

as squeeze-and-excitation blocks have it: h is not written. Nothing else may read it.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.abq_conv import PackPlanesOp
from abqc.dialects.mlir import ir, linalg, tensor

from .decompose_conv import generic
from .infrastructure import Unit, defining_op, register, users, walk
from .loops.epilogues import is_epilogue
from .loops.generics import dims, inputs, is_identity, maps
from .resolve_dims import dimension_or_query


@register
def gate_planes(module: ir.Operation, unit: Unit) -> None:
    """Fuse products with gates of channels into abq.measure and abq.pack_planes."""
    loops = {defining_op(op.opview.x) for op in walk(module, "abq.pack_planes")}
    for loop in walk(module, "linalg.generic"):
        if loop not in loops or not is_epilogue(loop) or not _only_packed(loop, unit):
            continue
        element = _gated(loop)
        if element is None:
            continue
        x = inputs(loop)[element.arg_number]
        with ir.InsertionPoint(loop), loop.location:
            gate = _gate(loop, element, x)
        for user in {user.operation for user in users(loop.results[0])}:
            with ir.InsertionPoint(user), user.location:
                made = _with_gate(user, x, gate)
            for old, new in zip(user.results, made.results, strict=True):
                old.replace_all_uses_with(new)
            user.erase()
        loop.erase()


def _only_packed(loop: ir.Operation, unit: Unit) -> bool:
    """Whether all that read its result can multiply by gates themselves."""
    for user in users(loop.results[0]):
        op = user.operation
        if op.name == "abq.pack_planes":
            if unit.kernels[ir.StringAttr(op.attributes["kernel"]).value].gated is None:
                return False
        elif op.name == "abq.measure":
            format = ir.StringAttr(op.attributes["format"]).value
            if unit.known_target.measure_pieces(format) is None:
                return False
        else:
            return False
    return True


def _gated(loop: ir.Operation) -> ir.BlockArgument | None:
    """The element of x in the body of a loop that is x times what all of a channel of a sample
    share."""
    body = loop.regions[0].blocks[0]
    varying = [
        argument
        for argument, map_ in zip(body.arguments, maps(loop)[:-1], strict=False)
        if _varies(map_)
    ]
    product = defining_op(body.operations[len(body.operations) - 1].operands[0])
    if len(varying) != 1 or product is None or product.name != "arith.mulf":
        return None
    (element,) = varying
    uses = list(element.uses)
    if len(uses) != 1 or uses[0].owner.operation != product:
        return None
    number = element.arg_number
    whole = is_identity(maps(loop)[number]) and inputs(loop)[number].type == loop.results[0].type
    return element if whole else None


def _varies(map_: ir.AffineMap) -> bool:
    """Whether what is read by the map differs within a channel."""
    found = dims(map_)
    return found is None or any(dim > 1 for dim in found)


def _gate(loop: ir.Operation, element: ir.BlockArgument, x: ir.Value) -> ir.Value:
    """What the channels of x are multiplied with, [B, C]."""
    body, number = loop.regions[0].blocks[0], element.arg_number
    f32 = ir.F32Type.get()
    shape = abq.shape(x)[:2]
    sizes = [s if s != abq.DYNAMIC else dimension_or_query(x, i) for i, s in enumerate(shape)]
    empty = tensor.EmptyOp(sizes, f32).result
    values, read = inputs(loop), maps(loop)[:-1]
    arguments = list(body.arguments)[: len(values)]
    for each in (values, read, arguments):
        del each[number]
    narrow = [ir.AffineMap.get(2, 0, list(map_.results)) for map_ in read]
    indexing = [*narrow, ir.AffineMap.get_identity(2)]
    made = generic(empty.type, values, empty, indexing, "pp").operation
    types = [*(abq.element(value) for value in values), f32]
    block = made.regions[0].blocks.append(*types, arg_locs=[loop.location] * len(types))
    known = dict(zip(arguments, block.arguments, strict=False))
    product = next(iter(element.uses)).owner.operation
    with ir.InsertionPoint(block):
        for inner in list(body.operations)[:-1]:
            if inner.operation == product:
                continue
            copy = inner.operation.clone()
            for place, operand in enumerate(inner.operands):
                copy.operands[place] = known.get(operand, operand)
            known[inner.results[0]] = copy.results[0]
        (factor,) = (operand for operand in product.operands if operand != element)
        linalg.YieldOp([known.get(factor, factor)])
    return made.results[0]


def _with_gate(op: ir.Operation, x: ir.Value, gate: ir.Value) -> ir.Operation:
    view = op.opview
    if op.name == "abq.measure":
        types = [result.type for result in op.results]
        return abq.MeasureOp(x, op.attributes["format"], *types, gate=gate).operation
    names = ("kernel", "channels", "top", "left", "phases")
    return PackPlanesOp(
        x,
        *(view.x_scale, view.x_zero, view.height, view.width, view.rows, view.pitch),
        *(op.attributes[name] for name in names),
        op.results[0].type,
        gate=gate,
    ).operation
