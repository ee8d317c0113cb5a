"""The last block of a kernel packs the rows that all have written, as a pack alone does."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from abqc.codegen.gpu.arch import GpuArch
from abqc.codegen.gpu.builder import POINTER, kernel
from abqc.codegen.gpu.packing.last_block import with_pack
from abqc.codegen.gpu.packing.layout import FloatRows, Int8Rows
from abqc.codegen.gpu.packing.pack import pack_kernel
from abqc.codegen.gpu.planes.layout import PlaneRows
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import parse_scheme
from gpu_kernels import output, run, take

THREADS, ROWS = 128, 3


def _double(name: str, module: Any, arch: GpuArch) -> None:
    """y = 2 x; an element a thread."""
    with kernel(module, arch, name, [POINTER, POINTER, "i32"], threads=THREADS) as opened:
        b, block, x, y, count = opened
        at = block * THREADS + b.thread
        with b.when(at < count):
            b.store(b.load(x, "f32", at * 4) * 2.0, y, at * 4)


@pytest.mark.parametrize(
    ("layout", "activation", "k"),
    [
        (Int8Rows.of, "a8", 130),
        (Int8Rows.of, "a4:token:sym", 1500),
        (PlaneRows.of, "a2", 200),
        (partial(FloatRows.of, element="f16"), None, 70),
    ],
)
def test_the_last_block_packs(layout: Any, activation: str | None, k: int) -> None:
    scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(16, k, parse_scheme("w4:g64:asym"), scheme)
    rows = layout(spec)
    pack = pack_kernel(spec, rows)
    x = np.random.default_rng(0).standard_normal((ROWS, k), np.float32).reshape(-1)
    made = Kernel("double", (THREADS,), partial(_double, "double"))
    both = with_pack(made, THREADS, 1, pack)
    assert both is not None
    q, counters = output(ROWS * rows.row_bytes, np.uint8), np.zeros(4, np.int32)
    grid = made.grid(ROWS * k)
    arguments = [x, output(ROWS * k), ROWS * k, q, counters, 2, ROWS]
    done = run(both, grid, arguments)
    np.testing.assert_array_equal(take(done[1]), 2 * x)
    assert not done[3].any(), "the counter is 0 again"
    alone = run(pack, pack.grid(ROWS), [2 * x, output(ROWS * rows.row_bytes, np.uint8), ROWS])[1]
    np.testing.assert_array_equal(take(done[2]), take(alone))


def test_rows_that_a_block_cannot_hold() -> None:
    spec = MatmulSpec(16, 16 * 4 * 128 + 1, parse_scheme("w8"), parse_scheme("a8"))
    made = Kernel("double", (THREADS,), partial(_double, "double"))
    assert with_pack(made, THREADS, 1, pack_kernel(spec, Int8Rows.of(spec))) is None
