/* Opens a compiled model, prints its signature, runs it once on zeros and prints what comes out.
 *
 *     cc -I"$(python -c 'import abqc.runtime.shim as s; print(s.SHIM_DIRECTORY)')" \
 *         minimal.c -ldl -o minimal
 *     ./minimal model.so            symbolic sizes are taken as 1
 *     ./minimal model.so 128        ... as 128
 */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "abqc.h"

static const abqc_api *api;

/* Ends the program when a call failed. */
static void check(int32_t status) {
    if (status == ABQC_OK) return;
    fprintf(stderr, "error %d: %s\n", (int)status, api->last_error());
    exit(1);
}

static const abqc_api *open_model(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    abqc_get_api_fn get_api = (abqc_get_api_fn)dlsym(library, "abqc_get_api");
    const abqc_api *table = get_api ? get_api(ABQC_ABI_VERSION) : NULL;
    if (!table) {
        fprintf(stderr, "%s is no model with version %d of the interface\n", path, ABQC_ABI_VERSION);
        exit(1);
    }
    return table;
}

static void print_signature(const abqc_model_info *info, const char *role,
                            const abqc_tensor_info *tensors, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        printf("%s %s:", role, tensors[i].name);
        for (int32_t d = 0; d < tensors[i].ndim; d++) {
            int64_t size = tensors[i].dims[d];
            if (size >= 0) printf(" %" PRId64, size);
            else printf(" %s", *info->symbols[-1 - size] ? info->symbols[-1 - size] : "?");
        }
        printf("\n");
    }
}

/* A tensor of zeros, symbolic sizes as `any`. */
static DLTensor zeros(const abqc_tensor_info *info, int64_t any) {
    int64_t elements = 1;
    DLTensor tensor = {.device = {kDLCPU, 0}, .ndim = info->ndim, .dtype = info->dtype};
    tensor.shape = calloc((size_t)info->ndim + 1, sizeof *tensor.shape);
    for (int32_t d = 0; d < info->ndim; d++) {
        tensor.shape[d] = info->dims[d] >= 0 ? info->dims[d] : any;
        elements *= tensor.shape[d];
    }
    tensor.data = calloc((size_t)elements + 1, info->dtype.bits / 8);
    return tensor;
}

static void print_output(const char *name, const DLTensor *tensor) {
    const float *values = tensor->data;
    int64_t elements = 1;
    printf("%s [", name);
    for (int32_t d = 0; d < tensor->ndim; d++) {
        elements *= tensor->shape[d];
        printf(d ? ", %" PRId64 : "%" PRId64, tensor->shape[d]);
    }
    printf("]");
    if (tensor->dtype.code == kDLFloat && tensor->dtype.bits == 32)
        for (int64_t i = 0; i < elements && i < 4; i++) printf(" %g", values[i]);
    printf("\n");
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s model.so [size]\n", argv[0]);
        return 2;
    }
    api = open_model(argv[1]);
    const abqc_model_info *info;
    check(api->model_info(&info));
    print_signature(info, "input", info->inputs, info->input_count);
    print_signature(info, "output", info->outputs, info->output_count);

    abqc_instance *instance;
    check(api->create(NULL, &instance));

    DLTensor *tensors = calloc((size_t)info->input_count + 1, sizeof *tensors);
    const DLTensor **inputs = calloc((size_t)info->input_count + 1, sizeof *inputs);
    DLManagedTensor **outputs = calloc((size_t)info->output_count + 1, sizeof *outputs);
    for (int32_t i = 0; i < info->input_count; i++) {
        tensors[i] = zeros(&info->inputs[i], argc > 2 ? atoll(argv[2]) : 1);
        inputs[i] = &tensors[i];
    }
    check(api->run(instance, inputs, info->input_count, outputs, info->output_count, NULL));

    for (int32_t i = 0; i < info->output_count; i++) {
        print_output(info->outputs[i].name, &outputs[i]->dl_tensor);
        outputs[i]->deleter(outputs[i]);
    }
    for (int32_t i = 0; i < info->input_count; i++) {
        free(tensors[i].data);
        free(tensors[i].shape);
    }
    free(tensors);
    free(inputs);
    free(outputs);
    check(api->destroy(instance));
    return 0;
}
