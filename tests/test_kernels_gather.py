"""Gathers of table rows: every format, groups, ragged columns, indices outside of the table."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.bf16.strategy import Bf16Strategy
from abqc.codegen.cpu.float_products.dequantize import Dequantize
from abqc.codegen.cpu.float_products.matmul import FloatMatmul
from abqc.codegen.cpu.gather import TableLayout, table_layout
from abqc.codegen.cpu.gather_panels import panel_gather_kernel
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.isa import Isa
from abqc.codegen.strategy import Kernel, MatmulSpec
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from kernel_cases import compile_jit

ISAS = [pytest.param(isa, id=isa.name) for isa in isas.available()]
INDICES = np.array([3, 0, 6, 6, -1, 7, 2**62, -(2**62), 1, 5, 2], np.int64)
OUTSIDE = (INDICES < 0) | (INDICES > 6)


def run(isa: Isa, kernel: Kernel, blob: np.ndarray, columns: int, bits: int = 64) -> np.ndarray:
    """Rows `INDICES` of a table of seven."""
    jit = compile_jit(isa, [kernel])
    count = len(INDICES)
    y = np.full(count * columns + 16, 7, np.float32)
    indices = INDICES.astype(f"i{bits // 8}")
    flag = np.full(1, -1, np.int32)
    jit.run(kernel.name, kernel.grid(count), [blob, indices, y[:-16], count, 7, flag, 3])
    assert (y[-16:] == 7).all() and flag[0] == 3
    jit.run(kernel.name, 1, [blob, indices, y[:-16], count, 7, flag, 1])
    assert flag[0] == 1  # the smallest number stays
    return y[:-16].reshape(count, -1)


def gather(isa: Isa, layout: TableLayout, table: QuantizedTensor | np.ndarray) -> np.ndarray:
    blob = layout.pack(table)
    assert len(blob) == 7 * layout.row_bytes
    return run(isa, layout.kernel, blob, layout.columns, layout.index_bits)


def table(columns: int) -> np.ndarray:
    return np.random.default_rng(columns).standard_normal((7, columns)).astype(np.float32)


def check(y: np.ndarray, expected: np.ndarray) -> None:
    assert np.isnan(y[OUTSIDE]).all()
    assert np.array_equal(y[~OUTSIDE], expected[INDICES[~OUTSIDE]], equal_nan=True)


SCHEMES = [
    *(f"w{bits}:channel:{kind}" for bits in range(1, 9) for kind in ("sym", "asym")),
    *("w2*:channel", "wt:channel", "w8:g32", "w4:g128:asym", "w3:g16", "w5:g7:asym", "w1:g48"),
    *("wmxfp4", "wmxfp6", "wmxfp8", "wfp8e5m2", "wnvfp4", "wnf4:g48", "wbfp3:g16"),
]


FEW = ["w8:channel", "w4", "w3:channel:asym", "w1:g48"]


def check_scheme(isa: Isa, text: str, *widths: int) -> None:
    scheme = parse_scheme(text)
    for columns in widths:
        codes = quantize_weight(table(columns), scheme)
        check(gather(isa, table_layout(columns, scheme), codes), codes.dequantize())


@pytest.mark.parametrize("text", SCHEMES)
def test_every_format(text):
    check_scheme(isas.PLAIN, text, 300)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", FEW)
def test_ragged_columns(isa, text):
    check_scheme(isa, text, 1, 33)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", SCHEMES)
def test_every_format_with_every_isa(isa, text):
    check_scheme(isa, text, 1, 33, 384)


@pytest.mark.parametrize("isa", ISAS)
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


TIED = ["wt5", "w8", "w4:g50:asym", "w1:g48", "wmxfp4", "wnvfp4", "wmxfp8", "wnf4"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "strategy", [FloatMatmul(), Int8Strategy(), Dequantize()], ids=lambda s: s.name
)
def test_rows_of_a_matmul_weight(isa, strategy):
    """A head tied to the embedding: gathers from what the matmul's strategy packed."""
    in_blocks = [(300, "w4"), (256, "w4:g64:asym"), (256, "wmxfp4")]
    for columns, text in [(1, "w4"), (150, None), *((150, text) for text in TIED), *in_blocks]:
        scheme = parse_scheme(text) if text else None
        activation = parse_scheme("a8") if strategy.name == "int8" else None
        spec = MatmulSpec(7, columns, scheme, activation)
        if strategy.unsupported(spec):
            continue
        weight = quantize_weight(table(columns), scheme) if scheme else table(columns)
        kernel = panel_gather_kernel(strategy.name, spec)
        assert kernel is not None
        y = run(isa, kernel, strategy.pack_weight(spec, weight), columns)
        check(y, weight.dequantize() if isinstance(weight, QuantizedTensor) else weight)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_rows_of_a_matmul_weight_in_16_bits(isa, element):
    dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[element]
    spec = MatmulSpec(7, 150, None, None, weight_float=element)
    weight = table(150).astype(dtype)
    weight[0, 3], weight[1, 4] = np.inf, np.nan
    kernel = panel_gather_kernel("float", spec)
    assert kernel is not None
    check(run(isa, kernel, FloatMatmul().pack_weight(spec, weight), 150), weight.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", [None, "w4", "wfp6"])
def test_rows_of_a_matmul_weight_of_the_strategy_bf16(isa, text):
    scheme = parse_scheme(text) if text else None
    spec = MatmulSpec(7, 149, scheme, None, half="bf16")
    weight = quantize_weight(table(149), scheme) if scheme else table(149)
    kernel = panel_gather_kernel("bf16", spec)
    assert kernel is not None
    y = run(isa, kernel, Bf16Strategy().pack_weight(spec, weight), 149)
    if isinstance(weight, QuantizedTensor):
        check(y, weight.dequantize())
    else:
        check(y, weight.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_other_layouts_have_no_rows():
    assert panel_gather_kernel("bitplane", MatmulSpec(7, 16, parse_scheme("w1"), None)) is None
