"""abq operations become launches of grid functions on buffers.

One-shot bufferization knows nothing of a Python dialect, so every abq operation is lowered just
before it: operands through `bufferization.to_buffer`, results allocated and handed back with
`bufferization.to_tensor`. Buffers of kernels written by hand are one-dimensional.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from abqc.dialects import abq
from abqc.dialects.cache_formats import parse_cache_format
from abqc.dialects.mlir import arith, bufferization, cf, func, ir, memref

from .infrastructure import Unit, blame, defining_op, is_used, register, walk
from .kernels.checks import check_arguments
from .kernels.launch import APPEND, UPDATE, declare
from .lowering.arg_extreme import lower_arg_extreme
from .lowering.attention import lower_attention
from .lowering.cache_buffers import buffer_of
from .lowering.code_conv import lower_code_conv, lower_pack_planes
from .lowering.direct_conv import lower_direct_conv, lower_pair_planes, lower_polyphase
from .lowering.matmul import lower_matmul
from .lowering.max_pool import lower_max_pool
from .lowering.non_max_suppression_loops import non_max_suppression_loops
from .lowering.norm import lower_norm, lower_norm_pack, lower_softmax
from .lowering.pack import lower_fused_pack, lower_pack
from .lowering.rules import Lowering, by_rows, ceil_div, contiguous, dynamic, product
from .lowering.scan import lower_scan
from .lowering.scatter import lower_scatter
from .lowering.scatter_loops import scatter_loops
from .lowering.selective_scan import lower_selective_scan
from .lowering.top_k import lower_top_k
from .lowering.top_k_loops import top_k_loops
from .resolve_dims import dimension_or_query, index


@register
def lower_abq(module: ir.Operation, unit: Unit) -> None:
    """Replace abq operations by launches of grid functions."""
    lowering = Lowering(module, unit)
    for op in walk(module):
        rule = _RULES.get(op.name)
        if rule is not None:
            with ir.InsertionPoint(op), op.location:
                rule(lowering, op)
    for op in reversed(walk(module)):
        if op.name in _RULES:
            op.erase()


def _weight(low: Lowering, op: ir.Operation) -> None:
    type_ = ir.RankedTensorType(op.results[0].type)
    symbol = ir.StringAttr(op.attributes["sym"]).value
    element = type_.element_type
    if isinstance(element, abq.CodeType):
        return  # the codes behind a packed weight: dead by now
    if isinstance(element, abq.PackedType):
        low.buffers[op.results[0]] = low.constant(
            symbol, list(type_.shape), ir.IntegerType.get_signless(8)
        )
        return
    if not is_used(op.results[0]):
        return
    buffer = low.constant(symbol, list(type_.shape), element)
    tensor_value = bufferization.ToTensorOp(type_, buffer, restrict=True).result
    op.results[0].replace_all_uses_with(tensor_value)


def _measure(low: Lowering, op: ir.Operation) -> None:
    view = op.opview
    samples, *rest = low.sizes(view.x)
    x, count = low.buffer(view.x), product(rest)
    scale = low.allocate(samples, ir.F32Type.get())
    zero = low.allocate(samples, ir.IntegerType.get_signless(32))
    format, target = ir.StringAttr(view.format).value, low.unit.known_target
    pieces = target.measure_pieces(format)
    if view.gate is None and (pieces is None or _at_most(view.x, pieces.piece)):
        kernel = target.measure(format)
        low.unit.kernels[kernel.name] = kernel
        low.launch(kernel.name, samples, [x, scale, zero, count])
    else:
        assert pieces is not None, "gates are fused where there are pieces"
        if view.gate is None:
            kernel, parts = pieces.ranges, ceil_div(count, pieces.piece)
            inputs, size = [x], count
        else:
            kernel, parts = pieces.gated_ranges, rest[0]
            inputs, size = [x, low.buffer(view.gate)], product(rest[1:])
        low.unit.kernels |= {each.name: each for each in (kernel, pieces.scales)}
        grid = product([samples, parts])
        ranges = low.allocate(product([grid, index(pieces.width)]), ir.F32Type.get())
        low.launch(kernel.name, grid, [*inputs, ranges, size])
        low.launch(pieces.scales.name, samples, [ranges, scale, zero, count, parts])
    low.finish(op, scale, [samples], 0)
    low.finish(op, zero, [samples], 1)


def _at_most(x: ir.Value, count: int) -> bool:
    """Whether a sample of x is known to have no more than `count` values."""
    _, *sizes = abq.shape(x)
    return abq.DYNAMIC not in sizes and prod(sizes) <= count


def _batch_matmul(low: Lowering, op: ir.Operation) -> None:
    view = op.opview
    transposed = bool(ir.IntegerAttr(view.transposed).value)
    variants = low.unit.known_target.batch_matmul(transposed, _stored(low, op))
    batch, m, k = low.sizes(view.a)
    shared, *matrix = low.sizes(view.c)
    n = matrix[0] if transposed else _columns(op)
    y = low.allocate(product([batch, m, n]), ir.F32Type.get())
    a = low.buffer(view.a)
    c, pitch = _matrices(low, view.c, product(matrix))
    group = arith.DivUIOp(batch, arith.MaxUIOp(shared, index(1)).result).result

    names = [variant.kernel.name for variant in variants]

    def launch_variant(i: int) -> None:
        blocks = low.unit.kernels[names[i]].block
        grid = product([ceil_div(s, b) for s, b in zip((batch, m, n), blocks, strict=True)])
        low.launch(names[i], grid, [a, c, y, m, n, k, group, pitch])

    for variant in variants:
        low.unit.kernels[variant.kernel.name] = variant.kernel
    limits = [variant.max_rows or 0 for variant in variants]
    by_rows(m, len(names), limits, launch_variant)
    low.finish(op, y, [batch, m, n])


def _stored(low: Lowering, op: ir.Operation) -> Any:
    """The type of the second operand's elements, or the rows of a quantized cache that it has."""
    view = op.opview
    if abq.ROWS not in op.attributes:
        return abq.element_text(view.c)
    format = parse_cache_format(ir.StringAttr(op.attributes[abq.ROWS]).value)
    transposed = bool(ir.IntegerAttr(view.transposed).value)
    return low.unit.known_target.cache_rows(
        format, abq.shape(view.a if transposed else view.result)[2]
    )


def _columns(op: ir.Operation) -> ir.Value:
    """Of the second operand, k x n."""
    view = op.opview
    if abq.ROWS in op.attributes:
        return index(abq.shape(view.result)[2])
    return dimension_or_query(view.c, 2)


def _matrices(low: Lowering, value: ir.Value, packed: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The buffer of a batch of matrices and the distance between them.

    A cache with room to grow, [B, H, T, D] inside [B, H, capacity, D], is read where it is.
    """
    cache = _cache_behind(value)
    if cache is None:
        return low.buffer(value), packed
    _, _, *rest = memref.ExtractStridedMetadataOp(cache).operation.results
    sizes, strides = rest[:4], rest[4:]
    heads = arith.MulIOp(sizes[1], strides[1]).result
    one = arith.CmpIOp(arith.CmpIPredicate.ule, sizes[0], index(1)).result
    even = arith.CmpIOp(arith.CmpIPredicate.eq, strides[0], heads).result
    rows = arith.CmpIOp(arith.CmpIPredicate.eq, strides[2], sizes[3]).result
    few = arith.CmpIOp(arith.CmpIPredicate.ule, sizes[2], index(1)).result
    cf.AssertOp(
        arith.AndIOp(arith.OrIOp(one, even).result, arith.OrIOp(rows, few).result).result,
        "a cache must be compact but for its capacity: [batch, heads, capacity, columns]",
    )
    element = ir.MemRefType(cache.type).element_type
    flat = ir.MemRefType.get([abq.DYNAMIC], element)
    length = arith.MulIOp(sizes[0], strides[0]).result
    buffer = memref.ReinterpretCastOp(flat, cache, [], [length], [], [0], [abq.DYNAMIC], [1]).result
    return buffer, strides[1]


def _cache_behind(value: ir.Value) -> ir.Value | None:
    """The strided buffer [B, H, T, D], or the first T rows of one, that `value`, [B * H, T, D],
    is a view of."""
    collapse = defining_op(value)
    if collapse is None or collapse.name != "tensor.collapse_shape":
        return None
    cache = buffer_of(collapse.operands[0])
    if cache is None:
        return None
    type_ = ir.MemRefType(cache.type)
    groups = [len(ir.ArrayAttr(g)) for g in ir.ArrayAttr(collapse.attributes["reassociation"])]
    strided = isinstance(type_.layout, ir.StridedLayoutAttr)
    return cache if strided and groups == [2, 1, 1] else None


def _gather(low: Lowering, op: ir.Operation) -> None:
    view = op.opview
    kernel = low.unit.kernels[ir.StringAttr(op.attributes["kernel"]).value]
    columns = abq.shape(view.result)[-1]
    lead = low.sizes(view.indices)
    count = product(lead)
    y = low.allocate(arith.MulIOp(count, index(columns)).result, ir.F32Type.get())
    indices = low.buffer(view.indices)
    rows = ir.IntegerAttr(op.attributes["rows"]).value
    message = f"{blame(op)}: an index is outside of the table, which has {rows} rows"
    low.launch(
        kernel.name,
        ceil_div(count, kernel.block[0]),
        [
            *(low.buffer(view.table), indices, y, count, index(rows)),
            *check_arguments(low.module, low.unit, [message]),
        ],
    )
    low.finish(op, y, [*lead, index(columns)])


def _append(low: Lowering, op: ir.Operation) -> None:
    """A call that the host's object defines: it asks the runtime for the grown cache."""
    type_ = ir.RankedTensorType(op.results[0].type)
    shape, element = list(type_.shape), type_.element_type
    strides = [ir.ShapedType.get_dynamic_stride_or_offset()] * (type_.rank - 1) + [1]
    layout = ir.StridedLayoutAttr.get(0, strides)
    any_sizes = [abq.DYNAMIC] * type_.rank
    result = ir.MemRefType.get(any_sizes, element, layout)
    every_stride = [ir.ShapedType.get_dynamic_stride_or_offset()] * type_.rank
    anywhere = ir.StridedLayoutAttr.get(0, every_stride)
    flexible = ir.MemRefType.get(any_sizes, element, anywhere)
    x = memref.CastOp(flexible, _appended(op.operands[0])).result
    i32 = ir.IntegerType.get_signless(32)
    numbers = [
        arith.ConstantOp(i32, ir.IntegerAttr.get(i32, ir.IntegerAttr(op.attributes[name]).value))
        for name in ("input", "output", "axis")
    ]
    arguments = [*(n.result for n in numbers), x]
    name = f"{APPEND}{element}.{type_.rank}"
    if op.opview.begins is not None:
        name = f"{UPDATE}{element}.{type_.rank}"
        arguments += [dynamic(low.buffer(op.opview.begins)), op.opview.capacity]
    declare(low.module, name, [argument.type for argument in arguments], [result])
    call = func.CallOp([result], ir.FlatSymbolRefAttr.get(name), arguments)
    grown = call.results[0]
    static = ir.MemRefType.get(shape, element, layout)
    if grown.type != static:
        grown = memref.CastOp(static, grown).result
    tensor_value = bufferization.ToTensorOp(type_, grown, restrict=True).result
    op.results[0].replace_all_uses_with(tensor_value)


def _appended(x: ir.Value) -> ir.Value:
    """The buffer of what is appended; a transposed tensor is read where it was before."""
    made = defining_op(x)
    transposed = made is not None and made.name == "linalg.transpose"
    source = made.operands[0] if made is not None and transposed else x
    type_ = ir.RankedTensorType(source.type)
    plain = ir.MemRefType.get(list(type_.shape), type_.element_type)
    buffer = bufferization.ToBufferOp(plain, contiguous(source), read_only=True).result
    if made is None or not transposed:
        return buffer
    order = list(ir.DenseI64ArrayAttr(made.attributes["permutation"]))
    strides = plain.get_strides_and_offset()[0]
    turned = ir.MemRefType.get(
        [type_.shape[i] for i in order],
        type_.element_type,
        ir.StridedLayoutAttr.get(0, [strides[i] for i in order]),
    )
    map_ = ir.AffineMap.get(len(order), 0, [ir.AffineDimExpr.get(i) for i in order])
    return memref.TransposeOp(turned, buffer, ir.AffineMapAttr.get(map_)).result


Rule = Callable[[Lowering, ir.Operation], None]


def _on_device_or(kernels: Rule, loops: Rule) -> Rule:
    """The rule that launches kernels of a GPU, or the one that writes loops for a CPU."""

    def rule(low: Lowering, op: ir.Operation) -> None:
        (kernels if low.unit.known_target.objects.on_device else loops)(low, op)

    return rule


_RULES: dict[str, Rule] = {
    "abq.weight": _weight,
    "abq.pack": lower_pack,
    "abq.fused_pack": lower_fused_pack,
    "abq.measure": _measure,
    "abq.matmul": lower_matmul,
    "abq.fused_matmul": lower_matmul,
    "abq.batch_matmul": _batch_matmul,
    "abq.attention": lower_attention,
    "abq.attention_pack": lower_attention,
    "abq.norm": lower_norm,
    "abq.norm_pack": lower_norm_pack,
    "abq.softmax": lower_softmax,
    "abq.arg_extreme": lower_arg_extreme,
    "abq.scan": lower_scan,
    "abq.polyphase": lower_polyphase,
    "abq.pair_planes": lower_pair_planes,
    "abq.direct_conv": lower_direct_conv,
    "abq.max_pool": lower_max_pool,
    "abq.pack_planes": lower_pack_planes,
    "abq.code_conv": lower_code_conv,
    "abq.selective_scan": lower_selective_scan,
    "abq.scatter": _on_device_or(lower_scatter, scatter_loops),
    "abq.top_k": _on_device_or(lower_top_k, top_k_loops),
    "abq.non_max_suppression": non_max_suppression_loops,
    "abq.gather": _gather,
    "abq.append": _append,
}
