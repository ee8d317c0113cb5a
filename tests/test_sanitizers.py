"""The C shim under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

The shim, a model written by hand and a program with hostile calls (hostile_abi.c) become one
executable. Its threads are POSIX ones: the sanitizers do not know what OpenMP's runtime does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import handmade
import pytest
from abqc.codegen.link import meta_source
from abqc.codegen.toolchain import CCompiler, find_compiler
from abqc.errors import ToolchainError
from abqc.runtime.shim import SHIM_DIRECTORY
from handmade import run_program

THREADS = """
#include <pthread.h>
#include <stdlib.h>
static _Thread_local int number;
typedef struct { void (*region)(void *); void *data; int number; } task;
static void *start(void *data) {
    task *t = data;
    number = t->number;
    t->region(t->data);
    return NULL;
}
int omp_get_thread_num(void) { return number; }
int omp_get_num_threads(void) { return 1; }
void GOMP_parallel(void (*region)(void *), void *data, unsigned count, unsigned flags) {
    (void)flags;
    pthread_t *threads = calloc(count, sizeof *threads);
    task *tasks = calloc(count, sizeof *tasks);
    for (unsigned i = 0; i < count; i++) tasks[i] = (task){region, data, (int)i};
    for (unsigned i = 1; i < count; i++) pthread_create(&threads[i], NULL, start, &tasks[i]);
    start(&tasks[0]);
    for (unsigned i = 1; i < count; i++) pthread_join(threads[i], NULL);
    free(threads);
    free(tasks);
}
"""

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
QUIET = {
    "ASAN_OPTIONS": "allocator_may_return_null=1",
    "TSAN_OPTIONS": "halt_on_error=1 allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def compiler_with(flags: tuple[str, ...], folder: Path) -> CCompiler:
    """A compiler that can sanitize; skips where there is none, or this machine cannot run it."""
    compiler = find_compiler()
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    try:
        compiler.run([*flags, "probe.c", "-o", "probe"], directory=folder, purpose="probe")
    except ToolchainError as error:
        pytest.skip(f"the C compiler lacks {flags[0]}: {error}")
    answer = run_program([folder / "probe"])
    if answer.returncode:
        pytest.skip(f"programs with {flags[0]} do not start here: {answer.stderr[:200]}")
    return compiler


def build(compiler: CCompiler, flags: tuple[str, ...], folder: Path) -> Path:
    weights = ", ".join(map(str, handmade.LAYER_WEIGHTS.tolist()))
    sources = {
        "threads.c": THREADS,
        "meta.c": meta_source(handmade.LAYER),
        "manifest.c": 'const char abqc_manifest[] = "{}";\n',
        "model_host.c": handmade.LAYER_HOST,
        "kernels_avx2.c": handmade.LAYER_KERNELS.replace("ISA", "avx2"),
        "kernels_plain.c": handmade.LAYER_KERNELS.replace("ISA", "plain"),
        "weights.c": f"const float layer_w[16] = {{{weights}}};\n",
    }
    for name, text in sources.items():
        (folder / name).write_text(text)
    shutil.copy(Path(__file__).with_name("hostile_abi.c"), folder)
    shim = [
        path for path in sorted(SHIM_DIRECTORY.glob("*.c")) if not path.stem.startswith("cuda_")
    ]
    compiler.run(
        [
            *("-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", *flags, f"-I{SHIM_DIRECTORY}"),
            *("hostile_abi.c", *sources, *shim),
            *("-o", "hostile", "-lpthread", "-ldl", "-lm"),
        ],
        directory=folder,
        purpose="build the program",
    )
    return folder / "hostile"


@pytest.mark.parametrize("name", SANITIZERS)
def test_hostile_calls(name: str, tmp_path: Path) -> None:
    compiler = compiler_with(SANITIZERS[name], tmp_path)
    answer = run_program([build(compiler, SANITIZERS[name], tmp_path)], **QUIET)
    assert (answer.returncode, answer.stdout, answer.stderr[:4000]) == (0, "done\n", "")
