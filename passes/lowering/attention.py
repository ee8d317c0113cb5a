"""`abq.attention` becomes launches of the kernels that the target has for it.

Queries, keys, values and results are passed with strides, so that heads between rows and columns,
and caches with room to grow, are read where they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from abqc.dialects import abq
from abqc.dialects.cache_formats import parse_cache_format
from abqc.dialects.mlir import arith, cf, ir, memref, scf

from ..infrastructure import blame
from ..kernels.counters import COUNTERS_EACH, counters_of
from ..loops.generics import dims
from ..resolve_dims import dimension_or_query, index
from .attention_variants import reachable, rows_of_ranges
from .cache_buffers import buffer_of
from .rules import Lowering, by_rows, ceil_div, product

AttentionVariant = Any  # that of codegen/strategy.py, which passes know by its fields alone

# More rows than these are packed faster by blocks of their own.
FEW_PACKED_ROWS = 2
MAP_UNIT = 8  # halves: 16 bytes
ROWS_AXIS, KEYS_AXIS = 2, 3  # of scores


@dataclass(frozen=True)
class _Heads:
    """[B, H, M, D] in a flat buffer: sizes in this order, strides of batch, head and row."""

    buffer: ir.Value
    sizes: list[ir.Value]
    strides: list[ir.Value]


@dataclass(frozen=True)
class MaskLimits:
    """Which keys the rows of a mask see: its buffer and strides by batch, head and row; and whether
    (i1) a launch has written it."""

    arguments: list[ir.Value]
    found: ir.Value


def lower_attention(low: Lowering, op: ir.Operation) -> None:
    """Launch the variant for the number of rows, and what merges its splits."""
    view = op.opview
    of_q, of_k, of_v, of_y = ir.DenseI64ArrayAttr(op.attributes["rows_first"])
    q, k, v = (
        _heads(low, op, value, rows_first)
        for value, rows_first in ((view.q, of_q), (view.k, of_k), (view.v, of_v))
    )
    batch, heads, m, _ = q.sizes
    _, shared, t, _ = k.sizes
    for other in (k.sizes[0], v.sizes[0]):
        same = arith.CmpIOp(arith.CmpIPredicate.eq, batch, other).result
        cf.AssertOp(same, f"{blame(op)}: queries, keys and values differ in batch")
    for size, other in zip(k.sizes[1:3], v.sizes[1:3], strict=True):
        same = arith.CmpIOp(arith.CmpIPredicate.eq, size, other).result
        cf.AssertOp(same, f"{blame(op)}: keys and values differ in heads or rows")
    e = dimension_or_query(op.results[0], 3)
    y_sizes = _stored([batch, heads, m, e], of_y)
    y = _packed(low.allocate(product(y_sizes), ir.F32Type.get()), y_sizes, of_y)
    group = arith.DivUIOp(heads, arith.MaxUIOp(shared, index(1)).result).result
    kind = ir.StringAttr(view.mask_kind).value
    guarded = bool(ir.IntegerAttr(view.guarded).value)
    mask, mask_strides = _mask(low, op)
    scale = arith.ConstantOp(ir.F32Type.get(), op.attributes["scale"]).result
    pack = _Pack.of(low, op, arith.MulIOp(batch, m).result, y.buffer)
    common = [q.buffer, k.buffer, v.buffer, *mask, y.buffer, m, t, heads, group, scale]
    head, value_head = (abq.shape(x)[3] for x in (view.q, view.result))
    keys, values = _stored_types(op)
    every = low.unit.known_target.attention(
        head,
        value_head,
        kind,
        half=_is_half(low),
        bf16=_activations(low) == {"bf16"},
        guarded=guarded,
        keys=keys,
        values=values,
    )
    variants = reachable(
        every,
        abq.shape(view.q)[2 - of_q],
        abq.shape(view.q)[1 + of_q],
        abq.shape(view.k)[1 + of_k],
    )

    if any(variant.boxes for variant in variants):
        k, v = _with_aligned_strides(k), _with_aligned_strides(v)
    common += [*q.strides, *k.strides, *v.strides, *y.strides, *mask_strides]

    def launch_variant(i: int) -> None:
        variant = variants[i]
        blocks = product([batch, heads])
        if variant.grouped:
            rows = ceil_div(arith.MulIOp(group, m).result, variant.kernel.block[0])
            blocks = product([batch, shared, rows])
        if variant.blocks:
            _launch_filling(low, op, variant, common, blocks, t, pack)
            return
        if variant.split:
            _launch_split(low, variant, common, blocks, t, y)
            pack.launch(low)
            return
        if not variant.grouped:
            blocks = arith.MulIOp(blocks, ceil_div(m, variant.kernel.block[0])).result
        low.launch(
            variant.kernel.name, blocks, [*common, *seen, *_prepared(low, variant, common, k)]
        )
        pack.launch(low)

    for variant in variants:
        for kernel in (variant.kernel, variant.merge, variant.prepare, variant.limits):
            if kernel is not None:
                low.unit.kernels[kernel.name] = kernel
    asking = [variant for variant in variants if variant.limits is not None]
    seen = _limits(low, op, (asking or variants)[0], q.sizes[:3], t)
    by_rows(
        rows_of_ranges(variants, m, group),
        len(variants),
        [x.max_rows or 0 for x in variants],
        launch_variant,
    )
    low.finish(op, y.buffer, y_sizes)
    pack.finish(low)


@dataclass(frozen=True)
class _Pack:
    """The pack of an `abq.attention_pack`: its kernel, and buffers of rows and of what these
    become. Without a `kernel`, as of `abq.attention`, nothing is to be done."""

    op: ir.Operation
    rows: ir.Value
    y: ir.Value
    kernel: Any = None
    packed: ir.Value | None = None

    @staticmethod
    def of(low: Lowering, op: ir.Operation, rows: ir.Value, y: ir.Value) -> _Pack:
        if op.name != "abq.attention_pack":
            return _Pack(op, rows, y)
        kernel = low.unit.kernels[ir.StringAttr(op.opview.kernel).value]
        return _Pack(op, rows, y, kernel, low.allocate_rows(rows, op.opview.packed))

    def launch(self, low: Lowering) -> None:
        """A launch of its own."""
        if self.packed is not None:
            arguments = [self.y, self.packed, self.rows]
            low.launch(self.kernel.name, ceil_div(self.rows, self.kernel.block[0]), arguments)

    def with_attention(self, low: Lowering, variant: AttentionVariant) -> Any | None:
        """The kernel of both."""
        if self.packed is None:
            return None
        mask = self.op.opview.mask is not None
        return low.unit.device_target.attention_pack(variant, mask, self.kernel)

    def finish(self, low: Lowering) -> None:
        if self.packed is not None:
            low.buffers[self.op.opview.packed] = self.packed


def _prepared(
    low: Lowering, variant: AttentionVariant, common: list[ir.Value], k: _Heads
) -> list[ir.Value]:
    """The workspace with tiles of keys and values, for a variant that reads them so; sizes of these
    for one that reads them where they are."""
    if not low.unit.known_target.objects.on_device:
        return []
    if variant.boxes:
        batch, shared, t, _ = k.sizes
        return [batch, shared, arith.MaxUIOp(t, index(1)).result]
    if variant.prepare is None:
        return common[:1]  # any pointer
    batch, shared, t, _ = k.sizes
    tiles = product([batch, shared, ceil_div(t, variant.prepare.block[0])])
    floats = arith.MulIOp(tiles, index(variant.tile_floats)).result
    workspace = low.allocate(floats, ir.F32Type.get())
    low.launch(variant.prepare.name, tiles, [*common, workspace])
    return [workspace]


def _limits(
    low: Lowering,
    op: ir.Operation,
    variant: AttentionVariant,
    sizes: list[ir.Value],
    t: ir.Value,
) -> list[ir.Value]:
    """The arguments of `MaskLimits`; found where there are as many rows as `variant` wants, once
    for all operations of a block that have this mask. Nothing where the variant does not ask."""
    if variant.limits is None:
        return []
    mask, map_ = op.opview.mask, ir.AffineMapAttr(op.attributes["mask_map"]).value
    used = dims(map_) or []
    many = arith.CmpIOp(arith.CmpIPredicate.uge, sizes[2], index(variant.min_rows)).result
    key = (op.block, mask, str(map_))
    # Operations whose mask is one number for all keys may have other numbers of keys.
    known = low.limits.get(key) if KEYS_AXIS in used else None
    if known is not None and ROWS_AXIS in used:
        return known.arguments
    (buffer,), strides = _mask(low, op)
    one = index(1)
    batch, heads, rows = (size if d in used else one for d, size in enumerate(sizes))
    count = product([batch, heads, rows])
    missing = many
    if known is None:
        made = low.allocate(arith.MulIOp(count, index(2)).result, ir.IntegerType.get_signless(32))
        steps = (arith.MulIOp(heads, rows).result, rows, one)
        strides_made = [step if d in used else index(0) for d, step in enumerate(steps)]
        known = MaskLimits([made, *strides_made], many)
    else:  # the operations before, of other queries, may have had too few rows to find them
        missing = arith.AndIOp(many, _not(known.found)).result
        known = MaskLimits(known.arguments, arith.OrIOp(known.found, many).result)
    with ir.InsertionPoint(scf.IfOp(missing).then_block):
        grid = ceil_div(count, variant.limits.block[0])
        arguments = [buffer, known.arguments[0], count, t, heads, rows, *strides]
        low.launch(variant.limits.name, grid, arguments)
        scf.YieldOp([])
    low.limits[key] = known
    return known.arguments


def _not(condition: ir.Value) -> ir.Value:
    true = arith.ConstantOp(condition.type, ir.IntegerAttr.get(condition.type, 1)).result
    return arith.XOrIOp(condition, true).result


def _launch_filling(
    low: Lowering,
    op: ir.Operation,
    variant: AttentionVariant,
    common: list[ir.Value],
    parts: ir.Value,
    t: ir.Value,
    pack: _Pack,
) -> None:
    """Blocks that share the keys, as many as fill the GPU, the last of which merge, and of a few
    rows the very last one packs."""
    one = index(1)

    def divided(a: ir.Value, b: ir.Value) -> ir.Value:
        return arith.CeilDivUIOp(a, arith.MaxUIOp(b, one).result).result

    wanted = arith.DivUIOp(index(variant.blocks), arith.MaxUIOp(parts, one).result).result
    wanted = arith.MinUIOp(wanted, ceil_div(t, variant.split)).result
    needed = ceil_div(t, variant.most_keys)
    keys = divided(t, arith.MaxUIOp(wanted, needed).result)
    splits = arith.MaxUIOp(divided(t, keys), one).result
    grid = arith.MulIOp(parts, splits).result
    floats = arith.MulIOp(grid, index(variant.workspace_floats * variant.kernel.block[0])).result
    workspace = low.allocate(floats, ir.F32Type.get())
    counters = counters_of(low.module, op)
    own = COUNTERS_EACH - 1  # one counts all blocks, where the last one packs
    enough = arith.CmpIOp(arith.CmpIPredicate.ule, parts, index(own)).result
    first = arith.SelectOp(enough, index(counters.first), index(-1)).result
    arguments = [*common, workspace, counters.buffer, first, splits, keys]
    both = pack.with_attention(low, variant)
    if both is None:
        _launch_and_merge(low, variant, grid, parts, enough, arguments)
        pack.launch(low)
        return
    low.unit.kernels[both.name] = both
    few = arith.CmpIOp(arith.CmpIPredicate.ule, pack.rows, index(FEW_PACKED_ROWS)).result
    branches = scf.IfOp(arith.AndIOp(few, enough).result, has_else=True)
    with ir.InsertionPoint(branches.then_block):
        assert pack.packed is not None
        more = [pack.packed, counters.buffer, index(counters.first + own), pack.rows]
        low.launch(both.name, grid, [*arguments, *more])
        scf.YieldOp([])
    with ir.InsertionPoint(branches.else_block):
        _launch_and_merge(low, variant, grid, parts, enough, arguments)
        pack.launch(low)
        scf.YieldOp([])


def _launch_and_merge(
    low: Lowering,
    variant: AttentionVariant,
    grid: ir.Value,
    parts: ir.Value,
    enough: ir.Value,
    arguments: list[ir.Value],
) -> None:
    """With a launch that merges splits where there are not `enough` counters."""
    low.launch(variant.kernel.name, grid, arguments)
    splits = arguments[-2]
    several = arith.CmpIOp(arith.CmpIPredicate.ugt, splits, index(1)).result
    merges = scf.IfOp(arith.AndIOp(several, _not(enough)).result)
    with ir.InsertionPoint(merges.then_block):
        assert variant.merge is not None
        low.launch(variant.merge.name, parts, arguments)
        scf.YieldOp([])


def _launch_split(
    low: Lowering,
    variant: AttentionVariant,
    common: list[ir.Value],
    blocks: ir.Value,
    t: ir.Value,
    y: _Heads,
) -> None:
    """Blocks that share the keys, and where there are several of a head, their merging."""
    one, (batch, heads, m, _) = index(1), y.sizes
    splits = arith.MaxUIOp(ceil_div(t, variant.split), one).result
    grid = arith.MulIOp(blocks, splits).result
    rows = product([batch, heads, splits, m])
    floats = arith.MulIOp(rows, index(variant.workspace_floats)).result
    workspace = low.allocate(floats, ir.F32Type.get())
    low.launch(variant.kernel.name, grid, [*common, workspace, splits])
    several = scf.IfOp(arith.CmpIOp(arith.CmpIPredicate.ugt, splits, one).result)
    with ir.InsertionPoint(several.then_block):
        assert variant.merge is not None
        arguments = [workspace, y.buffer, m, t, heads, splits, *y.strides]
        low.launch(variant.merge.name, product([batch, heads, m]), arguments)
        scf.YieldOp([])


def _stored_types(op: ir.Operation) -> list[Any]:
    """Of keys and values: element types, or formats of the rows of quantized caches."""
    elements = [abq.element_text(value) for value in (op.opview.k, op.opview.v)]
    if abq.ROWS not in op.attributes:
        return elements
    texts = [ir.StringAttr(text).value for text in ir.ArrayAttr(op.attributes[abq.ROWS])]
    return [
        parse_cache_format(text) if text else element
        for text, element in zip(texts, elements, strict=True)
    ]


def _is_half(low: Lowering) -> bool:
    """Whether the recipe lets activations be f16: some matmuls take them so, the others f32."""
    taken = _activations(low)
    return "f16" in taken and taken <= {"f16", "f32"}


def _activations(low: Lowering) -> set[str]:
    """What products and convolutions take."""
    return {x["activation"] for x in low.unit.operations if x["kind"] != "gather"}


def _stored(sizes: list[ir.Value], rows_first: int) -> list[ir.Value]:
    """Sizes by (b, h, m, d) in the order of memory; the same the other way."""
    batch, heads, rows, columns = sizes
    return [batch, rows, heads, columns] if rows_first else sizes


def _packed(buffer: ir.Value, stored: list[ir.Value], rows_first: int) -> _Heads:
    """A compact buffer of these sizes."""
    outer = product([stored[1], stored[2], stored[3]])
    middle = arith.MulIOp(stored[2], stored[3]).result
    inner = stored[3]
    heads, rows = (inner, middle) if rows_first else (middle, inner)
    return _Heads(buffer, _stored(stored, rows_first), [outer, heads, rows])


def _heads(low: Lowering, op: ir.Operation, value: ir.Value, rows_first: int) -> _Heads:
    cache = _cache(value)
    if cache is None:
        return _packed(low.buffer(value), low.sizes(value), rows_first)
    _, _, *rest = memref.ExtractStridedMetadataOp(cache).operation.results
    sizes, strides = rest[:4], rest[4:]
    flat = ir.MemRefType.get([abq.DYNAMIC], ir.MemRefType(cache.type).element_type)
    last = [
        arith.MulIOp(size, stride).result
        for size, stride in zip(sizes[:3], strides[:3], strict=True)
    ]
    length = arith.AddIOp(arith.AddIOp(*last[:2]).result, last[2]).result
    buffer = memref.ReinterpretCastOp(flat, cache, [], [length], [], [0], [abq.DYNAMIC], [1]).result
    if low.unit.known_target.objects.on_device:
        _check_alignment(op, cache, sizes[:3], strides[:3])
    heads, rows = (strides[2], strides[1]) if rows_first else (strides[1], strides[2])
    return _Heads(buffer, _stored(sizes, rows_first), [strides[0], heads, rows])


def _with_aligned_strides(heads: _Heads) -> _Heads:
    """The stride of an axis of one element may be anything, and without rows strides may be 0: here
    they are multiples of 16 bytes, as tensor maps must have them."""
    strides = []
    for size, stride in zip(heads.sizes[:3], heads.strides, strict=True):
        several = arith.CmpIOp(arith.CmpIPredicate.ugt, size, index(1)).result
        stride = arith.MaxUIOp(stride, index(MAP_UNIT)).result
        strides.append(arith.SelectOp(several, stride, index(MAP_UNIT)).result)
    return replace(heads, strides=strides)


def _check_alignment(
    op: ir.Operation, cache: ir.Value, sizes: list[ir.Value], strides: list[ir.Value]
) -> None:
    """Kernels load 16 bytes of floats where these are whole rows, 8 bytes of rows of 16 bits that
    are a multiple of 4, and words of quantized rows. A cache lies where the caller has put it: a
    misaligned load would end all work on the GPU."""
    type_ = ir.MemRefType(cache.type)
    columns, item = type_.shape[3], type_.element_type.width // 8
    together = 4 if item in (1, 4) or columns % 8 else 8  # elements of a load
    if columns % together:
        return
    unit = together * item
    message = f"{blame(op)}: a cache and its rows must start at multiples of {unit} bytes on a GPU"

    def is_multiple(value: ir.Value, unit: int) -> ir.Value:
        rest = arith.RemUIOp(value, index(unit)).result
        return arith.CmpIOp(arith.CmpIPredicate.eq, rest, index(0)).result

    address = memref.ExtractAlignedPointerAsIndexOp(cache).result
    cf.AssertOp(is_multiple(address, unit), message)
    for size, stride in zip(sizes, strides, strict=True):
        few = arith.CmpIOp(arith.CmpIPredicate.ule, size, index(1)).result
        cf.AssertOp(arith.OrIOp(is_multiple(stride, together), few).result, message)


def _cache(value: ir.Value) -> ir.Value | None:
    """The strided buffer of a cache, or of its first rows; None for other tensors."""
    buffer = buffer_of(value)
    if buffer is None:
        return None
    strided = isinstance(ir.MemRefType(buffer.type).layout, ir.StridedLayoutAttr)
    return buffer if strided else None


def _mask(low: Lowering, op: ir.Operation) -> tuple[list[ir.Value], list[ir.Value]]:
    """The buffer of the mask and its strides by (b, h, m, t); nothing where there is none."""
    mask = op.opview.mask
    if mask is None:
        return [], []
    map_ = ir.AffineMapAttr(op.attributes["mask_map"]).value
    assert dims(map_) is not None, "a mask is read at loops and zeros"
    strides = [index(0)] * 4
    distance = index(1)
    axes = list(zip(map_.results, low.sizes(mask), strict=True))
    for result, size in reversed(axes):
        if isinstance(result, ir.AffineDimExpr):
            strides[ir.AffineDimExpr(result).position] = distance
        distance = arith.MulIOp(distance, size).result
    return [low.buffer(mask)], strides
