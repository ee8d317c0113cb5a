"""Scale migration: factors found from data, and what they do to models."""

from __future__ import annotations

from pathlib import Path

import abqc
import numpy as np
import pytest
from abqc.compiler.calibration.balance import (
    Reader,
    balanced_range,
    candidates,
    choose_factors,
    of_channels,
)
from abqc.compiler.calibration.moments import Excess, Moments
from abqc.compiler.calibration.ranges import Static
from abqc.compiler.calibration.row_sample import ROWS, RowSample
from abqc.dialects.formats import parse_scheme
from abqc.errors import RecipeError
from caches import cache_beside
from onnx_models import model as small_model
from onnx_models import node, save

K, N = 44, 30


def rows_with_outliers(rows: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, K)).astype(np.float32)
    x[:, [3, 17]] *= 60
    return x


def weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, K)).astype(np.float32)


def sampled(x: np.ndarray, parts: int = 1) -> RowSample:
    sample = RowSample(x.shape[1])
    for part in np.array_split(x, parts):
        sample.add(part)
    return sample


def test_a_sample_does_not_depend_on_batches() -> None:
    x = rows_with_outliers(5 * ROWS + 7)
    weights = np.arange(len(x), dtype=np.float32)
    one, several = sampled(x), RowSample(K)
    for part in np.array_split(np.arange(len(x)), 9):
        several.add(x[part], weights[part])
    several.add(x[:0])
    np.testing.assert_array_equal(one.rows, several.rows)
    np.testing.assert_array_equal(several.rows, x[several.weights.astype(int)])
    assert ROWS <= len(one.rows) <= 2 * ROWS
    np.testing.assert_array_equal(several.high, x.max(axis=0))
    np.testing.assert_array_equal(several.low, x.min(axis=0))


def test_moments_of_divided_rows() -> None:
    x, wanted = rows_with_outliers(50), rows_with_outliers(50, seed=1)
    factors = np.exp(weight()[0])
    plain, divided = Moments(K), Moments(K)
    plain.add(x, wanted)
    divided.add(x / factors, wanted / factors)
    found = plain.balanced(factors)
    for name in ("own", "total", "lack", "drift"):
        actual, expected = getattr(found, name), getattr(divided, name)
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    excess, other = Excess(N, K), Excess(N, K)
    e = np.random.default_rng(2).standard_normal((50, N)).astype(np.float32)
    excess.add(e, x)
    other.add(e, x / factors)
    found, expected = excess.balanced(factors).product, other.product
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["a8", "a4:token:sym", "abfp4", "a8:tensor"])
@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.parametrize("feedback", [False, True])
def test_factors_take_outliers_off(activation: str, block: int, feedback: bool) -> None:
    scheme = parse_scheme(activation)
    x = rows_with_outliers(300)
    importance = np.square(x).sum(axis=0) if feedback else None
    static = Static(scheme) if scheme.granularity == "tensor" else None
    reader = Reader(weight(), parse_scheme("w8"), scheme, static, block, importance=importance)
    factors = choose_factors([reader], sampled(x), 300)
    assert factors is not None and factors.shape == (K,) and factors.dtype == np.float32
    others = np.delete(factors, [3, 17])
    assert factors[[3, 17]].min() > 2 * others.max()


def test_float_activations_are_balanced_for_their_weights() -> None:
    """AWQ: columns that meet large inputs are rounded with finer steps."""
    reader = Reader(weight(), parse_scheme("w3"), None)
    factors = choose_factors([reader], sampled(rows_with_outliers(300)), 300)
    assert factors is not None and factors[3] > 2 * np.median(factors)


def test_nothing_is_balanced_without_a_gain() -> None:
    x = np.random.default_rng(0).standard_normal((300, K)).astype(np.float32)
    reader = Reader(np.sign(weight()), parse_scheme("w8"), parse_scheme("a8"))
    assert choose_factors([reader], sampled(x), 300) is None
    assert choose_factors([reader], RowSample(K), 0) is None
    zeros = sampled(np.zeros((5, K), np.float32))
    assert choose_factors([reader], zeros, 5) is None


def test_candidates_are_finite_and_positive() -> None:
    x = rows_with_outliers(20)
    x[:, 5] = 0
    w = weight()
    w[:, 6] = 0
    found = list(candidates([Reader(w, parse_scheme("w8"), None)], sampled(x)))
    assert all(np.isfinite(s).all() and (s > 0).all() for s in found)
    assert all(s[5] > 0.09 * np.median(s) for s in found)  # other data may use it


def test_channels_come_to_one_range() -> None:
    x = rows_with_outliers(200)
    sample = sampled(x)
    factors = of_channels(sample, symmetric=True)
    assert factors is not None
    divided = x / factors
    reach = np.abs(divided).max(axis=0)
    np.testing.assert_allclose(reach, reach[0], rtol=1e-5)
    measured = balanced_range(sample, factors, 0)
    assert measured.high == pytest.approx(divided.max()) and measured.low == divided.min()


class Compiled:
    """Two products of inputs that have two large channels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        constants = {"up": weight().T / 6, "down": weight(1)[:, :20] / 6}
        nodes = [
            node("MatMul", "x up", "u", "up"),
            node("Relu", "u", "r"),
            node("MatMul", "r down", "y", "down"),
        ]
        shapes = ("x", np.float32, ["rows", K]), ("y", np.float32, ["rows", 20])
        self.model = save(small_model(nodes, [shapes[0]], [shapes[1]], constants), folder)
        self.samples = {"x": rows_with_outliers(300)}
        self.x = rows_with_outliers(100, seed=1)
        self.expected = np.maximum(self.x @ constants["up"], 0) @ constants["down"]

    def error(self, recipe: str, *, calibrated: bool = True) -> float:
        library = self.folder / "model.so"
        calib = self.samples if calibrated else None
        compiled = abqc.compile(self.model, quant=recipe, calib=calib, output=library, strict=True)
        return float(np.square(compiled.run({"x": self.x})[0] - self.expected).mean())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("balance"))


def test_rounding_to_nearest_after_balance(models: Compiled) -> None:
    plain = models.error("w8a8 rtn", calibrated=False)
    assert models.error("w8a8 rtn balance") < 0.6 * plain


@pytest.mark.slow
def test_error_feedback_after_balance(models: Compiled) -> None:
    plain, balanced = (models.error(f"w8a4 gptq shift{word}") for word in ("", " balance"))
    assert balanced < 0.6 * plain


@pytest.mark.slow
def test_scales_for_channels(models: Compiled) -> None:
    plain, each = (models.error(f"w8 a8:{shared} gptq") for shared in ("tensor", "channel"))
    assert each < plain


def test_factors_are_kept(models: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABQC_CACHE", cache_beside(models.folder / "cache"))
    first, second = (models.error("w4 a8:tensor balance rotate gptq") for _ in range(2))
    assert first == second
    kept = (models.folder / "cache" / "calibration").glob("*/*.npz")
    assert all("balance" in np.load(path) for path in kept)


def test_balance_needs_data(models: Compiled) -> None:
    for recipe, what in (("w8a8 balance", "balance"), ("w8 a8:channel", "a static scale for each")):
        with pytest.raises(RecipeError, match=f"{what}.* needs calibration data"):
            models.error(recipe, calibrated=False)
