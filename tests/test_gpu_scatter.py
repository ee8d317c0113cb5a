"""Scatters in the PTX machine, against updates one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from abqc.codegen.gpu.arch import ALL, GpuArch
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.indexing.scatter import (
    COMBINERS,
    ELEMENTS,
    claim_kernel,
    combine_kernel,
    places_kernel,
    replace_kernel,
)
from abqc.codegen.strategy import Kernel
from gpu_kernels import SAMPLE, output, run, spills, take

SHAPES = ((5, 7), (40,), (3, 4, 30))
REFERENCES: dict[str, Callable] = {
    "addf": np.add, "mulf": np.multiply, "maximumf": np.maximum, "minimumf": np.minimum,
    "addi": np.add, "muli": np.multiply, "maxsi": np.maximum, "minsi": np.minimum,
}  # fmt: skip


def positions(count: int, shape: tuple[int, ...], dtype: type = np.int64) -> np.ndarray:
    """Many of them twice, some outside."""
    random = np.random.default_rng(count)
    columns = [random.integers(-1, size + 1, count) for size in shape]
    return np.stack(columns, 1).astype(dtype)


def in_order(y: np.ndarray, indices: np.ndarray, updates: np.ndarray, combine: Callable) -> None:
    for index, update in zip(indices, updates, strict=True):
        if (index >= 0).all() and (index < y.shape).all():
            y[tuple(index)] = combine(update, y[tuple(index)])


def find_places(indices: np.ndarray, shape: tuple[int, ...], owners: int = 0) -> list[np.ndarray]:
    """The places, and the owners if there are so many."""
    count, rank = indices.shape
    kernel = places_kernel(rank, f"i{indices.itemsize * 8}", claims=owners > 0)
    arrays = [output(count, np.int32)] + [output(owners, np.int32)] * (owners > 0)
    arguments = [indices.reshape(-1), *arrays, *shape, count]
    return run(kernel, kernel.grid(count), arguments)[1 : 1 + len(arrays)]


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_])
def test_the_last_replacement_stays(dtype: type) -> None:
    for count, shape in zip((90, 300, 1), SHAPES, strict=True):
        x = np.zeros(shape, dtype)
        updates = (np.arange(count) + 1).astype(dtype)
        indices = positions(count, shape, np.int32 if dtype is np.bool_ else np.int64)
        places, owners = find_places(indices, shape, x.size)
        claim, replace = claim_kernel(), replace_kernel(1 if dtype is np.bool_ else x.itemsize * 8)
        _, owners = run(claim, claim.grid(count), [places, owners, count])[:2]
        take(owners)
        y = x.reshape(-1)
        *_, y = run(replace, replace.grid(count), [places, owners, updates, y, count])[:4]
        in_order(x, indices, updates, lambda new, old: new)
        np.testing.assert_array_equal(y.reshape(shape), x)


@pytest.mark.parametrize("combiner", REFERENCES)
def test_combinations_keep_the_order(combiner: str) -> None:
    dtype = np.float32 if combiner.endswith("f") else np.int64
    random = np.random.default_rng(len(combiner))
    for count, shape, span in zip((90, 300, 700), SHAPES, (1, 9, 32), strict=True):
        x = (random.standard_normal(shape) * 10).astype(dtype)
        updates = (random.standard_normal(count) * 3).astype(dtype)
        indices = positions(count, shape)
        (places,) = find_places(indices, shape)
        kernel = combine_kernel(combiner, "f32" if dtype is np.float32 else "i64")
        grid = -(-x.size // (span * kernel.block[0]))
        arguments = [take(places), updates, x.reshape(-1), count, x.size, span]
        _, _, y = run(kernel, grid, arguments)[:3]
        in_order(x, indices, updates, REFERENCES[combiner])
        np.testing.assert_array_equal(y.reshape(shape), x)


def sample() -> list[Kernel]:
    made = [places_kernel(3, "i64", claims=claims) for claims in (True, False)]
    made += [claim_kernel(), replace_kernel(32)]
    return [*made, combine_kernel("addf", "f32"), combine_kernel("maximumf", "f16")]


def every() -> list[Kernel]:
    made = [places_kernel(r, i, claims=True) for r in (1, 5) for i in ("i32", "i64")]
    made += [replace_kernel(bits) for bits in (1, 16, 64)]
    for combiner in COMBINERS:
        floats = combiner.endswith("f")
        made += [combine_kernel(combiner, e) for e in ELEMENTS if (e[0] != "i") == floats]
    return made


@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", SAMPLE, ids=lambda arch: arch.name)
def test_sample_assembles_without_spills(arch: GpuArch) -> None:
    assert not spills(arch, *sample())


@pytest.mark.slow
@pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")
@pytest.mark.parametrize("arch", ALL, ids=lambda arch: arch.name)
def test_all_assemble_without_spills(arch: GpuArch) -> None:
    assert not spills(arch, *every())
