"""The C interface from C: codes, options, DLPack's details; and the arena under random use."""

from __future__ import annotations

from pathlib import Path

import handmade
from abqc.codegen.toolchain import find_compiler
from abqc.runtime.shim import SHIM_DIRECTORY
from handmade import run_program

ABI = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "abqc.h"

static const abqc_api *api;

#define EXPECT(call, code, text)                                                              \
    do {                                                                                      \
        int32_t got = (call);                                                                 \
        if (got != (code) || (got && !strstr(api->last_error(), text)))                       \
            printf("line %d: code %d, '%s'\n", __LINE__, (int)got, api->last_error());        \
    } while (0)

int main(int argc, char **argv) {
    (void)argc;
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    abqc_get_api_fn get_api = (abqc_get_api_fn)dlsym(library, "abqc_get_api");
    if (get_api(0) || get_api(ABQC_ABI_VERSION + 1)) printf("a version that is not there\n");
    api = get_api(ABQC_ABI_VERSION);
    if (api->abi_version != ABQC_ABI_VERSION || api->struct_size != sizeof *api) printf("table\n");
    if (*api->last_error()) printf("an error before the first call\n");

    const abqc_model_info *info;
    EXPECT(api->model_info(NULL), ABQC_E_ARGUMENT, "info is NULL");
    EXPECT(api->model_info(&info), ABQC_OK, "");
    if (info->input_count != 4 || info->output_count != 4 || strcmp(info->isas, "avx2 plain") ||
        strcmp(info->manifest, "{\"model\":\"layer\"}") || strcmp(info->inputs[0].name, "x") ||
        info->inputs[0].dims[1] != 16 || info->inputs[0].dims[0] != -1 ||
        strcmp(info->symbols[0], "rows"))
        printf("model_info\n");

    abqc_instance *instance = NULL;
    const char *isa;
    EXPECT(api->create(NULL, NULL), ABQC_E_ARGUMENT, "instance is NULL");
    abqc_instance_options wrong[] = {
        {.struct_size = 0},
        {.struct_size = 1000},
        {.struct_size = sizeof wrong[0], .threads = -1},
        {.struct_size = sizeof wrong[0], .threads = 100000},
        {.struct_size = sizeof wrong[0], .device = {kDLCUDA, 0}},
        {.struct_size = sizeof wrong[0], .isa = "neon"},
        {.struct_size = sizeof wrong[0], .flags = 4},
    };
    EXPECT(api->create(&wrong[0], &instance), ABQC_E_ARGUMENT, "struct_size 0");
    EXPECT(api->create(&wrong[1], &instance), ABQC_E_ARGUMENT, "struct_size 1000");
    EXPECT(api->create(&wrong[2], &instance), ABQC_E_ARGUMENT, "threads is -1");
    EXPECT(api->create(&wrong[3], &instance), ABQC_E_ARGUMENT, "threads is 100000");
    EXPECT(api->create(&wrong[4], &instance), ABQC_E_DEVICE, "compiled for the CPU");
    EXPECT(api->create(&wrong[5], &instance), ABQC_E_ISA, "neon");
    EXPECT(api->create(&wrong[6], &instance), ABQC_E_ARGUMENT, "unknown flags 0x4");
    if (instance) printf("an instance in spite of an error\n");
    abqc_instance_options known = {.struct_size = 8, .threads = 2, .isa = "not looked at"};
    EXPECT(api->create(&known, &instance), ABQC_OK, "");
    EXPECT(api->isa(instance, &isa), ABQC_OK, "");
    EXPECT(api->isa(NULL, &isa), ABQC_E_ARGUMENT, "NULL");
    abqc_statistics statistics = {.struct_size = 1000};
    EXPECT(api->statistics(instance, NULL), ABQC_E_ARGUMENT, "statistics is NULL");
    EXPECT(api->statistics(NULL, &statistics), ABQC_E_ARGUMENT, "instance or");
    EXPECT(api->statistics(instance, &statistics), ABQC_E_ARGUMENT, "struct_size 1000");
    statistics = (abqc_statistics){.struct_size = 8, .graph_runs = 7};
    EXPECT(api->statistics(instance, &statistics), ABQC_OK, "");
    if (statistics.graph_error || statistics.graph_runs != 7) printf("statistics\n");

    /* x at an offset into its memory, as DLPack allows; past is empty and has no data. */
    float x[3 * 16 + 4] = {0}, step[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    int64_t index[3] = {1, 2, 3}, x_shape[] = {3, 16}, index_shape[] = {3};
    int64_t past_shape[] = {1, 2, 0, 4}, step_shape[] = {1, 2, 1, 4};
    x[4] = 10;
    DLTensor tensors[] = {
        {x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, x_shape, NULL, 16},
        {index, {kDLCPU, 0}, 1, {kDLInt, 64, 1}, index_shape, NULL, 0},
        {NULL, {kDLCPU, 0}, 4, {kDLFloat, 32, 1}, past_shape, NULL, 0},
        {step, {kDLCPU, 0}, 4, {kDLFloat, 32, 1}, step_shape, NULL, 0},
    };
    const DLTensor *inputs[] = {&tensors[0], &tensors[1], &tensors[2], &tensors[3]};
    DLManagedTensor *outputs[4] = {NULL};
    EXPECT(api->run(NULL, inputs, 4, outputs, 4, NULL), ABQC_E_ARGUMENT, "instance is NULL");
    EXPECT(api->run(instance, inputs, 3, outputs, 4, NULL), ABQC_E_INPUT, "3 inputs, expected 4");
    EXPECT(api->run(instance, NULL, 4, outputs, 4, NULL), ABQC_E_INPUT, "0 inputs, expected 4");
    EXPECT(api->run(instance, inputs, 4, outputs, 5, NULL), ABQC_E_OUTPUT, "5 outputs");
    EXPECT(api->run(instance, inputs, 4, NULL, 4, NULL), ABQC_E_OUTPUT, "0 outputs");
    abqc_run_options options = {.struct_size = sizeof options, .device = {kDLCUDA, 0}};
    EXPECT(api->run(instance, inputs, 4, outputs, 4, &options), ABQC_E_DEVICE, "device type 2");
    options = (abqc_run_options){.struct_size = sizeof options, .stream = &options};
    EXPECT(api->run(instance, inputs, 4, outputs, 4, &options), ABQC_E_DEVICE, "stream");
    tensors[0].device.device_type = kDLCUDA;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_DEVICE, "'x' lies on device");
    tensors[0].device.device_type = kDLCPU;
    tensors[0].dtype.lanes = 2;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "'x' is float32x2");
    tensors[0].dtype.lanes = 1;
    tensors[0].data = NULL;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "'x' has no data");
    tensors[0].data = x;
    tensors[0].shape = NULL;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "'x' has no shape");
    tensors[0].shape = x_shape;
    x_shape[0] = -3;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "impossible size");
    x_shape[0] = (int64_t)1 << 60;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "impossible size");
    x_shape[0] = 3;
    inputs[1] = NULL;
    EXPECT(api->run(instance, inputs, 4, outputs, 4, NULL), ABQC_E_INPUT, "'index' is missing");
    inputs[1] = &tensors[1];
    for (int i = 0; i < 4; i++)
        if (outputs[i]) printf("an output in spite of an error\n");

    abqc_launch_record launches[1] = {{.end = -1}};
    abqc_profile profile = {.launches = NULL, .capacity = 1, .count = 9};
    options = (abqc_run_options){.struct_size = sizeof options, .threads = 1, .profile = &profile};
    EXPECT(api->run(instance, inputs, 4, outputs, 4, &options), ABQC_E_ARGUMENT, "no memory for");
    profile.launches = launches;
    for (int round = 0; round < 3; round++) {
        EXPECT(api->run(instance, inputs, 4, outputs, 4, round ? &options : NULL), ABQC_OK, "");
        const float *y = outputs[0]->dl_tensor.data, *present = outputs[2]->dl_tensor.data;
        if (y[0] != 20 || y[1] != 0.125f || ((int64_t *)outputs[1]->dl_tensor.data)[2] != 4 ||
            present[7] != 8 || *(float *)outputs[3]->dl_tensor.data != 36)
            printf("values\n");
        for (int i = 0; i < 4; i++) {
            const DLTensor *t = &outputs[i]->dl_tensor;
            if ((uintptr_t)t->data % 64 || t->byte_offset || t->device.device_type != kDLCPU ||
                t->ndim != info->outputs[i].ndim || !t->strides)
                printf("output %d\n", i);
            outputs[i]->deleter(outputs[i]);
            outputs[i] = NULL;
        }
    }
    if (profile.count != 1 || launches[0].begin <= 0 || launches[0].end < launches[0].begin)
        printf("profile\n");
    EXPECT(api->destroy(instance), ABQC_OK, "");
    EXPECT(api->destroy(NULL), ABQC_OK, "");
    dlclose(library);
    printf("done\n");
    return 0;
}
"""

ARENA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "shim.h"

enum { LIVE = 120, STEPS = 4000 };

/* Random sizes live at once; every block keeps its pattern, so no two overlap. */
static int run(abqc_arena *arena, unsigned seed) {
    unsigned char *blocks[LIVE] = {0};
    size_t sizes[LIVE];
    srand(seed);
    for (int step = 0; step < STEPS; step++) {
        int k = rand() % LIVE;
        if (blocks[k]) {
            for (size_t i = 0; i < sizes[k]; i++)
                if (blocks[k][i] != (unsigned char)k) return printf("overwritten\n");
            if (!abqc_arena_free(arena, blocks[k])) return printf("refused\n");
            if (abqc_arena_free(arena, blocks[k])) return printf("freed twice\n");
            blocks[k] = NULL;
            continue;
        }
        sizes[k] = (size_t)rand() % ((size_t)1 << rand() % 17);
        blocks[k] = abqc_arena_alloc(arena, sizes[k]);
        if (!blocks[k] || (uintptr_t)blocks[k] % 64) return printf("bad block\n");
        memset(blocks[k], k, sizes[k]);
    }
    for (int k = 0; k < LIVE; k++)
        if (blocks[k]) abqc_arena_free(arena, blocks[k]);
    return 0;
}

int main(void) {
    abqc_arena arena = {0};
    size_t capacity = 0;
    for (unsigned seed = 0; seed < 40; seed++) {
        abqc_arena_begin(&arena);
        if (run(&arena, seed % 4)) return 1;
        if (seed == 8) capacity = arena.capacity;
    }
    if (arena.capacity != capacity) printf("grows in a steady state\n");
    /* All is free again: one block of nearly everything must fit without a new chunk. */
    abqc_arena_begin(&arena);
    if (!abqc_arena_alloc(&arena, capacity - 4096) || arena.capacity != capacity)
        printf("in pieces\n");
    abqc_arena_begin(&arena);
    void *most = abqc_arena_alloc(&arena, capacity / 4 * 3);
    abqc_arena_alloc(&arena, 64);
    abqc_arena_free(&arena, most);
    if (abqc_arena_alloc(&arena, capacity / 8) != most) printf("memory not used before\n");
    abqc_arena_begin(&arena);
    if (abqc_arena_alloc(&arena, (size_t)1 << 46)) printf("more than there is\n");
    abqc_arena_destroy(&arena);
    printf("done\n");
    return 0;
}
"""


def run_source(folder: Path, source: str, flags: list[object], *arguments: Path) -> str:
    (folder / "main.c").write_text(source)
    find_compiler().run(
        ["-O1", "-g", "-Wall", "-Wextra", f"-I{SHIM_DIRECTORY}", "main.c", *flags, "-o", "main"],
        directory=folder,
        purpose="compile the test",
    )
    result = run_program([folder / "main", *arguments])
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_code_and_option(tmp_path: Path) -> None:
    assert run_source(tmp_path, ABI, ["-ldl"], handmade.layer()) == "done\n"


def test_arena(tmp_path: Path) -> None:
    assert run_source(tmp_path, ARENA, [SHIM_DIRECTORY / "arena.c"]) == "done\n"
