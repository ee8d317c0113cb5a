/* Counters of a context on a GPU: words in the device's memory that are 0 between launches. They are
 * allocated when the host function first asks, and keep their place. */

#include <stdlib.h>

#include "cuda.h"

static int32_t clear(const abqc_work *work, size_t bytes) {
    const abqc_cuda *cuda = &work->device->cuda;
    void *zeros = calloc(1, bytes);
    if (!zeros) return abqc_error(ABQC_E_MEMORY, "out of memory");
    CUresult code = cuda->upload_async(work->counters, zeros, bytes, work->own);
    if (!code) code = cuda->stream_synchronize(work->own);
    free(zeros);
    return code ? abqc_cuda_error(work->device, code, "cannot write to the GPU") : ABQC_OK;
}

uint32_t *abqc_rt_counters(abqc_ctx *ctx, int64_t bytes) {
    abqc_work *work = ctx->work;
    if (!work->counters) {
        int32_t status =
            abqc_device_allocate(work->device, bytes, "counters", &work->counters);
        if (!status) status = clear(work, (size_t)bytes);
        if (status) {
            abqc_counters_destroy(work);
            abqc_leave(ctx, status);
        }
        work->counters_bytes = bytes;
    }
    return (uint32_t *)(uintptr_t)work->counters;
}

void abqc_counters_destroy(abqc_work *work) {
    if (work->counters) work->device->cuda.release(work->counters);
    work->counters = 0;
}
