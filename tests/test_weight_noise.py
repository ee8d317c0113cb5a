"""The noise of stored weights, and that artifacts hold it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from abqc.dialects.weight_noise import BINS, SAMPLED, signal_to_noise, weight_noise
from abqc.runtime.artifact import manifest_of

WEIGHT = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


def test_signal_to_noise_by_hand() -> None:
    exact, actual = np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 4.5]], np.float32)
    assert signal_to_noise(exact, actual) == pytest.approx(20)  # 25 over 0.25


def test_no_noise_has_no_ratio() -> None:
    assert signal_to_noise(WEIGHT, WEIGHT) is None
    assert weight_noise(WEIGHT, WEIGHT).as_manifest()["snr_db"] is None


def test_zeros_that_become_something_are_all_noise() -> None:
    assert signal_to_noise(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)) == 0


def test_uniform_rounding_has_the_noise_of_its_step() -> None:
    step = np.float32(0.25)
    noise = weight_noise(WEIGHT, np.rint(WEIGHT / step) * step)
    assert noise.snr_db == pytest.approx(10 * np.log10(12 / step**2), abs=0.3)


def test_histograms_count_samples_in_the_same_bins() -> None:
    large = np.tile(WEIGHT, (1, 2 * SAMPLED // WEIGHT.size))
    noise = weight_noise(large, np.rint(large))
    assert len(noise.before) == len(noise.after) == BINS
    assert SAMPLED // 2 <= sum(noise.before) == sum(noise.after) <= 2 * SAMPLED
    assert np.count_nonzero(noise.after) < np.count_nonzero(noise.before)


def test_a_weight_of_zeros_has_a_histogram() -> None:
    zeros = np.zeros((2, 2), np.float32)
    assert sum(weight_noise(zeros, zeros).before) == 4


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        weight_noise(WEIGHT, WEIGHT.T)


def test_artifacts_hold_the_noise_of_their_weights(compiled: Callable[[str, str], Path]) -> None:
    ops = manifest_of(compiled("digits_mlp", "w4a8"))["ops"]
    assert ops and all(10 < op["snr_db"] < 40 for op in ops)
    assert all(sum(op["histogram"]["before"]) > 0 for op in ops)
