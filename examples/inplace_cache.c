/* Steps a model whose caches grow, in place: for every input called `past...` (or `...past...`) the
 * output called `present...` is the same memory, one row longer. Only the new row is written.
 *
 *     cc -I"$(python -c 'import abqc.runtime.shim as s; print(s.SHIM_DIRECTORY)')" \
 *         inplace_cache.c -ldl -o inplace_cache
 *     ./inplace_cache model.so [steps]
 *
 * Inputs that are not caches are fed zeros (integers called `...mask...`: ones, as long as the cache
 * will be). A program with a tokenizer would put its tokens there.
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abqc.h"

enum { MAX_STEPS = 1024 };

static const abqc_api *api;

static void check(int32_t status) {
    if (status == ABQC_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)status, api->last_error());
    exit(1);
}

static int bytes_of(const abqc_tensor_info *info) { return info->dtype.bits / 8; }
static int is_cache(const abqc_tensor_info *info) { return strstr(info->name, "past") != NULL; }

/* The dimension of a cache that grows: the last symbolic one. */
static int32_t growing_axis(const abqc_tensor_info *info) {
    for (int32_t d = info->ndim - 1; d >= 0; d--)
        if (info->dims[d] < 0) return d;
    fprintf(stderr, "input %s has no size that could grow\n", info->name);
    exit(1);
}

/* "past_key.0" belongs to "present_key.0": what follows the word must agree. */
static int32_t present_of(const abqc_model_info *info, const abqc_tensor_info *past) {
    const char *rest = strstr(past->name, "past") + strlen("past");
    for (int32_t o = 0; o < info->output_count; o++) {
        const char *present = strstr(info->outputs[o].name, "present");
        const char *own = present ? present + strlen("present") : NULL;
        if (own && (strcmp(own, rest) == 0 || (*rest == '_' && strchr(rest, '.') &&
                                               strcmp(own, strchr(rest, '.')) == 0)))
            return o;
    }
    fprintf(stderr, "no output belongs to input %s\n", past->name);
    exit(1);
}

/* One tensor with its sizes and strides. */
typedef struct {
    DLTensor tensor;
    int64_t shape[ABQC_MAX_RANK], strides[ABQC_MAX_RANK];
} buffer;

static void set_up(buffer *b, const abqc_tensor_info *info, void *data) {
    b->tensor = (DLTensor){.data = data,
                           .device = {kDLCPU, 0},
                           .ndim = info->ndim,
                           .dtype = info->dtype,
                           .shape = b->shape,
                           .strides = b->strides};
}

/* A view of `rows` rows of a cache that has room for `capacity`. */
static void view_cache(buffer *b, const abqc_tensor_info *info, void *data, int64_t rows,
                       int64_t capacity) {
    int64_t stride = 1;
    int32_t axis = growing_axis(info);
    set_up(b, info, data);
    for (int32_t d = info->ndim - 1; d >= 0; d--) {
        int64_t size = info->dims[d] >= 0 ? info->dims[d] : 1;
        b->shape[d] = d == axis ? rows : size;
        b->strides[d] = stride;
        stride *= d == axis ? capacity : size;
    }
}

static int64_t cache_elements(const abqc_tensor_info *info, int64_t capacity) {
    int64_t elements = capacity;
    for (int32_t d = 0; d < info->ndim; d++) elements *= info->dims[d] >= 0 ? info->dims[d] : 1;
    return elements;
}

/* Inputs of one step: sizes are 1, but a mask covers the cache and the new row. */
static void fill_plain(buffer *b, const abqc_tensor_info *info, int64_t rows) {
    int is_mask = strstr(info->name, "mask") != NULL;
    int64_t elements = 1;
    set_up(b, info, NULL);
    for (int32_t d = 0; d < info->ndim; d++) {
        int64_t any = is_mask && d == info->ndim - 1 ? rows + 1 : 1;
        b->shape[d] = info->dims[d] >= 0 ? info->dims[d] : any;
        elements *= b->shape[d];
    }
    b->tensor.strides = NULL;
    b->tensor.data = calloc((size_t)elements, (size_t)bytes_of(info));
    if (is_mask && info->dtype.code == kDLInt && info->dtype.bits == 64)
        for (int64_t i = 0; i < elements; i++) ((int64_t *)b->tensor.data)[i] = 1;
}

int main(int argc, char **argv) {
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    int64_t steps = argc > 2 ? atoll(argv[2]) : 8;
    if (!library || steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "usage: %s model.so [steps]\n%s\n", argv[0], argc > 1 ? dlerror() : "");
        return 2;
    }
    abqc_get_api_fn get_api = (abqc_get_api_fn)dlsym(library, "abqc_get_api");
    api = get_api ? get_api(ABQC_ABI_VERSION) : NULL;
    if (!api) return 2;

    const abqc_model_info *info;
    abqc_instance *instance;
    check(api->model_info(&info));
    check(api->create(NULL, &instance));

    int32_t inputs = info->input_count, outputs = info->output_count;
    void **caches = calloc((size_t)inputs + 1, sizeof *caches);
    buffer *given = calloc((size_t)inputs + 1, sizeof *given);
    buffer *grown = calloc((size_t)outputs + 1, sizeof *grown);
    DLManagedTensor *managed = calloc((size_t)outputs + 1, sizeof *managed);
    const DLTensor **given_list = calloc((size_t)inputs + 1, sizeof *given_list);
    DLManagedTensor **output_list = calloc((size_t)outputs + 1, sizeof *output_list);

    for (int32_t i = 0; i < inputs; i++)
        if (is_cache(&info->inputs[i]))
            caches[i] = calloc((size_t)cache_elements(&info->inputs[i], steps),
                               (size_t)bytes_of(&info->inputs[i]));

    for (int64_t row = 0; row < steps; row++) {
        memset(output_list, 0, sizeof *output_list * (size_t)outputs);
        for (int32_t i = 0; i < inputs; i++) {
            const abqc_tensor_info *input = &info->inputs[i];
            given_list[i] = &given[i].tensor;
            if (!caches[i]) {
                fill_plain(&given[i], input, row);
                continue;
            }
            int32_t o = present_of(info, input);
            view_cache(&given[i], input, caches[i], row, steps);
            view_cache(&grown[o], input, caches[i], row + 1, steps);
            managed[o].dl_tensor = grown[o].tensor;
            output_list[o] = &managed[o];
        }
        check(api->run(instance, given_list, inputs, output_list, outputs, NULL));
        for (int32_t o = 0; o < outputs; o++)
            if (output_list[o] != &managed[o]) output_list[o]->deleter(output_list[o]);
        for (int32_t i = 0; i < inputs; i++)
            if (!caches[i]) free(given[i].tensor.data);
    }
    printf("%" PRId64 " steps, caches in place\n", steps);

    for (int32_t i = 0; i < inputs; i++) free(caches[i]);
    free(caches);
    free(given);
    free(grown);
    free(managed);
    free(given_list);
    free(output_list);
    check(api->destroy(instance));
    return dlclose(library);
}
