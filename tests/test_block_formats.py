"""Formats of tables and blocks: minifloats, NF4, and scales that are stored in a byte."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from abqc.dialects.formats import (
    FORMATS,
    QuantizedTensor,
    parse_scheme,
    quantize_activation,
    quantize_weight,
    round_activation,
)
from abqc.dialects.group_scales import WeightGroups
from abqc.dialects.number_formats import NF4
from abqc.dialects.scale_types import SCALE_TYPES

FLOATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
BLOCKS = ["wmxfp4", "wmxfp6", "wmxfp6e3m2", "wmxfp8", "wmxfp8e5m2", "wmxint8", "wbfp2", "wbfp5:g64"]
floats = pytest.mark.parametrize("name", FLOATS)


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@floats
def test_codes_are_those_of_ml_dtypes(name: str) -> None:
    row, type_ = FORMATS[name], FLOATS[name]
    stored = np.arange(1 << row.bits, dtype=np.uint8)
    theirs = stored.view(type_).astype(np.float32)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(row.values[finite], theirs[finite])
    assert np.isnan(row.values[~finite]).all()
    assert row.largest == float(ml_dtypes.finfo(type_).max)


@floats
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    """Nearest, ties to even, subnormals; what is beyond the largest value saturates."""
    row, type_ = FORMATS[name], FLOATS[name]
    values = row.values[np.isfinite(row.values)]
    middles = (np.sort(values)[1:] + np.sort(values)[:-1]) / 2
    x = np.concatenate([values, middles, np.nextafter(middles, np.float32(9e9)), weight(0, 999)])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(
        row.decode(row.encode(x, np.float32(1)), np.float32(1)), x.astype(type_).astype(np.float32)
    )
    beyond = np.array([1e9, -1e9], np.float32)
    saturated = row.decode(row.encode(beyond, np.float32(1)), np.float32(1))
    np.testing.assert_array_equal(saturated, [row.largest, -row.largest])


def test_nf4_takes_the_nearest_entry() -> None:
    row, x = FORMATS["nf4"], np.linspace(-1.2, 1.2, 501, dtype=np.float32)
    table = np.array(NF4, np.float32)
    nearest = table[np.abs(x[:, None] - table).argmin(axis=1)]
    np.testing.assert_array_equal(row.decode(row.encode(x, np.float32(1)), np.float32(1)), nearest)


@pytest.mark.parametrize("text", BLOCKS)
def test_shared_exponents_are_those_of_the_mx_specification(text: str) -> None:
    """2^(floor(log2(max)) - emax), stored as E8M0; blocks of zeros have the scale 1."""
    w, scheme = (
        weight(1, 7, 200) * np.exp2(np.arange(-20, 15, 5, dtype=np.float32))[:, None],
        (parse_scheme(text)),
    )
    w[2] = 0
    q = quantize_weight(w, scheme)
    emax = np.floor(np.log2(scheme.format.largest))
    for g, (begin, end) in enumerate(scheme.group_bounds(200)):
        reach = np.abs(w[:, begin:end]).max(axis=1)
        expected = np.where(reach > 0, np.exp2(np.floor(np.log2(reach + (reach == 0))) - emax), 1)
        np.testing.assert_array_equal(q.scale[:, g], expected)
    stored = SCALE_TYPES["e8m0"].store(q.scale, 1.0)
    np.testing.assert_array_equal(stored.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), q.scale)


def test_powers_of_two_at_the_ends_of_e8m0() -> None:
    for magnitude in (1e-38, 3e38):
        q = quantize_weight(np.full((1, 32), magnitude, np.float32), parse_scheme("wmxfp8e5m2"))
        assert np.isfinite(q.dequantize()).all()
        stored = SCALE_TYPES["e8m0"].store(q.scale, 1.0)
        assert stored.view(ml_dtypes.float8_e8m0fnu).astype(np.float32) == q.scale


def test_scales_of_nvfp4_are_e4m3_times_one_f32() -> None:
    w, scheme = weight(2, 9, 100) ** 3, parse_scheme("wnvfp4")
    w[3, 16:48] = 0
    q = quantize_weight(w, scheme)
    assert q.tensor_scale == np.float32(np.abs(w).max()) / np.float32(6 * 448)
    stored = SCALE_TYPES["e4m3"].store(q.scale, q.tensor_scale)
    numbers = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(numbers * np.float32(q.tensor_scale), q.scale)
    reach = np.abs(np.pad(w, ((0, 0), (0, 12)))).reshape(9, 7, 16).max(axis=2)
    expected = (reach / 6 / q.tensor_scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    normal = reach / 6 / q.tensor_scale > 2.0**-9
    np.testing.assert_array_equal(numbers[normal], expected.astype(np.float32)[normal])


@pytest.mark.parametrize("text", [*BLOCKS, "wnvfp4", "w3:g20:e4m3", "wt:g24:e8m0", "wfp4:tensor"])
def test_a_search_of_stored_scales_never_loses(text: str) -> None:
    w, scheme = weight(3, 20, 150) ** 3, parse_scheme(text)
    importance = np.geomspace(1, 100, 150)
    errors = []
    for search in (False, True):
        q = quantize_weight(w, scheme, search=search, importance=importance)
        SCALE_TYPES[scheme.scale].store(q.scale, q.tensor_scale)
        errors.append((np.square(q.dequantize() - w) * importance).sum())
    assert errors[1] <= errors[0] * (1 + 1e-5)
    assert errors[1] < errors[0] or "fp8" in text or scheme.format.default_scale == "search"


def test_rows_of_a_weight_share_its_tensor_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    w, scheme = weight(4, 30, 64), parse_scheme("wnvfp4")
    whole = quantize_weight(w, scheme)
    monkeypatch.setattr("abqc.dialects.formats.CHUNK_ELEMENTS", 128)
    chunked = quantize_weight(w, scheme)
    np.testing.assert_array_equal(chunked.scale, whole.scale)
    choice = WeightGroups.split(w, scheme).choose(search=False)
    assert choice.tensor_scale == whole.tensor_scale
    np.testing.assert_array_equal(choice.scale, whole.scale)


def test_columns_are_encoded_with_scales_that_were_chosen_before() -> None:
    """What error feedback does: values of a column to codes, and the decoded values back."""
    w = weight(5, 12, 70)
    for text in (*BLOCKS, "wnvfp4", "wnf4:g16", "wfp8", "w4:g16"):
        scheme = parse_scheme(text)
        whole, groups = quantize_weight(w, scheme), WeightGroups.split(w, scheme)
        choice = groups.choose(search=False)
        for column in (0, 33, 69):
            scale = choice.scale[:, column // (scheme.group_size or 70)].astype(np.float32)
            codes = scheme.format.encode(w[:, column], scale)
            np.testing.assert_array_equal(codes, whole.codes[:, column])
            np.testing.assert_array_equal(
                scheme.format.decode(codes, scale), whole.dequantize()[:, column]
            )


@pytest.mark.parametrize(("text", "bad"), [("wmxfp4", 0.75), ("wnvfp4", 0.26)])
def test_scales_that_have_no_bits_are_refused(text: str, bad: float) -> None:
    q = quantize_weight(weight(6, 2, 64), parse_scheme(text))
    scale = q.scale * np.float32(bad)
    q = QuantizedTensor(q.codes, scale, None, q.scheme, q.tensor_scale)
    with pytest.raises(ValueError, match=f"a scale of type {q.scheme.scale} is"):
        SCALE_TYPES[q.scheme.scale].store(q.scale, q.tensor_scale)


@pytest.mark.parametrize("text", ["abfp8", "abfp3:g64", "amxfp4", "amxfp8", "amxfp6e3m2"])
def test_blocks_of_activations_are_rounded_as_weights_are(text: str) -> None:
    x = weight(7, 5, 150) * np.exp2(np.arange(-9, 16, 5, dtype=np.float32))[:, None]
    x[3] = 0
    scheme = parse_scheme(text)
    same = parse_scheme(f"w{scheme.text[1:]}")
    np.testing.assert_array_equal(
        round_activation(x, scheme), quantize_weight(x, same).dequantize()
    )
    x[1, 40] = np.inf
    broken = np.isnan(round_activation(x, scheme))
    size = scheme.group_size or 0
    assert broken[1, 40 // size * size : 40 // size * size + size].all()
    assert broken.sum() == min(size, 150 - 40 // size * size)
    with pytest.raises(ValueError, match="one scale a row"):
        quantize_activation(x, scheme)
