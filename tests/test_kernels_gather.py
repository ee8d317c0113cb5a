"""Gathers of table rows: every format, groups, ragged columns, indices outside of the table."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.gather import TableLayout, table_layout
from abqc.codegen.isa import Isa
from abqc.codegen.llvm import Jit
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from abqc.dialects.mlir import ir, make_context

FORMS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
INDICES = np.array([3, 0, 6, 6, -1, 7, 2**62, -(2**62), 1, 5, 2], np.int64)
OUTSIDE = (INDICES < 0) | (INDICES > 6)


def gather(isa: Isa, layout: TableLayout, table: QuantizedTensor | np.ndarray) -> np.ndarray:
    """Seven rows of a table that ends where its page might."""
    kernel = layout.kernel
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, isa)
        jit = Jit(module, isa, [kernel.name])
    blob, count = layout.pack(table), len(INDICES)
    assert len(blob) == 7 * layout.row_bytes
    y = np.full(count * layout.columns + 16, 7, np.float32)
    indices = INDICES.astype(np.int32) if layout.index_bits == 32 else INDICES
    jit.run(kernel.name, kernel.grid(count), [blob, indices, y[:-16], count, 7])
    assert (y[-16:] == 7).all()
    return y[:-16].reshape(count, -1)


def table(columns: int) -> np.ndarray:
    return np.random.default_rng(columns).standard_normal((7, columns)).astype(np.float32)


def check(y: np.ndarray, expected: np.ndarray) -> None:
    assert np.isnan(y[OUTSIDE]).all()
    assert np.array_equal(y[~OUTSIDE], expected[INDICES[~OUTSIDE]])


SCHEMES = [
    *(f"w{bits}:channel:{kind}" for bits in range(1, 9) for kind in ("sym", "asym")),
    *("w2*:channel", "wt:channel", "w8:g32", "w4:g128:asym", "w3:g16", "w5:g7:asym", "w1:g48"),
]


@pytest.mark.parametrize("isa", FORMS)
@pytest.mark.parametrize("text", SCHEMES)
def test_quantized_rows_are_those_of_numpy(isa, text):
    scheme = parse_scheme(text)
    for columns in (1, 33, 384):
        codes = quantize_weight(table(columns), scheme)
        check(gather(isa, table_layout(columns, scheme), codes), codes.dequantize())


@pytest.mark.parametrize("isa", FORMS)
@pytest.mark.parametrize("columns", [1, 16, 50])
def test_float_rows(isa, columns):
    check(gather(isa, table_layout(columns, None), table(columns)), table(columns))


def test_f32_scales_and_i32_indices():
    scheme, global_indices = parse_scheme("w4:g32:asym"), OUTSIDE.copy()
    codes = quantize_weight(table(96), scheme)
    exact = QuantizedTensor(codes.codes, codes.scale.astype(np.float32) / 3, codes.zero, scheme)
    y = gather(isas.PLAIN, table_layout(96, scheme, scale_bits=32), exact)
    check(y, exact.dequantize())
    global_indices[[6, 7]] = False  # 2^62 is 0 in 32 bits
    y = gather(isas.PLAIN, table_layout(96, scheme, scale_bits=32, index_bits=32), exact)
    assert np.array_equal(np.isnan(y[:, 0]), global_indices)


def test_bytes_are_dense():
    assert table_layout(384, parse_scheme("w4:channel")).row_bytes == 192 + 2
    assert table_layout(384, parse_scheme("w3:g128:asym")).row_bytes == 144 + 6 + 3
    assert table_layout(576, parse_scheme("w8:channel")).row_bytes == 576 + 2
