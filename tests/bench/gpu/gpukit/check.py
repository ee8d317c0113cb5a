"""Part `check`: every kernel against what numpy computed when the kit was built."""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import KitDevice, matmul_launches, pack_launch
from .kit import CheckCase, Kit
from .operands import activations, digests

GUARD = 64  # bytes behind the output that must stay as they are
UNWRITTEN = 0x7F


def names(kit: Kit) -> list[str]:
    return [case.name for case in kit.cases]


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    """`wrong` is empty, or says what differs."""
    case = device.kit.cases[index]
    wrong = problems(device, case)
    from_ptx = sorted(device.from_ptx & set(case.launches.kernels))
    return {"kernels": case.launches.kernels, "wrong": wrong, "from_ptx": from_ptx}


def problems(device: KitDevice, case: CheckCase) -> str:
    """What is wrong with one case, as a sentence; empty where nothing is."""
    launches, m, n = case.launches, case.m, case.n
    with np.load(device.kit.folder / "cases" / case.file) as data:
        weight, bias, expected = data["weight"], data["bias"], data["y"][:m]
        allowed = data["allowed"][:m]
    x = activations(device.kit.check_rows, case.k)[:m]
    # The output is as large as it must be, then a guard, all of it marked.
    out = np.full(4 * m * n + GUARD, UNWRITTEN, np.uint8)
    held = [device.upload(array) for array in (x, weight, bias, out)]
    try:
        x_at, weight_at, bias_at, y_at = held
        rows = x_at
        if launches.pack:
            rows = device.upload(np.zeros(m * launches.row_bytes, np.uint8))
            held.append(rows)
            device.run(*pack_launch(device, launches, m, x_at, rows))
            packed = device.read(rows, m * launches.row_bytes).reshape(m, -1)
            if text := _rows_differ(packed, case):
                return text
        device.run(*matmul_launches(device, launches, m, n, rows, weight_at, bias_at, y_at))
        found = device.read(y_at, len(out))
    finally:
        _free(device, held)
    if (found[4 * m * n :] != UNWRITTEN).any():
        return f"{case.launches.kernels[-1]} writes behind its output"
    return _differs(found[: 4 * m * n].view(np.float32).reshape(m, n), expected, allowed)


def _rows_differ(packed: np.ndarray, case: CheckCase) -> str:
    if not case.rows_digest:
        return ""
    found = digests(packed)
    for row in range(case.m):
        part = slice(8 * row, 8 * row + 8)
        if found[part] != case.rows_digest[part]:
            return f"{case.launches.pack} packs row {row} wrongly"
    return ""


def _differs(y: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> str:
    error = np.abs(y.astype(np.float64) - expected)
    wrong = ~(error <= allowed)
    if not wrong.any():
        return ""
    row, column = np.argwhere(wrong)[0]
    return (
        f"{wrong.sum()} of {y.size} values differ, the first at [{row}, {column}]: "
        f"{y[row, column]!s}, expected {expected[row, column]!s} +- {allowed[row, column]:.3g}"
    )


def _free(device: KitDevice, held: list[int]) -> None:
    for address in held:
        device.free(address)
