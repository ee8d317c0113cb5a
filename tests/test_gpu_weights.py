"""Packed weights: exact inverses, sizes, and the order that kernels rely on."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.codegen.gpu.packing.layout import FloatRows, GroupedK, Int8Rows
from abqc.codegen.gpu.weights.layout import (
    TILE_COLUMNS,
    WARP_LOAD_BYTES,
    WeightLayout,
    pack,
    unit_fragment,
    unpack,
)
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats
from abqc.dialects.formats import QuantizedTensor, parse_scheme
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTHS = [*(str(bits) for bits in range(1, 9)), "2*", "t"]
WEIGHTS = [*(f"w{w}" for w in WIDTHS), *(f"w{bits}:asym" for bits in range(1, 9))]


def random_weight(weight: str, n: int, k: int, seed: int = 0) -> QuantizedTensor:
    """Any legal codes and scales."""
    rng = np.random.default_rng(seed)
    scheme = parse_scheme(weight)
    groups = (n, scheme.n_groups(k))
    codes = rng.choice(scheme.format.codes, (n, k)).astype(scheme.format.dtype)
    scale = rng.uniform(0.01, 1, groups).astype(np.float16)
    zero = None
    if not scheme.symmetric:
        zero = rng.integers(0, scheme.format.qmax + 1, groups).astype(np.uint8)
    return QuantizedTensor(codes, scale, zero, scheme)


@settings(max_examples=60, deadline=None)
@given(
    weight=st.sampled_from(WEIGHTS),
    group=st.sampled_from(["tensor", "channel", "g32", "g33", "g128", "g7"]),
    activation=st.sampled_from([None, "a8", "a8:token:sym"]),
    n=st.integers(1, 100),
    k=st.integers(1, 300),
)
def test_packing_is_invertible(weight, group, activation, n, k):
    name, _, symmetry = weight.partition(":")
    packed = random_weight(f"{name}:{group}" + (f":{symmetry}" if symmetry else ""), n, k)
    a_scheme = None if activation is None else parse_scheme(activation)
    layout = WeightLayout.of(MatmulSpec(n, k, packed.scheme, a_scheme))
    blob = pack(layout, packed)
    assert blob.shape == (layout.nbytes(n),)
    again = unpack(layout, blob, n, packed.scheme)
    np.testing.assert_array_equal(again.codes, packed.codes)
    np.testing.assert_array_equal(again.scale, packed.scale)
    if packed.zero is not None:
        np.testing.assert_array_equal(again.zero, packed.zero)
    if layout.has_sums:
        at, padded = layout.sums_offset(n), layout.padded_n(n)
        groups = layout.grouped.groups
        size = layout.sum_bytes
        sums = blob[at : at + size * groups * padded].view(f"i{size}").reshape(groups, padded)
        np.testing.assert_array_equal(sums[:, :n].T, layout.grouped.sums(packed.codes))


@pytest.mark.parametrize("activation", [None, "a8"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_registers_are_where_the_docstring_says(weight, activation):
    """Every code, found by hand from the formulas of weights/layout.py."""
    n, k = 40, 200
    packed = random_weight(f"{weight}:channel" if ":" not in weight else weight, n, k)
    a_scheme = None if activation is None else parse_scheme(activation)
    layout = WeightLayout.of(MatmulSpec(n, k, packed.scheme, a_scheme))
    words = pack(layout, packed)[: layout.tiles(n) * layout.tile_bytes].view(np.uint32)
    words = words.reshape(layout.tiles(n), layout.chunks, layout.chunk_loads, 32, 4)
    stored = layout.format.to_bits(packed.codes)
    fragment = unit_fragment(layout.lane_bits)
    owners = {fragment(t, v): (t, v) for t in range(32) for v in range(fragment.values)}
    elements = 32 // layout.lane_bits
    rng = np.random.default_rng(1)
    for _ in range(200):
        column = int(rng.integers(n))
        unit, row = divmod(int(rng.integers(layout.grouped.padded_k)), 32)
        lane, code = owners[row, column % 8]
        register = (unit % layout.chunk_units * 4 + column % 32 // 8) * layout.registers_per_block
        register += code // elements
        value = 0
        for part in layout.parts:
            fields = layout.lane_bits // part.bits
            word = part.first_word + register // fields
            at = layout.lane_bits * (code % elements) + part.bits * (register % fields)
            load = words[column // 32, unit // layout.chunk_units, word // 4, lane, word % 4]
            value |= (int(load) >> at & ((1 << part.bits) - 1)) << part.shift
        group, inside = divmod(unit * 32 + row, layout.grouped.padded_group)
        begin, end = layout.grouped.bounds()[group]
        expected = stored[column, begin + inside] if begin + inside < end else 0
        assert value == expected


@pytest.mark.parametrize("weight", [f"w{bits}:channel" for bits in range(1, 9)])
@pytest.mark.parametrize("activation", [None, "a8"])
def test_codes_take_their_bits(weight, activation):
    n, k = 256, 4096
    scheme = parse_scheme(weight)
    a_scheme = None if activation is None else parse_scheme(activation)
    layout = WeightLayout.of(MatmulSpec(n, k, scheme, a_scheme))
    assert layout.tiles(n) * layout.tile_bytes * 8 == scheme.bits * n * k
    assert layout.chunk_bytes % WARP_LOAD_BYTES == 0
    assert n % TILE_COLUMNS == 0


def test_f32_scales_are_kept():
    weight = random_weight("w4:channel", 20, 64)
    scale = weight.scale.astype(np.float32) * np.float32(1.0001)
    weight = QuantizedTensor(weight.codes, scale, None, weight.scheme)
    layout = WeightLayout.of(MatmulSpec(20, 64, weight.scheme, None, scale_bits=32))
    np.testing.assert_array_equal(
        unpack(layout, pack(layout, weight), 20, weight.scheme).scale, scale
    )


@given(k=st.integers(1, 300), size=st.integers(1, 300), unit=st.sampled_from([32, 256]))
def test_padding_of_groups(k, size, unit):
    grouped = GroupedK(k, min(size, k), unit)
    codes = np.arange(1, 2 * k + 1, dtype=np.int32).reshape(2, k)
    padded = grouped.pad(codes)
    assert padded.shape == (2, grouped.padded_k)
    np.testing.assert_array_equal(grouped.unpad(padded), codes)
    assert (padded != 0).sum() == codes.size
    sums = [codes[:, begin:end].sum(axis=1) for begin, end in grouped.bounds()]
    np.testing.assert_array_equal(grouped.sums(codes), np.stack(sums, axis=1))
    for g, (begin, end) in enumerate(grouped.bounds()):
        at = g * grouped.padded_group
        np.testing.assert_array_equal(padded[:, at : at + end - begin], codes[:, begin:end])


def test_integer_rows():
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    spec = MatmulSpec(8, 70, parse_scheme("w4:g33:asym"), parse_scheme("a8"))
    codes, scale, zero = formats.quantize_activation(x, parse_scheme("a8"))
    rows = Int8Rows.of(spec)
    packed = rows.pack_reference(codes, scale, zero)
    assert packed.shape == (3, rows.row_bytes) and rows.row_bytes % 32 == 0
    assert rows.unsigned and rows.grouped.padded_k == 64 + 64 + 32
    np.testing.assert_array_equal(packed[:, 64 : 64 + 33], codes[:, 33:66])
    np.testing.assert_array_equal(
        np.ascontiguousarray(packed[:, rows.scale_offset :][:, :4]).view(np.float32)[:, 0], scale
    )
    sums = np.ascontiguousarray(packed[:, rows.sums_offset :][:, :12]).view(np.int32)
    centred = codes.astype(np.int32) - zero[:, None]
    np.testing.assert_array_equal(sums[:, 2], centred[:, 66:].sum(axis=1))


def test_float_rows():
    x = np.array([[1.0, 1 + 2.0**-8, 1 + 2.0**-9 + 2.0**-20, np.nan, -3.0]], np.float32)
    half = FloatRows(GroupedK(5, 5), "f16").pack_reference(x).view(np.float16)
    np.testing.assert_array_equal(half[0, :5], x[0].astype(np.float16))
    assert half.shape == (1, 32) and (half[0, 5:] == 0).all()
    bits = FloatRows(GroupedK(5, 5), "bf16").pack_reference(x).view(np.uint16)
    again = (bits.astype(np.uint32) << 16).view(np.float32)[0, :5]
    np.testing.assert_array_equal(again, np.array([1, 1, 1, np.nan, -3], np.float32))
