"""Where a product's output is added to a residual stream.

What counts there is the sum: a product whose output is added to a stream that carries the errors of
layers before it can make good for those that its own inputs foretell.
"""

from __future__ import annotations

from abqc.dialects.mlir import ir
from abqc.passes.infrastructure import defining_op

_RESHAPES = frozenset({"tensor.expand_shape", "tensor.collapse_shape"})


def sum_of(product: ir.Value) -> ir.Value:
    """The sum that `product` [..., N] is only a term of, its rows in order; else itself."""
    value = product
    while True:
        users = [use.owner for use in value.uses]
        if len(users) != 1:
            return product
        user = users[0]
        if user.name in _RESHAPES and _same_rows(value, user.results[0]):
            value = user.results[0]
        elif user.name == "linalg.generic" and _adds_once(user, value):
            return user.results[0]
        else:
            return product


def _same_rows(before: ir.Value, after: ir.Value) -> bool:
    return ir.RankedTensorType(before.type).shape[-1] == ir.RankedTensorType(after.type).shape[-1]


def _adds_once(op: ir.Operation, value: ir.Value) -> bool:
    """Whether the operation's one result is `value`, element by element, plus something else."""
    if len(op.results) != 1 or op.results[0].type != value.type:
        return False
    number = [operand == value for operand in op.operands].index(True)
    maps = [ir.AffineMapAttr(map_).value for map_ in op.attributes["indexing_maps"]]
    rank = maps[-1].n_dims
    identity = ir.AffineMap.get_identity(rank, context=op.context)
    if maps[number] != identity or maps[-1] != identity:
        return False
    block = op.regions[0].blocks[0]
    argument, result = block.arguments[number], block.operations[len(block.operations) - 1]
    if result.operands[0] == argument:
        return False
    return _is_term(result.operands[0], argument)


def _is_term(value: ir.Value, argument: ir.Value) -> bool:
    """Whether `value` is a sum that holds `argument` once, and nothing else depends on it."""
    if value == argument:
        return len(list(argument.uses)) == 1
    op = defining_op(value)
    if op is None or op.name != "arith.addf":
        return False
    return any(_is_term(operand, argument) for operand in op.operands)
