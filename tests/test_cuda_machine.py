"""GPU artifacts of real PTX: on the PTX machine, and on a GPU
where there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import abqc
import fake_gpu
import numpy as np
import pytest
from abqc.codegen.gpu.arch import SM_80
from abqc.codegen.gpu.assembly.builtin import builtin_kernels
from abqc.codegen.gpu.assembly.compile import compile_ptx
from abqc.codegen.gpu.builder import POINTER, kernel
from abqc.codegen.link import ArtifactMeta
from abqc.dialects.context import make_context
from abqc.dialects.mlir import ir
from abqc.errors import AbqcError, DeviceError, InputError
from abqc.runtime.ptx import PtxFault, PtxSyntaxError
from abqc.runtime.ptx.driver import PtxDriver
from abqc.runtime.tensor_spec import TensorSpec
from handmade import run_program

THREADS = 128

# y = x + w of the row; the cache grows by y. `reach` elements are read, `rows * 8` are there.
HOST = """
#include "shim.h"
extern const float w[8];

int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *x = abqc_rt_input(ctx, 0), *reach = abqc_rt_input(ctx, 2);
    int64_t rows = x->sizes[0], count = rows * 8;
    int64_t sizes[] = {1, rows, 8}, strides[] = {rows * 8, 8, 1};
    count += (int64_t)abqc_rt_read(ctx, reach->data, 8);
    float *y = abqc_rt_alloc(ctx, rows * 32);
    const uint64_t args[] = {(uint64_t)x->data, (uint64_t)abqc_rt_weight(ctx, w), (uint64_t)y,
                             (uint64_t)count};
    abqc_rt_launch(ctx, 0, (count + 127) / 128, args);
    abqc_view cache;
    abqc_rt_append(ctx, 1, 0, 1, 3, y, sizes, strides, &cache);
    abqc_rt_output(ctx, 0, cache.data, 3, cache.sizes, cache.strides);
    return 0;
}
"""

META = ArtifactMeta(
    inputs=[
        TensorSpec("x", "float32", ("rows", 8)),
        TensorSpec("past", "float32", (1, "past", 8)),
        TensorSpec("reach", "int64", ()),
    ],
    outputs=[TensorSpec("present", "float32", (1, None, 8))],
)
WEIGHTS = np.arange(8, dtype=np.float32)


def ptx() -> str:
    with make_context(), ir.Location.unknown():
        module = ir.Module.create()
        arguments = [POINTER, POINTER, POINTER, "i32"]
        with kernel(module, SM_80, "add", arguments, threads=THREADS) as (b, block, x, w, y, count):
            i = block * THREADS + b.thread
            with b.when(i < count):
                total = b.load(x, "f32", i * 4) + b.load(w, "f32", (i % 8) * 4)
                b.store(total, y, i * 4)
        for builtin in builtin_kernels():
            builtin.emit(module, SM_80)
        return compile_ptx(module, SM_80).text


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake_gpu.KERNELS["add"] = (lambda *_: None, 4)
    path = tmp_path_factory.mktemp("machine") / "model.so"
    weights = [("w", WEIGHTS)]
    return fake_gpu.build(path, HOST, META, kernels=["add"], weights=weights, ptx=ptx())


def feeds(rows: int, past: int, reach: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    return {
        "x": random.standard_normal((rows, 8), dtype=np.float32),
        "past": random.standard_normal((1, past, 8), dtype=np.float32),
        "reach": np.array(reach),
    }


def check(outputs: list, inputs: dict[str, np.ndarray]) -> None:
    expected = np.concatenate([inputs["past"], (inputs["x"] + WEIGHTS)[None]], axis=1)
    np.testing.assert_array_equal(np.asarray(outputs[0]), expected)


def test_by_name(artifact: Path) -> None:
    with abqc.load(artifact, device="ptx-vm") as model:
        assert (model.device, model.isa) == ("ptx-vm", "sm_80")
        for rows, past in (3, 5), (3, 5), (3, 5), (70, 0), (1, 9):
            inputs = feeds(rows, past)
            check(model.run(inputs), inputs)
    with abqc.load(artifact, device="ptx-vm:sm_90a") as model:
        assert model.isa == "sm_90a"
    with abqc.load(artifact, device="ptx-vm:sm_89") as model:
        assert model.isa == "sm_80"  # as that GPU does
    with pytest.raises(AbqcError, match=r"capability 7\.5\) can run none of the model's targets"):
        abqc.load(artifact, device="ptx-vm:sm_75")
    with pytest.raises(InputError, match="'sm_x' is no GPU"):
        abqc.load(artifact, device="ptx-vm:sm_x")
    with pytest.raises(InputError, match=r"nothing is known of GPUs of compute capability 4\.2"):
        abqc.load(artifact, device="ptx-vm:sm_42")


@pytest.mark.parametrize("separate", [False, True])
def test_tensors_that_stay_on_the_device(artifact: Path, separate: bool) -> None:
    launches: list[str] = []
    driver = PtxDriver(
        (8, 0), 1 << 24, separate_buffers=separate, progress=lambda name, _: launches.append(name)
    )
    inputs = feeds(2, 0)
    with abqc.load(artifact, device=driver) as model:
        (cache,) = model.run(inputs, device="cuda")
        for step in range(3):
            later = feeds(2, 0) | {"past": cache}
            grown = np.concatenate([cache.numpy(), (later["x"] + WEIGHTS)[None]], axis=1)
            (cache,) = model.run(later)
            np.testing.assert_array_equal(cache.numpy(), grown)
            assert cache.shape == (1, 2 * step + 4, 8)
        strided = np.zeros((2, 16), np.float32)[:, ::2]
        strided[:] = inputs["x"]
        check(model.run(inputs | {"x": strided}), inputs)
    assert launches.count("add") == 5


def test_a_kernel_that_reads_too_far(artifact: Path) -> None:
    model = abqc.load(artifact, device="ptx-vm")
    with pytest.raises(PtxFault, match="kernel add, PTX line"):
        model.run(feeds(3, 1, reach=1))
    model = abqc.load(artifact, device="ptx-vm")
    check(model.run(feeds(3, 1)), feeds(3, 1))


def test_memory_that_is_too_small(artifact: Path) -> None:
    driver = PtxDriver((8, 0), 4000)
    with abqc.load(artifact, device=driver) as model:
        check(model.run(feeds(3, 1)), feeds(3, 1))
        with pytest.raises(AbqcError, match=r"cannot allocate \d+ bytes on GPU 0"):
            model.run(feeds(100, 1))
        check(model.run(feeds(3, 1)), feeds(3, 1))


def test_text_that_is_no_ptx(tmp_path: Path) -> None:
    path = fake_gpu.build(tmp_path / "m.so", HOST, META, kernels=["add"], weights=[("w", WEIGHTS)])
    with pytest.raises(PtxSyntaxError):
        abqc.load(path, device="ptx-vm")


# ---- the same on a GPU, where there is one ----


@pytest.fixture
def on_gpu(artifact: Path):
    try:
        return abqc.load(artifact)
    except DeviceError as error:
        pytest.skip(str(error))


def test_on_a_gpu(on_gpu) -> None:
    assert on_gpu.device == "cuda:0"
    for rows, past in (3, 5), (3, 5), (3, 5), (700, 40), (3, 5), (1, 0):
        inputs = feeds(rows, past)
        check(on_gpu.run(inputs), inputs)
        strided = np.zeros((rows, 16), np.float32)[:, ::2]
        strided[:] = inputs["x"]
        check(on_gpu.run(inputs | {"x": strided}), inputs)


def test_tensors_that_stay_on_a_gpu(on_gpu) -> None:
    (cache,) = on_gpu.run(feeds(2, 0), device="cuda")
    for step in range(4):
        later = feeds(2, 0) | {"past": cache}
        grown = np.concatenate([cache.numpy(), (later["x"] + WEIGHTS)[None]], axis=1)
        (cache,) = on_gpu.run(later)
        np.testing.assert_array_equal(cache.numpy(), grown)
        assert cache.shape == (1, 2 * step + 4, 8)


def test_a_kernel_that_faults_on_a_gpu(artifact: Path, on_gpu) -> None:
    """In a process of its own, which loses the GPU and lives."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import abqc, abqc.errors, test_cuda_machine as t
model = abqc.load({str(artifact)!r})
for reach in 1 << 30, 0:
    try:
        model.run(t.feeds(3, 1, reach=reach))
    except abqc.errors.DeviceError as error:
        print(error)
model.close()
"""
    result = run_program([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in first and "failed in an earlier run" in second
