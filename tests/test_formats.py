"""The table of number formats, schemes, and quantization, against docs/numerics.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from abqc.dialects.formats import (
    BLOCK_FORMATS,
    FORMATS,
    NumberFormat,
    QuantizedTensor,
    Scheme,
    parse_scheme,
    quantize_activation,
    quantize_weight,
    widths,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
NUMERICS: dict[str, list[dict[str, Any]]] = json.loads((GOLDEN / "numerics.json").read_text())

# Whose weights are rounded one by one; trellis codes are tested in test_trellis.py.
SCALAR = {name: row for name, row in FORMATS.items() if row.kind != "trellis"}
all_formats = pytest.mark.parametrize("row", SCALAR.values(), ids=SCALAR.keys())
SYMMETRIES = ("sym", "asym")
WEIGHT_SCHEMES = [
    scheme
    for row in SCALAR.values()
    for scheme in (
        Scheme("w", row, "group", 5),
        Scheme("w", row, "channel"),
        Scheme("w", row, "tensor"),
    )
]
ACTIVATION_SCHEMES = [parse_scheme(f"a{n}:{how}") for n in range(1, 9) for how in SYMMETRIES]
weight_schemes = pytest.mark.parametrize("scheme", WEIGHT_SCHEMES, ids=str)
activation_schemes = pytest.mark.parametrize("scheme", ACTIVATION_SCHEMES, ids=str)


def floats(*shape: int, limit: float = 100.0) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, shape, elements=st.floats(-limit, limit, width=32))


def weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def row_of(width: str, symmetric: bool) -> NumberFormat:
    (row,) = [r for r in FORMATS.values() if (r.width, r.symmetric) == (width, symmetric)]
    return row


# The table


def test_the_table_holds_every_format_of_the_page() -> None:
    integers = {(str(n), symmetric) for n in range(1, 9) for symmetric in (True, False)}
    others = (
        "2*",
        "t",
        "t5",
        "fp4",
        "fp6",
        "fp6e3m2",
        "fp8",
        "fp8e5m2",
        "nf4",
        *(f"{rate}v" for rate in range(1, 7)),
    )
    assert {(r.width, r.symmetric) for r in FORMATS.values()} == integers | {
        (width, True) for width in others
    }
    assert all(name == row.name for name, row in FORMATS.items())


@all_formats
def test_codes_are_their_own_values(row: NumberFormat) -> None:
    one = np.ones(1, np.float32)
    codes = row.codes.astype(row.dtype)
    values = row.decode(codes, one)
    if not row.indexed:
        assert (codes.min(), codes.max()) == (row.qmin, row.qmax)
        np.testing.assert_array_equal(values, row.codes)
    if row.has_integers:
        integers = row.integers(codes)
        assert (integers.min(), integers.max()) == (row.qmin, row.qmax)
        np.testing.assert_array_equal(integers * row.unit, values)
    np.testing.assert_array_equal(row.encode(values, one), codes)


@all_formats
def test_bits_hold_every_code(row: NumberFormat) -> None:
    codes = row.codes.astype(row.dtype)
    stored = row.to_bits(codes)
    assert stored.max() < 1 << row.bits
    np.testing.assert_array_equal(row.from_bits(stored), codes)


@all_formats
def test_encode_takes_the_nearest_value(row: NumberFormat) -> None:
    values = row.decode(row.codes.astype(row.dtype), np.ones(1, np.float32))
    beyond = 0.1 * row.largest if row.indexed else 1
    x = np.linspace(values.min() - beyond, values.max() + beyond, 997, dtype=np.float32)
    scale = np.float32(0.37)
    error = np.abs(row.decode(row.encode(x * scale, scale), scale) - x * scale)
    best = np.abs(values[:, None] * scale - x * scale).min(axis=0)
    np.testing.assert_allclose(error, best, atol=1e-5 * max(1, row.largest / 127))


def test_ties_go_to_even_and_zeros_of_either_sign_are_positive() -> None:
    one = np.float32(1)
    ties = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    np.testing.assert_array_equal(FORMATS["int8"].encode(ties, one), [0, 2, 2, 0, -2, -2])
    zeros = np.array([0.0, -0.0], np.float32)
    np.testing.assert_array_equal(FORMATS["binary"].encode(zeros, one), [1, 1])


# Schemes


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("w4", "w4:g128:sym"),
        ("w5", "w5:channel:sym"),
        ("w8", "w8:channel:sym"),
        ("w2*", "w2*:g128:sym"),
        ("wt", "wt:g128:sym"),
        ("wt:channel", "wt:channel:sym"),
        ("wt5", "wt5:channel:sym"),
        ("w4:asym:g64", "w4:g64:asym"),
        ("w3:tensor", "w3:tensor:sym"),
        ("wfp4", "wfp4:g128:sym"),
        ("wnf4", "wnf4:g64:sym"),
        ("wfp8", "wfp8:channel:sym"),
        ("w4:g32:e8m0", "w4:g32:sym:e8m0"),
        ("wmxfp4", "wfp4:g32:sym:e8m0"),
        ("wmxfp6e3m2", "wfp6e3m2:g32:sym:e8m0"),
        ("wmxint8", "w8:g32:sym:e8m0"),
        ("wnvfp4", "wfp4:g16:sym:e4m3"),
        ("wbfp5", "w5:g32:sym:e8m0"),
        ("wbfp3:g128", "w3:g128:sym:e8m0"),
        ("a8", "a8:token:asym"),
        ("a4:sym", "a4:token:sym"),
        ("a8:image", "a8:image:asym"),
        ("abfp8", "a8:g32:sym:e8m0"),
        ("abfp4:g64", "a4:g64:sym:e8m0"),
        ("amxfp8", "afp8:g32:sym:e8m0"),
    ],
)
def test_defaults(text: str, canonical: str) -> None:
    scheme = parse_scheme(text)
    assert scheme.text == canonical
    assert parse_scheme(canonical) == scheme
    assert hash(parse_scheme(canonical)) == hash(scheme)


@pytest.mark.parametrize("scheme", WEIGHT_SCHEMES + ACTIVATION_SCHEMES, ids=str)
def test_canonical_text_reads_back(scheme: Scheme) -> None:
    assert parse_scheme(scheme.text) == scheme


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must begin with 'w'"),
        ("4", "must begin with 'w'"),
        ("w9", "use one of w1, w1v, w2, w2\\*, w2v, w3"),
        ("w", "no weights of width ''"),
        ("at", "no activations of width 't'"),
        ("a2*", "no activations of width '2\\*'"),
        ("a16", "no activations of width '16'"),
        ("w4:token", "'token' is no granularity of weights; use one of tensor, channel, gN"),
        ("a4:g32", "blocks of activations share powers of two; write abfp8"),
        ("abfp8:g48", "have 16, 32, 64 or 128 elements"),
        ("afp8:token:sym", "a format of weights, not of activations"),
        ("anvfp4", "no activations of width 'nvfp4'"),
        ("w4:g0", "at least one weight"),
        ("w4:g", "'g' is no granularity"),
        ("w2*:asym", "always symmetric"),
        ("w4:sym:asym", "given twice"),
        ("w4:g4:channel", "given twice"),
        ("w4:e8m0:e4m3", "given twice"),
        ("w4:asym:e8m0", "e8m0 belong to symmetric scalar formats"),
        ("w1:e4m3", "e4m3 belong to symmetric scalar formats"),
        ("a8:e8m0", "scales of activations are f32"),
        ("afp4", "no activations of width 'fp4'"),
        ("wnf4:asym", "always symmetric"),
        ("wmxfp4:g64", "has blocks and scales of its own; write wfp4:g32:e8m0"),
        ("wnvfp4:e8m0", "write wfp4:g16:e4m3"),
        ("wbfp4:e4m3", "write w4:g32:e8m0"),
    ],
)
def test_what_is_no_scheme(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_scheme(text)


@given(st.integers(1, 300), st.integers(1, 300))
def test_groups_cover_k(group_size: int, k: int) -> None:
    scheme = parse_scheme(f"w4:g{group_size}")
    bounds = scheme.group_bounds(k)
    assert len(bounds) == scheme.n_groups(k)
    assert [i for begin, end in bounds for i in range(begin, end)] == list(range(k))
    assert all(end - begin == group_size for begin, end in bounds[:-1])


def test_widths_of_each_role() -> None:
    blocks = {name for name, row in BLOCK_FORMATS.items() if row.scale == "e8m0"}
    assert set(widths("a")) == {*"12345678"} | blocks
    assert set(widths("w")) == {row.width for row in FORMATS.values()} | set(BLOCK_FORMATS)


# Weights


@weight_schemes
@pytest.mark.parametrize("search", [False, True])
def test_weight_codes_are_made_with_the_stored_scale(scheme: Scheme, search: bool) -> None:
    w = weight(1, 6, 17)
    q = quantize_weight(w, scheme, search=search)
    assert q.codes.dtype == scheme.format.dtype and q.scale.dtype == scheme.scale_dtype
    assert q.codes.shape == (6, 17) and q.scale.shape == (6, scheme.n_groups(17))
    for g, (begin, end) in enumerate(scheme.group_bounds(17)):
        scale = q.scale[:, g, None].astype(np.float32)
        zero = None if q.zero is None else q.zero[:, g, None].astype(np.float32)
        part = slice(begin, end)
        np.testing.assert_array_equal(
            q.codes[:, part], scheme.format.encode(w[:, part], scale, zero)
        )
        np.testing.assert_array_equal(
            q.dequantize()[:, part], scheme.format.decode(q.codes[:, part], scale, zero)
        )


@weight_schemes
def test_search_never_loses(scheme: Scheme) -> None:
    w = weight(2, 8, 23) ** 3  # heavy tails
    bounds = [(0, 23)] if scheme.granularity == "tensor" else scheme.group_bounds(23)
    for begin, end in bounds:
        part = slice(begin, end)
        default, searched = (
            np.square(quantize_weight(w, scheme, search=s).dequantize() - w)[:, part]
            for s in (False, True)
        )
        axis = None if scheme.granularity == "tensor" else 1
        assert (searched.sum(axis) <= default.sum(axis) * (1 + 1e-5)).all()


@weight_schemes
def test_importance_weighs_the_errors_of_a_search(scheme: Scheme) -> None:
    w, importance = weight(12, 6, 23) ** 3, np.geomspace(1e-6, 1e6, 23) ** 0.5
    importance[[3, 22]] = 0
    bounds = [(0, 23)] if scheme.granularity == "tensor" else scheme.group_bounds(23)
    errors = [
        np.square(quantize_weight(w, scheme, search=search, importance=importance).dequantize() - w)
        * importance
        for search in (False, True)
    ]
    for begin, end in bounds:
        axis = None if scheme.granularity == "tensor" else 1
        default, searched = (error[:, begin:end].sum(axis) for error in errors)
        assert (searched <= default * (1 + 1e-5) + 1e-12 * importance.max()).all()


def test_equal_importance_changes_nothing() -> None:
    w = weight(13, 5, 20)
    for text in ("w3:g6", "w2*:channel", "w2:tensor:asym"):
        scheme = parse_scheme(text)
        plain = quantize_weight(w, scheme, search=True)
        weighted = quantize_weight(w, scheme, search=True, importance=np.full(20, 3.0))
        np.testing.assert_array_equal(weighted.codes, plain.codes)


@pytest.mark.parametrize("importance", [np.ones(19), -np.ones(20), np.full(20, np.nan)])
def test_what_is_no_importance(importance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance"):
        quantize_weight(weight(14, 2, 20), parse_scheme("w4"), search=True, importance=importance)


@pytest.mark.parametrize(
    "scheme",
    [s for s in WEIGHT_SCHEMES if s.format.default_scale == "range" and not s.format.indexed],
    ids=str,
)
@given(floats(3, 11))
@settings(max_examples=15, deadline=None)
def test_error_within_range_is_half_a_step(scheme: Scheme, w: np.ndarray) -> None:
    """A scale that covers the range clips by no more than the rounding of scale and zero."""
    q = quantize_weight(w, scheme)
    step = np.repeat(q.scale.astype(np.float32), scheme.group_size or 11, axis=1)[:, :11]
    slack = 0.5 + 2.0**-11 * (scheme.format.qmax + 1) + (0 if scheme.symmetric else 0.5)
    assert (np.abs(q.dequantize() - w) <= slack * step * (1 + 1e-5)).all()


@weight_schemes
def test_zeros_stay_zeros(scheme: Scheme) -> None:
    w = weight(3, 4, 10)
    w[1] = 0
    if scheme.granularity == "tensor":
        w[:] = 0
    q = quantize_weight(w, scheme)
    np.testing.assert_array_equal(q.dequantize()[1], 0)
    assert (q.scale[1] == (0 if scheme.format.kind == "binary" else 1)).all()


@all_formats
def test_values_of_the_format_are_kept(row: NumberFormat) -> None:
    """A weight that holds the format's own values, the extreme ones in every group, is exact."""
    rng = np.random.default_rng(4)
    values = row.decode(row.codes.astype(row.dtype), np.ones(1, np.float32))
    w = rng.choice(values[np.abs(values) <= row.largest], (5, 24)).astype(np.float32)
    w[:, ::6] = row.largest
    w *= np.float32(0.0625)
    for search in (False, True):
        q = quantize_weight(w, Scheme("w", row, "group", 6), search=search)
        np.testing.assert_array_equal(q.dequantize(), w)


@pytest.mark.parametrize("text", ["w4:g7", "w1", "wt:channel", "w3:g4:asym"])
def test_row_chunks_do_not_show(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, scheme = weight(5, 30, 25), parse_scheme(text)
    whole = quantize_weight(w, scheme)
    monkeypatch.setattr("abqc.dialects.formats.CHUNK_ELEMENTS", 60)
    chunked = quantize_weight(w, scheme)
    np.testing.assert_array_equal(chunked.codes, whole.codes)
    np.testing.assert_array_equal(chunked.scale, whole.scale)


def test_convolution_weights_are_flattened() -> None:
    w, scheme = weight(6, 4, 3, 2, 2), parse_scheme("w4:channel")
    q = quantize_weight(w, scheme)
    np.testing.assert_array_equal(q.codes, quantize_weight(w.reshape(4, 12), scheme).codes)


@pytest.mark.parametrize("text", ["w8", "w4:asym", "w1", "w2*"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-8, 3e-7, 1e-5, 6e4])
def test_scales_at_the_ends_of_f16(text: str, magnitude: float) -> None:
    w = weight(7, 3, 8) * np.float32(magnitude / 4)
    q = quantize_weight(w, parse_scheme(text), search=True)
    assert np.isfinite(q.dequantize()).all() and (q.scale > 0).all()
    step = q.scale.astype(np.float32) * (4 if text == "w1" else 1)
    assert (np.abs(q.dequantize() - w) <= np.maximum(step, 0.6 * np.abs(w))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = weight(8, 3, 9)
    w[2, 8] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_weight(w, parse_scheme("w4:g4"))


def test_a_scale_beyond_f16_is_refused() -> None:
    with pytest.raises(ValueError, match="range of f16"):
        quantize_weight(np.full((2, 4), 1e6, np.float32), parse_scheme("w2"))
    with pytest.raises(ValueError, match="no scheme for weights"):
        quantize_weight(np.ones((2, 4), np.float32), parse_scheme("a4"))


def test_bits_per_weight_count_scales_and_zeros() -> None:
    w = weight(9, 2, 256)
    for text, expected in (
        ("w4:g128", 4 + 16 / 128),
        ("w4:g128:asym", 4 + (16 + 4) / 128),
        ("w8", 8 + 16 / 256),
        ("w2*", 3 + 16 / 128),
        ("wmxfp4", 4 + 8 / 32),
        ("wmxfp6", 6 + 8 / 32),
        ("wbfp3:g64", 3 + 8 / 64),
        ("wnvfp4", 4 + 8 / 16 + 32 / w.size),
        ("wnf4", 4 + 16 / 64),
    ):
        assert quantize_weight(w, parse_scheme(text)).bits_per_weight() == expected


def test_a_quantized_tensor_checks_its_parts() -> None:
    q = quantize_weight(weight(10, 4, 8), parse_scheme("w4:g4:asym"))
    with pytest.raises(ValueError, match="zero points"):
        QuantizedTensor(q.codes, q.scale, None, q.scheme)
    with pytest.raises(ValueError, match="scales of shape"):
        QuantizedTensor(q.codes, q.scale[:, :1], q.zero, q.scheme)
    with pytest.raises(ValueError, match="codes of uint8"):
        QuantizedTensor(q.codes.astype(np.int8), q.scale, q.zero, q.scheme)


# Activations


@activation_schemes
@given(floats(4, 7, limit=2.0**127))
@settings(max_examples=25, deadline=None)
def test_activation_error(scheme: Scheme, x: np.ndarray) -> None:
    codes, scale, zero = quantize_activation(x, scheme)
    assert codes.dtype == scheme.format.dtype
    assert (scale.dtype, zero.dtype) == (np.float32, np.int32)
    fine = np.isfinite(scale)
    row = scheme.format
    assert np.isin(codes[fine], row.codes).all() and (codes[~fine] == 0).all()
    if row.kind == "binary":
        assert ((codes < 0) == (x < 0))[fine].all()
        return
    steps = codes.astype(np.float64) - zero[:, None]
    with np.errstate(invalid="ignore"):
        error = np.abs(steps * scale[:, None].astype(np.float64) - x)
    # A subnormal scale is coarse; an unsigned one shifts by up to half a step for its zero point.
    slack = scale * (0.5 if row.symmetric else 1.0) * 1.0001 + row.qmax * np.float32(1e-44)
    assert (error <= slack[:, None])[fine].all()


@activation_schemes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_row_is_nan_and_the_others_are_not(scheme: Scheme, bad: float) -> None:
    x = weight(11, 3, 20)
    good = quantize_activation(x, scheme)
    x[1, 19] = bad
    codes, scale, zero = quantize_activation(x, scheme)
    assert np.isnan(scale[1]) and zero[1] == 0 and (codes[1] == 0).all()
    for part, whole in zip((codes, scale, zero), good, strict=True):
        np.testing.assert_array_equal(part[[0, 2]], whole[[0, 2]])


@activation_schemes
def test_a_row_of_zeros(scheme: Scheme) -> None:
    codes, scale, zero = quantize_activation(np.zeros((1, 5), np.float32), scheme)
    assert scale[0] == (0 if scheme.format.kind == "binary" else 1) and zero[0] == 0
    np.testing.assert_array_equal(scheme.format.decode(codes, scale), 0)


@pytest.mark.parametrize("how", SYMMETRIES)
def test_rows_of_an_image_share_a_scale(how: str) -> None:
    x = weight(12, 6, 5)
    codes, scale, zero = quantize_activation(x, parse_scheme(f"a8:image:{how}"), image_rows=3)
    flat, flat_scale, flat_zero = quantize_activation(
        x.reshape(2, 15), parse_scheme(f"a8:token:{how}")
    )
    np.testing.assert_array_equal(codes.reshape(2, 15), flat)
    np.testing.assert_array_equal(scale, np.repeat(flat_scale, 3))
    np.testing.assert_array_equal(zero, np.repeat(flat_zero, 3))
    whole = quantize_activation(x, parse_scheme(f"a8:tensor:{how}"))[1]
    assert (whole == whole[0]).all()
    with pytest.raises(ValueError, match="no multiple"):
        quantize_activation(x, parse_scheme("a8:image"), image_rows=4)


# Golden vectors


def test_golden_vectors_are_what_their_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GOLDEN))
    import make_numerics

    assert (GOLDEN / "numerics.json").read_text() == make_numerics.text()
    sys.modules.pop("make_numerics")


@pytest.mark.parametrize("case", NUMERICS["formats"], ids=lambda case: case["width"])
def test_golden_codes(case: dict[str, Any]) -> None:
    row = row_of(case["width"], case["symmetric"])
    assert row.codes.tolist() == case["codes"]
    assert row.to_bits(row.codes.astype(row.dtype)).tolist() == case["stored"]


@pytest.mark.parametrize("case", NUMERICS["weights"], ids=lambda case: case["scheme"])
def test_golden_weights(case: dict[str, Any]) -> None:
    q = quantize_weight(np.array(case["w"], np.float32), parse_scheme(case["scheme"]))
    np.testing.assert_array_equal(q.scale.astype(np.float64), case["scale"])
    np.testing.assert_array_equal(0 if q.zero is None else q.zero, case["zero"])
    np.testing.assert_array_equal(q.codes, case["codes"])


@pytest.mark.parametrize("case", NUMERICS["activations"], ids=lambda case: case["scheme"])
def test_golden_activations(case: dict[str, Any]) -> None:
    x = np.array(case["x"], np.float32)
    codes, scale, zero = quantize_activation(x, parse_scheme(case["scheme"]))
    np.testing.assert_array_equal(scale.astype(np.float64), case["scale"])
    np.testing.assert_array_equal(zero, case["zero"])
    np.testing.assert_array_equal(codes, case["codes"])


def test_clipped_activations_lose_less_of_gaussian_rows() -> None:
    x = np.random.default_rng(0).standard_normal((64, 576)).astype(np.float32)
    errors = {}
    for text in ("a4", "a4:c80"):
        scheme = parse_scheme(text)
        assert parse_scheme(scheme.text) == scheme
        codes, scale, zero = quantize_activation(x, scheme)
        values = (codes.astype(np.float32) - zero[:, None]) * scale[:, None]
        errors[text] = float(np.square(values - x).mean())
    assert errors["a4:c80"] < 0.85 * errors["a4"]
    for wrong in ("w4:c80", "a1:token:sym:c80", "a8:g32:c80", "a4:c80:c70"):
        with pytest.raises(ValueError):
            parse_scheme(wrong)
