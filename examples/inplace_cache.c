/* Generates tokens with a decoder whose caches grow in place: every input `past...` and its output
 * `present...` are one memory, the output a row longer. Only the new row is written.
 *
 *     cc -I"$(python -c 'import abqc.runtime.shim as s; print(s.SHIM_DIRECTORY)')" \
 *         inplace_cache.c -ldl -o inplace_cache
 *     ./inplace_cache model.so 32 1 4093 253      32 rows in all, after the tokens 1 4093 253
 *
 * The model is one as `optimum` exports: int64 inputs called `...ids` (tokens) and, if it wants them,
 * `...mask` and `position...`, caches `past_key_values.0.key`, first output f32 logits [1, 1, words].
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abqc.h"

static const abqc_api *api;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "error: %s %s\n", what, name);
    exit(1);
}

static void check(int32_t status) {
    if (status != ABQC_OK) fail("the model says:", api->last_error());
}

/* A tensor with its own sizes and strides. */
typedef struct {
    DLManagedTensor managed;
    int64_t shape[ABQC_MAX_RANK], strides[ABQC_MAX_RANK];
} buffer;

static void set_up(buffer *b, const abqc_tensor_info *info, void *data) {
    memset(b, 0, sizeof *b);
    b->managed.dl_tensor.data = data;
    b->managed.dl_tensor.device.device_type = kDLCPU;
    b->managed.dl_tensor.ndim = info->ndim;
    b->managed.dl_tensor.dtype = info->dtype;
    b->managed.dl_tensor.shape = b->shape;
    b->managed.dl_tensor.strides = b->strides;
}

/* ---- caches ---- */

static int is_cache(const abqc_tensor_info *info) { return strstr(info->name, "past") != NULL; }

/* The dimension that grows: the last symbolic one. The other symbolic one is the batch, 1 here. */
static int32_t growing_axis(const abqc_tensor_info *info) {
    for (int32_t d = info->ndim - 1; d >= 0; d--)
        if (info->dims[d] < 0) return d;
    fail("no size can grow in", info->name);
    return -1;
}

/* past_key_values.0.key grows into present.0.key: what follows the first dot agrees. */
static int32_t present_of(const abqc_model_info *info, const abqc_tensor_info *past) {
    const char *rest = strchr(past->name, '.');
    for (int32_t o = 0; o < info->output_count && rest; o++) {
        const char *dot = strchr(info->outputs[o].name, '.');
        if (dot && strcmp(dot, rest) == 0) return o;
    }
    fail("no output belongs to", past->name);
    return -1;
}

static int64_t static_size(const abqc_tensor_info *info, int32_t d) {
    return info->dims[d] >= 0 ? info->dims[d] : 1;
}

static void *allocate_cache(const abqc_tensor_info *info, int64_t capacity) {
    int64_t elements = capacity;
    for (int32_t d = 0; d < info->ndim; d++) elements *= static_size(info, d);
    return calloc((size_t)elements, info->dtype.bits / 8);
}

/* The first `rows` rows of a cache with room for `capacity`: the strides are those of the room. */
static void view_cache(buffer *b, const abqc_tensor_info *info, void *data, int64_t rows,
                       int64_t capacity) {
    int32_t axis = growing_axis(info);
    int64_t stride = 1;
    set_up(b, info, data);
    for (int32_t d = info->ndim - 1; d >= 0; d--) {
        b->shape[d] = d == axis ? rows : static_size(info, d);
        b->strides[d] = stride;
        stride *= d == axis ? capacity : b->shape[d];
    }
}

/* ---- the other inputs, for one token at a time ---- */

/* A row of int64: a mask of ones over the cache and the new token, the position, or the token. */
static void view_row(buffer *b, const abqc_tensor_info *info, int64_t *memory, int64_t position,
                     int64_t token) {
    int is_mask = strstr(info->name, "mask") != NULL;
    int64_t count = is_mask ? position + 1 : 1;
    if (info->ndim != 2 || info->dtype.code != kDLInt || info->dtype.bits != 64)
        fail("this program does not know what to feed to", info->name);
    for (int64_t i = 0; i < count; i++)
        memory[i] = is_mask ? 1 : strstr(info->name, "position") ? position : token;
    set_up(b, info, memory);
    b->shape[0] = 1;
    b->shape[1] = count;
    b->strides[0] = count;
    b->strides[1] = 1;
}

static int64_t argmax_of_last_row(const DLTensor *logits) {
    if (logits->dtype.code != kDLFloat || logits->dtype.bits != 32 || logits->ndim != 3)
        fail("the first output is no f32 tensor", "[batch, tokens, words]");
    int64_t words = logits->shape[2], best = 0;
    const float *row = (const float *)logits->data + (logits->shape[1] - 1) * words;
    for (int64_t w = 1; w < words; w++)
        if (row[w] > row[best]) best = w;
    return best;
}

int main(int argc, char **argv) {
    int64_t steps = argc > 3 ? atoll(argv[2]) : 0;
    if (steps < 1) {
        fprintf(stderr, "usage: %s model.so steps token...\n", argv[0]);
        return 2;
    }
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("cannot open the model:", dlerror());
    abqc_get_api_fn get_api = (abqc_get_api_fn)dlsym(library, "abqc_get_api");
    api = get_api ? get_api(ABQC_ABI_VERSION) : NULL;
    if (!api) fail("no compiled model:", argv[1]);

    const abqc_model_info *info;
    abqc_instance *instance;
    check(api->model_info(&info));
    check(api->create(NULL, &instance));

    size_t inputs = (size_t)info->input_count, outputs = (size_t)info->output_count;
    void **memory = calloc(inputs, sizeof *memory);
    buffer *given = calloc(inputs, sizeof *given), *grown = calloc(outputs, sizeof *grown);
    const DLTensor **input_list = calloc(inputs, sizeof *input_list);
    DLManagedTensor **output_list = calloc(outputs, sizeof *output_list);
    for (size_t i = 0; i < inputs; i++)
        memory[i] = is_cache(&info->inputs[i]) ? allocate_cache(&info->inputs[i], steps)
                                               : calloc((size_t)steps, sizeof(int64_t));

    int64_t token = 0;
    for (int64_t position = 0; position < steps; position++) {
        if (position < argc - 3) token = atoll(argv[3 + position]);
        printf(position ? " %" PRId64 : "%" PRId64, token);
        memset(output_list, 0, outputs * sizeof *output_list);
        for (size_t i = 0; i < inputs; i++) {
            const abqc_tensor_info *input = &info->inputs[i];
            input_list[i] = &given[i].managed.dl_tensor;
            if (!is_cache(input)) {
                view_row(&given[i], input, memory[i], position, token);
                continue;
            }
            int32_t o = present_of(info, input);
            view_cache(&given[i], input, memory[i], position, steps);
            view_cache(&grown[o], input, memory[i], position + 1, steps);
            output_list[o] = &grown[o].managed;
        }
        check(api->run(instance, input_list, info->input_count, output_list, info->output_count,
                       NULL));
        token = argmax_of_last_row(&output_list[0]->dl_tensor);
        for (size_t o = 0; o < outputs; o++) /* those that the model allocated */
            if (output_list[o]->deleter) output_list[o]->deleter(output_list[o]);
    }
    printf(" %" PRId64 "\n", token);

    for (size_t i = 0; i < inputs; i++) free(memory[i]);
    free(memory);
    free(given);
    free(grown);
    free(input_list);
    free(output_list);
    check(api->destroy(instance));
    return dlclose(library);
}
