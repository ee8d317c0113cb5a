"""Products of the same rows in one launch give what they give alone, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80, SM_90A
from abqc.codegen.gpu.float_products.matmul import FloatMatmul
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.int8 import Int8Matmul
from abqc.codegen.gpu.matmul.merged import merged_matmul, merged_reduce
from abqc.codegen.gpu.matmul.strategy import GpuStrategy
from abqc.codegen.gpu.planes.strategy import Planes
from abqc.codegen.gpu.trellis.strategy import TrellisMatmul
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.formats import parse_scheme, quantize_weight
from gpu_kernels import output, run, take

COLUMNS = 40, 130, 33  # of queries, keys and values: no multiples of blocks


@pytest.mark.parametrize(
    ("strategy", "weight", "activation", "kind", "split", "m"),
    [
        (Int8Matmul(), "w4", "a8", "rows", 1, 1),
        (Int8Matmul(), "w4", "a8", "rows", 2, 2),
        (Int8Matmul(), "w8", "a8", "tile", 1, 19),
        (DequantizeMatmul("f16"), "w4", None, "rows", 1, 1),
        (DequantizeMatmul("f16"), "w4", None, "tile", 2, 17),
        (Planes(), "w2", "a2", "tile", 1, 9),
        (Int8Matmul(), "w8", "a8", "wgmma", 1, 40),
        (DequantizeMatmul("f16"), "w4", None, "stream", 1, 40),
        (TrellisMatmul(), "w2v", "a8", "tile", 1, 3),
        (FloatMatmul(), None, None, "tile", 1, 35),
    ],
)
def test_merged_products(
    strategy: GpuStrategy,
    weight: str | None,
    activation: str | None,
    kind: str,
    split: int,
    m: int,
) -> None:
    stream = kind == "stream"
    kind = "wgmma" if stream else kind
    k, arch = 264, SM_90A if kind == "wgmma" else SM_80
    scheme, rows = (None if text is None else parse_scheme(text) for text in (weight, activation))
    spec = MatmulSpec(COLUMNS[0], k, scheme, rows)
    able = [
        s for s in strategy.schedules(spec, arch)
        if s.kind == kind and s.split == split and (s.max_rows or m) >= m
    ]  # fmt: skip
    schedule = min(able, key=lambda s: (s.block_m * s.block_n, s))
    if kind == "wgmma":  # two blocks stay for all tiles of a product
        schedule = replace(schedule, persistent=2, split=1 + stream)
    kernel, reduce = strategy.kernel(spec, schedule), strategy.reduce_kernel(spec, schedule)
    rng = np.random.default_rng(0)
    q = _packed(strategy, spec, rng.standard_normal((m, k), np.float32))
    own, alone, grid, reduce_grid = [], [], 0, 0
    counters = np.zeros(16 * len(COLUMNS), np.int32)
    for n in COLUMNS:
        floats = rng.standard_normal((n, k), np.float32)
        w = strategy.pack_weight(
            replace(spec, n=n), floats if scheme is None else quantize_weight(floats, scheme)
        )
        bias = rng.standard_normal(n, np.float32)
        blocks = kernel.grid(m, n) * split
        share, every = [], []
        if kernel.stream is not None:
            share, every = (
                [output(blocks * kernel.stream.slot_bytes // 4), 16 * len(own)],
                [counters],
            )
        arguments = [q, w, bias, output(split * m * n), m, n, *share, *every]
        part = run(kernel, blocks, arguments, arch)[3]
        grid += blocks
        own.append((w, bias, n, *share))
        if reduce is not None:
            blocks = reduce.grid(m, n)
            reduce_grid += blocks
            part = run(reduce, blocks, [take(part), q, w, bias, output(m * n), m, n], arch)[4]
        alone.append(take(part))

    (w, bias, n, *share), *more = own
    ys = [output(split * m * n) for n in COLUMNS]
    arguments = [q, w, bias, ys[0], m, n, *share, *every]
    for (w, bias, n, *share), y in zip(more, ys[1:], strict=True):
        arguments += [w, bias, y, n, *share]
    merged = run(merged_matmul(kernel, len(COLUMNS), split), grid, arguments, arch)
    arrays = [a for a in arguments if not isinstance(a, int)]
    parts = [take(merged[next(i for i, a in enumerate(arrays) if a is y)]) for y in ys]
    if reduce is not None:
        (w, bias, n), *more = own
        arguments = [parts[0], q, w, bias, output(m * n), m, n]
        for part, (w, bias, n) in zip(parts[1:], more, strict=True):
            arguments += [part, w, bias, output(m * n), n]
        merged = run(merged_reduce(reduce, len(COLUMNS)), reduce_grid, arguments, arch)
        parts = [take(merged[i]) for i in (4, 8, 12)]
    for got, expected in zip(parts, alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def _packed(strategy: GpuStrategy, spec: MatmulSpec, x: np.ndarray) -> np.ndarray:
    """What products read of the rows `x`."""
    pack = strategy.pack_kernel(spec)
    if pack is None:
        return x.reshape(-1)
    q = output(len(x) * strategy.row_bytes(spec), np.uint8)
    return take(run(pack, pack.grid(len(x)), [x.reshape(-1), q, len(x)])[1])
