/* The driver: its functions, found when the first instance is created, and its errors. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#include "cuda.h"

#define LIBRARY "libcuda.so.1"

typedef struct {
    const char *name;
    size_t offset; /* in the table */
} driver_function;

static const driver_function functions[] = {
#define DRIVER_FUNCTION(name, member, parameters) {#name, offsetof(abqc_cuda, member)},
    ABQC_CUDA_FUNCTIONS(DRIVER_FUNCTION)
};

static const driver_function newer_functions[] = {
    ABQC_CUDA_NEWER_FUNCTIONS(DRIVER_FUNCTION)
};
#undef DRIVER_FUNCTION

/* The library stays open: the driver does not survive being closed. */
static int32_t open_library(void **library) {
    *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (*library) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "this model needs an NVIDIA GPU and its driver: %s", dlerror());
}

static bool find_function(abqc_cuda *cuda, abqc_cuda_resolver resolver, void *library,
                          const driver_function *function) {
    void *address = resolver ? resolver(function->name) : dlsym(library, function->name);
    *(void **)((char *)cuda + function->offset) = address;
    return address;
}

static int32_t find_functions(abqc_cuda *cuda, abqc_cuda_resolver resolver, void *library) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!find_function(cuda, resolver, library, &functions[i]))
            return abqc_error(ABQC_E_DEVICE, "the NVIDIA driver has no function %s: it is too old "
                              "(CUDA 11.4 is needed)", functions[i].name);
    for (size_t i = 0; i < sizeof newer_functions / sizeof *newer_functions; i++)
        find_function(cuda, resolver, library, &newer_functions[i]);
    return ABQC_OK;
}

const char *abqc_cuda_error_name(const abqc_cuda *cuda, CUresult code) {
    static _Thread_local char text[32];
    const char *name = NULL;
    if (cuda->error_name(code, &name) == CUDA_SUCCESS && name) return name;
    snprintf(text, sizeof text, "CUDA error %d", (int)code);
    return text;
}

/* Those after which "the process must be terminated and relaunched", by the driver's manual, and those
 * of a device or a context that is gone. The driver says UNKNOWN where it does not know what happened:
 * results of what runs after that are not to be trusted. */
bool abqc_cuda_is_sticky(CUresult code) {
    switch (code) {
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
    case CUDA_ERROR_UNKNOWN: return true;
    default: return code >= CUDA_ERROR_HARDWARE_STACK_ERROR && code <= CUDA_ERROR_LAUNCH_FAILED;
    }
}

int32_t abqc_cuda_load(abqc_cuda *cuda, abqc_cuda_resolver resolver) {
    void *library = NULL;
    int32_t status = resolver ? ABQC_OK : open_library(&library);
    if (!status) status = find_functions(cuda, resolver, library);
    if (status) return status;
    CUresult code = cuda->init(0);
    if (code == CUDA_SUCCESS) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "this model needs an NVIDIA GPU, and the driver has none: %s",
                      abqc_cuda_error_name(cuda, code));
}
