"""Launches of attention that are timed by themselves."""

from __future__ import annotations

from itertools import product

from abqc.codegen.strategy import AttentionVariant
from abqc.codegen.targets.cuda import CudaTarget
from abqc.dialects.cache_formats import CacheFormat, parse_cache_format
from abqc.dialects.formats import FLOAT_BYTES, Float
from gpukit.kit import AttentionJob

from .images import Images
from .plan import AttentionPlan, Plan


def attention_jobs(plan: Plan, target: CudaTarget, images: Images) -> list[AttentionJob]:
    """Decoding, then prompts; their kernels are added to `images`."""
    sizes = plan.attention
    jobs: list[AttentionJob] = []
    if not sizes.heads:
        return jobs
    for format in sizes.formats:
        for keys in sizes.keys:
            one = (1, keys, sizes.head)
            jobs.append(_job(sizes, target, images, format, one, half=True))
    for rows, columns in product(sizes.prompts, sizes.prompt_heads):
        for format, half in (("f32", False), ("f32", True), ("f16", True)):
            prompt = (rows, rows, columns)
            jobs.append(_job(sizes, target, images, format, prompt, half=half))
    return jobs


def _job(
    sizes: AttentionPlan,
    target: CudaTarget,
    images: Images,
    format: str,
    shape: tuple[int, int, int],
    *,
    half: bool,
) -> AttentionJob:
    """`shape`: rows, keys, and columns of a head."""
    rows, keys, columns = shape
    stored = _stored(format)
    causal = rows > 1
    variants = target.attention(
        columns, columns, "add" if causal else "none", half=half, keys=stored, values=stored
    )
    variant = _variant(variants, rows, sizes.group)
    for kernel in (variant.kernel, variant.prepare, variant.limits):
        if kernel is not None:
            images.add(kernel)
    block = variant.kernel.block[0]
    prepare_grid = 0
    if not variant.blocks:
        grid, splits, each, workspace = sizes.heads * -(-rows // block), 0, 0, 0
        if variant.prepare is not None:
            prepare_grid = sizes.heads // sizes.group * -(-keys // variant.prepare.block[0])
            workspace = 4 * prepare_grid * variant.tile_floats
    else:
        parts = sizes.heads // sizes.group * -(-sizes.group * rows // block)
        splits, each = variant.splits_of(parts, keys)
        grid = parts * splits
        workspace = 4 * grid * block * variant.workspace_floats
    kind = "prompt" if causal else "decoding"
    precision = ("f16" if half else "bf16x3") if causal else "f32"
    return AttentionJob(
        f"{kind} {format} {precision} {rows}x{keys} of {columns} columns",
        variant.kernel.name,
        format,
        precision,
        sizes.heads,
        sizes.group,
        columns,
        rows,
        keys,
        causal,
        grid,
        _row_bytes(stored, columns),
        splits,
        each,
        workspace,
        variant.prepare.name if variant.prepare else None,
        prepare_grid,
        variant.limits.name if variant.limits else None,
        -(-rows // variant.limits.block[0]) if variant.limits else 0,
        variant.boxes,
    )


def _variant(variants: tuple[AttentionVariant, ...], rows: int, group: int) -> AttentionVariant:
    """As the host chooses it."""
    most = max(variant.max_rows or 0 for variant in variants)
    number = rows if rows > most else min(rows * group, most)
    (found,) = [variant for variant in variants if variant.covers(number)]
    return found


def _stored(format: str) -> CacheFormat | Float:
    for name in FLOAT_BYTES:
        if format == name:
            return name
    return parse_cache_format(format)


def _row_bytes(stored: CacheFormat | Float, columns: int) -> int:
    if isinstance(stored, CacheFormat):
        return stored.row_bytes(columns)
    return FLOAT_BYTES[stored] * columns
