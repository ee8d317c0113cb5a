"""Attention kernels on a CPU, against a softmax in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen import isa as isas
from abqc.codegen.cpu.attention.kernels import (
    MOST_FEW,
    SPLIT_KEYS,
    attention_kernels,
    workspace_floats,
)
from abqc.codegen.cpu.attention.spec import AttentionSpec
from abqc.codegen.cpu.float_products.cache_rows import CacheRows
from abqc.codegen.isa import Isa
from abqc.dialects.cache_formats import parse_cache_format
from kernel_cases import ISAS, Kernels, compile_jit

SCALE = np.float32(0.3)
BEHIND = 16  # elements behind y that must stay
BF16_ISAS = (*ISAS[:2], *(isa for isa in isas.extending() if isa.adds == "bf16"))
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)


@cache
def jit(isa: Isa, spec: AttentionSpec) -> Kernels:
    variants = attention_kernels(spec)
    kernels = [kernel for v in variants for kernel in (v.kernel, v.merge) if kernel is not None]
    return compile_jit(isa, kernels)


@dataclass(frozen=True)
class Case:
    """Sizes of a problem. `room`: rows of a cache behind the keys; `rows_first`: [B, M, H, D]."""

    spec: AttentionSpec
    m: int
    t: int
    batch: int = 1
    heads: int = 2
    group: int = 1
    room: int = 0
    rows_first: bool = False
    mask_axes: str = "bhmt"

    def random(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """q [B, H, M, D], k and v [B, H / group, T, .] and a mask that broadcasts."""
        rng = np.random.default_rng(self.t + 7 * self.m)
        spec, shared = self.spec, self.heads // self.group
        q = rng.standard_normal((self.batch, self.heads, self.m, spec.head))
        k = rng.standard_normal((self.batch, shared, self.t, spec.head))
        v = rng.standard_normal((self.batch, shared, self.t, spec.value_head))
        sizes = {"b": self.batch, "h": self.heads, "m": self.m, "t": self.t}
        mask = rng.standard_normal([n if a in self.mask_axes else 1 for a, n in sizes.items()])
        mask[rng.random(mask.shape) < 0.3] = -np.inf if spec.mask == "add" else 0
        return tuple(x.astype(np.float32) for x in (q, k, v, mask))  # type: ignore[return-value]


def layout(x: np.ndarray, case: Case) -> np.ndarray:
    """As stored: heads and rows exchanged, or with room for more rows, which must not be read."""
    if case.rows_first:
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3))
    fill = np.nan if x.dtype.kind == "f" else -1
    stored = np.full((*x.shape[:2], x.shape[2] + case.room, x.shape[3]), fill, x.dtype)
    stored[:, :, : x.shape[2]] = x
    return stored


def strides_of(stored: np.ndarray, case: Case) -> list[int]:
    """Of batch, head and row, in elements."""
    batch, one, other, _ = (s // stored.itemsize for s in stored.strides)
    return [batch, other, one] if case.rows_first else [batch, one, other]


def run(case: Case, isa: Isa, q: Any, k: Any, v: Any, mask: Any) -> np.ndarray:
    """y [B, H, M, E] by the kernel that covers the rows."""
    spec = case.spec
    (variant,) = [x for x in attention_kernels(spec) if x.covers(case.m)]
    q, k, v = (
        layout(q, Case(spec, 1, 1, rows_first=case.rows_first)),
        layout(k, case),
        layout(v, case),
    )
    shape = (case.batch, case.m, case.heads) if case.rows_first else (*q.shape[:3],)
    size = case.batch * case.heads * case.m * spec.value_head
    flat = np.full(size + BEHIND, 7, np.float32)
    y = flat[:size].reshape(*shape, spec.value_head)
    strides = [stride for x in (q, k, v, y) for stride in strides_of(x, case)]
    tensors: list[Any] = [x.reshape(-1) for x in (q, k, v)]
    if spec.mask != "none":
        tensors.append(mask.reshape(-1))
        strides += [0 if n == 1 else s // 4 for n, s in zip(mask.shape, mask.strides, strict=True)]
    tensors = [x.view(np.int16) if x.dtype == np.float16 else x for x in tensors]
    numbers = [case.m, case.t, case.heads, case.group, float(SCALE)]
    arguments = [*tensors, flat, *numbers, *strides]
    units = case.batch * case.heads // case.group
    grid = units * -(-case.group * case.m // variant.kernel.block[0])
    code = jit(isa, spec)
    if not variant.split:
        code.run(variant.kernel.name, grid, arguments)
    else:
        splits = max(1, -(-case.t // variant.split))
        rows = case.batch * case.heads * splits * case.m
        workspace = np.full(rows * workspace_floats(spec), np.nan, np.float32)
        code.run(variant.kernel.name, grid * splits, [*arguments, workspace, splits])
        if splits > 1:
            assert variant.merge is not None
            more = [workspace, flat, case.m, case.t, case.heads, splits, *strides[9:12]]
            code.run(variant.merge.name, case.batch * case.heads * case.m, more)
    assert (flat[size:] == 7).all()
    return y.transpose(0, 2, 1, 3) if case.rows_first else y


def expected(case: Case, q: Any, k: Any, v: Any, mask: Any) -> np.ndarray:
    q, k, v, mask = (x.astype(np.float64) for x in (q, k, v, mask))
    k, v = (np.repeat(x, case.group, axis=1) for x in (k, v))
    x = float(SCALE) * (q @ k.swapaxes(2, 3))
    if case.spec.mask == "add":
        x = x + mask
    elif case.spec.mask == "replace":
        x = np.where(mask != 0, mask, x)
    if not case.t:
        return np.zeros((*q.shape[:3], v.shape[3]))
    with np.errstate(invalid="ignore"):
        weights = np.exp(x - x.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
    if case.spec.guarded:
        weights = np.nan_to_num(weights, nan=0.0)
    return weights @ v


def check(case: Case, isa: Isa) -> None:
    operands = case.random()
    y, exact = run(case, isa, *operands), expected(case, *operands)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)


PLAIN = AttentionSpec(64, 64)
CASES = [
    Case(PLAIN, 1, 1),
    Case(PLAIN, 1, 300, heads=9, group=3, room=5),
    Case(PLAIN, 3, 2 * SPLIT_KEYS + 70, heads=4, group=4, batch=2),
    Case(PLAIN, MOST_FEW + 1, 47, heads=6, group=2, room=3),
    Case(PLAIN, 130, 97, batch=2),
    Case(PLAIN, 2, 0),
    Case(PLAIN, MOST_FEW + 1, 0),
    Case(AttentionSpec(5, 33), 1, 70, heads=3),
    Case(AttentionSpec(5, 33), 70, 50, heads=3, rows_first=True),
    Case(AttentionSpec(40, 7, "add"), 36, 50, heads=2, mask_axes="mt"),
    Case(AttentionSpec(40, 7, "add"), 4, 600, heads=2, mask_axes="mt"),
    Case(AttentionSpec(40, 7, "add"), 65, 49, heads=4, group=2, mask_axes="bt", batch=3),
    Case(AttentionSpec(17, 80, "add"), 34, 30, rows_first=True, mask_axes="bhm"),
    Case(AttentionSpec(17, 80, "replace"), 3, 90, mask_axes="bhmt"),
    Case(AttentionSpec(17, 80, "replace", True), 35, 90, mask_axes="mt"),
]


@each_isa
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_numpy(isa: Isa, case: Case) -> None:
    check(case, isa)


@each_isa
@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("guarded", [False, True])
def test_rows_without_a_score(isa: Isa, m: int, guarded: bool) -> None:
    """A mask of minus infinity alone, a NaN and an infinity; the first keys of a row masked."""
    case = Case(AttentionSpec(16, 16, "add", guarded), m, SPLIT_KEYS + 80, heads=4)
    q, k, v, mask = case.random()
    mask[:, 0] = -np.inf
    mask[:, 1, :, :SPLIT_KEYS] = -np.inf
    q[:, 2] = np.nan
    mask[:, 3, :, 5] = np.inf
    y, exact = run(case, isa, q, k, v, mask), expected(case, q, k, v, mask)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)


@each_isa
@pytest.mark.parametrize("m", [1, 40])
def test_masks_of_large_finite_numbers(isa: Isa, m: int) -> None:
    case = Case(AttentionSpec(32, 32, "add"), m, 130)
    q, k, v, mask = case.random()
    lowest = np.finfo(np.float32).min
    mask[:] = 0
    mask[:, :, :, 20:] = lowest
    np.testing.assert_allclose(
        run(case, isa, q, k, v, mask), expected(case, q, k, v, mask), rtol=0, atol=3e-6
    )
    mask[:] = lowest  # all scores are the same number then
    means = np.broadcast_to(v.mean(axis=2, keepdims=True), (*q.shape[:3], 32))
    np.testing.assert_allclose(run(case, isa, q, k, v, mask), means, rtol=0, atol=3e-6)


def encoded(case: Case, k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
    """Keys and values as they are stored, and what they are then."""
    stored, decoded = [], []
    for rows, x in ((case.spec.keys, k), (case.spec.values, v)):
        if isinstance(rows, CacheRows):
            codes = rows.format.encode(x)
            x = rows.format.decode_stored(codes, rows.columns)
            stored.append(codes.view(np.int8))
        else:
            stored.append(x)
        decoded.append(x)
    return [*stored, *decoded]


def of_codes(columns: int, keys: str, values: str) -> AttentionSpec:
    rows = (CacheRows(parse_cache_format(text), columns) for text in (keys, values))
    return AttentionSpec(columns, columns, "add", False, *rows)


@each_isa
@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(24, 24, "add"),
        of_codes(40, "kv3", "kv8"),
        of_codes(64, "kv5:g16", "kv-bfp4:g32"),
    ],
    ids=lambda spec: spec.name,
)
def test_a_few_rows_have_the_numbers_of_each_alone(
    isa: Isa, spec: AttentionSpec, hidden: float
) -> None:
    """Also where the last ones of a run see keys of one split more."""
    t, m = SPLIT_KEYS + 3, MOST_FEW // 4
    case = Case(spec, m, t, heads=2, mask_axes="mt")
    q, k, v, mask = case.random()
    mask[:] = np.where(np.arange(t) > np.arange(m)[:, None] + t - m, hidden, mask)
    k, v, *exact = encoded(case, k, v)
    together = run(case, isa, q, k, v, mask)
    np.testing.assert_allclose(together, expected(case, q, *exact, mask), rtol=0, atol=3e-6)
    for row, seen in enumerate(range(t - m + 1, t + 1)):
        one = replace(case, m=1, t=seen)
        only = [q[:, :, row : row + 1], k[:, :, :seen], v[:, :, :seen]]
        alone = run(one, isa, *only, mask[:, :, row : row + 1, :seen])
        np.testing.assert_array_equal(alone[:, :, 0], together[:, :, row])


@each_isa
@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_causal_masks(isa: Isa, hidden: float) -> None:
    """Keys beyond the diagonal are not looked at; but where a row sees none, all count."""
    case = Case(AttentionSpec(24, 24, "add"), 150, 260, heads=2, mask_axes="bmt", batch=2)
    q, k, v, mask = case.random()
    mask[:] = np.where(np.arange(260) > np.arange(150)[:, None] + 20, hidden, 0)
    y, exact = run(case, isa, q, k, v, mask), expected(case, q, k, v, mask)
    np.testing.assert_allclose(y, exact, rtol=0, atol=3e-6)
    mask[1, 0, 7] = hidden
    y, exact = run(case, isa, q, k, v, mask), expected(case, q, k, v, mask)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    blind = np.isneginf(hidden) & (np.arange(150) == 7)
    np.testing.assert_allclose(y[:, :, ~blind], exact[:, :, ~blind], rtol=0, atol=3e-6)
    v[0, 0, 250] = np.nan  # hidden from all rows: 0 * NaN is not computed
    assert np.isfinite(run(case, isa, q, k, v, mask)[0, 0]).all()


@each_isa
@pytest.mark.parametrize("m", [1, 33])
def test_halves_and_rows_of_caches(isa: Isa, m: int) -> None:
    case = Case(AttentionSpec(24, 24, keys="f16", values="f16"), m, 90, heads=4, group=2, room=2)
    q, k, v, mask = case.random()
    k, v = k.astype(np.float16), v.astype(np.float16)
    np.testing.assert_allclose(
        run(case, isa, q, k, v, mask), expected(case, q, k, v, mask), rtol=0, atol=3e-6
    )
    if m <= MOST_FEW:  # rows of caches: above, where few rows have the numbers of each alone
        return
    case = Case(of_codes(48, "kv4:g16", "kv-bfp6"), m, 90, heads=4, group=2)
    q, k, v, mask = case.random()
    *stored, k, v = encoded(case, k, v)
    y = run(case, isa, q, *stored, mask)
    np.testing.assert_allclose(y, expected(case, q, k, v, mask), rtol=0, atol=3e-6)


BF16_CASES = [
    Case(AttentionSpec(5, 33, bf16=True), 70, 51, heads=3, rows_first=True),
    Case(AttentionSpec(40, 7, "add", keys="f16", bf16=True), 65, 200, heads=4, group=2, room=3),
]


@pytest.mark.parametrize("isa", BF16_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("case", BF16_CASES, ids=str)
def test_in_bf16_operands_are_rounded(isa: Isa, case: Case) -> None:
    """Weights too, which moves y by at most half a place of bf16 of what it sums up. Where all keys
    are hidden by the lowest number all count."""
    q, k, v, mask = case.random()
    mask[:, :, 7] = np.finfo(np.float32).min
    k = k.astype(np.float16) if case.spec.keys == "f16" else k
    operands = [x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (q, k, v)]
    exact = expected(case, *operands, mask)
    terms = expected(case, *operands[:2], abs(operands[2]), mask)
    y = run(case, isa, q, k, v, mask)
    assert (np.abs(y - exact) <= 2.0**-8.9 * terms).all()
    assert np.abs(y - exact).max() > 1e-5  # rounded they are
