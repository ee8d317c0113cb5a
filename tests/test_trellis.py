"""Trellis codes: the code itself, its two encoders, and weights made with it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from abqc.dialects import trellis, trellis_viterbi
from abqc.dialects.formats import QuantizedTensor, parse_scheme, quantize_weight
from abqc.dialects.trellis import Panels
from abqc.dialects.trellis_viterbi import ViterbiSearch
from abqc.dialects.trellis_weight import ColumnEncoder, initial_scale, searched_scale

NUMERICS = json.loads((Path(__file__).parent / "golden" / "numerics.json").read_text())
rates = pytest.mark.parametrize("rate", trellis.RATES)
# Of sigma^2, for Gaussian weights of 576 channels, with room for the sample's own error
# (docs/numerics.md); scalar codes have 0.364, 0.149, 0.0399, 0.0113, 0.0031, 0.0008.
ERRORS = {1: 0.305, 2: 0.0725, 3: 0.0188, 4: 0.0051, 5: 0.00148, 6: 0.00047}


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative_error(w: np.ndarray, q: QuantizedTensor) -> float:
    return float(np.square(q.dequantize() - w).mean() / np.square(w).mean())


def value(bits: list[int], place: int) -> int:
    """A weight's value by the definition, from the bits of its sequence."""
    state = sum(bits[(place + i) % len(bits)] << i for i in range(trellis.STATE_BITS))
    return int(trellis.table()[(state * trellis.MULTIPLIER >> 5) % 128])


# The code


@rates
@pytest.mark.parametrize("n", [16, 40, 300])
def test_decode_is_the_definition(rate: int, n: int) -> None:
    panels = Panels(n)
    symbols = np.random.default_rng(n).integers(0, 1 << rate, (panels.padded_n, 3), np.uint8)
    q = trellis.decode(symbols, n, rate)
    for begin, end in panels.bounds():
        for k in range(3):
            stream = trellis.pack_symbols(symbols[begin:end, k], rate)
            bits = [int(byte) >> i & 1 for byte in stream for i in range(8)]
            expected = [value(bits, row * rate) for row in range(end - begin)]
            np.testing.assert_array_equal(q[begin:end, k], expected[: max(0, n - begin)])


@pytest.mark.parametrize("case", NUMERICS["trellis"], ids=lambda case: f"w{case['bits']}v")
def test_golden_vectors(case: dict[str, Any]) -> None:
    symbols = np.array(case["symbols"], np.uint8)[:, None]
    np.testing.assert_array_equal(trellis.decode(symbols, case["n"], case["bits"])[:, 0], case["q"])


@rates
def test_packing_keeps_symbols(rate: int) -> None:
    symbols = np.random.default_rng(1).integers(0, 1 << rate, (3, 48), np.uint8)
    stream = trellis.pack_symbols(symbols, rate)
    assert stream.shape == (3, 6 * rate)
    np.testing.assert_array_equal(trellis.unpack_symbols(stream, rate), symbols)


def test_the_table_is_of_quantiles() -> None:
    normal = NormalDist(0, trellis.SIGMA)
    quantiles = [normal.inv_cdf((i + 0.5) / trellis.TABLE_SIZE) for i in range(trellis.TABLE_SIZE)]
    np.testing.assert_array_equal(trellis.table(), np.rint(quantiles))


def test_the_table_is_odd_and_ascends() -> None:
    table = trellis.table().astype(int)
    np.testing.assert_array_equal(table, -table[::-1])
    assert (np.diff(table) >= 0).all()
    assert abs(table.std() / trellis.SIGMA - 1) < 0.01


@pytest.mark.parametrize("n", [1, 16, 17, 192, 256, 257, 576, 1000, 25345])
def test_panels_cover_the_channels(n: int) -> None:
    panels = Panels(n)
    bounds = panels.bounds()
    assert (bounds[0][0], bounds[-1][1]) == (0, panels.padded_n)
    assert n <= panels.padded_n < n + 16
    for (begin, end), (following, _) in zip(
        bounds, [*bounds[1:], (panels.padded_n, 0)], strict=True
    ):
        assert end == following and (end - begin) % 16 == 0 and 0 < end - begin <= 256
    assert len(bounds) == panels.count and bounds[-1][0] < n


# The encoders


@rates
@pytest.mark.parametrize("rows", [16, 48, 256])
def test_the_compiled_search_gives_the_symbols_of_the_reference(rate: int, rows: int) -> None:
    x = gaussian(2, rows) * np.float32(trellis.SIGMA)
    x[1, :8] *= 30  # beyond the table
    np.testing.assert_array_equal(ViterbiSearch(rate).encode(x), trellis.encode(x, rate))


def test_threads_that_begin_at_once_run_the_same_code() -> None:
    x = gaussian(4, 64) * np.float32(trellis.SIGMA)
    expected = ViterbiSearch(2).encode(x)
    for _ in range(3):
        trellis_viterbi._compiled.cache_clear()
        with ThreadPoolExecutor(4) as threads:
            searches = [threads.submit(lambda: ViterbiSearch(2).encode(x)) for _ in range(8)]
            for search in searches:
                np.testing.assert_array_equal(search.result(), expected)


def test_sequences_that_the_code_has_are_found() -> None:
    rng = np.random.default_rng(2)
    symbols = rng.integers(0, 4, (64, 5), np.uint8)
    q = trellis.decode(symbols, 64, 2)
    found = trellis.encode(q.T.astype(np.float32), 2)
    np.testing.assert_array_equal(trellis.decode(found.T, 64, 2), q)


@rates
def test_errors_of_gaussian_weights(rate: int) -> None:
    w = gaussian(576, 40) * np.float32(0.02)
    assert relative_error(w, quantize_weight(w, parse_scheme(f"w{rate}v"))) < ERRORS[rate]


# Weights


@pytest.mark.parametrize("text", ["w2v", "w3v:g16", "w1v:tensor"])
@pytest.mark.parametrize("n", [1, 20, 270])
def test_a_column_at_a_time_in_any_order(text: str, n: int) -> None:
    w, scheme = gaussian(n, 40), parse_scheme(text)
    scale = initial_scale(w, scheme)
    encoder = ColumnEncoder(scheme, 40, scale)
    columns = np.random.default_rng(3).permutation(40)
    rounded = {int(column): encoder.encode(int(column), w[:, column]) for column in columns}
    q = encoder.finish()
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(np.stack([rounded[k] for k in range(40)], axis=1), q.dequantize())
    np.testing.assert_array_equal(quantize_weight(w, scheme).codes, q.codes)


def test_a_column_that_comes_again_is_never_worse() -> None:
    scheme, x = parse_scheme("w2v"), gaussian(600, 1)[:, 0]
    encoder = ColumnEncoder(scheme, 1, initial_scale(x[:, None], scheme))
    before = encoder.encode(0, x)
    for number in range(5):
        target = x + np.float32(0.1) * gaussian(600, 1, seed=1 + number)[:, 0]
        after = encoder.encode(0, target)
        assert np.sum((after - target) ** 2) <= np.sum((before - target) ** 2)
        before = after
    np.testing.assert_array_equal(encoder.finish().dequantize()[:, 0], before)


@pytest.mark.parametrize("text", ["w2v", "w2v:g8", "w2v:tensor"])
def test_a_search_never_loses(text: str) -> None:
    w = gaussian(64, 30) ** 3  # heavy tails
    scheme = parse_scheme(text)
    default, searched = (quantize_weight(w, scheme, search=search) for search in (False, True))
    assert relative_error(w, searched) < 0.9 * relative_error(w, default)
    importance = np.geomspace(1e-3, 1e3, 30)
    importance[4] = 0
    q = quantize_weight(w, scheme, search=True, importance=importance)
    errors = [(np.square(x.dequantize() - w) * importance).sum() for x in (searched, q)]
    assert errors[1] < errors[0]


def test_scales_follow_the_tails() -> None:
    normal, scheme = gaussian(300, 64), parse_scheme("w3v")
    np.testing.assert_array_equal(searched_scale(normal, scheme), initial_scale(normal, scheme))
    heavy = normal**3
    ratio = searched_scale(heavy, scheme) / initial_scale(heavy, scheme).astype(np.float32)
    assert (ratio > 1.4).all() and np.ptp(ratio) < 2e-3


def test_zeros_stay_zeros() -> None:
    w = gaussian(20, 12)
    w[3] = 0
    w[5, 4:8] = 0
    for text, zeros in (("w2v", (3,)), ("w2v:g4", (3, (5, slice(4, 8))))):
        q = quantize_weight(w, parse_scheme(text), search=True)
        for place in zeros:
            np.testing.assert_array_equal(q.dequantize()[place], 0)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e9])
def test_what_has_no_codes(broken: float) -> None:
    w = gaussian(4, 6)
    w[2, 3] = broken
    with pytest.raises(ValueError, match=r"NaN or infinity|above the range of f16"):
        quantize_weight(w, parse_scheme("w2v"))


@pytest.mark.parametrize("importance", [np.ones(5), -np.ones(6), np.full(6, np.nan)])
def test_what_is_no_importance(importance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance"):
        quantize_weight(gaussian(4, 6), parse_scheme("w2v"), importance=importance)


def test_schemes() -> None:
    assert parse_scheme("w2v").text == "w2v:channel:sym"
    assert parse_scheme("w3v:g64").n_groups(100) == 2
    for text in ("a2v", "w2v:asym", "w7v", "w2v:e8m0:g32"):
        with pytest.raises(ValueError):
            parse_scheme(text)


def test_bits_per_weight_count_the_padding() -> None:
    q = quantize_weight(gaussian(20, 10), parse_scheme("w2v"))
    assert q.bits_per_weight() == (32 * 10 * 2 + 20 * 16) / 200


def test_a_column_that_is_not_finite_is_an_error() -> None:
    scheme = parse_scheme("w2v")
    encoder = ColumnEncoder(scheme, 4, initial_scale(gaussian(20, 4), scheme))
    with pytest.raises(ValueError, match="NaN or infinity"):
        encoder.encode(1, np.full(20, np.nan, np.float32))
