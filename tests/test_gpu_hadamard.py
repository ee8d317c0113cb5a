"""Rows that are rotated while they are packed on a GPU, in the PTX machine, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_75, SM_80, SM_86, SM_89, SM_90A, GpuArch
from abqc.codegen.gpu.assembly.compile import assemble, compile_ptx
from abqc.codegen.gpu.assembly.objects import GpuObjects
from abqc.codegen.gpu.assembly.tools import find_tool
from abqc.codegen.gpu.packing.layout import FloatRows, GroupedK, Int8Rows
from abqc.codegen.gpu.packing.pack import pack_kernel
from abqc.codegen.gpu.rows.hadamard import Rotation
from abqc.codegen.gpu.rows.threads import RowShape, RowThreads
from abqc.codegen.link import GpuBlock
from abqc.codegen.strategy import MatmulSpec
from abqc.dialects import formats, hadamard
from abqc.dialects.formats import parse_scheme
from abqc.dialects.mlir import ir
from abqc.errors import CompileError
from abqc.runtime.ptx import run_kernel

needs_ptxas = pytest.mark.skipif(find_tool("ptxas") is None, reason="no ptxas")


def compiled(kernel, arch: GpuArch = SM_80):
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        kernel.emit(module, arch)
        return compile_ptx(module, arch)


def rotated(k: int, block: int, m: int, weight: str = "w8:channel", arch: GpuArch = SM_80):
    """x, and its rows as packed, f16 values as f32."""
    spec = MatmulSpec(16, k, parse_scheme(weight), None, hadamard_block=block)
    layout = FloatRows.of(spec)
    kernel = pack_kernel(spec, layout)
    x = np.random.default_rng(k).standard_normal((m, k), np.float32)
    ptx = compiled(kernel, arch)
    shape = ptx.kernels[kernel.name]
    q = np.zeros(m * layout.row_bytes, np.uint8)
    out = run_kernel(
        ptx.text, kernel.name, kernel.grid(m), shape.threads, [x, q, m], shared_bytes=shape.shared
    )[1]
    padded = out.reshape(m, -1).view(np.float16)
    return x, layout.grouped.unpad(padded).astype(np.float32)


def check(k: int, block: int, m: int = 2, weight: str = "w8:channel", arch=SM_80) -> None:
    x, y = rotated(k, block, m, weight, arch)
    expected = hadamard.transform(x, block)
    np.testing.assert_allclose(y, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "block", [1, 2, 4, 8, 64, 128, 12, 24, 20, 28, 36, 48, 1536, 2048, 2560, 44, 60, 92, 172, 336]
)
def test_blocks(block: int) -> None:
    check(block * 2, block, 3)


@pytest.mark.slow
@pytest.mark.parametrize("block", hadamard.supported_sizes(3000))
def test_every_block(block: int) -> None:
    check(block * (1 + block % 3), block)


def test_small_odd_rows() -> None:
    check(70, 2, 5)


def test_padded_groups_are_staged() -> None:
    check(144, 36, 3, "w4:g20")
    check(136, 8, 3, "w4:g33")


def test_long_rows_are_rotated_span_by_span() -> None:
    check(36864, 4096, 1)


def test_blocks_beyond_shared_memory_go_in_slices() -> None:
    threads = RowThreads.of(28672)
    rotation = Rotation.of(RowShape(GroupedK(28672, 28672), threads), 28672, 99 * 1024)
    assert rotation.slices == 2 and rotation.shared_bytes <= 99 * 1024
    check(28672, 28672, 1, arch=SM_86)


def test_slices_of_short_runs() -> None:
    """29568 = 84 * 44 * 8: a run is no whole chunk, and a block more than shared memory."""
    threads = RowThreads.of(29568)
    rotation = Rotation.of(RowShape(GroupedK(29568, 29568), threads), 29568, 99 * 1024)
    assert rotation.slices == 2 and rotation.shared_bytes <= 99 * 1024
    check(29568, 29568, 1, arch=SM_86)


def test_codes_of_rotated_rows() -> None:
    k, block, m = 384, 384, 4
    spec = MatmulSpec(16, k, parse_scheme("w4:g128:asym"), parse_scheme("a8"), hadamard_block=block)
    layout = Int8Rows.of(spec)
    kernel = pack_kernel(spec, layout)
    x = np.random.default_rng(0).standard_normal((m, k), np.float32)
    ptx = compiled(kernel)
    shape = ptx.kernels[kernel.name]
    q = np.zeros(m * layout.row_bytes, np.uint8)
    arguments = [x, q, m]
    got = run_kernel(
        ptx.text, kernel.name, kernel.grid(m), shape.threads, arguments, shared_bytes=shape.shared
    )[1].reshape(m, -1)
    assert spec.activation is not None
    codes, *_ = formats.quantize_activation(hadamard.transform(x, block), spec.activation)
    different = got[:, :k].astype(int) - codes.astype(int)
    assert abs(different).max() <= 1 and (different != 0).mean() < 0.01


@needs_ptxas
@pytest.mark.parametrize(("k", "block"), [(4096, 4096), (11008, 256), (14336, 14336), (576, 576)])
def test_no_spills(k: int, block: int) -> None:
    spec = MatmulSpec(16, k, parse_scheme("w4:g128"), parse_scheme("a8"), hadamard_block=block)
    for arch in (SM_86, SM_90A):
        kernel = pack_kernel(spec, Int8Rows.of(spec))
        used = assemble(compiled(kernel, arch).text, arch).resources[kernel.name]
        assert used.spill_stores == 0, used


def test_blocks_beyond_registers_are_refused() -> None:
    spec = MatmulSpec(16, 57344, parse_scheme("w8:channel"), parse_scheme("a8"), 57344)
    with pytest.raises(CompileError, match="cannot be rotated"):
        pack_kernel(spec, Int8Rows.of(spec))


@pytest.mark.parametrize(
    ("k", "archs"), [(18944, (SM_75, SM_90A)), (28672, (SM_80, SM_86, SM_89, SM_90A))]
)
def test_every_target_of_an_artifact_has_its_own_block(
    k: int, archs: tuple[GpuArch, ...], tmp_path: Path
) -> None:
    """More of a row is in shared memory where a GPU has more of it."""
    block = hadamard.block_size(k)
    spec = MatmulSpec(16, k, parse_scheme("w8:channel"), None, hadamard_block=block)
    kernel = pack_kernel(spec, FloatRows.of(spec))
    objects = GpuObjects(archs)
    results = []
    for arch, job in zip(archs, objects.jobs([kernel.name], [kernel], "module {}"), strict=True):
        results.append(tmp_path / arch.name)
        results[-1].write_bytes(job.compile())
    gpu = objects.collect(results, [kernel.name], tmp_path).gpu
    assert gpu is not None
    shared = [image.blocks[0].shared_bytes for image in gpu.images]
    assert len(set(shared)) > 1
    for arch, image, nbytes in zip(archs, gpu.images, shared, strict=True):
        alone = compiled(kernel, arch).kernels[kernel.name]
        assert image.blocks == (GpuBlock(alone.threads, alone.shared),)
        assert nbytes <= arch.shared_per_block
