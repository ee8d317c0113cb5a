"""The kernels of attention, by numbers of rows.

Arguments of a kernel, one slot each; `abq.attention` is lowered to them (passes/lower_abq.py):

    q, k, v f32            pointers
    mask f32               pointer, only if the spec has a mask
    y f32                  pointer
    m, t, heads, group     i32: rows and keys of a head, query heads of a batch, query heads that
                           share one of k and v
    scale                  f32
    strides                i64, in elements: batch, head, row of q, then of k, v and y; then, only
                           if the spec has a mask, its batch, head, row, column (0: broadcast)

    tile (split 0)         grid batch * heads * ceil(m / block[0])
    rows (split > 0)       two more arguments: workspace f32 (pointer), splits i32, which is
                           max(1, ceil(t / split)); grid batch * heads * splits. Where splits > 1
                           the workspace has batch * heads * splits * m * workspace_floats floats
                           and `merge` follows, grid batch * heads * m, with the arguments
                           (workspace, y pointers, m, t, heads, splits i32, strides of y 3 x i64)

Rows whose scores are all minus infinity become NaN, as do rows with a NaN or plus infinity among
their scores, unless the spec is guarded, which makes them 0. Large finite masks (-3.4e38, -1e9)
are added in f32 before the maximum is subtracted, as a softmax without fusion does. Without keys
(t = 0) y is 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from abqc.codegen.strategy import AttentionVariant

from ..arch import GpuArch
from .mma import HALF, mma_kernel, mma_unsupported
from .rows import SPLIT_KEYS, merge_kernel, partial_pitch, rows_kernel
from .simt import simt_kernel
from .spec import AttentionSpec, Precision

__all__ = ["AttentionSpec", "attention_kernels", "precision_on"]

# Numbers of rows that have kernels of their own: decoding, with rows of grouped heads merged.
FEW_ROWS = (1, 2, 4, 8)


def precision_on(archs: Iterable[GpuArch], *, half: bool) -> Precision:
    """What all of `archs` have on their tensor cores; `half`: activations may be rounded to f16."""
    precision: Precision = "f16" if half else "bf16x3"
    form = f"{HALF[precision]}.m16n8k16"
    return precision if all(arch.has(form) for arch in archs) else "f32"


def attention_kernels(spec: AttentionSpec) -> tuple[AttentionVariant, ...]:
    """The kernels of `spec`, which cover every m >= 1 once."""
    variants = []
    fewer = 0
    for rows in FEW_ROWS:
        variants.append(
            AttentionVariant(
                rows_kernel(spec, rows),
                fewer + 1,
                rows,
                SPLIT_KEYS,
                merge_kernel(spec),
                partial_pitch(spec),
            )
        )
        fewer = rows
    tile = simt_kernel(spec) if mma_unsupported(spec) else mma_kernel(spec)
    return (*variants, AttentionVariant(tile, fewer + 1, None))
