/* A GPU with the model's code and weights on it. All instances of this library on one GPU share it,
 * and the tensors handed out keep it. */

#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum {
    UPLOAD_BYTES = 64 << 20,       /* of weights at once: pages of the file come and go */
    USUAL_SHARED_BYTES = 48 << 10, /* what a block may have without asking */
};

/* Recursive: a driver written in Python may collect garbage in a call, and so destroy an instance on
 * the thread that opens another. */
static pthread_mutex_t devices_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static abqc_device *devices;

/* ---- errors ---- */

int32_t abqc_cuda_error(const abqc_device *device, CUresult code, const char *format, ...) {
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    if (abqc_cuda_is_sticky(code)) atomic_store(&((abqc_device *)device)->lost, code);
    return abqc_error(code == CUDA_ERROR_OUT_OF_MEMORY ? ABQC_E_MEMORY : ABQC_E_LAUNCH, "%s: %s",
                      what, abqc_cuda_error_name(&device->cuda, code));
}

static int32_t refuse_lost(const abqc_device *device, CUresult code) {
    return abqc_error(ABQC_E_LAUNCH,
                      "GPU %d failed in an earlier run (%s) and takes no more work from this "
                      "process: destroy the instance and start the program again",
                      (int)device->ordinal, abqc_cuda_error_name(&device->cuda, code));
}

int32_t abqc_device_enter(const abqc_device *device) {
    CUresult lost = atomic_load(&((abqc_device *)device)->lost);
    if (lost) return refuse_lost(device, lost);
    CUresult code = device->cuda.context_push(device->context);
    if (code) return abqc_cuda_error(device, code, "cannot use GPU %d", (int)device->ordinal);
    return ABQC_OK;
}

bool abqc_device_force(const abqc_device *device) {
    return device->cuda.context_push(device->context) == CUDA_SUCCESS;
}

void abqc_device_exit(const abqc_device *device) {
    CUcontext before;
    device->cuda.context_pop(&before);
}

int32_t abqc_device_refuse(const abqc_device *device, CUresult code, int64_t bytes,
                           const char *purpose) {
    size_t left = 0, total = 0;
    device->cuda.memory_info(&left, &total);
    return abqc_cuda_error(device, code,
                           "cannot allocate %lld bytes on GPU %d for %s; %zu of %zu bytes are free",
                           (long long)bytes, (int)device->ordinal, purpose, left, total);
}

int32_t abqc_device_allocate(const abqc_device *device, int64_t bytes, const char *purpose,
                             CUdeviceptr *data) {
    CUresult code = device->cuda.allocate(data, (size_t)bytes);
    if (code == CUDA_ERROR_OUT_OF_MEMORY && device->pool) {
        abqc_pool_trim(device);
        code = device->cuda.allocate(data, (size_t)bytes);
    }
    if (code == CUDA_SUCCESS) return ABQC_OK;
    *data = 0;
    return abqc_device_refuse(device, code, bytes, purpose);
}

/* ---- opening ---- */

static int32_t find_device(abqc_device *device) {
    int count = 0;
    CUresult code = device->cuda.device_count(&count);
    if (code) return abqc_error(ABQC_E_DEVICE, "cannot count the GPUs: %s",
                                abqc_cuda_error_name(&device->cuda, code));
    if (device->ordinal < 0 || device->ordinal >= count)
        return abqc_error(ABQC_E_DEVICE, "there is no GPU %d: the driver has %d",
                          (int)device->ordinal, count);
    code = device->cuda.device_get(&device->handle, device->ordinal);
    if (!code) code = device->cuda.context_retain(&device->context, device->handle);
    if (code) return abqc_error(ABQC_E_DEVICE, "cannot use GPU %d: %s", (int)device->ordinal,
                                abqc_cuda_error_name(&device->cuda, code));
    return ABQC_OK;
}

static int32_t get_function(const abqc_device *device, const char *name, CUfunction *function) {
    CUresult code = device->cuda.module_function(function, device->module, name);
    return code ? abqc_cuda_error(device, code, "kernel '%s' is missing", name) : ABQC_OK;
}

/* What a block may have without asking is the same on every GPU. */
static int32_t allow_shared(const abqc_device *device, int32_t k) {
    int32_t bytes = abqc_kernel_block(device, k)->shared_bytes;
    if (bytes <= USUAL_SHARED_BYTES) return ABQC_OK;
    CUresult code = device->cuda.function_attribute(
        device->functions[k], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
    if (!code) return ABQC_OK;
    return abqc_cuda_error(device, code,
                           "kernel '%s', compiled for %s, needs %d bytes of shared memory, which GPU "
                           "%d does not have; compile the model for that GPU's own target",
                           abqc_kernel_info(k)->name, device->image->name, (int)bytes,
                           (int)device->ordinal);
}

static int32_t get_functions(abqc_device *device) {
    int32_t count = abqc_kernel_count();
    device->functions = calloc((size_t)count, sizeof *device->functions);
    if (!device->functions) return abqc_error(ABQC_E_MEMORY, "out of memory");
    for (int32_t k = 0; k < count; k++) {
        const abqc_gpu_kernel *kernel = abqc_kernel_info(k);
        int32_t status = get_function(device, kernel->name, &device->functions[k]);
        if (!status) status = allow_shared(device, k);
        if (!status) status = abqc_tensor_maps_check(device, kernel);
        if (status) return status;
        if (kernel->slots > device->most_slots) device->most_slots = kernel->slots;
        if (kernel->map_count > device->most_maps) device->most_maps = kernel->map_count;
    }
    return ABQC_OK;
}

static int32_t upload(const abqc_device *device, const abqc_gpu_weight *weights, CUdeviceptr to) {
    for (int64_t at = 0; at < weights->bytes; at += UPLOAD_BYTES) {
        int64_t left = weights->bytes - at;
        CUresult code =
            device->cuda.upload(to + (uint64_t)at, (const char *)weights->data + at,
                                (size_t)(left < UPLOAD_BYTES ? left : UPLOAD_BYTES));
        if (code) return abqc_cuda_error(device, code, "cannot copy the weights to GPU %d",
                                         (int)device->ordinal);
    }
    return ABQC_OK;
}

/* One piece of device memory for every piece of the library. */
static int32_t upload_weights(abqc_device *device) {
    const abqc_gpu_table *table = &abqc_meta.gpu;
    device->weights = calloc((size_t)table->weight_count + 1, sizeof *device->weights);
    if (!device->weights) return abqc_error(ABQC_E_MEMORY, "out of memory");
    for (int32_t i = 0; i < table->weight_count; i++) {
        const abqc_gpu_weight *weights = &table->weights[i];
        if (!weights->bytes) continue;
        int32_t status =
            abqc_device_allocate(device, weights->bytes, "weights", &device->weights[i]);
        if (!status) status = upload(device, weights, device->weights[i]);
        if (status) return status;
    }
    CUresult code = device->cuda.context_synchronize();
    return code ? abqc_cuda_error(device, code, "cannot copy the weights to GPU %d",
                                  (int)device->ordinal)
                : ABQC_OK;
}

static int32_t capability_of(const abqc_device *device, int *major, int *minor) {
    CUresult code = device->cuda.device_attribute(
        major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device->handle);
    if (!code) code = device->cuda.device_attribute(
                   minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device->handle);
    return code ? abqc_cuda_error(device, code, "cannot ask GPU %d", (int)device->ordinal) : ABQC_OK;
}

static int32_t fill(abqc_device *device, const char *isa) {
    int major = 0, minor = 0;
    int32_t status = abqc_device_enter(device);
    if (status) return status;
    status = capability_of(device, &major, &minor);
    if (!status) status = abqc_load_image(device, major, minor, isa);
    if (!status) status = get_functions(device);
    if (!status) status = upload_weights(device);
    if (!status) status = abqc_pool_create(device);
    abqc_device_exit(device);
    return status;
}

static void give_back(const abqc_device *device) {
    for (int32_t i = 0; device->weights && i < abqc_meta.gpu.weight_count; i++)
        if (device->weights[i]) device->cuda.release(device->weights[i]);
    abqc_pool_destroy(device);
    if (device->module) device->cuda.module_unload(device->module);
}

/* Whatever has been made. */
static void dispose(abqc_device *device) {
    if (device->context) {
        if (abqc_device_force(device)) {
            give_back(device);
            abqc_device_exit(device);
        }
        device->cuda.context_release(device->handle);
    }
    free(device->weights);
    free(device->functions);
    free(device);
}

typedef struct { /* by the environment */
    bool graphs, dependent;
} choices;

static int32_t open_new(const abqc_instance_options *options, choices chosen, abqc_device **made) {
    abqc_device *device = calloc(1, sizeof *device);
    if (!device) return abqc_error(ABQC_E_MEMORY, "out of memory");
    device->resolver = options->driver;
    device->ordinal = options->device.device_id;
    device->references = 1;
    device->forced = options->isa;
    device->separate = options->flags & ABQC_INSTANCE_SEPARATE_BUFFERS;
    device->graphs = chosen.graphs && !device->separate;
    device->may_depend = chosen.dependent;
    int32_t status = abqc_cuda_load(&device->cuda, device->resolver);
    if (!status) status = find_device(device);
    if (!status) status = fill(device, options->isa);
    if (!status)
        device->dependent = chosen.dependent && device->image->waits && device->cuda.graph_depend;
    if (status) dispose(device);
    else *made = device;
    return status;
}

/* ---- options ---- */

static int32_t check_device(DLDevice device) {
    if (device.device_type == 0 || device.device_type == kDLCUDA) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "device type %d: this model was compiled for NVIDIA GPUs (%d)",
                      (int)device.device_type, (int)kDLCUDA);
}

/* A switch of the environment, on where it is not set. */
static int32_t choose(const char *name, bool *on) {
    const char *text = getenv(name);
    *on = !text || strcmp(text, "0") != 0;
    if (!text || !*text || !strcmp(text, "0") || !strcmp(text, "1")) return ABQC_OK;
    return abqc_error(ABQC_E_ARGUMENT, "%s is '%s', expected 0 or 1", name, text);
}

static bool serves(const abqc_device *device, const abqc_instance_options *options,
                   choices chosen) {
    if (device->lost || device->resolver != options->driver) return false;
    if (device->ordinal != options->device.device_id) return false;
    bool separate = options->flags & ABQC_INSTANCE_SEPARATE_BUFFERS;
    if (device->separate != separate || (device->graphs != chosen.graphs && !separate)) return false;
    if (device->may_depend != chosen.dependent) return false;
    return options->isa ? !strcmp(options->isa, device->image->name) : !device->forced;
}

int32_t abqc_device_open(const abqc_instance_options *options, abqc_device **device) {
    choices chosen;
    int32_t status = check_device(options->device);
    if (!status) status = abqc_check_threads(options->threads, "the number of threads");
    if (!status && options->flags & ABQC_INSTANCE_HUGE_PAGES)
        status = abqc_error(ABQC_E_ARGUMENT, "huge pages are for models on a CPU");
    if (!status) status = choose("ABQC_CUDA_GRAPHS", &chosen.graphs);
    if (!status) status = choose("ABQC_CUDA_DEPENDENT_LAUNCH", &chosen.dependent);
    if (status) return status;
    pthread_mutex_lock(&devices_lock);
    abqc_device *found = devices;
    while (found && !serves(found, options, chosen)) found = found->next;
    if (found) {
        found->references++;
    } else {
        status = open_new(options, chosen, &found);
        if (!status) {
            found->next = devices;
            devices = found;
        }
    }
    pthread_mutex_unlock(&devices_lock);
    if (!status) *device = found;
    return status;
}

void abqc_device_keep(abqc_device *device) {
    pthread_mutex_lock(&devices_lock);
    device->references++;
    pthread_mutex_unlock(&devices_lock);
}

void abqc_device_close(abqc_device *device) {
    pthread_mutex_lock(&devices_lock);
    bool last = --device->references == 0;
    abqc_device **link = &devices;
    while (last && *link != device) link = &(*link)->next;
    if (last) *link = device->next;
    pthread_mutex_unlock(&devices_lock);
    if (last) dispose(device);
}

const char *abqc_device_isa(const abqc_device *device) { return device->image->name; }

/* ---- what a run may ask for ---- */

int32_t abqc_check_run_options(const abqc_device *device, const abqc_run_options *options) {
    DLDevice place = options->device;
    if (options->profile)
        return abqc_error(ABQC_E_DEVICE, "a profile was asked for, but launches on a GPU are not timed");
    if (place.device_type == 0 || place.device_type == kDLCPU) return ABQC_OK;
    if (place.device_type == kDLCUDA && place.device_id == device->ordinal) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "outputs on device %d of type %d: the instance is on GPU %d",
                      (int)place.device_id, (int)place.device_type, (int)device->ordinal);
}

int32_t abqc_check_place(const abqc_device *device, DLDevice place, const char *role,
                         const char *name) {
    if (place.device_type == kDLCPU || place.device_type == kDLCUDAHost) return ABQC_OK;
    if (place.device_type != kDLCUDA)
        return abqc_error(ABQC_E_DEVICE, "%s '%s' lies on device type %d, expected a GPU (%d) or "
                          "the CPU (%d)", role, name, (int)place.device_type, (int)kDLCUDA,
                          (int)kDLCPU);
    if (place.device_id != device->ordinal)
        return abqc_error(ABQC_E_DEVICE, "%s '%s' lies on GPU %d, the instance is on GPU %d", role,
                          name, (int)place.device_id, (int)device->ordinal);
    return ABQC_OK;
}
