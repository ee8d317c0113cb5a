"""GPU gathers of table rows, in the PTX machine: every format, ragged columns, bad indices."""

from __future__ import annotations

import gpu_kernels
import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_120A
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.float_products.layout import pack_float
from abqc.codegen.gpu.indexing.gather import TableLayout, panel_gather_kernel, table_layout
from abqc.codegen.gpu.weights.layout import WeightLayout, pack
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight

ROWS = 39  # of the tables: a tile of 32 and a part of one
INDICES = np.array([3, 0, 38, 38, -1, 39, 2**62, -(2**62), 1, 17], np.int64)
OUTSIDE = (INDICES < 0) | (INDICES >= ROWS)


def run(kernel: Kernel, blob: np.ndarray, columns: int, bits: int = 64) -> np.ndarray:
    """Rows `INDICES` of a table."""
    count = len(INDICES)
    indices = INDICES.astype(f"i{bits // 8}")
    flag = np.full(1, -1, np.int32)
    arguments = [blob, indices, gpu_kernels.output(count * columns), count, ROWS, flag, 3]
    _, _, y, flag = gpu_kernels.run(kernel, kernel.grid(count), arguments)
    assert flag[0] == 3
    return gpu_kernels.take(y).reshape(count, columns)


def gather(layout: TableLayout, table: QuantizedTensor | np.ndarray) -> np.ndarray:
    blob = layout.pack(table)
    assert len(blob) == ROWS * layout.row_bytes and layout.row_bytes % 16 == 0
    return run(layout.kernel, blob, layout.columns, layout.index_bits)


def table(columns: int) -> np.ndarray:
    return np.random.default_rng(columns).standard_normal((ROWS, columns)).astype(np.float32)


def check(y: np.ndarray, expected: np.ndarray, outside: np.ndarray = OUTSIDE) -> None:
    assert np.isnan(y[outside]).all()
    assert np.array_equal(y[~outside], expected[INDICES[~outside]])


SCHEMES = [
    *(f"w{bits}:channel:{kind}" for bits in range(1, 9) for kind in ("sym", "asym")),
    *("w2*:channel", "wt:channel", "w8:g32", "w4:g128:asym", "w3:g16", "w5:g7:asym", "w1:g48"),
]


@pytest.mark.parametrize("text", SCHEMES)
def test_every_format(text):
    scheme = parse_scheme(text)
    codes = quantize_weight(table(140), scheme)
    check(gather(table_layout(140, scheme), codes), codes.dequantize())


@pytest.mark.parametrize("columns", [1, 33, 700])
@pytest.mark.parametrize("text", ["w8:channel", "w4", "w3:channel:asym", "w5:g7:asym"])
def test_ragged_columns(text, columns):
    scheme = parse_scheme(text)
    codes = quantize_weight(table(columns), scheme)
    check(gather(table_layout(columns, scheme), codes), codes.dequantize())


@pytest.mark.parametrize("columns", [1, 16, 50])
def test_float_rows(columns):
    check(gather(table_layout(columns, None), table(columns)), table(columns))


def test_f32_scales_and_i32_indices():
    scheme, outside = parse_scheme("w4:g32:asym"), OUTSIDE.copy()
    codes = quantize_weight(table(96), scheme)
    exact = QuantizedTensor(codes.codes, codes.scale.astype(np.float32) / 3, codes.zero, scheme)
    outside[[6, 7]] = False  # 2^62 is 0 in 32 bits
    y = gather(table_layout(96, scheme, scale_bits=32, index_bits=32), exact)
    assert np.array_equal(np.isnan(y[:, 0]), outside)
    assert np.array_equal(y[:4], exact.dequantize()[INDICES[:4]])


TIED = [
    *(f"w{bits}:channel" for bits in range(1, 9)),
    *(f"w{bits}:g64:asym" for bits in range(1, 9)),
    *("w4:g50:asym", "w1:g48", "w2*:g32", "wt:channel", "w8:g7"),
]


def check_tied(text: str, activation: str | None, columns: int) -> None:
    scheme = parse_scheme(text)
    a_scheme = parse_scheme(activation) if activation else None
    spec = MatmulSpec(ROWS, columns, scheme, a_scheme)
    weight = quantize_weight(table(columns), scheme)
    kernel = panel_gather_kernel("int8" if activation else "dequantize", spec)
    assert kernel is not None
    check(run(kernel, pack(WeightLayout.of(spec), weight), columns), weight.dequantize())


@pytest.mark.parametrize("text", TIED)
def test_rows_of_a_matmul_weight(text):
    """A head tied to the embedding: gathers from what the matmul's strategy packed."""
    check_tied(text, ("a8", None)[TIED.index(text) % 2], 150)


@pytest.mark.parametrize("columns", [1, 128, 300])
@pytest.mark.parametrize("activation", ["a8", "a8:token:sym", None])
def test_ragged_rows_of_a_matmul_weight(activation, columns):
    check_tied("w4:g50:asym", activation, columns)


@pytest.mark.slow
@pytest.mark.parametrize("text", TIED)
@pytest.mark.parametrize("activation", ["a8", None])
def test_rows_of_every_matmul_weight(text, activation):
    check_tied(text, activation, 150)


@pytest.mark.parametrize("columns", [1, 64, 150])
def test_rows_of_a_float_weight(columns):
    kernel = panel_gather_kernel("float", MatmulSpec(ROWS, columns, None, None))
    assert kernel is not None
    check(run(kernel, pack_float(table(columns)), columns), table(columns))


def test_other_layouts_have_no_rows():
    assert panel_gather_kernel("planes", MatmulSpec(7, 16, parse_scheme("w1"), None)) is None


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", [SM_75, SM_120A], ids=lambda arch: arch.name)
def test_no_spills(arch):
    spec = MatmulSpec(ROWS, 150, parse_scheme("w7:g50:asym"), None)
    tied = panel_gather_kernel("dequantize", spec)
    assert tied is not None
    for kernel in (table_layout(150, parse_scheme("w7:g50:asym")).kernel, tied):
        assert not gpu_kernels.spills(arch, kernel)
