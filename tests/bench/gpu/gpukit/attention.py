"""Part `attention`: seconds of attention by itself, with keys and values that are in no cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import LAUNCHES, KitDevice, aligned
from .kit import AttentionJob, Kit

MOST_ERROR = {"f32": 2e-5, "bf16x3": 1e-4, "f16": 4e-3}  # of the largest element of y
BITS = {"kv8": 8, "kv4": 4}


def names(kit: Kit) -> list[str]:
    return [job.name for job in kit.attention]


def measure(device: KitDevice, index: int) -> dict[str, Any]:
    """Seconds of a launch, with that which makes tiles of keys and values; not of that which looks
    at the mask, once for all layers. `wrong` where the first head's rows are not those of numpy."""
    job = device.kit.attention[index]
    shared, rng = job.heads // job.group, np.random.default_rng(index)
    q = rng.standard_normal((job.heads, job.rows, job.head), np.float32)
    k, v = (_stored(job, rng) for _ in range(2))
    size = aligned(job.cache_bytes)
    count = device.copies(2 * size)
    base = device.buffer("weights", 2 * size * count, "fill_bytes")
    for copy in range(count):
        for number, rows in enumerate((k, v)):
            # All heads have the same rows: so many random numbers take no second to make.
            whole = np.broadcast_to(rows, (shared, *rows.shape)).tobytes()
            device.write(base + (2 * copy + number) * size, whole)
    y_bytes = 4 * q.size
    limits = np.zeros((job.rows, 2), np.int32)
    held = [device.upload(array) for array in (q, _mask(job), np.zeros(2048, np.int32), limits)]
    q_at, mask_at, counters, limits_at = held
    y = device.buffer("y", y_bytes)
    workspace = device.buffer("workspace", max(job.workspace_bytes, 16))

    def launches(copy: int) -> list[Any]:
        k_at = base + 2 * copy * size
        masked = [mask_at] if job.causal else []
        arguments = [q_at, k_at, k_at + size, *masked, y, *_numbers(job)]
        if job.splits:
            split = [workspace, counters, 0, job.splits, job.split_keys]
            return [device.launch_of(job.kernel, job.grid, *arguments, *split)]
        found = [limits_at, 0, 0, 1] if job.limits else []
        last = [1, shared, job.keys] if job.boxes else [workspace]
        made = [device.launch_of(job.kernel, job.grid, *arguments, *found, *last)]
        if job.prepare:
            made.insert(0, device.launch_of(job.prepare, job.prepare_grid, *arguments, workspace))
        return made

    try:
        if job.limits:
            sizes = [job.rows, job.keys, 1, job.rows, 0, 0, job.keys, 1]
            device.run(device.launch_of(job.limits, job.limits_grid, mask_at, limits_at, *sizes))
        device.run(*launches(0), *launches(0))
        found = device.read(y, y_bytes).view(np.float32).reshape(q.shape)
        wrong = _differs(job, found[0], _expected(job, q[0], k, v))
        turns = max(count, LAUNCHES)
        seconds, runs = device.seconds([x for i in range(turns) for x in launches(i % count)])
    finally:
        for address in held:
            device.free(address)
    seconds /= turns
    return {
        "kernel": job.kernel,
        "format": job.format,
        "precision": job.precision,
        "rows": job.rows,
        "keys": job.keys,
        "splits": job.splits,
        "seconds": seconds,
        "repetitions": runs * turns,
        "cache_bytes_per_second": 2 * job.cache_bytes / seconds,
        "operations_per_second": job.operations / seconds,
        "wrong": wrong,
    }


def _numbers(job: AttentionJob) -> list[int]:
    """m, t, heads, group, scale and strides, in slots."""
    scale = int(np.float32(job.head**-0.5).view(np.uint32))
    of_head, of_row = job.rows * job.head, job.head
    queries = [job.heads * of_head, of_head, of_row]
    row = _row_units(job)
    cached = [job.heads // job.group * job.keys * row, job.keys * row, row]
    mask = [0, 0, job.keys, 1] if job.causal else []
    strides = [*queries, *cached, *cached, *queries, *mask]
    return [job.rows, job.keys, job.heads, job.group, scale, *strides]


def _row_units(job: AttentionJob) -> int:
    """What strides of keys and values count."""
    return job.row_bytes if job.format in BITS else job.head


def _mask(job: AttentionJob) -> np.ndarray:
    if not job.causal:
        return np.zeros(4, np.float32)
    later = np.arange(job.keys) > np.arange(job.rows)[:, None] + (job.keys - job.rows)
    return np.where(later, np.finfo(np.float32).min, np.float32(0))


def _stored(job: AttentionJob, rng: np.random.Generator) -> np.ndarray:
    """Rows of a head as they are stored."""
    shape = (job.keys, job.head)
    if job.format not in BITS:
        return rng.standard_normal(shape, np.float32).astype({"f32": "f4", "f16": "f2"}[job.format])
    rows = rng.integers(0, 256, (job.keys, job.row_bytes), dtype=np.uint8)
    bits = BITS[job.format]
    scale = np.float16(4 / (1 << bits))
    pair = np.array([scale, np.float16(-2)], np.float16).view(np.uint8)
    rows[:, job.head * bits // 8 :][:, :4] = pair
    return rows


def _decoded(job: AttentionJob, rows: np.ndarray) -> np.ndarray:
    if job.format not in BITS:
        return rows.astype(np.float64)
    bits = BITS[job.format]
    codes = rows[:, : job.head * bits // 8]
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(job.keys, job.head)
    return codes.astype(np.float64) * (4 / (1 << bits)) - 2


def _expected(job: AttentionJob, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Some rows of a head."""
    rows = _checked(job)
    k, v = _decoded(job, k), _decoded(job, v)
    scores = q[rows].astype(np.float64) @ k.T * job.head**-0.5
    if job.causal:
        scores += _mask(job)[rows]
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True) @ v


def _checked(job: AttentionJob) -> slice:
    return slice(None, None, max(1, job.rows // 16))


def _differs(job: AttentionJob, y: np.ndarray, expected: np.ndarray) -> str:
    error = np.abs(y[_checked(job)] - expected).max() / np.abs(expected).max()
    allowed = MOST_ERROR[job.precision]
    return "" if error <= allowed else f"error {error:.2e} of the largest element, over {allowed}"
