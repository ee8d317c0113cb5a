"""Random selective scans and their results, for tests of kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from abqc.dialects.reference_selective_scan import selective_scan
from abqc.dialects.scan_spec import ScanSpec

# Batch, steps, channels, states: whole and ragged blocks, one of each, no steps.
SHAPES = ((2, 5, 16, 4), (1, 7, 33, 16), (3, 1, 1, 1), (2, 4, 20, 3), (1, 0, 5, 2), (1, 3, 7, 9))


@dataclass
class Scan:
    """The arguments of a kernel, flat and in its order, without what it writes, and its results."""

    spec: ScanSpec
    shape: tuple[int, int, int, int]
    arguments: list[np.ndarray]
    y: np.ndarray
    state: np.ndarray


def random_scan(
    shape: tuple[int, int, int, int], *, softplus: bool, initial: bool, codes: bool
) -> Scan:
    batch, steps, channels, states = shape
    rng = np.random.default_rng(sum(shape) + 2 * softplus + initial)
    x = rng.standard_normal((batch, steps, channels)).astype(np.float32)
    delta = rng.uniform(-4, 3, x.shape) if softplus else rng.uniform(0, 1.5, x.shape)
    a = -np.exp(rng.standard_normal((channels, states))).astype(np.float32)
    b, c = rng.standard_normal((2, batch, steps, states)).astype(np.float32)
    first = rng.standard_normal((batch, channels, states)).astype(np.float32)
    scanned, parameters = [x, delta.astype(np.float32), b, c], []
    values = [array.astype(np.float64) for array in scanned]
    if codes:
        for number, array in enumerate(scanned):
            scale, zero = np.float32(rng.uniform(0.01, 0.03)), np.int32(rng.integers(-20, 20))
            code = np.clip(np.rint(array / scale) + zero, -128, 127).astype(np.int8)
            scanned[number] = code
            values[number] = np.float64(scale) * (code.astype(np.float64) - zero)
            parameters += [np.array([scale]), np.array([zero])]
    x, delta, b, c = values
    y, state = selective_scan(
        x, delta, a.astype(np.float64), b, c, softplus=softplus, initial=first if initial else None
    )
    order = [scanned[0], scanned[1], a, scanned[2], scanned[3], *([first] if initial else [])]
    flat = [array.reshape(-1) for array in order] + parameters
    return Scan(ScanSpec(states, softplus, initial, codes), shape, flat, y, state)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within a few roundings of f32 of the largest result."""
    largest = np.abs(expected).max(initial=1.0)
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, 0, 3e-6 * largest)
