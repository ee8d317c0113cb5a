"""Attention kernels that read rows of quantized caches, in the PTX machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abqc.codegen.gpu.attention.kernels import AttentionSpec
from abqc.codegen.gpu.attention.spec import Precision
from abqc.dialects.cache_formats import CacheFormat, parse_cache_format
from test_gpu_attention import Case, expected, inputs, run_stored

CASES: list[tuple[str, str, Precision, int, int, int, int]] = [
    # keys, values, precision, columns of k and of v, rows, keys
    ("kv8", "kv8", "f32", 64, 64, 1, 37),
    ("kv4", "kv-bfp3", "f32", 20, 32, 2, 130),
    ("kv5:g16", "kv2", "f32", 48, 7, 6, 20),
    ("", "kv3", "f32", 18, 12, 1, 20),
    ("kv7", "kv-bfp8", "f32", 24, 16, 11, 33),
    ("kv6", "kv4:g32", "bf16x3", 40, 64, 17, 33),
    ("kv-bfp4", "kv3", "f16", 64, 32, 9, 20),
]


@pytest.mark.parametrize(
    ("keys", "values", "precision", "head", "value_head", "rows", "count"), CASES, ids=str
)
def test_rows_are_decoded(
    keys: str, values: str, precision: Precision, head: int, value_head: int, rows: int, count: int
) -> None:
    formats = [parse_cache_format(text) if text else "f32" for text in (keys, values)]
    spec = AttentionSpec(head, value_head, "add", precision, False, *formats)
    case = Case(spec, rows, count, batch=2, heads=4, group=2, room=3, mask_axes="bt")
    q, k, v, mask = inputs(case)
    k_stored, k = stored(formats[0], k, case.room)
    v_stored, v = stored(formats[1], v, case.room)
    y = run_stored(case, q, k_stored, v_stored, mask, 0.3)
    want = expected(replace(case), q, k, v, mask, 0.3)
    tolerance = {"f32": 2e-6, "bf16x3": 2e-5, "f16": 1e-3}[precision]
    assert np.abs(y - want).max() <= tolerance * np.abs(want).max()


def stored(format: CacheFormat | str, x: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in a buffer with room that must not be read, and their values."""
    rows = x if format == "f32" else format.encode(x)
    values = x if format == "f32" else format.decode_stored(rows, x.shape[3])
    shape = (*x.shape[:2], x.shape[2] + room, rows.shape[3])
    buffer = np.full(shape, np.nan if format == "f32" else 255, rows.dtype)
    buffer[:, :, : x.shape[2]] = rows
    return buffer, values
