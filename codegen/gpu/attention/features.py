"""What the kernels of attention of many rows do, in numbers for the cost model; whose prompts are
by `wgmma` follows from these.

Instructions are read from the machine code for sm_90a (tests/test_gpu_issue_slots.py). A thread has
`scores` of a tile: half of its keys, in two rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from abqc.costmodel.interface import CostModel, KernelFeatures

from ..arch import GpuArch
from .boxes import reads_boxes
from .halves import HALF, TileShape
from .mma import ROWS as TILE_ROWS
from .mma import THREADS as TILE_THREADS
from .spec import AttentionSpec
from .swizzled import SwizzledShape
from .wgmma import CONSUMER_WARPS, CONSUMERS, MOST_BESIDE_BOTH_WAYS, wgmma_unsupported
from .wgmma import ROWS as WARPGROUP_ROWS
from .wgmma import THREADS as WGMMA_THREADS

# Numbers of rows that are judged, from these on: of causal prompts of `HEADS` heads.
PROMPTS = (65, 129, 193, 257, 385, 513, 1025, 2048)
HEADS = 32
ALIKE = 1.04  # times that say nothing
# Of a score where it is an exponent as it is: a power of two, a sum and half a conversion; with two
# parts also the difference to the first one.
SCORE_INSTRUCTIONS = {1: 2.5, 2: 5.0}
# Where products add up: half a maximum of pairs in place of the sum, two of which are one.
SUMMED_INSTRUCTIONS = 1.75
COMPARISON = 2.0  # of a score with its row's end, in kernels that do not jump over it
TILE_INSTRUCTIONS = 40  # of a tile: barriers, addresses, whether bases stay
WGMMA_INSTRUCTIONS = 2  # of each wgmma, its descriptor's among them


def first_wgmma_rows(
    spec: AttentionSpec, archs: Sequence[GpuArch], models: Sequence[CostModel]
) -> int | None:
    """From how many rows on `wgmma` is the faster one on all targets, or about as fast; None where
    it never is, or cannot."""
    if wgmma_unsupported(spec) or any(HALF[spec.precision] not in a.wgmma for a in archs):
        return None
    slower = set()
    for arch, model in zip(archs, models, strict=True):
        tiles = model.predict_all([tile_features(spec, arch, m, m, HEADS) for m in PROMPTS])
        wgmma = model.predict_all([wgmma_features(spec, arch, m, m, HEADS) for m in PROMPTS])
        slower |= {m for m, a, c in zip(PROMPTS, tiles, wgmma, strict=True) if c > ALIKE * a}
    return next((m for m in PROMPTS if m > max(slower, default=0)), None)


def tile_features(
    spec: AttentionSpec, arch: GpuArch, rows: int, keys: int, heads: int
) -> KernelFeatures:
    """Of attention/mma.py for causal prompts: `rows` a head, the last of which see `keys`."""
    shape = TileShape(spec)
    steps = (shape.head + shape.value_head) // 16 * shape.keys // 8
    loads = shape.parts * steps // 2
    copies = shape.bytes / 16 / TILE_THREADS
    instructions = steps * _products(shape) + loads + copies
    if shape.parts == 2:
        instructions += COMPARISON * shape.keys / 2
    return _features(
        spec,
        arch,
        "tile",
        (rows, keys, heads),
        shape,
        TILE_ROWS,
        threads=TILE_THREADS,
        instructions=TILE_THREADS // 32 * (instructions + _softmax(shape)),
        shared=TILE_THREADS // 32 + 1,
        stages=2,
        registers=min(255, 60 + shape.resident + shape.keys // 2 + shape.parts * shape.keys // 4),
    )


def wgmma_features(
    spec: AttentionSpec, arch: GpuArch, rows: int, keys: int, heads: int
) -> KernelFeatures:
    """The same of `attention/wgmma.py`."""
    shape = SwizzledShape(spec)
    count = (shape.head + shape.keys) // 16 * _products(shape)
    instructions = WGMMA_INSTRUCTIONS * count + _softmax(shape)
    if shape.resident > MOST_BESIDE_BOTH_WAYS:
        instructions += COMPARISON * shape.keys / 2
    return _features(
        spec,
        arch,
        "wgmma",
        (rows, keys, heads),
        shape,
        CONSUMERS * WARPGROUP_ROWS,
        threads=WGMMA_THREADS,
        instructions=CONSUMER_WARPS * instructions,
        shared=1 + CONSUMERS * _products(shape) / shape.parts,
        stages=shape.stages,
        registers=168,
        launches=1 if reads_boxes(spec) else 2,
    )


def _products(shape: TileShape) -> int:
    return 3 if shape.parts == 2 else 1


def _softmax(shape: TileShape) -> float:
    each = SUMMED_INSTRUCTIONS if shape.sum_columns else SCORE_INSTRUCTIONS[shape.parts]
    return each * shape.keys / 2 + TILE_INSTRUCTIONS


def _features(
    spec: AttentionSpec,
    arch: GpuArch,
    kind: str,
    sizes: tuple[int, int, int],
    shape: TileShape,
    block_rows: int,
    *,
    threads: int,
    instructions: float,
    shared: float,
    stages: int,
    registers: int,
    launches: int = 2,
) -> KernelFeatures:
    """`instructions` of all warps for a tile, which passes `shared` times through shared memory."""
    rows, keys, heads = sizes
    ends = [min(rows, first + block_rows) for first in range(0, rows, block_rows)]
    seen = [max(1, keys - rows + end) for end in ends]  # keys, of the blocks of a head
    blocks = heads * len(ends)
    tiles = heads * sum(-(-count // shape.keys) for count in seen)
    columns = shape.head + shape.value_head + shape.sum_columns
    operations = 2.0 * block_rows * shape.keys * columns
    operations *= tiles * _products(shape)
    return KernelFeatures(
        arch.name,
        "attention",
        f"{kind}{block_rows}x{shape.keys}",
        kind,
        rows,
        heads * spec.value_head,
        sum(seen) // len(seen),
        16,
        16,
        block_rows,
        spec.value_head,
        shape.keys,
        blocks,
        threads,
        weight_bytes=tiles * shape.bytes // len(ends),
        activation_bytes=0,
        # Queries are read as often as y is written: once.
        written_bytes=4 * heads * rows * (spec.head + spec.value_head),
        bytes_in_flight=(stages - 1) * shape.bytes,
        f16_ops=operations if kind == "tile" else 0.0,
        wgmma_f16_ops=operations if kind == "wgmma" else 0.0,
        issued=32.0 * tiles * instructions,
        special_ops=float(tiles * block_rows * shape.keys),
        shared_traffic=float(tiles * shape.bytes * shared),
        stages=stages,
        registers=registers,
        shared_bytes=stages * shape.bytes,
        launches=launches,
    )
