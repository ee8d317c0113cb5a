"""Products that are packed where they are made give the bytes of a pack after them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.matmul.dequantize import DequantizeMatmul
from abqc.codegen.gpu.matmul.gated import gate_of, gated
from abqc.codegen.gpu.packing.layout import FloatRows, Int8Rows
from abqc.codegen.gpu.packing.pack import fused_pack_kernel, pack_kernel
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects.epilogue import Epilogue
from abqc.dialects.formats import parse_scheme, quantize_weight
from gpu_kernels import output, run, take

STRATEGY = DequantizeMatmul("f16")
N, K = 160, 72  # columns of the products: no multiple of a block's


def prologue(count: int) -> Epilogue:
    """(x + 1) * y, or x * x + 1."""
    others = ", %y: f32" if count == 2 else ""
    by = "%y" if count == 2 else "%x"
    return Epilogue(
        f"""module {{ func.func @f(%x: f32{others}) -> f32 {{
          %one = arith.constant 1.0 : f32
          %a = arith.addf %x, %one : f32
          %z = arith.mulf %a, {by} : f32
          func.return %z : f32
        }} }}""",
        ("element",) * (count - 1),
    )


@pytest.mark.parametrize(
    ("kind", "split", "parts", "m"),
    [("rows", 1, 2, 1), ("tile", 1, 2, 13), ("tile", 2, 2, 19), ("rows", 1, 1, 1)],
)
def test_the_last_block_of_a_tile_packs(kind: str, split: int, parts: int, m: int) -> None:
    spec = MatmulSpec(N, K, parse_scheme("w4"), None)
    able = [
        s for s in STRATEGY.schedules(spec, SM_80)
        if s.kind == kind and s.split == split and (split > 1 or s.block_m >= m)
    ]  # fmt: skip
    schedule = min(able, key=lambda s: (s.block_m * s.block_n, s))
    kernel, reduce = STRATEGY.kernel(spec, schedule), STRATEGY.reduce_kernel(spec, schedule)
    rng = np.random.default_rng(0)
    pack_x = STRATEGY.pack_kernel(spec)
    assert pack_x is not None
    x = rng.standard_normal((m, K), np.float32).reshape(-1)
    q = output(m * STRATEGY.row_bytes(spec), np.uint8)
    q = take(run(pack_x, pack_x.grid(m), [x, q, m])[1])
    own, sums, ys = [], [], []
    for _ in range(parts):
        floats = rng.standard_normal((N, K), np.float32)
        w = STRATEGY.pack_weight(spec, quantize_weight(floats, parse_scheme("w4")))
        bias = rng.standard_normal(N, np.float32)
        blocks = kernel.grid(m, N) * split
        made = take(run(kernel, blocks, [q, w, bias, output(split * m * N), m, N])[3])
        own.append((w, bias))
        sums.append(made)
        if reduce is not None:
            arguments = [made, q, w, bias, output(m * N), m, N]
            made = take(run(reduce, reduce.grid(m, N), arguments)[4])
        ys.append(made)

    down = replace(spec, n=8, k=N)
    pack, body = pack_kernel(down, FloatRows.of(down)), prologue(parts)
    order = tuple(reversed(range(parts)))
    alone = fused_pack_kernel(pack, body)
    inputs = [ys[part] for part in order]
    expected = take(run(alone, alone.grid(m), [*inputs, output(2 * m * N, np.uint8), m])[parts])

    gate = gate_of(pack, body, order)
    assert gate is not None
    both = gated(reduce or kernel, parts, gate, reduces=reduce is not None)
    arguments: list[object] = []
    for part, (w, bias) in enumerate(own):
        before = [sums[part]] if reduce is not None else []
        if part == 0:
            arguments += [*before, q, w, bias, output(m * N), m, N]
        else:
            arguments += [*before, w, bias, output(m * N), N]
    grid = (reduce or kernel).grid(m, N) * parts
    packed, counters = output(2 * m * N, np.uint8), np.zeros(3 + grid, np.int32)
    done = run(both, grid, [*arguments, packed, counters, 3])
    np.testing.assert_array_equal(take(done[-2]), expected)
    assert not done[-1].any(), "counters are 0 again"


def test_rows_that_depend_on_each_other_are_packed_after() -> None:
    eight = MatmulSpec(8, 160, parse_scheme("w4"), parse_scheme("a8"))
    assert gate_of(pack_kernel(eight, Int8Rows.of(eight)), prologue(2), (1, 0)) is None
    ragged = MatmulSpec(8, 100, parse_scheme("w4"), None)
    assert gate_of(pack_kernel(ragged, FloatRows.of(ragged)), prologue(2), (1, 0)) is None
