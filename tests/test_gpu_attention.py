"""Attention kernels in the PTX machine, against softmax in float64."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, SM_75, SM_80, SM_90A, GpuArch
from abqc.codegen.gpu.assembly.compile import Ptx, assemble, compile_ptx
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.attention.kernels import (
    AttentionSpec,
    AttentionVariant,
    attention_kernels,
    precision_on,
)
from abqc.codegen.gpu.attention.spec import Precision
from abqc.codegen.strategy import Kernel
from abqc.dialects import abq
from abqc.dialects.mlir import ir
from abqc.passes.lowering.attention_variants import reachable
from abqc.runtime.ptx import run_kernel
from gpu_kernels import output, take

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")


def variant_of(spec: AttentionSpec, rows: int, group: int = 1) -> AttentionVariant:
    """As the host chooses it (passes/lowering/attention.py)."""
    number = rows if rows > 8 else min(rows * group, 8)
    (found,) = [variant for variant in attention_kernels(spec) if variant.covers(number)]
    return found


@cache
def compiled(spec: AttentionSpec, arch: GpuArch, rows: tuple[int, ...]) -> Ptx:
    """The kernels for these numbers of rows."""
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernels: dict[str, Kernel] = {}
        for variant in attention_kernels(spec):
            for kernel in (variant.kernel, variant.merge, variant.prepare, variant.limits):
                if kernel is not None and any(variant.covers(m) for m in rows):
                    kernels[kernel.name] = kernel
        for kernel in kernels.values():
            kernel.emit(module, arch)
        return compile_ptx(module, arch)


@dataclass(frozen=True)
class Case:
    """Sizes of a problem; `room` is the capacity of k and v beyond the keys."""

    spec: AttentionSpec
    rows: int
    keys: int
    batch: int = 1
    heads: int = 2
    group: int = 1
    room: int = 0
    rows_first: bool = False  # [B, M, H, D] instead of [B, H, M, D]
    mask_axes: str = "bhmt"
    split: int = 64  # keys of a block of few rows
    counted: bool = True  # the last block of a unit merges


def run(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float):
    """y [B, H, M, E] by the kernel that covers the rows; q, k, v are [B, H, ., .]."""
    k, v = (layout(x, case.room, case.rows_first) for x in (k, v))
    return run_stored(case, q, k, v, mask, scale)


def run_stored(
    case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, scale: float
) -> np.ndarray:
    """The same for k and v as they are stored, rows of quantized caches too."""
    spec = case.spec
    variant = variant_of(spec, case.rows, case.group)
    ptx = compiled(spec, SM_80, (variant.min_rows,))
    y = np.empty((*q.shape[:3], spec.value_head), np.float32)
    tensors, strides = [], []
    for x in (q, k, v, y):
        stored = x if x is k or x is v else layout(x, 0, case.rows_first)
        tensors.append(stored)
        by = [s // stored.itemsize for s in stored.strides[:3]]
        strides += [by[0], by[2], by[1]] if case.rows_first else by
    mask_arguments = []
    if spec.mask != "none":
        mask_arguments = [mask]
        strides += [
            0 if size == 1 else stride // 4
            for size, stride in zip(mask.shape, mask.strides, strict=True)
        ]
    numbers = [case.rows, case.keys, case.heads, case.group, scale]
    arguments = [*tensors[:3], *mask_arguments, output(y.size), *numbers, *strides]
    stored = launch(ptx, variant, case, arguments, 3 + len(mask_arguments), mask)
    stored = take(stored).reshape(tensors[3].shape)
    if case.rows_first:
        stored = stored.transpose(0, 2, 1, 3)
    return stored


def layout(x: np.ndarray, room: int, rows_first: bool) -> np.ndarray:
    """`x` as stored: heads and rows exchanged, or with room for more rows."""
    if rows_first:
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3))
    stored = np.full((*x.shape[:2], x.shape[2] + room, x.shape[3]), np.nan, x.dtype)
    stored[:, :, : x.shape[2]] = x
    return stored


def prepared(
    ptx: Ptx, variant: AttentionVariant, case: Case, arguments: list, mask: np.ndarray
) -> list:
    """What kernels before that of the tiles leave: limits of a mask, tiles of keys and values."""
    more: list = []
    if variant.limits is not None:
        batch, heads, rows, _ = mask.shape
        count = batch * heads * rows
        found = output(2 * count, np.int32)
        numbers = [mask, found, count, case.keys, heads, rows, *arguments[-4:]]
        name, grid = variant.limits.name, -(-count // variant.limits.block[0])
        found = run_kernel(ptx.text, name, grid, ptx.kernels[name].threads, numbers)[1]
        steps = zip((heads * rows, rows, 1), mask.shape[:3], strict=True)
        more = [found, *(step if size > 1 else 0 for step, size in steps)]
    if variant.boxes:
        return [*more, case.batch, case.heads // case.group, max(case.keys, 1)]
    if variant.prepare is None:
        return [*more, output(1)]
    name, keys = variant.prepare.name, variant.prepare.block[0]
    tiles = case.batch * case.heads // case.group * -(-case.keys // keys)
    workspace = output(tiles * variant.tile_floats)
    outputs = run_kernel(ptx.text, name, tiles, ptx.kernels[name].threads, [*arguments, workspace])
    return [*more, take(outputs[-1])]  # all of a tile is copied


def launch(
    ptx: Ptx,
    variant: AttentionVariant,
    case: Case,
    arguments: list,
    y: int,
    mask: np.ndarray,
) -> np.ndarray:
    heads = case.batch * case.heads
    shape = ptx.kernels[variant.kernel.name]
    if not variant.blocks:
        grid = heads * -(-case.rows // variant.kernel.block[0])
        arguments = [*arguments, *prepared(ptx, variant, case, arguments, mask)]
        return run_kernel(
            ptx.text,
            variant.kernel.name,
            grid,
            shape.threads,
            arguments,
            shared_bytes=shape.shared,
            maps=shape.maps,
        )[y]
    rows = variant.kernel.block[0]
    parts = heads // case.group * -(-case.group * case.rows // rows)
    splits = max(1, -(-case.keys // case.split))
    workspace = output(parts * splits * rows * variant.workspace_floats)
    first = 2 if case.counted else -1
    counters = np.zeros(parts + 2, np.int32)
    arguments = [*arguments, workspace, counters, first, splits, case.split]
    outputs = run_kernel(
        ptx.text,
        variant.kernel.name,
        parts * splits,
        shape.threads,
        arguments,
        shared_bytes=shape.shared,
    )
    workspace, counters = outputs[-2:]
    assert not counters.any()
    if splits == 1 or case.counted:
        return outputs[y]
    assert variant.merge is not None
    merge = ptx.kernels[variant.merge.name]
    arguments[-5] = workspace
    return run_kernel(
        ptx.text, variant.merge.name, parts, merge.threads, arguments, shared_bytes=merge.shared
    )[y]


def expected(case: Case, q, k, v, mask, scale):
    k, v = (np.repeat(x, case.group, axis=1).astype(np.float64) for x in (k, v))
    scores = scale * (q.astype(np.float64) @ k.transpose(0, 1, 3, 2))
    if case.spec.mask == "add":
        scores = scores + mask
    elif case.spec.mask == "replace":
        scores = np.where(mask != 0, mask, scores)
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True) @ v


def inputs(case: Case, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    spec, shared = case.spec, case.heads // case.group

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    q = normal(case.batch, case.heads, case.rows, spec.head)
    k = normal(case.batch, shared, case.keys, spec.head)
    v = normal(case.batch, shared, case.keys, spec.value_head)
    sizes = {"b": case.batch, "h": case.heads, "m": case.rows, "t": case.keys}
    shape = [sizes[axis] if axis in case.mask_axes else 1 for axis in "bhmt"]
    mask = rng.choice(np.float32([0, 0, -1.5, -1e9, -np.inf]), shape).astype(np.float32)
    mask[..., :1] = 0  # a row has a key
    return q, k, v, mask


def check(case: Case, tolerance: float) -> None:
    q, k, v, mask = inputs(case)
    k, v = (rounded(x, stored) for x, stored in ((k, case.spec.keys), (v, case.spec.values)))
    y = run(case, q, k, v, mask, 0.3)
    want = expected(case, q, k, v, mask, 0.3) if case.keys else np.zeros_like(y)
    assert np.abs(y - want).max() <= tolerance * np.abs(want).max()


def rounded(x: np.ndarray, stored: str) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16 if stored == "bf16" else {"f32": "f4", "f16": "f2"}[stored])


PLAIN = AttentionSpec(32, 32)
CASES = (
    Case(PLAIN, rows=1, keys=128),
    Case(PLAIN, rows=1, keys=300, batch=2, rows_first=True),
    Case(AttentionSpec(64, 64, "add"), rows=3, keys=37, heads=4, group=2, room=5, mask_axes="bmt"),
    Case(AttentionSpec(20, 12, "replace"), rows=2, keys=130, mask_axes="bt"),
    Case(AttentionSpec(18, 7, "add"), rows=6, keys=140, heads=1),
    Case(AttentionSpec(8, 8), rows=2, keys=128),
    Case(AttentionSpec(5, 4, "add"), rows=8, keys=300, heads=1),
    Case(AttentionSpec(4, 8), rows=4, keys=130, heads=1),
    Case(AttentionSpec(1, 1), rows=3, keys=129, heads=1),
    Case(PLAIN, rows=33, keys=65, rows_first=True, batch=2),
    Case(AttentionSpec(64, 64, "add"), rows=9, keys=40, heads=4, group=2, room=7, mask_axes="bt"),
    Case(AttentionSpec(18, 7, "replace"), rows=11, keys=33, heads=1),
    Case(AttentionSpec(136, 160), rows=17, keys=35, heads=1),
)
# Heads that share keys, splits that the last block or a kernel of its own merges, 16-bit caches.
DECODING = (
    Case(AttentionSpec(64, 64), rows=1, keys=150, heads=6, group=3, batch=2),
    Case(AttentionSpec(32, 32, "add"), rows=1, keys=200, heads=8, group=8, split=32),
    Case(AttentionSpec(32, 32), rows=3, keys=200, heads=8, group=4, split=96, rows_first=True),
    Case(AttentionSpec(32, 32), rows=1, keys=600, heads=4, group=4, split=24, counted=False),
    Case(AttentionSpec(80, 96, "add"), rows=2, keys=70, heads=4, group=2, split=512),
    Case(AttentionSpec(128, 128), rows=1, keys=130, heads=4, group=4),
    Case(AttentionSpec(256, 256), rows=1, keys=70, heads=8, group=8),
    Case(AttentionSpec(16, 16), rows=1, keys=0),
    Case(AttentionSpec(16, 16), rows=5, keys=50, heads=1, split=16),
    Case(AttentionSpec(64, 32, keys="f16", values="bf16"), rows=1, keys=140, heads=4, group=4),
    Case(AttentionSpec(20, 12, "add", keys="bf16", values="f16"), rows=2, keys=37, room=4),
    Case(AttentionSpec(7, 18, keys="f16", values="bf16"), rows=5, keys=70),
    Case(AttentionSpec(32, 24, keys="f16", values="bf16"), rows=9, keys=20, heads=4, group=2),
)
# Errors of the formats, relative to the largest y: 2^-16 and 2^-10.
TENSOR_CORES = (
    (Case(AttentionSpec(32, 32, "add", "bf16x3"), 65, 70, rows_first=True, mask_axes="bt"), 2e-5),
    (Case(AttentionSpec(64, 32, "none", "bf16x3"), 9, 20, heads=4, group=2, room=3), 2e-5),
    (Case(AttentionSpec(18, 7, "replace", "bf16x3"), 17, 65, heads=1), 2e-5),
    (Case(AttentionSpec(64, 64, "add", "f16"), 17, 33, heads=1), 1e-3),
    (Case(AttentionSpec(24, 144, "none", "f16"), 17, 33, heads=1), 1e-3),
    (Case(AttentionSpec(80, 72, "none", "bf16x3"), 9, 33, heads=1), 2e-5),  # tiles of 32 keys
)


@pytest.mark.parametrize(
    "case", (*CASES, *DECODING), ids=lambda c: f"{c.spec.name}-{c.rows}x{c.keys}-{c.group}"
)
def test_against_softmax_in_float64(case: Case) -> None:
    check(case, 2e-6)


@pytest.mark.parametrize(
    ("case", "tolerance"),
    TENSOR_CORES,
    ids=[f"{c.spec.precision}-{c.spec.name}-{c.rows}x{c.keys}" for c, _ in TENSOR_CORES],
)
def test_tensor_cores(case: Case, tolerance: float) -> None:
    check(case, tolerance)


def test_split_halves_have_the_range_and_nearly_the_precision_of_f32() -> None:
    """Values beyond f16, and scores of 60 whose differences count."""
    case = Case(AttentionSpec(32, 32, precision="bf16x3"), rows=16, keys=64, heads=1)
    q, k, v, mask = inputs(case)
    q, k, v = q * np.float32(2e-5), k * np.float32(3e5), v * np.float32(1e6)
    y = run(case, q, k, v, mask, 1.0)
    want = expected(case, q, k, v, mask, 1.0)
    assert np.abs(y - want).max() <= 1e-3 * np.abs(want).max()


HALVES = [("f16", 1e-3), ("bf16x3", 2e-5)]


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.0])
@pytest.mark.parametrize(("precision", "tolerance"), HALVES)
def test_any_scale(precision: Precision, tolerance: float, scale: float) -> None:
    case = Case(AttentionSpec(16, 16, "add", precision), rows=9, keys=70, heads=1, mask_axes="t")
    q, k, v, mask = inputs(case)
    y, want = (of(case, q, k, v, mask, scale) for of in (run, expected))
    assert np.abs(y - want).max() <= 2 * tolerance * np.abs(want).max()  # scores of up to 15


def test_queries_have_the_range_of_f16() -> None:
    """Up to 65504, and beyond where the scale is below 1."""
    case = Case(AttentionSpec(16, 16, precision="f16"), rows=16, keys=70, heads=1)
    q, k, v, mask = inputs(case)
    k *= np.float32(1e-4)
    for largest, scale in ((6e4, 1.0), (3.5e5, 0.125)):
        q *= np.float32(largest) / np.abs(q).max()
        y, want = (of(case, q, k, v, mask, scale) for of in (run, expected))
        assert np.abs(y - want).max() <= 5e-3 * np.abs(want).max()  # k has few bits


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_large_scores_choose_a_key(scale: float) -> None:
    """f32 has no numbers between them that are less than 1024 apart: the largest weight is 1."""
    case = Case(AttentionSpec(16, 16, precision="bf16x3"), rows=16, keys=70, heads=1)
    q, k, v, mask = inputs(case)
    q, k = q * np.float32(5e5), k * np.float32(5e5)
    y, want = (of(case, q, k, v, mask, scale) for of in (run, expected))
    assert np.abs(y - want).max() <= 1e-3 * np.abs(want).max()


def check_rising(case: Case, step: float, tolerance: float) -> None:
    """Scores that rise by `step` from key to key in some rows of every warp."""
    q, k, v, mask = inputs(case)
    q[..., 0], k[..., 0] = 4, np.arange(case.keys) * np.float32(step)
    q[..., 8:, :] = np.flip(q[..., 8:, :], -1)
    y, want = (of(case, q, k, v, mask, 0.25) for of in (run, expected))
    assert np.abs(y - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize(("precision", "tolerance"), HALVES)
@pytest.mark.parametrize("step", [-0.2, 0.05, 0.6])
def test_bases_rise_where_they_must(precision: Precision, tolerance: float, step: float) -> None:
    """Scores that fall from key to key, rise so slowly that a base may stay, and so fast that
    weights by it would be infinite."""
    case = Case(AttentionSpec(16, 16, precision=precision), rows=16, keys=200, heads=1)
    check_rising(case, step, 20 * tolerance)  # scores of up to 120


@pytest.mark.parametrize("largest", [18.0, 3.0, -4.5])
def test_small_weights_keep_their_bits(largest: float) -> None:
    """Of f16, from 2^-14 of the largest one on, whose value is 0: with a base above 0, of 0, and
    below."""
    case = Case(AttentionSpec(16, 16, precision="f16"), rows=16, keys=70, heads=1)
    q, k, v, mask = inputs(case)
    q[:], k[:] = 0, 0
    q[..., 0], k[..., 0], v[..., 0, :] = 2, largest - 13, 0
    k[..., 0, 0] = largest
    scale = float(np.log(2)) / 2
    y, want = (of(case, q, k, v, mask, scale) for of in (run, expected))
    assert np.abs(y - want).max() <= 1e-3 * np.abs(want).max()


MASKS = {
    "causal": lambda row, key: key > row + 70,
    "by length": lambda row, key: key >= 41,
    "both": lambda row, key: (key > row + 20) | (key >= 41),
    "with holes": lambda row, key: (key > row + 70) | (key % 7 == 3),
    "some rows see nothing": lambda row, key: (key > row + 70) | (row % 5 == 2),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16x3", 2e-5), ("f32", 2e-6)])
def test_hidden_keys_are_skipped(precision: Precision, tolerance: float, kind: str) -> None:
    """Keys that no row of a block sees are not read: nothing that would be NaN is."""
    case = Case(AttentionSpec(16, 16, "add", precision), 70, 140, heads=1, mask_axes="mt")
    q, k, v, _ = inputs(case)
    row, key = np.arange(70)[:, None], np.arange(140)
    hidden = np.broadcast_to(MASKS[kind](row, key), (70, 140))
    mask = np.where(hidden, np.finfo(np.float32).min, np.float32(0))[None, None]
    want = expected(case, q, k, v, mask, 0.3)
    if kind in ("causal", "by length", "both"):
        unseen = hidden.all(axis=0)
        k[:, :, unseen] = np.nan
    y = run(case, q, k, v, mask, 0.3)
    assert np.abs(y - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize(
    ("m", "heads", "shared", "first_rows"),
    [
        (-1, 8, 8, [1, 2, 3, 5, 9]),
        (-1, 9, 3, [3, 5, 9]),
        (-1, 32, 4, [5, 9]),
        (1, 8, 4, [2]),
        (0, 8, 8, [1]),
        (64, 8, 8, [9]),
        (-1, -1, 4, [1, 2, 3, 5, 9]),
    ],
)
def test_kernels_that_no_run_launches_are_left_out(m, heads, shared, first_rows) -> None:
    m, heads = (abq.DYNAMIC if size < 0 else size for size in (m, heads))
    kept = reachable(attention_kernels(PLAIN), m, heads, shared)
    assert [variant.min_rows for variant in kept] == first_rows


@pytest.mark.parametrize("precision", ["f32", "bf16x3"])
def test_kernels_travel_to_other_processes(precision: Precision) -> None:
    for variant in attention_kernels(replace(PLAIN, precision=precision)):
        assert pickle.loads(pickle.dumps(variant.kernel)).name == variant.kernel.name


def test_precision_is_what_all_targets_have() -> None:
    assert precision_on([SM_80, SM_90A], half=False) == "bf16x3"
    assert precision_on([SM_80, SM_90A], half=True) == "f16"
    assert precision_on([SM_75, SM_90A], half=False) == "f32"


KINDS = [(2, "f32"), (9, "f32"), (9, "bf16x3")]


@pytest.mark.parametrize(("rows", "precision"), KINDS)
def test_rows_without_a_score_are_nan_and_finite_masks_are_not(
    rows: int, precision: Precision
) -> None:
    """-inf everywhere: NaN; the same large number everywhere: the mean of v."""
    case = Case(AttentionSpec(16, 16, "add", precision), rows=rows, keys=140, heads=1)
    q, k, v, mask = inputs(case)
    mask[..., 0, :] = -np.inf
    mask[..., 1, :] = np.finfo(np.float32).min
    y = run(case, q, k, v, mask, 1.0)
    assert np.isnan(y[..., 0, :]).all()
    np.testing.assert_allclose(y[0, 0, 1], v.mean(axis=(0, 1, 2)), atol=1e-5)
    assert np.isfinite(y[..., 2:, :]).all()


@pytest.mark.parametrize("score", [0.0, 15.0])
def test_masks_whose_bases_are_rounded(score: float) -> None:
    """Near 2^27 exponents are multiples of 16: a base 8 below one may lie 16 below."""
    case = Case(AttentionSpec(16, 16, "add", "f16"), rows=9, keys=70, heads=1, mask_axes="mt")
    q, k, v, mask = inputs(case)
    q[:], k[:], mask[:] = score / 16, 1, 0
    mask[..., 1, :] = mask[..., 2, :64] = -1e8  # all of a row, and of its first tile
    y = run(case, q, k, v, mask, 1.0)
    want = expected(case, q, k, v, mask, 1.0)
    assert np.abs(y - want).max() <= 1e-3 * np.abs(want).max()


@pytest.mark.parametrize(("rows", "precision"), KINDS)
@pytest.mark.parametrize("keys", [40, 140])
def test_guarded_rows_are_zero_instead(rows: int, precision: Precision, keys: int) -> None:
    spec = AttentionSpec(16, 16, "add", precision, guarded=True)
    case = Case(spec, rows=rows, keys=keys, heads=1)
    q, k, v, mask = inputs(case)
    mask[..., 0, :] = -np.inf
    q[..., 1, 0] = np.nan
    y = run(case, q, k, v, mask, 1.0)
    assert not y[..., :2, :].any()
    assert np.isfinite(y).all() and (y[..., 2:, :] != 0).all()


@pytest.mark.parametrize(("rows", "precision"), KINDS)
def test_a_nan_stays_in_its_row(rows: int, precision: Precision) -> None:
    case = Case(AttentionSpec(16, 16, precision=precision), rows=rows, keys=140, heads=2)
    q, k, v, mask = inputs(case)
    q[0, 1, 0, 3] = np.nan
    y = run(case, q, k, v, mask, 1.0)
    assert np.isnan(y[0, 1, 0]).all()
    assert np.isnan(y).sum() == 16


@needs_ptxas
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
def test_every_target_assembles_without_spills(arch: GpuArch) -> None:
    spec = AttentionSpec(32, 32, "add", precision_on([arch], half=False))
    resources = assemble(compiled(spec, arch, (1, 9)).text, arch).resources
    assert all(used.spill_stores == 0 for used in resources.values()), resources


WIDEST = (
    AttentionSpec(256, 256, "replace"),
    AttentionSpec(128, 128, "add", "bf16x3"),
    AttentionSpec(256, 256, "add", "f16"),
)


@needs_ptxas
@pytest.mark.parametrize("spec", WIDEST, ids=lambda spec: f"{spec.precision}-{spec.name}")
def test_the_widest_heads_fit_into_registers(spec: AttentionSpec) -> None:
    resources = assemble(compiled(spec, SM_80, (8, 9)).text, SM_80).resources
    assert all(used.spill_stores == 0 for used in resources.values()), resources


@needs_ptxas
def test_blocks_share_a_multiprocessor() -> None:
    """Two blocks of 128 threads at least, by registers and by shared memory."""
    spec = AttentionSpec(64, 64, "add", "bf16x3")
    ptx, name = compiled(spec, SM_90A, (9,)), variant_of(spec, 9).kernel.name
    used, shape = assemble(ptx.text, SM_90A).resources[name], ptx.kernels[name]
    assert used.registers <= 256 and shape.shared * 2 <= SM_90A.shared_per_sm
