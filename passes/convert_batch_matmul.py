"""Products of two activations become `abq.batch_matmul`, with their transposes where possible.

The second operand may be stored in 16 bits (a cache): a target that has kernels for it reads it so.
"""

from __future__ import annotations

from abqc.dialects import abq
from abqc.dialects.mlir import ir, linalg, tensor

from .infrastructure import Unit, defining_op, register, walk
from .loops.generics import expression, inputs, is_elementwise, is_identity, maps
from .resolve_dims import dimension_or_query, expand_shape


@register
def convert_batch_matmul(module: ir.Operation, unit: Unit) -> None:
    """Take linalg.batch_matmul and linalg.matmul out of linalg before they are fused into loops."""
    types = unit.target.cache_types if unit.target is not None else ()
    for op in walk(module):
        if op.name in ("linalg.batch_matmul", "linalg.matmul") and _is_plain(op):
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(_convert(op, types))
            op.erase()


def _is_plain(op: ir.Operation) -> bool:
    """f32, default indexing maps, accumulating on zeros."""
    if len(op.results) != 1 or any(not isinstance(abq.element(o), ir.F32Type) for o in op.operands):
        return False
    fill = defining_op(op.operands[2])
    if fill is None or fill.name != "linalg.fill":
        return False
    zero = defining_op(fill.operands[0])
    if zero is None or zero.name != "arith.constant":
        return False
    return ir.FloatAttr(zero.attributes["value"]).value == 0.0


def _convert(op: ir.Operation, cache_types: tuple[str, ...]) -> ir.Value:
    a, c = op.operands[0], _stored(op.operands[1], cache_types)
    result_type = ir.RankedTensorType(op.results[0].type)
    if op.name == "linalg.matmul":
        a, c = _with_unit_batch(a), _with_unit_batch(c)
        shape = [1, *result_type.shape]
    else:
        shape = list(result_type.shape)
    c, transposed = _fold_transpose(c)
    product = abq.BatchMatmulOp(
        a,
        c,
        ir.IntegerAttr.get(ir.IntegerType.get_signless(64), int(transposed)),
        ir.RankedTensorType.get(shape, result_type.element_type),
    ).result
    if op.name == "linalg.matmul":
        return tensor.CollapseShapeOp(result_type, product, [[0, 1], [2]]).result
    return product


def _stored(c: ir.Value, types: tuple[str, ...]) -> ir.Value:
    """The halves that `c` widens, where they are of one of these types."""
    owner = defining_op(c)
    if not is_elementwise(owner) or expression(owner) != ("arith.extf", ("in", 0)):
        return c
    (source,) = inputs(owner)
    if not is_identity(maps(owner)[0]) or abq.element_text(source) not in types:
        return c
    return source


def _with_unit_batch(value: ir.Value) -> ir.Value:
    return expand_shape(value, [[0, 1], [2]], [1, *abq.shape(value)])


def _fold_transpose(c: ir.Value) -> tuple[ir.Value, bool]:
    """If `c` comes out of a transpose that swaps its last two axes, swap them back.

    What remains of the transpose (heads before rows, say) moves whole rows, which is cheap; the
    matmul reads `c` by rows of K.
    """
    collapse = defining_op(c)
    source = c
    if collapse is not None and collapse.name == "tensor.collapse_shape":
        groups = [
            list(map(int, _ints(g))) for g in ir.ArrayAttr(collapse.attributes["reassociation"])
        ]
        if len(groups[-1]) != 1 or len(groups[-2]) != 1:
            return c, False
        source = collapse.operands[0]
    else:
        collapse, groups = None, []
    transpose = defining_op(source)
    if transpose is None or transpose.name != "linalg.transpose":
        return c, False
    permutation = list(ir.DenseI64ArrayAttr(transpose.attributes["permutation"]))
    if permutation[-2] < permutation[-1]:
        return c, False
    permutation[-2:] = reversed(permutation[-2:])
    rows = transpose.operands[0]
    if permutation != sorted(permutation):
        rows = _transpose(rows, permutation)
    if collapse is not None:
        old = ir.RankedTensorType(c.type)
        shape = [*list(old.shape)[:-2], old.shape[-1], old.shape[-2]]
        rows = tensor.CollapseShapeOp(
            ir.RankedTensorType.get(shape, old.element_type), rows, groups
        ).result
    return rows, True


def _ints(group: ir.Attribute) -> list[int]:
    return [ir.IntegerAttr(i).value for i in ir.ArrayAttr(group)]


def _transpose(value: ir.Value, permutation: list[int]) -> ir.Value:
    type_ = ir.RankedTensorType(value.type)
    shape = [type_.shape[p] for p in permutation]
    sizes = [dimension_or_query(value, p) for p in permutation if type_.shape[p] == abq.DYNAMIC]
    empty = tensor.EmptyOp(
        [s if s != abq.DYNAMIC else sizes.pop(0) for s in shape], type_.element_type
    ).result
    return linalg.transpose(value, outs=[empty], permutation=permutation)
