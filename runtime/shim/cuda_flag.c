/* The error flag of a context on a GPU: a word in the device's memory in which kernels note the
 * smallest number of a failed check. It is looked at when the run's work is done, and reset only when
 * something was noted: runs that go well pay for a download of four bytes. */

#include "cuda.h"

static int32_t reset(const abqc_work *work, CUstream stream) {
    static const uint32_t none = ABQC_NO_ERROR;
    const abqc_cuda *cuda = &work->device->cuda;
    CUresult code = cuda->upload_async(work->error_flag, &none, sizeof none, stream);
    if (!code) code = cuda->stream_synchronize(stream);
    return code ? abqc_cuda_error(work->device, code, "cannot write to the GPU") : ABQC_OK;
}

int32_t abqc_flag_create(abqc_work *work) {
    if (!abqc_has_kernel_checks()) return ABQC_OK;
    int32_t status = abqc_device_allocate(work->device, sizeof(uint32_t), "the error flag",
                                          &work->error_flag);
    return status ? status : reset(work, work->own);
}

void abqc_flag_destroy(const abqc_work *work) {
    if (work->error_flag) work->device->cuda.release(work->error_flag);
}

int32_t abqc_flag_look(const abqc_work *work) {
    uint32_t number = ABQC_NO_ERROR;
    if (!work->error_flag) return ABQC_OK;
    const abqc_cuda *cuda = &work->device->cuda;
    CUstream stream = abqc_run_stream(work);
    CUresult code = cuda->download_async(&number, work->error_flag, sizeof number, stream);
    if (!code) code = cuda->stream_synchronize(stream);
    if (code) return abqc_cuda_error(work->device, code, "cannot read from the GPU");
    if (number == ABQC_NO_ERROR) return ABQC_OK;
    int32_t status = reset(work, stream);
    return status ? status : abqc_error(ABQC_E_CHECK, "%s", abqc_message(number));
}

uint32_t *abqc_rt_error_flag(abqc_ctx *ctx) {
    return (uint32_t *)(uintptr_t)ctx->work->error_flag;
}
