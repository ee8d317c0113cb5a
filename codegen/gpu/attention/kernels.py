"""The kernels of attention, by numbers of rows.

Arguments of a kernel, one slot each; `abq.attention` is lowered to them (passes/lower_abq.py):

    q f32, k, v            pointers
    mask f32               pointer, only if the spec has a mask
    y f32                  pointer
    m, t, heads, group     i32: rows and keys of a head, query heads of a batch, query heads that
                           share one of k and v
    scale                  f32
    strides                i64, in elements: batch, head, row of q, then of k, v and y; then, only
                           if the spec has a mask, its batch, head, row, column (0: broadcast)

    tile                   grid batch * heads * ceil(m / block[0]). Further arguments: where a mask
                           is added, limits i32 (pointer) and their strides by batch, head and row
                           (i32), which `limits` has made (limits.py); workspace, where `prepare`
                           has put tiles of keys and values (halves.py), or a pointer that is not
                           read. With `boxes`, in its place, for tensor maps of keys and values
                           (boxes.py): batch, heads of these, and t, but at least 1 (i32)
    rows (`blocks` > 0)    rows of all heads that share keys: with parts = batch * heads / group *
                           ceil(group * m / block[0]), grid parts * splits. Five more arguments:
                           workspace f32, counters i32 (pointers), number of the first counter,
                           splits and keys of a split (i32); splits = max(1, ceil(t / keys)). Where
                           splits > 1 the workspace has parts * splits * block[0] * workspace_floats
                           floats. Counters, one for each of the parts, are 0 and become 0 again;
                           where the first one's number is negative there are none, and `merge`
                           follows, grid parts, with the same arguments

Rows whose scores are all minus infinity become NaN, as do rows with a NaN or plus infinity among
their scores, unless the spec is guarded, which makes them 0. Large finite masks (-3.4e38, -1e9)
are added in f32 before the maximum is subtracted, as a softmax without fusion does. Without keys
(t = 0) y is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from abqc.codegen.strategy import AttentionVariant

from ..arch import FEW_BLOCKS, GpuArch
from .boxes import reads_boxes
from .halves import HALF, TileShape, halves_kernel
from .limits import limits_kernel
from .merge import merge_kernel, partial_pitch
from .mma import mma_kernel, mma_unsupported
from .row_lanes import RowLanes
from .rows import most_keys, rows_kernel
from .simt import simt_kernel
from .spec import AttentionSpec, Precision
from .stored_rows import StoredRows
from .swizzled import SwizzledShape
from .wgmma import wgmma_kernel

__all__ = ["AttentionSpec", "attention_kernels", "precision_on"]

# Numbers of rows that have kernels of their own: decoding, with rows of grouped heads merged.
FEW_ROWS = (1, 2, 4, 8)


def precision_on(archs: Iterable[GpuArch], *, half: bool) -> Precision:
    """What all of `archs` have on their tensor cores; `half`: activations may be rounded to f16."""
    precision: Precision = "f16" if half else "bf16x3"
    form = f"{HALF[precision]}.m16n8k16"
    return precision if all(arch.has(form) for arch in archs) else "f32"


def attention_kernels(
    spec: AttentionSpec, *, wgmma_rows: int | None = None
) -> tuple[AttentionVariant, ...]:
    """The kernels of `spec`, which cover every m >= 1 once: from so many rows on by `wgmma`, which
    all targets have then."""
    variants = []
    fewer = 0
    for rows in FEW_ROWS:
        variants.append(
            AttentionVariant(
                rows_kernel(spec, rows),
                fewer + 1,
                rows,
                fewest_keys(spec, rows),
                merge_kernel(spec, rows),
                partial_pitch(spec),
                grouped=True,
                blocks=FEW_BLOCKS,
                most_keys=most_keys(rows),
            )
        )
        fewer = rows
    limits = limits_kernel() if spec.mask == "add" else None
    if mma_unsupported(spec):
        many = AttentionVariant(simt_kernel(spec), fewer + 1, None, limits=limits)
    else:
        many = AttentionVariant(
            mma_kernel(spec),
            fewer + 1,
            None,
            prepare=halves_kernel(spec, TileShape(spec)),
            tile_floats=TileShape(spec).bytes // 4,
            limits=limits,
        )
    if wgmma_rows is None:
        return (*variants, many)
    prompts = AttentionVariant(wgmma_kernel(spec), wgmma_rows, None, limits=limits)
    if reads_boxes(spec):
        prompts = replace(prompts, boxes=True)
    else:
        shape = SwizzledShape(spec)
        prepare = halves_kernel(spec, shape)
        prompts = replace(prompts, prepare=prepare, tile_floats=shape.bytes // 4)
    return (*variants, replace(many, max_rows=wgmma_rows - 1), prompts)


def fewest_keys(spec: AttentionSpec, rows: int) -> int:
    """That a block is worth: those whose loads are under way at once."""
    keys, values = StoredRows(spec.keys, spec.head), StoredRows(spec.values, spec.value_head)
    return max(RowLanes(stored, rows).turn for stored in (keys, values))
