"""Whether outputs are those that a test expects, by the rules of onnx's own runner.

Shapes and element types are exact, NaN equals NaN, values may differ by atol + rtol * |expected|
(bfloat16: rtol at least two of its ulps), sequences agree element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_BFLOAT16_RTOL = 2.0**-6


def disagreement(
    expected: Sequence[Any], actual: Sequence[Any], rtol: float, atol: float
) -> str | None:
    """What is wrong with `actual`, in one line; None where all is right."""
    if len(expected) != len(actual):
        return f"{len(actual)} outputs, expected {len(expected)}"
    for i, (e, a) in enumerate(zip(expected, actual, strict=True)):
        wrong = _value(e, a, rtol, atol)
        if wrong is not None:
            return f"output {i}: {wrong}"
    return None


def _value(expected: Any, actual: Any, rtol: float, atol: float) -> str | None:
    if isinstance(expected, (list, tuple)):
        if not isinstance(actual, (list, tuple)):
            return f"{type(actual).__name__}, expected a sequence"
        return disagreement(expected, actual, rtol, atol)
    if expected is None or actual is None:
        return None if expected is actual else f"{actual!r}, expected {expected!r}"
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    if expected.dtype.kind in "OUST":
        same = np.array_equal(expected.astype(str), actual.astype(str))
        return None if same else "other strings"
    if expected.dtype != actual.dtype:
        return f"type {actual.dtype}, expected {expected.dtype}"
    return _numbers(expected, actual, rtol, atol)


def _numbers(expected: np.ndarray, actual: np.ndarray, rtol: float, atol: float) -> str | None:
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, _BFLOAT16_RTOL)
    e, a = _wide(expected), _wide(actual)
    right = np.isclose(a, e, rtol=rtol, atol=atol, equal_nan=True)
    if right.all():
        return None
    count = int(right.size - right.sum())
    at = tuple(int(i) for i in np.argwhere(~right)[0])
    with np.errstate(all="ignore"):
        difference = np.abs(a.astype(np.complex128) - e.astype(np.complex128))[~right]
    worst = float(np.nanmax(difference, initial=0.0))
    return (
        f"{count} of {right.size} values differ by up to {worst:.3g}, "
        f"at {list(at)} {actual[at]} instead of {expected[at]}"
    )


def _wide(array: np.ndarray) -> np.ndarray:
    """Types that numpy cannot promote (bfloat16, float8, int4) as ones that it can."""
    if array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1:
        return array
    return array.astype(np.float32)
