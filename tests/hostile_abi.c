/* The C interface under hostile arguments: every call must end with a status, and with sanitizers
 * nothing to say. Linked with the shim, the model of handmade.py and threads.c. */

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abqc.h"

enum { ROUNDS = 4000, THREADS = 3, RUNS = 60, ROWS = 40, MODEL_INPUTS = 4, MODEL_OUTPUTS = 4 };

static const abqc_api *api;

static uint64_t next(uint64_t *state) { /* xorshift64* */
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1Dull;
}

static int64_t hostile_number(uint64_t *state) {
    static const int64_t numbers[] = {0,  1,         2,         3,        4,         16,
                                      -1, INT64_MIN, INT64_MAX, 1ll << 32, 1ll << 46, -(1ll << 46)};
    uint64_t pick = next(state) % 13;
    return pick < 12 ? numbers[pick] : (int64_t)next(state);
}

/* A model's tensors that are right, with memory of their own. */
typedef struct {
    float x[ROWS * 16], past[2 * 5 * 4], step[2 * 1 * 4];
    int64_t index[ROWS];
    int64_t shapes[MODEL_INPUTS][4];
    DLTensor tensors[MODEL_INPUTS];
    const DLTensor *inputs[MODEL_INPUTS];
} model_inputs;

static void make_inputs(model_inputs *m) {
    static const int64_t shapes[MODEL_INPUTS][4] = {{ROWS, 16}, {ROWS}, {1, 2, 5, 4}, {1, 2, 1, 4}};
    static const int32_t ranks[] = {2, 1, 4, 4};
    void *data[] = {m->x, m->index, m->past, m->step};
    memset(m, 0, sizeof *m);
    memcpy(m->shapes, shapes, sizeof shapes);
    for (int i = 0; i < MODEL_INPUTS; i++) {
        DLDataType dtype = i == 1 ? (DLDataType){kDLInt, 64, 1} : (DLDataType){kDLFloat, 32, 1};
        m->tensors[i] = (DLTensor){data[i], {kDLCPU, 0}, ranks[i], dtype, m->shapes[i], NULL, 0};
        m->inputs[i] = &m->tensors[i];
    }
}

static void release(DLManagedTensor **outputs) {
    for (int i = 0; i < MODEL_OUTPUTS; i++) {
        if (outputs[i]) outputs[i]->deleter(outputs[i]);
        outputs[i] = NULL;
    }
}

/* Sizes and strides that no tensor can have, or smaller ones: that the data reach as far as others say
 * is the caller's promise. */
static void spoil(DLTensor *t, int64_t *shape, int64_t *strides, uint64_t *state) {
    switch (next(state) % 10) {
    case 0: t->data = NULL; break;
    case 1: t->ndim = (int32_t)hostile_number(state); break;
    case 2: t->dtype.code = (uint8_t)next(state); break;
    case 3: t->dtype.bits = (uint8_t)next(state); break;
    case 4: t->dtype.lanes = (uint16_t)hostile_number(state); break;
    case 5: t->device.device_type = (DLDeviceType)(next(state) % 20); break;
    case 6: t->shape = NULL; break;
    case 7: {
        int d = (int)(next(state) % 4);
        int64_t size = hostile_number(state);
        shape[d] = size < 1ll << 46 && size > shape[d] ? 0 : size;
        break;
    }
    case 8:
        for (int d = 0; d < 4; d++) strides[d] = hostile_number(state) | 1ll << 60;
        t->strides = strides;
        break;
    default: t->byte_offset = (1ull << 62) + next(state) % (1ull << 62); break;
    }
}

static void hostile_runs(abqc_instance *instance, uint64_t seed) {
    uint64_t state = seed;
    int refused = 0;
    for (int round = 0; round < ROUNDS; round++) {
        model_inputs m;
        int64_t strides[4], buffer_strides[4], buffer_shape[4] = {ROWS, 16, 0, 0};
        float buffer[ROWS * 16];
        make_inputs(&m);
        int i = (int)(next(&state) % MODEL_INPUTS);
        DLManagedTensor given = {.dl_tensor = {buffer, {kDLCPU, 0}, 2, {kDLFloat, 32, 1},
                                               buffer_shape, NULL, 0}};
        DLManagedTensor *outputs[MODEL_OUTPUTS] = {NULL};
        bool output = next(&state) % 3 == 0;
        if (output) {
            outputs[0] = &given;
            spoil(&given.dl_tensor, buffer_shape, buffer_strides, &state);
        } else if (next(&state) % 8 == 0) m.inputs[i] = NULL;
        else spoil(&m.tensors[i], m.shapes[i], strides, &state);
        int32_t status = api->run(instance, m.inputs, MODEL_INPUTS, outputs, MODEL_OUTPUTS, NULL);
        refused += status != ABQC_OK;
        if (status && !*api->last_error()) printf("an error without a text\n");
        if (outputs[0] == &given) outputs[0] = NULL;
        release(outputs);
    }
    if (refused < ROUNDS / 2) printf("only %d of %d were refused\n", refused, ROUNDS);
}

static void null_pointers(void) {
    abqc_instance *instance = NULL;
    const char *isa;
    int32_t errors = 0;
    errors += api->model_info(NULL) != ABQC_OK;
    errors += api->create(NULL, NULL) != ABQC_OK;
    errors += api->isa(NULL, &isa) != ABQC_OK;
    errors += api->run(NULL, NULL, 0, NULL, 0, NULL) != ABQC_OK;
    if (errors != 4 || api->destroy(NULL) != ABQC_OK) printf("null pointers\n");
    for (uint32_t size = 0; size < 200; size++) { /* struct_size says how much may be read */
        uint32_t *options = calloc(1, size < 4 ? 4 : size);
        *options = size;
        if (api->create((abqc_instance_options *)options, &instance) == ABQC_OK)
            api->destroy(instance);
        free(options);
    }
    if (api->create(NULL, &instance) != ABQC_OK) printf("create\n");
    model_inputs m;
    make_inputs(&m);
    DLManagedTensor *outputs[MODEL_OUTPUTS] = {NULL};
    for (int32_t count = -2; count < 8; count++) {
        int32_t status = api->run(instance, m.inputs, count, outputs, MODEL_OUTPUTS, NULL);
        if ((status == ABQC_OK) != (count == MODEL_INPUTS)) printf("%d inputs\n", count);
        release(outputs);
        status = api->run(instance, m.inputs, MODEL_INPUTS, outputs, count, NULL);
        if ((status == ABQC_OK) != (count == MODEL_OUTPUTS)) printf("%d outputs\n", count);
        release(outputs);
    }
    api->run(instance, NULL, MODEL_INPUTS, outputs, MODEL_OUTPUTS, NULL);
    api->run(instance, m.inputs, MODEL_INPUTS, NULL, MODEL_OUTPUTS, NULL);
    api->destroy(instance);
}

/* Runs that are right, from several threads on one instance, each with several threads. */
static void *right_runs(void *data) {
    abqc_instance *instance = data;
    for (int run = 0; run < RUNS; run++) {
        model_inputs m;
        DLManagedTensor *outputs[MODEL_OUTPUTS] = {NULL};
        abqc_run_options options = {.struct_size = sizeof options, .threads = 1 + run % 3};
        make_inputs(&m);
        m.x[17] = (float)run;
        m.index[3] = run;
        if (api->run(instance, m.inputs, MODEL_INPUTS, outputs, MODEL_OUTPUTS, &options))
            printf("a run failed: %s\n", api->last_error());
        else if (((float *)outputs[0]->dl_tensor.data)[17] != 2 * run + 0.125f ||
                 ((int64_t *)outputs[1]->dl_tensor.data)[3] != run + 1)
            printf("wrong values\n");
        release(outputs);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    abqc_instance *instance;
    api = abqc_get_api(ABQC_ABI_VERSION);
    null_pointers();
    if (api->create(NULL, &instance)) printf("create\n");
    hostile_runs(instance, 88172645463325252ull);
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, right_runs, instance);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    api->destroy(instance);
    printf("done\n");
    return 0;
}
