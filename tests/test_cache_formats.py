"""Rows of quantized caches in numpy: what comes back, and what no kernel may read differently."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.dialects import hadamard
from abqc.dialects.cache_formats import BITS, parse_cache_format
from abqc.dialects.formats import round_activation
from abqc.dialects.schemes import parse_scheme

INTEGERS = [f"kv{bits}:plain" for bits in BITS]
BLOCKS = [f"kv-bfp{bits}:plain" for bits in BITS]


def rows(columns: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((2, 5, columns)).astype(np.float32)
    x[0, 1] *= 1e-3
    x[1, 2] = 0
    x[1, 3] = 7.5
    return x


@pytest.mark.parametrize("columns", [1, 8, 16, 24, 80])
@pytest.mark.parametrize("text", INTEGERS)
def test_integers_are_half_a_step_away(text: str, columns: int) -> None:
    format, x = parse_cache_format(text), rows(columns)
    stored = format.encode(x)
    assert stored.shape == (2, 5, format.row_bytes(columns)) and stored.dtype == np.uint8
    step = (x.max(-1) - x.min(-1)) / (2**format.bits - 1)
    half = 2.0**-11 * np.abs(x).max(-1)  # what f16 does to the scale and to the least element
    error = np.abs(format.decode(stored, columns) - x).max(-1)
    assert (error <= step / 2 + 2 * half + 1e-7).all()


@pytest.mark.parametrize("columns", [16, 48, 80])
@pytest.mark.parametrize("text", BLOCKS)
def test_blocks_are_those_of_activations(text: str, columns: int) -> None:
    format, x = parse_cache_format(text), rows(columns)
    scheme = parse_scheme(f"a{format.bits}:g16:e8m0")
    expected = round_activation(x.reshape(-1, columns), scheme).reshape(x.shape)
    assert np.array_equal(format.decode(format.encode(x), columns), expected)


@pytest.mark.parametrize("bits", BITS)
def test_codes_lie_bit_by_bit(bits: int) -> None:
    format = parse_cache_format(f"kv{bits}:plain")
    codes = np.random.default_rng(bits).integers(0, 2**bits, 24)
    codes[[0, 1]] = 0, 2**bits - 1
    stored = format.encode(codes[None].astype(np.float32))[0]
    number = int.from_bytes(stored[: format.code_bytes(24)].tobytes(), "little")
    assert [number >> bits * i & (2**bits - 1) for i in range(24)] == codes.tolist()
    scale, low = stored[format.code_bytes(24) :][:4].view(np.float16)
    assert (scale, low) == (1, 0)


def test_sizes() -> None:
    sizes = {"kv4": 36, "kv8": 68, "kv3": 28, "kv4:g32": 40, "kv-bfp6": 52, "kv-bfp6:g64": 52}
    assert {text: parse_cache_format(text).row_bytes(64) for text in sizes} == sizes
    assert parse_cache_format("kv-bfp6:g32").unsupported(80) is not None
    assert parse_cache_format("kv-bfp6:g32").unsupported(16) is None  # one short block


@pytest.mark.parametrize("text", ["kv8:g32", "kv4:plain", "kv-bfp5:g64", "kv-bfp6:sort"])
def test_texts(text: str) -> None:
    assert str(parse_cache_format(text)) == text


@pytest.mark.parametrize("columns", [16, 48])
def test_rotation_is_by_a_power_of_two_and_taken_back(columns: int) -> None:
    format, x = parse_cache_format("kv8"), rows(columns)
    turned = hadamard.transform(x, 16)
    plain = parse_cache_format("kv8:plain")
    stored = format.encode(x)
    assert np.array_equal(stored, plain.encode(turned))
    assert np.array_equal(format.decode_stored(stored, columns), plain.decode(stored, columns))
    assert np.abs(format.decode(stored, columns) - x).max() < 0.2


@pytest.mark.parametrize("text", ["kv4:plain", "kv4:g16:plain", "kv-bfp6:plain"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_makes_its_group_nan(text: str, bad: float) -> None:
    format, x = parse_cache_format(text), rows(32)
    x[0, 0, 3] = bad
    if format.is_blocks and bad == 3e38:
        return  # has a power of two
    y = format.decode(format.encode(x), 32)
    group = format.group_size(32)
    assert np.isnan(y[0, 0, :group]).all()
    assert np.isfinite(y[0, 0, group:]).all() and np.isfinite(y[0, 1:]).all()


def test_rows_of_zero_bytes_are_zeros() -> None:
    for text in ("kv3", "kv-bfp6"):
        format = parse_cache_format(text)
        assert not format.decode(np.zeros((2, format.row_bytes(16)), np.uint8), 16).any()
