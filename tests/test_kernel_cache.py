"""Compiled kernels are kept by content: equal ones are compiled once, damaged ones again."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from abqc.codegen import kernel_cache, kernel_job
from abqc.codegen.elf import loaded_bytes
from abqc.codegen.isa import AVX2, PLAIN, Isa
from abqc.codegen.kernel_cache import KernelCache
from abqc.codegen.kernel_job import KernelJob

SCALE = """
func.func @{name}(%i: index, %x: memref<?xf32>) {{
  %v = memref.load %x[%i] : memref<?xf32>
  %c = arith.constant {factor} : f32
  %w = arith.mulf %v, %c : f32
  memref.store %w, %x[%i] : memref<?xf32>
  return
}}
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The symbols of the kernels that were compiled; the cache is empty at first."""
    monkeypatch.setenv("ABQC_CACHE", str(tmp_path))
    seen: list[str] = []
    original = kernel_job.compile_kernels

    def compile_kernels(module: object, isa: Isa, names: list[str]) -> bytes:
        seen.extend(names)
        return original(module, isa, names)

    monkeypatch.setattr(kernel_job, "compile_kernels", compile_kernels)
    return seen


def objects(isa: Isa = PLAIN, **factors: float) -> list[bytes]:
    text = "".join(SCALE.format(name=name, factor=float(f)) for name, f in factors.items())
    job = KernelJob(isa, tuple(factors), (None,) * len(factors), text)
    return list(pickle.loads(job.compile()).values())


def test_kernels_are_compiled_once(compiled: list[str]) -> None:
    first = objects(a=2, b=3)
    assert objects(b=3, a=2) == first[::-1]
    assert compiled == ["a.plain", "b.plain"]


def test_other_bodies_and_other_instruction_sets_are_other_kernels(compiled: list[str]) -> None:
    first, other, wide = objects(a=2), objects(a=3), objects(AVX2, a=2)
    assert compiled == ["a.plain", "a.plain", "a.avx2"]
    assert first != other and first != wide


def test_damaged_entries_are_compiled_again(compiled: list[str], tmp_path: Path) -> None:
    first = objects(a=2)
    (entry,) = (tmp_path / "kernels").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    assert objects(a=2) == first
    entry.write_bytes(b"")
    assert objects(a=2) == first
    assert compiled == ["a.plain"] * 3


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null"])
def test_cache_that_cannot_be_written(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("ABQC_CACHE", place)
    assert objects(a=2) == objects(a=2)
    assert compiled == ["a.plain"] * 2


def test_least_recently_used_entries_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_cache, "LIMIT", 8)
    cache = KernelCache(tmp_path)
    for i in range(9):
        cache.put(str(i), b"content")
        (tmp_path / str(i)).touch()
    assert cache.get("0") == b"content"  # used just now
    cache.trim()
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 6
    assert "0" in left and "1" not in left


def test_large_entries_count_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_cache, "LIMIT_BYTES", 80_000)
    cache = KernelCache(tmp_path)
    for i in range(4):
        cache.put(str(i), bytes(20_000))
        os.utime(tmp_path / str(i), (i, i))
    cache.trim()
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


def test_loaded_bytes_are_code_and_data(compiled: list[str]) -> None:
    (content,) = objects(a=2)
    assert 0 < loaded_bytes(content) < len(content)
