"""Tiny integer tensors become scalars.

ONNX computes shapes with tensors (Shape, Gather, Concat, ...); what reaches us is a tensor of a few
integers per reshape. As scalars they fold, they are equal where they are equal, and they cost no
buffer. Every tensor of at most `LIMIT` integers whose elements can be named is replaced by
`tensor.from_elements` of scalars; canonicalization does the rest.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable

from abqc.dialects.mlir import arith, ir, tensor

from .infrastructure import Unit, constant_index, register, walk
from .resolve_dims import index

LIMIT = 16

Scalars = list[ir.Value | None]  # None: an element never written (tensor.empty)


@register
def scalarize_shapes(module: ir.Operation, unit: Unit) -> None:
    """Replace tiny integer tensors by their scalars."""
    known: dict[ir.Value, Scalars] = {}
    for op in walk(module):
        rule = _RULES.get(op.name)
        if rule is None or len(op.results) != 1 or not _is_tiny(op.results[0].type):
            continue
        with ir.InsertionPoint(op), op.location:
            scalars = rule(op, known)
            if scalars is None:
                continue
            known[op.results[0]] = scalars
            if op.name in ("tensor.from_elements", "tensor.empty") or _unknown(scalars):
                continue
            replacement = tensor.FromElementsOp(op.results[0].type, scalars).result
        known[replacement] = scalars
        op.results[0].replace_all_uses_with(replacement)


def _is_tiny(type_: ir.Type) -> bool:
    if not isinstance(type_, ir.RankedTensorType):
        return False
    tensor_type = ir.RankedTensorType(type_)
    element = tensor_type.element_type
    integral = isinstance(element, (ir.IntegerType, ir.IndexType))
    return integral and tensor_type.has_static_shape and math.prod(tensor_type.shape) <= LIMIT


def _unknown(scalars: Scalars) -> bool:
    return any(scalar is None for scalar in scalars)  # `in` would compare values with None


def _tiny_shape(value: ir.Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _constant(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    attribute = op.attributes["value"]
    if not isinstance(attribute, ir.DenseIntElementsAttr):
        return None
    element = ir.RankedTensorType(op.results[0].type).element_type
    return [
        arith.ConstantOp(element, ir.IntegerAttr.get(element, int(v))).result
        for v in ir.DenseIntElementsAttr(attribute)
    ]


def _elements(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    return list(op.operands)


def _same_elements(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    return known.get(op.operands[0])


def _empty(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    return [None] * math.prod(_tiny_shape(op.results[0]))


def _splat(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    return [op.operands[0]] * math.prod(_tiny_shape(op.results[0]))


def _concat(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    if len(_tiny_shape(op.results[0])) != 1:
        return None
    parts = [known.get(operand) for operand in op.operands]
    if any(part is None for part in parts):
        return None
    return [scalar for part in parts for scalar in part or ()]


def _extract_slice(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    source = known.get(op.operands[0])
    shape = _tiny_shape(op.operands[0])
    if source is None or len(op.operands) != 1 or len(shape) != 1:
        return None
    offset = ir.DenseI64ArrayAttr(op.attributes["static_offsets"])[0]
    size = ir.DenseI64ArrayAttr(op.attributes["static_sizes"])[0]
    stride = ir.DenseI64ArrayAttr(op.attributes["static_strides"])[0]
    return [source[offset + i * stride] for i in range(size)]


def _generic(op: ir.Operation, known: dict[ir.Value, Scalars]) -> Scalars | None:
    """Evaluate the body at every point of a tiny iteration space."""
    maps = [ir.AffineMapAttr(a).value for a in ir.ArrayAttr(op.attributes["indexing_maps"])]
    operands = list(op.operands)
    tiny = [_is_tiny(o.type) for o in operands]
    if not all(tiny) or any(known.get(o) is None for o in operands[:-1]):
        return None
    extents = _extents(maps, operands)
    if extents is None or math.prod(extents) > LIMIT:
        return None
    body = op.regions[0].blocks[0]
    if any(inner.operation.name not in _EVALUABLE for inner in body.operations):
        return None
    out_shape = _tiny_shape(operands[-1])
    out = list(known.get(operands[-1]) or [None] * math.prod(out_shape))
    for point in itertools.product(*(range(e) for e in extents)):
        arguments = []
        for operand, map_ in zip(operands[:-1], maps[:-1], strict=True):
            scalars = known[operand]
            arguments.append(scalars[_offset(map_, point, _tiny_shape(operand))])
        position = _offset(maps[-1], point, out_shape)
        arguments.append(out[position])
        result = _evaluate(body, arguments, point, known)
        if result is None:
            return None
        out[position] = result
    return out


def _extents(maps: list[ir.AffineMap], operands: list[ir.Value]) -> list[int] | None:
    extents: list[int | None] = [None] * maps[0].n_dims
    for map_, operand in zip(maps, operands, strict=True):
        for expr, size in zip(map_.results, _tiny_shape(operand), strict=True):
            if isinstance(expr, ir.AffineDimExpr):
                extents[ir.AffineDimExpr(expr).position] = size
            elif not isinstance(expr, ir.AffineConstantExpr):
                return None
    return None if None in extents else [e for e in extents if e is not None]


def _offset(map_: ir.AffineMap, point: tuple[int, ...], shape: list[int]) -> int:
    offset = 0
    for expr, size in zip(map_.results, shape, strict=True):
        if isinstance(expr, ir.AffineDimExpr):
            index = point[ir.AffineDimExpr(expr).position]
        else:
            index = ir.AffineConstantExpr(expr).value
        offset = offset * size + index
    return offset


_EVALUABLE = {
    "linalg.yield", "linalg.index", "tensor.extract", "arith.constant", "arith.addi",
    "arith.subi", "arith.muli",
    "arith.divsi", "arith.floordivsi", "arith.ceildivsi", "arith.remsi", "arith.cmpi",
    "arith.select", "arith.index_cast", "arith.extui", "arith.extsi", "arith.trunci", "arith.maxsi",
    "arith.minsi", "arith.andi", "arith.ori", "arith.xori",
}  # fmt: skip


def _evaluate(
    body: ir.Block, arguments: Scalars, point: tuple[int, ...], known: dict[ir.Value, Scalars]
) -> ir.Value | None:
    """Clone the body with its arguments replaced; None if it reads what is not known."""
    mapping: dict[ir.Value, ir.Value | None] = dict(zip(body.arguments, arguments, strict=True))
    for inner in body.operations:
        op = inner.operation
        operands = [mapping.get(o, o) for o in op.operands]
        if op.name == "linalg.yield":
            return operands[0]
        if op.name == "linalg.index":
            mapping[op.results[0]] = index(point[ir.IntegerAttr(op.attributes["dim"]).value])
            continue
        if op.name == "tensor.extract":
            mapping[op.results[0]] = _element(op.operands[0], operands[1:], known)
            continue
        if _unknown(operands):
            mapping[op.results[0]] = None
            continue
        mapping[op.results[0]] = _fold(op, operands) or _clone(op, operands)
    return None


def _clone(op: ir.Operation, operands: Scalars) -> ir.Value:
    clone = op.clone()
    for i, operand in enumerate(operands):
        clone.operands[i] = operand
    return clone.results[0]


def _element(source: ir.Value, indices: Scalars, known: dict[ir.Value, Scalars]) -> ir.Value | None:
    """`source[indices]` where the indices are constants."""
    scalars = known.get(source)
    if scalars is None or _unknown(indices):
        return None
    offset = 0
    for position, size in zip(indices, _tiny_shape(source), strict=True):
        constant = constant_index(position)  # type: ignore[arg-type]
        if constant is None or not 0 <= constant < size:
            return None
        offset = offset * size + constant
    return scalars[offset]


def _fold(op: ir.Operation, operands: Scalars) -> ir.Value | None:
    """The few foldings that an index inside a body needs; canonicalize does the others."""
    constants = [constant_index(o) for o in operands]  # type: ignore[arg-type]
    if op.name == "arith.select" and constants[0] is not None:
        return operands[1] if constants[0] else operands[2]
    if any(c is None for c in constants):
        return None
    type_ = op.results[0].type
    if op.name == "arith.addi":
        value = constants[0] + constants[1]  # type: ignore[operator]
    elif op.name == "arith.index_cast":
        value = constants[0]  # type: ignore[assignment]
    elif op.name == "arith.cmpi":
        compare = _COMPARE.get(ir.IntegerAttr(op.attributes["predicate"]).value)
        if compare is None:
            return None
        value = -int(compare(constants[0], constants[1]))  # i1 true is -1
    else:
        return None
    return arith.ConstantOp(type_, ir.IntegerAttr.get(type_, value)).result


_COMPARE: dict[int, Callable[..., bool]] = {
    0: operator.eq,
    1: operator.ne,
    2: operator.lt,
    3: operator.le,
    4: operator.gt,
    5: operator.ge,
}


_RULES = {
    "arith.constant": _constant,
    "tensor.from_elements": _elements,
    "tensor.expand_shape": _same_elements,
    "tensor.collapse_shape": _same_elements,
    "tensor.reshape": _same_elements,
    "tensor.cast": _same_elements,
    "tensor.empty": _empty,
    "tensor.splat": _splat,
    "linalg.fill": _splat,
    "tensor.concat": _concat,
    "tensor.extract_slice": _extract_slice,
    "linalg.generic": _generic,
}
