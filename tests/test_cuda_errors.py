"""How GPU artifacts fail: no driver, no GPU, no memory, a GPU lost in the middle."""

from __future__ import annotations

import ctypes
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import abqc
import fake_gpu
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.codegen.toolchain import find_compiler
from abqc.errors import AbqcError, ArtifactError, CompileError, DeviceError, InputError
from abqc.runtime.ptx.driver import DriverError
from abqc.runtime.shim import SHIM_DIRECTORY
from abqc.runtime.tensor_spec import TensorSpec
from fake_gpu import FakeMachine, GpuTensor, build, driver
from handmade import COLUMNS, LAYER_WEIGHTS, layer_inputs, layer_reference, run_program


def failing(function: str, code: int, after: int = 0):
    """A driver whose `function` fails from its call number `after` on."""
    seen = []

    def intercept(name, arguments):
        if name == function:
            seen.append(name)
        return code if name == function and len(seen) > after else None

    return intercept


def load(machine: FakeMachine | None = None, **options):
    return abqc.load(fake_gpu.layer(), device=driver(machine or FakeMachine(), **options))


def check(outputs, inputs) -> None:
    for got, expected in zip(outputs, layer_reference(inputs), strict=True):
        np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-4, atol=1e-4)


# ---- no device ----


def test_no_driver() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is a driver")
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU and its driver: libcuda\.so\.1"):
        abqc.load(fake_gpu.layer())


def test_no_gpu() -> None:
    with pytest.raises(DeviceError, match="the driver has none: CUDA_ERROR_NO_DEVICE"):
        load(intercept=failing("cuInit", 100))
    with pytest.raises(DeviceError, match="the driver has none: CUDA error 12345"):
        load(intercept=failing("cuInit", 12345))


def test_a_driver_without_a_function() -> None:
    old = driver()
    del old._functions["cuGraphLaunch"]
    with pytest.raises(DeviceError, match="has no function cuGraphLaunch: it is too old"):
        abqc.load(fake_gpu.layer(), device=old)


def test_a_device_number_that_is_not_there() -> None:
    source = r"""
    #include <dlfcn.h>
    #include <stdio.h>
    #include "abqc.h"
    static int init(unsigned flags) { (void)flags; return 0; }
    static int count(int *n) { *n = 2; return 0; }
    static int other(void) { return 1; }
    static void *driver(const char *name) {
        if (!__builtin_strcmp(name, "cuInit")) return init;
        return __builtin_strcmp(name, "cuDeviceGetCount") ? (void *)other : (void *)count;
    }
    int main(int argc, char **argv) {
        (void)argc;
        void *library = dlopen(argv[1], RTLD_NOW);
        const abqc_api *api = ((abqc_get_api_fn)dlsym(library, "abqc_get_api"))(ABQC_ABI_VERSION);
        abqc_instance *instance;
        abqc_instance_options options = {.struct_size = sizeof options, .driver = driver};
        for (int ordinal = -1; ordinal < 4; ordinal += 4) {
            options.device = (DLDevice){kDLCUDA, ordinal};
            printf("%d: %s\n", (int)api->create(&options, &instance), api->last_error());
        }
        options.device = (DLDevice){kDLCPU, 0};
        printf("%d: %s\n", (int)api->create(&options, &instance), api->last_error());
        abqc_instance_options old = {.struct_size = 24};
        printf("%d\n", (int)api->create(&old, &instance));
        return 0;
    }
    """
    folder = handmade.folder()
    (folder / "ordinal.c").write_text(source)
    find_compiler().run(
        [f"-I{SHIM_DIRECTORY}", "ordinal.c", "-ldl", "-o", "ordinal"],
        directory=folder,
        purpose="compile the test",
    )
    lines = run_program([folder / "ordinal", fake_gpu.layer()]).stdout.splitlines()
    assert lines[:3] == [
        "4: there is no GPU -1: the driver has 2",
        "4: there is no GPU 3: the driver has 2",
        "4: device type 1: this model was compiled for NVIDIA GPUs (2)",
    ]


def test_names_of_devices() -> None:
    for name in "gpu", "cuda:", "cuda:x", "ptx-vm:", "tpu":
        with pytest.raises(InputError, match=f"there is no device '{name}'; devices are cpu, cuda"):
            abqc.load(fake_gpu.layer(), device=name)
    with pytest.raises(DeviceError, match=r"compiled for sm_80.*ptx-vm"):
        abqc.load(fake_gpu.layer(), device="cpu")
    with pytest.raises(DeviceError, match="compiled for the CPU"):
        abqc.load(handmade.layer(), device="cuda")
    with pytest.raises(DeviceError, match="compiled for the CPU; compile it for a GPU"):
        abqc.load(handmade.layer(), device="ptx-vm")
    assert abqc.load(handmade.layer(), device="cpu").device == "cpu"


# ---- which code runs ----

TARGETS = (
    ("sm_80", (8, 0), False),
    ("sm_86", (8, 6), False),
    ("sm_90a", (9, 0), True),
    ("sm_120a", (12, 0), True),
)


@pytest.mark.parametrize(
    ("capability", "cubins", "image"),
    [
        ((8, 0), ("sm_80", "sm_86"), "\x7fELF sm_80"),
        ((8, 6), ("sm_80", "sm_86"), "\x7fELF sm_86"),
        ((8, 6), ("sm_80",), "\x7fELF sm_80"),  # machine code of a lower minor number
        ((8, 9), ("sm_80", "sm_86", "sm_90a"), "\x7fELF sm_86"),
        ((8, 9), (), "sm_86"),
        ((9, 0), ("sm_80", "sm_90a"), "\x7fELF sm_90a"),
        ((9, 0), ("sm_80",), "sm_90a"),
        ((10, 0), ("sm_80", "sm_90a", "sm_120a"), "sm_86"),  # `a` does not go on
        ((12, 0), ("sm_120a",), "\x7fELF sm_120a"),
        ((12, 1), ("sm_120a",), "sm_86"),
    ],
)
def test_the_code_that_suits_best(tmp_path: Path, capability, cubins, image) -> None:
    weights = [("layer_w", handmade.LAYER_WEIGHTS)]
    path = build(
        tmp_path / "model.so",
        fake_gpu.LAYER_HOST,
        handmade.LAYER,
        weights=weights,
        images=TARGETS,
        cubins=cubins,
    )
    machine = FakeMachine(capability)
    fake = driver(machine)
    load_image = fake.cuModuleLoadDataEx

    def takes_machine_code(module, address, count, options, values):
        text = ctypes.string_at(address)
        if text[:4] != b"\x7fELF":
            return load_image(module, address, count, options, values)
        buffer = ctypes.create_string_buffer(b"fake " + text)
        code = load_image(module, ctypes.addressof(buffer), count, options, values)
        machine.images[-1] = text.decode()
        return code

    seen = []

    def intercept(name, arguments):
        if name != "cuModuleLoadDataEx":
            return None
        seen.append(name)
        return takes_machine_code(*arguments) or 0

    fake.intercept = intercept
    model = abqc.load(path, device=fake)
    assert machine.images == [image] and len(seen) == 1
    assert model.isa == image.removeprefix("\x7fELF ")
    check(model.run(layer_inputs()), layer_inputs())


def test_machine_code_that_the_driver_does_not_read(tmp_path: Path) -> None:
    path = build(
        tmp_path / "model.so",
        fake_gpu.LAYER_HOST,
        handmade.LAYER,
        weights=[("layer_w", handmade.LAYER_WEIGHTS)],
        cubins=("sm_80",),
    )
    machine = FakeMachine()
    model = abqc.load(path, device=driver(machine))  # which refuses machine code
    assert machine.images == ["sm_80"]
    check(model.run(layer_inputs()), layer_inputs())
    with pytest.raises(AbqcError, match="cannot load the model's code for sm_80: CUDA_ERROR_OUT"):
        abqc.load(path, device=driver(intercept=failing("cuModuleLoadDataEx", 2)))


def test_a_gpu_that_is_too_old() -> None:
    message = (
        r"GPU 0 \(PTX machine, compute capability 7.5\) can run none of the model's targets: "
        r"sm_80 sm_90a; compile for sm_75"
    )
    with pytest.raises(ArtifactError, match=message):
        load(FakeMachine((7, 5)))


def test_a_target_that_is_asked_for() -> None:
    machine = FakeMachine((9, 0))
    model = abqc.load(fake_gpu.layer(), device=driver(machine), isa="sm_80")
    assert (model.isa, machine.images) == ("sm_80", ["sm_80"])
    assert abqc.load(fake_gpu.layer(), device=model._instance.driver).isa == "sm_90a"
    with pytest.raises(ArtifactError, match="no code for 'sm_70'; it has: sm_80 sm_90a"):
        abqc.load(fake_gpu.layer(), device=driver(), isa="sm_70")
    with pytest.raises(ArtifactError, match=r"can run none .* asked for was sm_90a"):
        abqc.load(fake_gpu.layer(), device=driver(FakeMachine((8, 0))), isa="sm_90a")


def test_a_driver_too_old_for_the_ptx() -> None:
    message = r"the driver \(CUDA 13.0\) is too old for the model's PTX for sm_80: CUDA_ERROR_UNS"
    with pytest.raises(DeviceError, match=message):
        load(intercept=failing("cuModuleLoadDataEx", 222))


def test_ptx_that_does_not_compile() -> None:
    machine = FakeMachine()

    def refuse(ptx):
        raise SyntaxError("ptxas: line 3:\n  what is `foo`?")

    machine.load = refuse
    with pytest.raises(SyntaxError, match="what is `foo`"):
        load(machine)
    # In C, and with a driver that is not Python, the compiler's log is in the text.
    fake = driver()

    def intercept(name, arguments):
        if name != "cuModuleLoadDataEx":
            return None
        log = b"ptxas: line 3:\n  what is `foo`?\n\0"
        values = (ctypes.c_void_p * 2).from_address(arguments[4])
        ctypes.memmove(values[0], log, len(log))
        return 218

    fake.intercept = intercept
    message = r"cannot compile the model's PTX for sm_80: ptxas: line 3: what is `foo`\?: CUDA_ERR"
    with pytest.raises(AbqcError, match=message):
        abqc.load(fake_gpu.layer(), device=fake)


def test_a_kernel_that_is_missing() -> None:
    machine = FakeMachine()
    del machine.kernels["increment"]
    with pytest.raises(AbqcError, match="kernel 'increment' is missing: CUDA_ERROR_NOT_FOUND"):
        load(machine)


# ---- memory ----


def test_no_room_for_the_weights() -> None:
    message = r"cannot allocate 192 bytes on GPU 0 for weights; 100 of 100 bytes are free: CUDA_ERR"
    with pytest.raises(AbqcError, match=message):
        load(FakeMachine(memory_bytes=100))


def test_no_room_for_the_run() -> None:
    machine = FakeMachine(memory_bytes=100_000)
    with load(machine) as model:
        check(model.run(layer_inputs()), layer_inputs())
        message = r"cannot allocate \d+ bytes on GPU 0 for the working memory of a run; \d+ of 1000"
        with pytest.raises(AbqcError, match=message):
            model.run(layer_inputs(rows=1000))
        check(model.run(layer_inputs()), layer_inputs())
    del model
    gc.collect()
    assert not machine.pieces


def test_no_room_for_an_output() -> None:
    machine = FakeMachine()
    with load(machine, intercept=failing("cuMemAllocFromPoolAsync", 2, after=1)) as model:
        with pytest.raises(AbqcError, match=r"24 bytes on GPU 0 for output 'next';"):
            model.run(layer_inputs(), device="cuda")
        gc.collect()
        assert len(machine.pieces) == 2  # weights and arena: the first output was released
        check(model.run(layer_inputs()), layer_inputs())


# ---- failures in a run ----

CALLS_OF_A_RUN = [
    ("cuCtxPushCurrent_v2", "cannot use GPU 0", "cpu"),
    ("cuMemcpyHtoDAsync_v2", "cannot copy input 'x' to GPU 0", "cpu"),
    ("cuLaunchKernel", "cannot launch 3 blocks of kernel 'scale' \\(128 threads, 0 bytes", "cpu"),
    ("cuGraphLaunch", "cannot launch the model's graph", "cpu"),
    ("cuMemcpyDtoDAsync_v2", "cannot copy output 'y'", "cuda"),
    ("cuMemcpyDtoHAsync_v2", "cannot copy output 'y'", "cpu"),
    ("cuStreamSynchronize", "the run failed on GPU 0", "cpu"),
]


@pytest.mark.parametrize(("function", "message", "place"), CALLS_OF_A_RUN)
def test_failures_of_one_run(function: str, message: str, place: str, monkeypatch) -> None:
    graphs = function == "cuGraphLaunch"
    monkeypatch.setenv("ABQC_CUDA_GRAPHS", str(int(graphs)))
    machine = FakeMachine()
    with load(machine) as model:
        fake = model._instance.driver
        if graphs:
            model.run(layer_inputs(rows=3), device=place)
        for _ in range(2):  # a first run, and one with a plan
            fake.intercept = failing(function, 701)
            with pytest.raises(DeviceError, match=f"{message}.*OUT_OF_RESOURCES"):
                model.run(layer_inputs(rows=3), device=place)
            fake.intercept = None
            check(model.run(layer_inputs(rows=3), device=place), layer_inputs(rows=3))
    del model
    gc.collect()
    assert not machine.pieces


@pytest.mark.parametrize(
    ("function", "place"), [(name, place) for name, _, place in CALLS_OF_A_RUN]
)
def test_a_gpu_that_is_lost(function: str, place: str, monkeypatch) -> None:
    monkeypatch.setenv("ABQC_CUDA_GRAPHS", str(int(function == "cuGraphLaunch")))
    machine = FakeMachine()
    model = load(machine)
    check(model.run(layer_inputs()), layer_inputs())
    outputs = model.run(layer_inputs(), device="cuda")
    fake = model._instance.driver
    fake.intercept = failing(function, 700)
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        model.run(layer_inputs(rows=5), device=place)
    for _ in range(2):
        message = r"GPU 0 failed in an earlier run \(CUDA_ERROR_ILLEGAL_ADDRESS\) and takes no more"
        with pytest.raises(DeviceError, match=message):
            model.run(layer_inputs())
    fake.intercept = lambda name, _: None if name == "cuGetErrorName" else 700
    del outputs
    model.close()
    gc.collect()
    with pytest.raises(DeviceError):
        abqc.load(fake_gpu.layer(), device=fake)
    check(load().run(layer_inputs()), layer_inputs())


def test_what_a_kernel_raises_comes_out() -> None:
    machine = FakeMachine()

    class Fault(Exception):
        pass

    def faulty(*_):
        raise Fault("out of bounds, line 7")

    machine.kernels["increment"] = (faulty, 2)
    with load(machine) as model:
        with pytest.raises(Fault, match="line 7") as caught:
            model.run(layer_inputs())
        assert isinstance(caught.value.__cause__, DeviceError)
        assert "kernel 'increment'" in str(caught.value.__cause__)
        with pytest.raises(DeviceError, match="failed in an earlier run"):
            model.run(layer_inputs())


def test_a_fault_in_one_thread_is_not_anothers() -> None:
    machine = FakeMachine()
    scale = machine.kernels["scale"][0]

    def faulty(machine, rows, *rest):
        if rows == 13:
            raise DriverError(701)
        scale(machine, rows, *rest)

    machine.kernels["scale"] = (faulty, 4)

    def work(rows: int) -> None:
        for _ in range(8):
            if rows == 13:
                with pytest.raises(DeviceError, match=r"blocks of kernel 'scale'|model's graph"):
                    model.run(layer_inputs(rows=rows))
            else:
                check(model.run(layer_inputs(rows=rows)), layer_inputs(rows=rows))

    with load(machine) as model, ThreadPoolExecutor(3) as pool:
        list(pool.map(work, (2, 13, 5)))


# ---- values that the host reads and writes ----

# The output is `fill` in as many elements as the data says; the size is written, too.
READING_HOST = """
#include "shim.h"
int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *size = abqc_rt_input(ctx, 0), *extra = abqc_rt_input(ctx, 1);
    int64_t one = 1, n = (int64_t)abqc_rt_read(ctx, size->data, 8);
    if (extra->sizes[0]) { /* computed on the device: the sum of both */
        int64_t *more = abqc_rt_alloc(ctx, 8);
        const uint64_t args[] = {(uint64_t)size->data, (uint64_t)extra->data, (uint64_t)more};
        abqc_rt_launch(ctx, 0, 1, args);
        n = (int64_t)abqc_rt_read(ctx, more, 8);
        abqc_rt_free(ctx, more);
    }
    abqc_rt_check(ctx, n >= 0, "a negative size");
    char *before = abqc_rt_alloc(ctx, n * 3000), *y = abqc_rt_alloc(ctx, n * 4);
    for (int64_t i = 0; i < n; i++) abqc_rt_write(ctx, y + 4 * i, (uint64_t)(i + 1), 4);
    abqc_rt_free(ctx, before);
    abqc_rt_output(ctx, 0, y, 1, &n, &one);
    uint64_t *wide = abqc_rt_alloc(ctx, 16);
    abqc_rt_write(ctx, wide, 0x1234567890abcdefull, 8);
    abqc_rt_write(ctx, wide, (uint64_t)n, 1);
    abqc_rt_write(ctx, (char *)wide + 2, 0x7777, 2);
    abqc_rt_output(ctx, 1, wide, 0, NULL, NULL);
    return 0;
}
"""

READING = ArtifactMeta(
    inputs=[TensorSpec("size", "int64", ()), TensorSpec("extra", "int64", (None,))],
    outputs=[TensorSpec("y", "int32", (None,)), TensorSpec("wide", "uint64", ())],
)


def _add(machine: FakeMachine, blocks: int, a: int, b: int, out: int) -> None:
    total = machine.array(a, np.int64, 1) + machine.array(b, np.int64, 1)
    machine.array(out, np.int64, 1)[:] = total


@pytest.fixture(scope="module")
def reading(tmp_path_factory) -> Path:
    fake_gpu.KERNELS["add"] = (_add, 3)
    path = tmp_path_factory.mktemp("reading") / "reading.so"
    return build(path, READING_HOST, READING, kernels=["add"])


@pytest.mark.parametrize("extra", [[], [4]])
def test_sizes_that_are_read_from_data(reading: Path, extra: list[int]) -> None:
    calls = []

    def intercept(name, arguments):
        calls.append((name, arguments[1] if name == "cuMemAlloc_v2" else 0))

    machine = FakeMachine()
    with abqc.load(reading, device=driver(machine, intercept=intercept)) as model:
        for n in 3, 3, 3, 500, 3, 500, 500, 0:
            y, wide = model.run([np.array(n), np.array(extra, np.int64)])
            total = n + sum(extra)
            np.testing.assert_array_equal(y, np.arange(1, total + 1))
            assert int(wide) == 0x12345678_7777CD00 | total & 0xFF
        with pytest.raises(InputError, match="a negative size"):
            model.run([np.array(-1000), np.array(extra, np.int64)])
        y, _ = model.run([GpuTensor(machine, np.array(7)), np.array(extra, np.int64)], device="cpu")
        assert len(y) == 7 + sum(extra)
    names = [name for name, _ in calls]
    # What is read from the host is known before anything is launched; from the GPU, it is not.
    assert ("cuGraphLaunch" in names) == (not extra)
    graphs = 0 if extra else 2  # one without what an empty tensor leaves out
    assert names.count("cuGraphInstantiateWithFlags") == graphs
    sizes = [size for name, size in calls if name == "cuMemAlloc_v2"]
    if extra:  # not known before: a chunk, one that is larger, then one for both and the next
        assert sizes == [1 << 20, sizes[1], sum(sizes[:2]) // 4 * 5]
    else:
        assert len(sizes) == 2


def test_a_value_on_the_gpu_is_not_taken_for_one_of_a_large_input(tmp_path: Path) -> None:
    """Places of inputs that do not fit into the memory that is there overlap no other memory."""
    check_rows = 'abqc_rt_check(ctx, rows > 0, "there are no rows");'
    read = "(int64_t)abqc_rt_read(ctx, index->data, 8) == 7"
    assert check_rows in fake_gpu.LAYER_HOST
    host = fake_gpu.LAYER_HOST.replace(check_rows, f'abqc_rt_check(ctx, {read}, "no 7");')
    weights = [("layer_w", LAYER_WEIGHTS), ("more_w", np.arange(COLUMNS))]
    path = build(tmp_path / "reads.so", host, handmade.LAYER, weights=weights)
    machine = FakeMachine()
    with abqc.load(path, device=driver(machine)) as model:
        for rows in 3, 3000:
            inputs = layer_inputs(rows=rows) | {"index": np.full(rows, 7)}
            if rows > 3:
                inputs["index"] = GpuTensor(machine, inputs["index"])
            y, *_ = model.run(inputs, device="cpu")
            np.testing.assert_allclose(y, 2 * inputs["x"] + LAYER_WEIGHTS, rtol=1e-5)


def test_memory_that_is_freed_twice(tmp_path: Path) -> None:
    host = """
    #include "shim.h"
    int32_t abqc_host_main(abqc_ctx *ctx) {
        void *data = abqc_rt_alloc(ctx, 1000);
        abqc_rt_free(ctx, data);
        abqc_rt_free(ctx, data);
        return 0;
    }
    """
    path = build(tmp_path / "twice.so", host, ArtifactMeta([], []), kernels=[])
    with pytest.raises(AbqcError, match="freed twice"):
        abqc.load(path, device=driver()).run([])


def test_an_artifact_needs_an_image(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="an artifact for GPUs needs an image"):
        build(tmp_path / "m.so", READING_HOST, READING, kernels=[], images=())


# ---- the allocator of offsets ----

RANGES = r"""
#include <stdio.h>
#include <stdlib.h>
#include "cuda.h"

enum { LIVE = 100, STEPS = 3000 };

/* Random sizes live at once, their places in `places`; no two overlap. */
static int run(abqc_ranges *ranges, unsigned seed, int64_t *places) {
    int64_t at[LIVE], sizes[LIVE] = {0};
    srand(seed);
    for (int step = 0; step < STEPS; step++) {
        int k = rand() % LIVE;
        if (sizes[k]) {
            if (!abqc_ranges_free(ranges, at[k])) return printf("refused\n");
            if (abqc_ranges_free(ranges, at[k])) return printf("freed twice\n");
            sizes[k] = 0;
            places[step] = -1;
            continue;
        }
        int64_t size = 1 + rand() % (1 << rand() % 20);
        places[step] = at[k] = abqc_ranges_alloc(ranges, size);
        if (at[k] < 0 || at[k] % 256) return printf("bad place\n");
        for (int j = 0; j < LIVE; j++)
            if (sizes[j] && at[k] < at[j] + sizes[j] && at[j] < at[k] + size)
                return printf("overlap\n");
        sizes[k] = size;
    }
    for (int k = 0; k < LIVE; k++)
        if (sizes[k]) abqc_ranges_free(ranges, at[k]);
    return ranges->count == 1 ? 0 : printf("%d pieces\n", ranges->count);
}

int main(void) {
    static int64_t planned[STEPS], places[STEPS];
    abqc_ranges ranges = {0};
    for (unsigned seed = 0; seed < 20; seed++) {
        abqc_ranges_begin(&ranges, INT64_MAX / 2);
        if (run(&ranges, seed, planned)) return 1;
        int64_t peak = ranges.peak;
        abqc_ranges_begin(&ranges, peak); /* the plan holds in a memory that ends at its peak */
        if (run(&ranges, seed, places)) return 1;
        for (int i = 0; i < STEPS; i++)
            if (places[i] != planned[i]) return printf("another place\n");
        if (ranges.peak != peak) printf("another peak\n");
    }
    abqc_ranges_begin(&ranges, 1024);
    if (abqc_ranges_alloc(&ranges, 1025) != -1) printf("more than there is\n");
    if (!abqc_ranges_extend(&ranges, 1024)) printf("cannot extend\n");
    if (abqc_ranges_alloc(&ranges, 1025) != -1) printf("across two memories\n");
    if (abqc_ranges_alloc(&ranges, 1024) != 0 || abqc_ranges_alloc(&ranges, 1024) != 1024)
        printf("not both\n");
    if (abqc_ranges_alloc(&ranges, 1) != -1) printf("from nothing\n");
    abqc_ranges_free(&ranges, 1024);
    abqc_ranges_free(&ranges, 0);
    if (ranges.count != 2) printf("joined across two memories\n");
    abqc_ranges_destroy(&ranges);
    printf("done\n");
    return 0;
}
"""


def test_ranges(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(RANGES)
    find_compiler().run(
        ["-O1", "-g", "-Wall", "-Wextra", f"-I{SHIM_DIRECTORY}", "main.c",
         SHIM_DIRECTORY / "cuda_ranges.c", "-o", "main"],
        directory=tmp_path,
        purpose="compile the test",
    )  # fmt: skip
    assert run_program([tmp_path / "main"]).stdout == "done\n"


def test_garbage_that_is_collected_in_a_call_of_the_driver() -> None:
    """It used to wait for a lock that its own thread held."""
    code = f"""
import gc, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import abqc, fake_gpu
gc.disable()
circle = [abqc.load(fake_gpu.layer(), device=fake_gpu.driver())]
circle.append(circle)
del circle
def collect(name, arguments):
    if name == "cuModuleLoadDataEx": print(gc.collect() > 0)
model = abqc.load(fake_gpu.layer(), device=fake_gpu.driver(intercept=collect))
print("done")
"""
    result = run_program([sys.executable, "-c", code])
    assert (result.stdout, result.returncode) == ("True\ndone\n", 0), result.stderr


def test_models_and_drivers_in_garbage() -> None:
    """What refers to each other in a circle is finalized in any order."""
    code = f"""
import gc, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import abqc, fake_gpu, handmade
for seed in range(30):
    model = abqc.load(fake_gpu.layer(), device=fake_gpu.driver())
    outputs = model.run(handmade.layer_inputs(), device="cuda")
    circle = [model, outputs, model._instance, model._instance.library]
    circle.append(circle)
    del model, outputs, circle
    if seed % 3 == 0: gc.collect()
gc.collect()
print("done")
"""
    result = run_program([sys.executable, "-c", code])
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr
