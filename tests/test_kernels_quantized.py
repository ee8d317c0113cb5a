"""Strategies int8 and bitplane against numpy: exact accumulators for every format, ISA and ragged
shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.codes.bit_parts import bit_parts
from abqc.codegen.codes.dense_units import quad_pieces, unit_quads
from abqc.codegen.cpu.int8.strategy import Int8Strategy
from abqc.codegen.cpu.panels.bitplane import BitplaneStrategy
from abqc.codegen.cpu.panels.strategy import PanelStrategy
from abqc.codegen.cpu.schedule import MANY_ROWS
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats
from abqc.dialects.formats import parse_scheme
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    ACTIVATIONS,
    DOT_ISAS,
    WEIGHTS,
    Case,
    all_pairs,
    check_broken_rows,
    check_measured_scales,
    check_packed_rows_are_deterministic,
    check_rotated_rows,
    check_scales_far_from_the_data,
    on_isa,
)

INT8, BITPLANE = Int8Strategy(), BitplaneStrategy()
each_isa = pytest.mark.parametrize("isa", DOT_ISAS, ids=lambda isa: isa.name)
each_strategy = pytest.mark.parametrize("strategy", [INT8, BITPLANE], ids=lambda s: s.name)


@each_isa
@pytest.mark.parametrize(
    ("strategy", "weight", "activation", "m", "n", "k"),
    [
        (INT8, "w8", "a8", 1, 16, 64),
        (INT8, "w8:channel:asym", "a8", 50, 20, 33),
        (INT8, "w4:g32", "a8", 3, 33, 100),
        (INT8, "w3:g33", "a5", 2, 17, 100),
        (INT8, "w1:channel", "a1", 9, 65, 70),
        (INT8, "w2*:channel", "a8:token:sym", 1, 40, 77),
        (INT8, "wt:g64", "a8", 6, 30, 200),
        (INT8, "w7:tensor", "a8", 70, 64, 300),
        (INT8, "w6:channel", "a8", 70, 64, 700),
        (BITPLANE, "w1:channel", "a1:token:sym", 1, 16, 64),
        (BITPLANE, "w1:g64:asym", "a2", 9, 65, 200),
        (BITPLANE, "w2*:channel", "a4:token:sym", 1, 40, 77),
        (BITPLANE, "wt:g33", "a3", 6, 30, 200),
        (BITPLANE, "w4", "a4", 50, 20, 130),
        (INT8, "w4", "a4:c80", 5, 20, 130),
        (INT8, "w3", "a8", 1, 33, 300),
        (INT8, "w8:g128", "a8", 9, 40, 260),
        (BITPLANE, "w3", "a3:token:sym:c75", 5, 20, 130),
        (BITPLANE, "w8:channel:asym", "a8", 2, 17, 70),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_exact(isa, strategy, weight, activation, m, n, k):
    case = Case.random(strategy, isa, weight, activation, m, n, k)
    case.check_accumulators()
    case.check_result()


@each_strategy
@settings(max_examples=15, deadline=None)
@given(
    isa=st.sampled_from(DOT_ISAS),
    weight=st.sampled_from(WEIGHTS),
    group=st.sampled_from(["tensor", "channel", "g32", "g33", "g100", "g7"]),
    activation=st.sampled_from(ACTIVATIONS),
    m=st.integers(1, 60),
    n=st.integers(1, 70),
    k=st.integers(1, 150),
    seed=st.integers(0, 2**16),
)
def test_ragged_shapes(strategy, isa, weight, group, activation, m, n, k, seed):
    name, _, symmetry = weight.partition(":")
    scheme = f"{name}:{group}" + (f":{symmetry}" if symmetry else "")
    case = Case.random(strategy, isa, scheme, activation, m, n, k, seed)
    case.check_accumulators()
    case.check_result()


@pytest.mark.slow
@each_isa
@each_strategy
def test_all_pairs(isa, strategy):
    for number, (weight, activation) in enumerate(all_pairs()):
        m = (1, 3, 7)[number % 3]
        Case.random(strategy, isa, weight, activation, m, 35, 70, number).check_accumulators()


@each_isa
@pytest.mark.parametrize("bits", [1, 4, 5, 6, 7, 8])
def test_extreme_codes_do_not_saturate(isa, bits):
    """Products of one sign at the largest magnitudes, in channels of either: 6 bits just fit
    VPMADDUBSW, 7 do not, and sums of 5 bits and fewer are of several. Decoded once, too."""
    case = Case.random(INT8, isa, f"w{bits}:channel", "a8", 2, 16, 68)
    format = case.weight.scheme.format
    case.weight.codes[:8], case.weight.codes[8:] = format.qmax, format.qmin
    case.x[:] = 1.0
    case.check_accumulators()
    decoded = [s for s in INT8.schedules(case.spec, MANY_ROWS, isa) if s.decode_once]
    if decoded:
        case.schedules = on_isa(decoded[0], isa)
        case.check_accumulators()


@each_isa
@each_strategy
def test_long_k_is_summed_in_64_bits(isa, strategy):
    """Groups above 32768 terms, at the largest magnitudes, overflow int32 unless they are split."""
    case = Case.random(strategy, isa, "w8:channel:asym", "a8", 2, 3, 70_001)
    case.weight.codes[:] = 255
    assert case.weight.zero is not None
    case.weight.zero[:] = 0
    case.x[:] = 1.0
    assert case.reference_accumulators().min() > 2**31
    case.check_result()


@each_isa
@pytest.mark.parametrize(
    ("strategy", "activation"),
    [
        *((INT8, text) for text in ("a8", "a8:token:sym", "a3", "a1:token:sym")),
        *((BITPLANE, text) for text in ("a4", "a2:token:sym", "a1:token:sym")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_rows_that_are_not_finite(isa, strategy, activation):
    check_broken_rows(strategy, isa, activation)


@each_isa
@pytest.mark.parametrize(
    ("strategy", "activation"),
    [
        *((INT8, text) for text in ("a8:image", "a4:image:sym", "a8:tensor")),
        *((BITPLANE, text) for text in ("a4:image", "a4:tensor:sym")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_scales_shared_by_rows(isa, strategy, activation):
    check_measured_scales(strategy, isa, activation)


@each_isa
@each_strategy
def test_fixed_scales_far_from_the_data(isa: isas.Isa, strategy: PanelStrategy) -> None:
    check_scales_far_from_the_data(strategy, isa)


@each_isa
@each_strategy
def test_packing_writes_every_byte_that_is_read(isa, strategy):
    check_packed_rows_are_deterministic(strategy, isa)


@each_strategy
def test_f32_scales_of_imported_weights(strategy):
    case = Case.random(strategy, isas.available()[0], "w8", "a8", 3, 20, 64)
    scale = case.weight.scale.astype(np.float32) * np.float32(1.0001)
    case.weight = formats.QuantizedTensor(case.weight.codes, scale, None, case.weight.scheme)
    case.spec = replace(case.spec, scale_bits=32)
    case.check_result()


@each_strategy
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_stored_at_their_width(strategy, bits):
    n, k = 64, 4096
    scheme = parse_scheme(f"w{bits}:channel")
    weight = formats.quantize_weight(np.ones((n, k), np.float32), scheme)
    blob = strategy.pack_weight(MatmulSpec(n, k, scheme, parse_scheme("a8")), weight)
    overhead = blob.nbytes * 8 / (n * k) - bits
    assert overhead < 0.07  # a scale and a sum for each channel, and alignment


@pytest.mark.parametrize("bits", range(1, 9))
def test_parts_of_codes_have_all_their_bits(bits):
    assert sum(part.bits for part in bit_parts(bits)) == bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_units_are_dense_and_have_each_bit_of_their_codes_once(bits):
    quads = quad_pieces(bits)
    assert len(quads) == unit_quads(bits)
    places = []
    for pieces in quads:
        own = sorted(piece.shift + i for piece in pieces for i in range(piece.bits))
        assert own == list(range(bits))
        places += [(p.vector, p.begin + i) for p in pieces for i in range(p.bits)]
    vectors = len(quads) * bits // 8
    assert sorted(places) == [(vector, bit) for vector in range(vectors) for bit in range(8)]


@each_strategy
def test_kernels_do_not_depend_on_n(strategy):
    names = {
        tuple(
            variant.kernel.name
            for variant in strategy.matmul_kernels(
                MatmulSpec(n, 64, parse_scheme("w4"), parse_scheme("a8"))
            )
        )
        for n in (3, 1000)
    }
    assert len(names) == 1


@each_isa
@each_strategy
@pytest.mark.parametrize(("k", "block"), [(64, 64), (96, 32), (384, 384)])
def test_rotation_is_fused_with_packing(isa, strategy, k, block):
    check_rotated_rows(strategy, isa, k, block)


@each_strategy
def test_float_operands_are_refused(strategy):
    assert strategy.unsupported(MatmulSpec(8, 8, parse_scheme("w4"), None))
    assert strategy.unsupported(MatmulSpec(8, 8, None, parse_scheme("a8")))
    assert strategy.unsupported(MatmulSpec(8, 8, parse_scheme("w4"), parse_scheme("a8"))) is None
