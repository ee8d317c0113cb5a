"""Normalizations of rows, spelled out as several loops, become `abq.norm` and `abq.softmax`.

    s = sum of x                                        layer norms only
    c = x - s / n                                       RMS norms: c = x
    q = sum of c * c
    y = c * (1 / sqrt(q / n + epsilon)) * weight + bias

over the last axis, of n columns; weight and bias may be missing. A sum x = a + residual is taken
along; its other users read it from the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from abqc.dialects import abq
from abqc.dialects.mlir import ir

from .generics import OUT, Tree, dims, expression, inputs, is_elementwise, maps, rank
from .infrastructure import Unit, defining_op, is_used, register, users, walk
from .softmax import match_reduction, match_softmax, operand_in_order, row_operand

# Longer rows have no kernel (codegen/gpu/norm.py).
MAX_COLUMNS = 16384

_SQUARES = ("arith.addf", ("arith.mulf", ("in", 0), ("in", 0)), OUT)
_SUM = ("arith.addf", ("in", 0), OUT)


@dataclass(frozen=True)
class _Norm:
    kind: str
    x: ir.Value
    epsilon: float
    weight: ir.Value | None
    bias: ir.Value | None


@register
def fuse_norm(module: ir.Operation, unit: Unit) -> None:
    """Turn layer norms, RMS norms and softmaxes over the last axis into one operation each."""
    for op in walk(module, "abq.norm"):
        if op.opview.residual is None:
            _rewrite(op, _named(op))
            op.erase()
    for op in walk(module, "linalg.generic"):
        if not is_elementwise(op) or not is_used(op.results[0]):
            continue
        norm = _match_norm(op)
        if norm is not None:
            _rewrite(op, norm)
            continue
        softmax = match_softmax(op.results[0])
        if softmax is None or softmax.guarded:
            continue
        if softmax.x.type == op.results[0].type:
            with ir.InsertionPoint(op), op.location:
                y = abq.SoftmaxOp(softmax.x, op.results[0].type).result
            op.results[0].replace_all_uses_with(y)


def _named(op: ir.Operation) -> _Norm:
    """A norm that the model already had as one operation: its sum is looked for."""
    view = op.opview
    epsilon = ir.FloatAttr(op.attributes["epsilon"]).value
    return _Norm(ir.StringAttr(view.kind).value, view.x, epsilon, view.weight, view.bias)


def _match_norm(op: ir.Operation) -> _Norm | None:
    """The normalization that ends in the elementwise loop `op`."""
    type_ = ir.RankedTensorType(op.results[0].type)
    columns = type_.shape[-1] if type_.rank else abq.DYNAMIC
    if not isinstance(type_.element_type, ir.F32Type) or not 1 < columns <= MAX_COLUMNS:
        return None
    tree, bias = _peel(op, expression(op), "arith.addf")
    tree, weight = _peel(op, tree, "arith.mulf")
    scaled = _normalized(tree, columns)
    if scaled is None:
        return None
    centered_number, squares_number, epsilon = scaled
    centered, squares = operand_in_order(op, centered_number), row_operand(op, squares_number)
    if centered is None or squares is None or centered.type != op.results[0].type:
        return None
    if match_reduction(squares, centered, _SQUARES, 0.0) is None:
        return None
    x = _uncentered(centered, columns)
    kind = "rms" if x is None else "layer"
    return _Norm(kind, centered if x is None else x, epsilon, weight, bias)


def _peel(op: ir.Operation, tree: Tree, name: str) -> tuple[Tree, ir.Value | None]:
    """`rest + vector` (or times) as the rest and the operand that is read by columns."""
    if tree[0] != name:
        return tree, None
    for vector, rest in ((tree[1], tree[2]), (tree[2], tree[1])):
        if vector[0] == "in":
            value = inputs(op)[vector[1]]
            if dims(maps(op)[vector[1]]) == [rank(op) - 1] and len(abq.shape(value)) == 1:
                return rest, value
    return tree, None


def _normalized(tree: Tree, columns: int) -> tuple[int, int, float] | None:
    """`c / sqrt(q / n + epsilon)` as the numbers of c and q, and epsilon."""
    if tree[0] == "arith.divf":
        centered, variance = tree[1], _root(tree[2])
    elif tree[0] == "arith.mulf":
        centered, variance = tree[1], _inverse_root(tree[2])
        if variance is None:
            centered, variance = tree[2], _inverse_root(tree[1])
    else:
        return None
    if variance is None or centered[0] != "in" or variance[0] != "arith.addf":
        return None
    mean, epsilon = variance[1:]
    if epsilon[0] != "const":
        mean, epsilon = epsilon, mean
    number = _mean(mean, columns)
    if number is None or epsilon[0] != "const":
        return None
    return centered[1], number, epsilon[1]


def _root(tree: Tree) -> Tree | None:
    return tree[1] if tree[0] == "math.sqrt" else None


def _inverse_root(tree: Tree) -> Tree | None:
    if tree[0] == "math.rsqrt":
        return tree[1]
    if tree[0] == "arith.divf" and tree[1] == ("const", 1.0):
        return _root(tree[2])
    return None


def _mean(tree: Tree, columns: int) -> int | None:
    """The number of the operand whose quotient by the number of columns `tree` is."""
    if tree[0] == "arith.divf" and tree[1][0] == "in" and tree[2] == ("const", float(columns)):
        return tree[1][1]
    return None


def _uncentered(centered: ir.Value, columns: int) -> ir.Value | None:
    """The x of `x - sum of x / n`; None where `centered` is something else."""
    op = defining_op(centered)
    if not is_elementwise(op):
        return None
    tree = expression(op)
    if tree[0] != "arith.subf" or tree[1][0] != "in":
        return None
    number = _mean(tree[2], columns)
    x = operand_in_order(op, tree[1][1])
    total = row_operand(op, number) if number is not None else None
    if x is None or total is None or x.type != centered.type:
        return None
    return x if match_reduction(total, x, _SUM, 0.0) is not None else None


def _rewrite(op: ir.Operation, norm: _Norm) -> None:
    a, residual = _residual(op, norm.x)
    type_ = op.results[0].type
    with ir.InsertionPoint(op), op.location:
        new = abq.NormOp(
            a,
            ir.StringAttr.get(norm.kind),
            ir.FloatAttr.get(ir.F32Type.get(), norm.epsilon),
            type_,
            type_,
            residual=residual,
            weight=norm.weight,
            bias=norm.bias,
        )
    if residual is not None:
        for use in list(norm.x.uses):
            if op.is_before_in_block(use.owner.operation):
                use.owner.operands[use.operand_number] = new.sum
    op.results[0].replace_all_uses_with(new.result)
    if op.name == "abq.norm":
        op.results[1].replace_all_uses_with(new.sum)


def _residual(op: ir.Operation, x: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """The parts of x if it is a sum of two tensors of its shape that only the norm, and what comes
    after it, reads; else x itself.

    What comes before the norm would need the sum by itself, and it would be computed twice.
    """
    add = defining_op(x)
    if not is_elementwise(add) or expression(add) != ("arith.addf", ("in", 0), ("in", 1)):
        return x, None
    parts = [operand_in_order(add, i) for i in range(2)]
    if any(part is None or part.type != x.type for part in parts):
        return x, None
    return (parts[0], parts[1]) if _read_by_norm_or_later(x, op) else (x, None)


def _read_by_norm_or_later(x: ir.Value, op: ir.Operation) -> bool:
    """Whether all readers of x are loops of the norm, whose results nothing else reads, or come
    after it."""
    for user in users(x):
        reader = user.operation
        if reader == op or reader.name == "tensor.dim":
            continue
        if reader.block != op.block:
            return False
        if not op.is_before_in_block(reader) and not _only_feeds(reader, op):
            return False
    return True


def _only_feeds(reader: ir.Operation, op: ir.Operation) -> bool:
    """Whether all that comes of `reader` ends in `op`."""
    if reader == op:
        return True
    if reader.name != "linalg.generic" and not reader.name.endswith("_shape"):
        return False
    found = [user.operation for result in reader.results for user in users(result)]
    return bool(found) and all(
        user.block == op.block
        and (user == op or (user.is_before_in_block(op) and _only_feeds(user, op)))
        for user in found
    )
