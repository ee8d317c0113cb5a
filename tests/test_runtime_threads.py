"""Threads: of a run, of the host, of an OpenMP region around a run."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import abqc
import handmade
import numpy as np
import pytest
from abqc.codegen.link import ArtifactMeta
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.shim import SHIM_DIRECTORY
from abqc.runtime.tensor_spec import TensorSpec
from handmade import build, layer_inputs, layer_reference, run_program

# Launches of many grids, after which every index must have been run exactly once.
COUNTING_HOST = """
#include "shim.h"
#include <string.h>
int32_t abqc_host_main(abqc_ctx *ctx) {
    const abqc_view *grids = abqc_rt_input(ctx, 0);
    int64_t one = 1, wrong = 0, launches = grids->sizes[0];
    for (int64_t l = 0; l < launches; l++) {
        int64_t grid = ((const int64_t *)grids->data)[l];
        int32_t *counts = abqc_rt_alloc(ctx, grid * 4);
        memset(counts, 0, (size_t)grid * 4);
        const uint64_t args[] = {(uint64_t)counts};
        abqc_rt_launch(ctx, 0, grid, args);
        for (int64_t i = 0; i < grid; i++) wrong += counts[i] != 1;
        abqc_rt_free(ctx, counts);
    }
    abqc_rt_output(ctx, 0, &wrong, 0, NULL, &one);
    return 0;
}
"""

COUNTING_KERNELS = """
#include <stdint.h>
static void count(int64_t begin, int64_t end, const uint64_t *args) {
    int32_t *counts = (int32_t *)args[0];
    for (int64_t i = begin; i < end; i++) __atomic_fetch_add(&counts[i], 1, __ATOMIC_RELAXED);
}
void (*const abqc_kernels_ISA[])(int64_t, int64_t, const uint64_t *) = {count};
"""

COUNTING = ArtifactMeta(
    inputs=[TensorSpec("grids", "int64", (None,))],
    outputs=[TensorSpec("wrong", "int64", ())],
    isas=("plain",),
)


# The same in groups of launches that run at the same time, of more than there is room for, too.
COUNTING_TOGETHER = COUNTING_HOST.replace(
    "abqc_rt_launch(ctx, 0, grid, args);",
    """uint64_t later[11][1];
        for (int64_t k = 0; k <= l % 11; k++) {
            int64_t begin = grid * k / (l % 11 + 1), end = grid * (k + 1) / (l % 11 + 1);
            later[k][0] = (uint64_t)(counts + begin);
            if (k < l % 11) abqc_rt_launch_with_next(ctx, 0, end - begin, later[k]);
            else abqc_rt_launch(ctx, 0, end - begin, later[k]);
        }""",
).replace("        const uint64_t args[] = {(uint64_t)counts};\n", "")


@pytest.fixture(scope="module")
def counting(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("counting") / "counting.so"
    return build(path, COUNTING_HOST, COUNTING, kernels=COUNTING_KERNELS)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_index_runs_once(counting: Path, threads: int) -> None:
    random = np.random.default_rng(threads)
    with abqc.load(counting, threads=threads) as model:
        for _ in range(10):
            grids = np.concatenate([random.integers(0, 40, 200), random.integers(0, 5000, 20)])
            assert model.run([random.permutation(grids)])[0] == 0


def test_launches_at_the_same_time(tmp_path: Path) -> None:
    path = build(tmp_path / "m.so", COUNTING_TOGETHER, COUNTING, kernels=COUNTING_KERNELS)
    for threads in (1, 2, 3):
        test_every_index_runs_once(path, threads)


def run_and_check(model: abqc.Model, seed: int, runs: int, **options) -> None:
    random = np.random.default_rng(seed)
    for _ in range(runs):
        inputs = layer_inputs(*(int(n) for n in random.integers(1, 200, 3)), seed=seed)
        outputs = model.run(inputs, **options)
        for got, expected in zip(outputs, layer_reference(inputs), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_on_one_model(threads: int) -> None:
    with abqc.load(handmade.layer(), threads=threads) as model, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: run_and_check(model, seed, 40), range(8)))


def test_two_models_two_threads(counting: Path) -> None:
    layer, counts = abqc.load(handmade.layer(), threads=2), abqc.load(counting, threads=2)
    grids = np.arange(500)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_and_check, layer, 0, 60)
        second = pool.submit(lambda: [int(counts.run([grids])[0]) for _ in range(60)])
        first.result()
        assert not any(second.result())


def test_close_while_others_run() -> None:
    """A run that has begun ends well; memory goes when the last one is over."""
    for _ in range(8):
        model = abqc.load(handmade.layer(), threads=2)
        started = threading.Event()

        def work(model: abqc.Model = model, started: threading.Event = started) -> None:
            try:
                for _ in range(50):
                    model.run(layer_inputs(rows=500))
                    started.set()
            except abqc.AbqcError as error:
                assert "closed" in str(error)

        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        started.wait()
        model.close()
        for worker in workers:
            worker.join()
        del model
        gc.collect()


def test_run_inside_an_openmp_region(tmp_path: Path, counting: Path) -> None:
    source = """
    #include <dlfcn.h>
    #include <stdio.h>
    #include "abqc.h"
    int main(int argc, char **argv) {
        void *library = dlopen(argv[1], RTLD_NOW);
        const abqc_api *api = ((abqc_get_api_fn)dlsym(library, "abqc_get_api"))(ABQC_ABI_VERSION);
        abqc_instance *instance;
        abqc_instance_options options = {.struct_size = sizeof options, .threads = 2};
        int64_t grids[] = {1, 2, 3, 100, 1000}, shape[] = {5}, failed = 0;
        DLTensor input = {grids, {kDLCPU, 0}, 1, {kDLInt, 64, 1}, shape, NULL, 0};
        if (api->create(&options, &instance)) return 1;
        #pragma omp parallel num_threads(2) reduction(+ : failed)
        for (int i = 0; i < 50; i++) {
            const DLTensor *inputs[] = {&input};
            DLManagedTensor *outputs[] = {NULL};
            failed += api->run(instance, inputs, 1, outputs, 1, NULL) != 0;
            failed += *(int64_t *)outputs[0]->dl_tensor.data;
            outputs[0]->deleter(outputs[0]);
        }
        api->destroy(instance);
        dlclose(library);
        printf("%ld failed", (long)failed);
        return 0;
    }
    """
    (tmp_path / "main.c").write_text(source)
    compiler = find_compiler()
    compiler.run(
        ["-fopenmp", f"-I{SHIM_DIRECTORY}", "main.c", "-ldl", "-o", "main"],
        directory=tmp_path,
        purpose="compile the test",
    )
    for nesting in "1", "2":
        environment = {"OMP_MAX_ACTIVE_LEVELS": nesting}
        result = run_program([tmp_path / "main", counting], **environment)
        assert (result.returncode, result.stdout) == (0, "0 failed")


@pytest.mark.parametrize("cores", [1, 2])
def test_more_threads_than_cores(counting: Path, cores: int) -> None:
    code = f"""
import os, sys, time
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:{cores}])
import abqc, numpy as np
usual = os.sched_getaffinity(0)
before = set(os.listdir("/proc/self/task"))
model = abqc.load({str(counting)!r}, threads=4)
for _ in range(20):
    assert model.run([np.arange(200)])[0] == 0
assert all(os.sched_getaffinity(int(task)) == usual for task in before)
model.close()
while set(os.listdir("/proc/self/task")) != before:  # OpenMP's end after their region
    time.sleep(0.01)
print("ran")
"""
    assert run_program([sys.executable, "-c", code]).stdout == "ran\n"


def test_threads_go_with_the_model(counting: Path) -> None:
    before = set(os.listdir("/proc/self/task"))  # of which some may be about to end

    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task")) - before

    with abqc.load(counting, threads=2) as model:
        for count in 2, 4, 1, 3, 3:
            assert model.run([np.arange(100)], threads=count)[0] == 0
        assert threads()
    deadline = time.monotonic() + 30
    while threads():  # OpenMP's end after their region
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_reach_the_host(counting: Path) -> None:
    """The model's threads take no signals from the host's own."""
    code = f"""
import abqc, os, signal, sys, threading, numpy as np
caught, before = [], set(os.listdir("/proc/self/task"))
signal.signal(signal.SIGUSR1, lambda *_: caught.append(threading.current_thread()))
model = abqc.load({str(counting)!r}, threads=4)
for _ in range(50):
    model.run([np.arange(300)])
    os.kill(os.getpid(), signal.SIGUSR1)
    model.run([np.arange(300)])
for task in set(os.listdir("/proc/self/task")) - before:
    blocked = open(f"/proc/self/task/{{task}}/status").read().split("SigBlk:")[1].split()[0]
    assert int(blocked, 16) >> (signal.SIGUSR1 - 1) & 1
print(len(caught))
"""
    assert run_program([sys.executable, "-c", code]).stdout == "50\n"


def test_fork_with_a_model_loaded(counting: Path) -> None:
    code = f"""
import abqc, os, numpy as np
model = abqc.load({str(counting)!r}, threads=2)
assert model.run([np.arange(300)])[0] == 0
child = os.fork()
assert model.run([np.arange(300)])[0] == 0
model.close()
if child:
    print(os.waitpid(child, 0)[1])
"""
    assert run_program([sys.executable, "-c", code]).stdout == "0\n"
