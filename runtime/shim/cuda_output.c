/* Outputs on the GPU that we allocate.
 *
 * Their memory comes from a pool of the driver and goes back to it in the order of a stream, so that a
 * run neither asks the system for memory nor waits for the device, as cuMemAlloc and cuMemFree do. That
 * stream is the run's own: what the caller puts into it behind the run may use the tensor until the
 * deleter is called. Without a stream it is the legacy default stream, which waits for all that others
 * do (but for those that are made not to wait for it).
 *
 * Where the GPU has no pools, and where buffers are allocations of their own, it is cuMemAlloc's. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

typedef struct {
    DLManagedTensor managed;
    abqc_device *device;
    CUstream stream; /* in which the memory is given back */
    int64_t sizes[ABQC_MAX_RANK];
    int64_t strides[ABQC_MAX_RANK];
} gpu_tensor;

/* ---- the pool ---- */

int32_t abqc_pool_create(abqc_device *device) {
    int supported = 0;
    const abqc_cuda *cuda = &device->cuda;
    CUresult code = cuda->device_attribute(&supported, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED,
                                           device->handle);
    if (device->separate || code || !supported) return ABQC_OK;
    const CUmemPoolProps properties = {
        .allocation_type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location_type = CU_MEM_LOCATION_TYPE_DEVICE,
        .location_id = device->ordinal,
    };
    uint64_t kept = UINT64_MAX; /* bytes: else the next wait for the device would give all back */
    code = cuda->pool_create(&device->pool, &properties);
    if (code) device->pool = NULL;
    else code = cuda->pool_attribute(device->pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &kept);
    return code ? abqc_cuda_error(device, code, "cannot make a pool of memory on GPU %d",
                                  (int)device->ordinal)
                : ABQC_OK;
}

void abqc_pool_destroy(const abqc_device *device) {
    if (device->pool) device->cuda.pool_destroy(device->pool);
}

void abqc_pool_trim(const abqc_device *device) {
    if (device->pool) device->cuda.pool_trim(device->pool, 0);
}

static int32_t allocate(const abqc_work *work, int64_t bytes, const char *purpose,
                        CUdeviceptr *data) {
    const abqc_device *device = work->device;
    if (!device->pool) return abqc_device_allocate(device, bytes, purpose, data);
    CUresult code =
        device->cuda.pool_allocate(data, (size_t)bytes, device->pool, abqc_run_stream(work));
    return code ? abqc_device_refuse(device, code, bytes, purpose) : ABQC_OK;
}

/* A stream that is gone says nothing of what is still under way. */
static void release(const abqc_device *device, CUdeviceptr data, CUstream stream) {
    if (device->pool && device->cuda.release_async(data, stream) == CUDA_SUCCESS) return;
    if (device->pool) device->cuda.context_synchronize();
    device->cuda.release(data);
}

/* ---- tensors ---- */

static void delete_gpu_tensor(DLManagedTensor *tensor) {
    gpu_tensor *owned = tensor->manager_ctx;
    if (abqc_device_force(owned->device)) {
        release(owned->device, (uintptr_t)tensor->dl_tensor.data, owned->stream);
        abqc_device_exit(owned->device);
    }
    abqc_device_close(owned->device);
    free(owned);
}

int32_t abqc_allocate_on_gpu(const abqc_work *work, const abqc_tensor_info *info,
                             const int64_t *sizes, DLManagedTensor **made) {
    abqc_device *device = work->device;
    CUdeviceptr data;
    char purpose[128];
    int64_t bytes = abqc_byte_count(info->ndim, sizes, abqc_item_size(info->dtype));
    snprintf(purpose, sizeof purpose, "output '%s'", info->name);
    gpu_tensor *owned = calloc(1, sizeof *owned);
    if (!owned) return abqc_error(ABQC_E_MEMORY, "out of memory");
    int32_t status = allocate(work, bytes ? bytes : 1, purpose, &data);
    if (status) {
        free(owned);
        return status;
    }
    abqc_device_keep(device);
    memcpy(owned->sizes, sizes, (size_t)info->ndim * sizeof *sizes);
    abqc_compact_strides(info->ndim, sizes, owned->strides);
    owned->device = device;
    owned->stream = work->caller;
    owned->managed = (DLManagedTensor){
        .dl_tensor = {.data = (void *)(uintptr_t)data,
                      .device = {kDLCUDA, device->ordinal},
                      .ndim = info->ndim,
                      .dtype = info->dtype,
                      .shape = owned->sizes,
                      .strides = owned->strides},
        .manager_ctx = owned,
        .deleter = delete_gpu_tensor,
    };
    *made = &owned->managed;
    return ABQC_OK;
}
