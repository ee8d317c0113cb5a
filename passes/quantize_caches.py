"""The recipe gives formats to caches: their inputs and outputs become bytes.

    past, rows -> concat -> output, attention       before
    past, quantize(rows H) -> concat -> output      after; past and output are bytes
              dequantize(concat) H -> attention

What attention reads are the values as stored, those of the new rows too: how a text is cut into
runs changes nothing. H is the rotation of the format, symmetric and its own inverse, since its size
is a power of two; or the permutation that sorts a head's channels, and its inverse. `fuse-caches`
moves what stands behind the concat into what reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from abqc.dialects import abq
from abqc.dialects.abq_caches import DequantizeCacheOp, PermuteChannelsOp, QuantizeCacheOp
from abqc.dialects.abq_order import UpdateOp
from abqc.dialects.cache_formats import CacheFormat
from abqc.dialects.mlir import arith, ir, linalg, tensor
from abqc.errors import RecipeError
from numpy.typing import NDArray

from .channels.energies import channel_energies
from .infrastructure import (
    Unit,
    constant_index,
    main_function,
    node_name,
    register,
    users,
    walk,
)
from .loops.axis_blocks import parallel_loop
from .loops.generics import expression, inputs, is_elementwise, is_identity, maps
from .patterns.caches import RESHAPES, Cache, caches_of, reshaped
from .resolve_dims import index, mixed_sizes

WIDEN = ("arith.extf", ("in", 0))


@register
def quantize_caches(module: ir.Operation, unit: Unit) -> None:
    """Store caches in the formats that the recipe gives them."""
    if unit.recipe is None or not unit.recipe.quantizes_caches:
        return
    caches = list(caches_of(module))
    names = [unit.inputs[cache.input].name for cache in caches]
    unit.recipe.check_caches(names, unit.node_kinds)
    for cache in caches:
        format = unit.recipe.cache_format(unit.inputs[cache.input].name)
        if format is not None:
            _quantize(module, cache, format, unit)


def _quantize(module: ir.Operation, cache: Cache, format: CacheFormat, unit: Unit) -> None:
    name = unit.inputs[cache.input].name
    columns = _columns(cache, format, name)
    order = _order(cache, name, unit) if format.channels == "sort" else None
    _record(cache, format, columns, order, unit)
    main = main_function(module)
    past, op = cache.op.operands[0], cache.op
    _read_columns(past, columns)
    past.set_type(_of_bytes(past, format, columns))  # type: ignore[attr-defined]
    with ir.InsertionPoint(op), op.location:
        rows = _rotated(_widened(cache.rows), format, columns)
        if order is not None:
            rows = _permuted(rows, order, cache.heads_axis)
        rows = QuantizeCacheOp(
            rows, ir.StringAttr.get(format.text), _of_bytes(rows, format, columns)
        ).result
        grown = _grown(op, rows, _of_bytes(op.results[0], format, columns))
        sizes = list(ir.RankedTensorType(op.results[0].type).shape)
        values = DequantizeCacheOp(
            grown,
            ir.StringAttr.get(format.text),
            ir.RankedTensorType.get(sizes, ir.F32Type.get()),
        ).result
        values = _rotated(values, format, columns)
        if order is not None:
            values = _permuted(values, np.argsort(order, axis=1), cache.heads_axis)
    (ret,) = walk(main, "func.return")
    ret.operands[cache.position] = grown
    _replace(op.results[0], values)
    op.erase()
    block = main.regions[0].blocks[0]
    main.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get([a.type for a in block.arguments], [v.type for v in ret.operands])
    )


def _columns(cache: Cache, format: CacheFormat, name: str) -> int:
    """Elements of a row; RecipeError where rows cannot be stored in the format."""
    columns = abq.shape(cache.op.results[0])[-1]
    last = len(abq.shape(cache.rows)) - 1
    reason = None
    if cache.axis == last or columns == abq.DYNAMIC:
        reason = f"it grows along its last axis, of which the rows of {format} consist"
        if cache.axis != last:
            reason = "its rows have no static length"
    elif not isinstance(abq.element(cache.rows), ir.FloatType):
        reason = f"it has elements of type {abq.element(cache.rows)}"
    if reason is not None:
        raise RecipeError(
            f"the cache '{name}' cannot be stored in {format}: {reason}",
            node=node_name(cache.op),
            hint=f"keep it as it is with a line '\"{name}\" none'",
        )
    reason = format.unsupported(columns)
    if reason is not None:
        raise RecipeError(
            f"the cache '{name}' cannot be stored in {format}: {reason}",
            node=node_name(cache.op),
            hint=f"choose groups that divide {columns}, as in {format.text.split(':')[0]}:g16",
        )
    return columns


def _order(cache: Cache, name: str, unit: Unit) -> NDArray[np.int64]:
    """The channels of each head by falling energy, [heads, columns]; RecipeError."""
    shape = abq.shape(cache.rows)
    reason = None
    if len(shape) != 4 or cache.axis == 3 or shape[cache.heads_axis] == abq.DYNAMIC:
        reason = "it is not [batch, heads, rows, columns] with a static number of heads"
    else:
        energies = channel_energies(cache.rows, unit.store)
        sizes = [shape[i] if i in (cache.heads_axis, 3) else 1 for i in range(4)]
        energies = np.broadcast_to(energies, sizes).reshape(shape[cache.heads_axis], shape[3])
        if (energies == energies[:, :1]).all():
            reason = "no product with constant weights makes its channels"
    if reason is not None:
        raise RecipeError(
            f"the channels of the cache '{name}' cannot be sorted: {reason}",
            node=node_name(cache.op),
            hint="leave the word sort out, so that they are rotated",
        )
    return np.array([_apart(each) for each in energies])


def _apart(energies: NDArray[np.float64]) -> NDArray[np.int64]:
    """Channels by falling energy, but of those that are alike the first ones before all others.

    The two of a pair that a rotary embedding turns are alike. Rarely are both large at once: in two
    blocks they leave one of them a fine scale, in one block never.
    """
    _, kind = np.unique(energies, return_inverse=True)
    seen = np.array([(kind[:i] == kind[i]).sum() for i in range(len(kind))])
    return np.lexsort((-energies, seen))


def _permuted(x: ir.Value, order: NDArray[np.int64], axis: int) -> ir.Value:
    i64 = ir.IntegerType.get_signless(64)
    return PermuteChannelsOp(
        x,
        ir.DenseI64ArrayAttr.get(order.ravel().tolist()),
        ir.IntegerAttr.get(i64, axis),
        ir.IntegerAttr.get(i64, 1),
        x.type,
    ).result


def _record(
    cache: Cache, format: CacheFormat, columns: int, order: NDArray[np.int64] | None, unit: Unit
) -> None:
    """The signature with bytes, and for the manifest what they mean."""
    spec, grown = unit.inputs[cache.input], unit.outputs[cache.position]
    sorted_ = {} if order is None else {"order": order.tolist(), "heads_axis": cache.heads_axis}
    unit.caches.append(
        sorted_
        | {
            "input": spec.name,
            "output": grown.name,
            "format": format.text,
            "columns": columns,
            "row_bytes": format.row_bytes(columns),
            "float": spec.dtype,
        }
    )
    # New lists: others may hold the signature of the model.
    unit.inputs, unit.outputs = list(unit.inputs), list(unit.outputs)
    for specs, at in ((unit.inputs, cache.input), (unit.outputs, cache.position)):
        shape = (*specs[at].shape[:-1], format.row_bytes(columns))
        specs[at] = replace(specs[at], dtype="uint8", shape=shape)


def _of_bytes(value: ir.Value, format: CacheFormat, columns: int) -> ir.Type:
    shape = [*abq.shape(value)[:-1], format.row_bytes(columns)]
    return ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(8))


def _read_columns(past: ir.Value, columns: int) -> None:
    """Who asks for the length of a row means elements."""
    for user in list(users(past)):
        op = user.operation
        if op.name == "tensor.dim" and constant_index(op.operands[1]) == len(abq.shape(past)) - 1:
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(index(columns))


def _grown(op: ir.Operation, rows: ir.Value, type_: ir.Type) -> ir.Value:
    if op.name == "tensor.concat":
        return tensor.ConcatOp(type_, op.attributes["dim"], [op.operands[0], rows]).result
    _, _, begins, capacity = op.operands
    return UpdateOp(op.operands[0], rows, begins, capacity, op.attributes["axis"], type_).result


def _rotated(x: ir.Value, format: CacheFormat, columns: int) -> ir.Value:
    block = format.rotation(columns)
    if not block:
        return x
    i64 = ir.IntegerType.get_signless(64)
    return abq.HadamardOp(x, ir.IntegerAttr.get(i64, block), x.type).result


def _widened(x: ir.Value) -> ir.Value:
    """Rows as f32; those of halves may be f32 that were rounded."""
    if isinstance(abq.element(x), ir.F32Type):
        return x
    return _converted(x, ir.F32Type.get(), lambda e: arith.ExtFOp(ir.F32Type.get(), e).result)


def _replace(old: ir.Value, values: ir.Value) -> None:
    """Give readers the f32 `values`. Those of halves get them where they are widened, moved as the
    halves were; what else reads halves gets the values rounded."""
    element = abq.element(old)
    if isinstance(element, ir.F32Type):
        old.replace_all_uses_with(values)
        return
    for user in list(users(old)):
        op = user.operation
        if _widens(op):
            op.results[0].replace_all_uses_with(values)
            op.erase()
        elif op.name in RESHAPES or op.name == "linalg.transpose" or _copies(op):
            with ir.InsertionPoint(op), op.location:
                moved = _moved(op, values)
            _replace(op.results[0], moved)
            op.erase()
        elif op.name != "tensor.dim":
            with ir.InsertionPoint(op), op.location:
                rounded = _converted(values, element, lambda e: arith.TruncFOp(element, e).result)
            for i, operand in enumerate(op.operands):
                if operand == old:
                    op.operands[i] = rounded
    old.replace_all_uses_with(values)


def _widens(op: ir.Operation) -> bool:
    return is_elementwise(op) and expression(op) == WIDEN and is_identity(maps(op)[0])


def _copies(op: ir.Operation) -> bool:
    """Whether it is a loop that repeats or moves what one tensor has."""
    return is_elementwise(op) and len(inputs(op)) == 1 and expression(op) == ("in", 0)


def _moved(op: ir.Operation, values: ir.Value) -> ir.Value:
    """The same as `op` does to halves, of f32."""
    if op.name in RESHAPES:
        return reshaped(op, values)
    init = op.operands[len(op.operands) - 1]
    empty = tensor.EmptyOp(mixed_sizes(init), ir.F32Type.get()).result
    if op.name == "linalg.transpose":
        order = list(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
        return linalg.transpose(values, outs=[empty], permutation=order).operation.results[0]
    return parallel_loop([values], [maps(op)[0]], empty, lambda elements: elements[0])


def _converted(x: ir.Value, element: ir.Type, convert: Callable[[ir.Value], ir.Value]) -> ir.Value:
    identity = ir.AffineMap.get_identity(len(abq.shape(x)))
    empty = tensor.EmptyOp(mixed_sizes(x), element).result
    return parallel_loop([x], [identity], empty, lambda e: convert(e[0]))
