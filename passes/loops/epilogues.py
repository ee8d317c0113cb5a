"""Loops over a result, element by element, as an epilogue of the operation that makes it.

An operation with epilogues has a region, f32 of an element and a number of each further input, and
maps that find these by the indices of the result (`abq.direct_conv`). Channels are axis 1 of what a
convolution makes and the last one of a product, whose rows are its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.abq_conv import YieldOp, epilogue_inputs, epilogue_maps
from abqc.dialects.element_types import text_of
from abqc.dialects.epilogue import FLOAT, MADE, READ, Epilogue, Read
from abqc.dialects.mlir import func, ir

from ..guard_divisions import SIGNED, UNSIGNED
from ..infrastructure import defining_op
from .generics import dims, ignores_init, inputs, is_elementwise, is_identity, maps

_SCALARS = (ir.F32Type, ir.IntegerType)


@dataclass(frozen=True)
class Input:
    """A tensor that an epilogue reads by `map`, and how that is."""

    value: ir.Value
    map: ir.AffineMap
    read: Read


def is_epilogue(loop: ir.Operation, *, codes: bool = False) -> bool:
    """Whether a linalg.generic computes every element of its result by itself, to f32; with `codes`
    to bytes too."""
    return (
        is_elementwise(loop)
        and ignores_init(loop)
        and text_of(abq.element(loop.results[0])) in (MADE if codes else (FLOAT,))
        and all(_is_scalar(inner.operation) for inner in _body(loop))
    )


def other_inputs(loop: ir.Operation, value: ir.Value) -> list[Input] | None:
    """What `loop` reads besides `value`, at whose place it must read that; None where it reads
    anything in a way that epilogues cannot."""
    found = []
    op = defining_op(value)
    assert op is not None, "an operation that may have an epilogue makes it"
    for other, map_ in zip(inputs(loop), maps(loop), strict=False):
        if other == value:
            if not is_identity(map_):
                return None
            continue
        read = _read(op, other, map_)
        if read is None:
            return None
        found.append(Input(other, map_, read))
    return found


def inputs_of(op: ir.Operation) -> list[Input]:
    """The inputs of the epilogue that an operation has."""
    if not len(op.regions):
        return []
    view, found = op.opview, []
    for value, map_ in zip(epilogue_inputs(view), epilogue_maps(view), strict=True):
        read = _read(op, value, map_)
        assert read is not None, "an epilogue reads what other_inputs lets through"
        found.append(Input(value, map_, read))
    return found


def extend_epilogue(
    region: ir.Region, before: ir.Operation, loop: ir.Operation, value: ir.Value, given: list[Input]
) -> None:
    """Make `region`, empty now, do what that of `before` does and then `loop` to what was `value`.

    `given` are the inputs of `region`, those of `before` first.
    """
    types = [ir.F32Type.get(), *(abq.element(each.value) for each in given)]
    block = region.blocks.append(*types, arg_locs=[loop.location] * len(types))
    element, *others = block.arguments
    places = {
        (each.value, each.map): argument for each, argument in zip(given, others, strict=True)
    }
    with ir.InsertionPoint(block):
        if len(before.regions) and len(before.regions[0].blocks):
            earlier = before.regions[0].blocks[0]
            arguments = [element, *others[: len(earlier.arguments) - 1]]
            element = _cloned(earlier, dict(zip(earlier.arguments, arguments, strict=True)))
        body = loop.regions[0].blocks[0]
        known = {
            argument: element if other == value else places[other, map_]
            for other, map_, argument in zip(inputs(loop), maps(loop), body.arguments, strict=False)
        }
        YieldOp(_cloned(body, known))


def epilogue(op: ir.Operation) -> Epilogue | None:
    """The epilogue of an operation, for kernels; None where it has none."""
    if not len(op.regions) or not len(op.regions[0].blocks):
        return None
    return body_of(op.regions[0].blocks[0], [each.read for each in inputs_of(op)])


def body_of(block: ir.Block, reads: Sequence[Read]) -> Epilogue:
    """A body of scalars, for kernels: what it makes of its first argument, and of others, which are
    read as `reads` says."""
    module = ir.Module.create()
    types = [argument.type for argument in block.arguments]
    (made,) = block.operations[len(block.operations) - 1].operands
    with ir.InsertionPoint(module.body):
        function = func.FuncOp("epilogue", ir.FunctionType.get(types, [made.type]))
        entry = function.add_entry_block()
    with ir.InsertionPoint(entry):
        func.ReturnOp([_cloned(block, dict(zip(block.arguments, entry.arguments, strict=True)))])
    elements = tuple(str(type_) for type_ in (made.type, *types[1:]))
    return Epilogue(module.operation.get_asm(), tuple(reads), elements)


def _body(loop: ir.Operation) -> list[ir.OpView]:
    return list(loop.regions[0].blocks[0].operations)[:-1]


def _is_scalar(op: ir.Operation) -> bool:
    """Whether it is an operation on numbers that vectors have too, of what is in its block or
    constant.

    Divisions of integers are not: they trap, in lanes too that are masked and hold zeros, and
    `guard-divisions` comes later and sees no kernels.
    """
    if op.name.partition(".")[0] not in ("arith", "math") or len(op.results) != 1:
        return False
    if op.name in SIGNED | UNSIGNED:
        return False
    values = [*op.operands, *op.results]
    return all(isinstance(value.type, _SCALARS) for value in values) and all(
        value.owner == op.block or _made_in(value, op.block) for value in op.operands
    )


def _made_in(value: ir.Value, block: ir.Block) -> bool:
    op = defining_op(value)
    return op is not None and (op.block == block or op.name == "arith.constant")


def _read(op: ir.Operation, value: ir.Value, map_: ir.AffineMap) -> Read | None:
    """How a tensor is read by the indices of the result of `op`: axes of size 1 are no matter."""
    if not isinstance(value.type, ir.RankedTensorType):
        return None
    found, axes, shape = dims(map_), abq.shape(value), abq.shape(op.results[0])
    readable = (FLOAT,) if op.name in PRODUCTS else READ
    if found is None or text_of(abq.element(value)) not in readable:
        return None
    fixed = [
        size
        for size, result in zip(axes, map_.results, strict=True)
        if isinstance(result, ir.AffineConstantExpr)
    ]
    wide = [axis for axis in found if shape[axis] != 1]
    if wide != sorted(set(wide)) or any(size != 1 for size in fixed):
        return None
    every = [axis for axis, size in enumerate(shape) if size != 1]
    if wide == every:
        return "element"
    if op.name in PRODUCTS:
        return _read_of_product(wide, every, len(shape) - 1)
    return _READS.get(tuple(wide))


PRODUCTS = ("abq.matmul", "abq.fused_matmul")


def _read_of_product(wide: list[int], every: list[int], last: int) -> Read | None:
    """How an input with the axes `wide` is read, of the axes `every`, rows and the `last` one."""
    if not wide:
        return "one"
    if wide == [last]:
        return "channel"
    return "sample" if wide == [axis for axis in every if axis != last] else None


_READS: dict[tuple[int, ...], Read] = {
    (0, 1): "sample channel",
    (1,): "channel",
    (0,): "sample",
    (): "one",
}


def _cloned(block: ir.Block, known: dict[ir.Value, ir.Value]) -> ir.Value:
    """Clone a body of scalars at the insertion point, constants from outside with it; what it
    yields."""
    for inner in block.operations:
        op = inner.operation
        operands = [_inside(operand, known) for operand in op.operands]
        if not len(op.results):
            return operands[0]
        clone = op.clone()
        for i, operand in enumerate(operands):
            clone.operation.operands[i] = operand
        known[op.results[0]] = clone.operation.results[0]
    raise AssertionError("a body ends in a terminator")


def _inside(value: ir.Value, known: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in known:
        constant = defining_op(value)
        assert constant is not None and constant.name == "arith.constant"
        known[value] = constant.clone().operation.results[0]
    return known[value]
