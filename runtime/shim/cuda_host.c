/* The services that the generated host function calls on a GPU, those of tensors aside. */

#include <string.h>

#include "cuda.h"

static void check(abqc_ctx *ctx, CUresult code, const char *what) {
    if (code) abqc_leave(ctx, abqc_cuda_error(ctx->device, code, "%s", what));
}

static CUdeviceptr address(const void *data) { return (uintptr_t)data; }

/* ---- memory ---- */

void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes) {
    CUdeviceptr data;
    abqc_check_bytes(ctx, bytes);
    int32_t status = abqc_gpu_arena_alloc(ctx->device, &ctx->work->arena, bytes, &data);
    if (status) abqc_leave(ctx, status);
    return (void *)(uintptr_t)data;
}

void abqc_rt_free(abqc_ctx *ctx, void *data) {
    if (data && !abqc_gpu_arena_free(ctx->device, &ctx->work->arena, address(data)))
        abqc_fail_double_free(ctx);
}

void *abqc_rt_weight(abqc_ctx *ctx, const void *host) {
    for (int32_t i = 0; i < abqc_meta.gpu.weight_count; i++) {
        const abqc_gpu_weight *weights = &abqc_meta.gpu.weights[i];
        uintptr_t offset = (uintptr_t)host - (uintptr_t)weights->data;
        if (offset < (uintptr_t)weights->bytes)
            return (void *)(uintptr_t)(ctx->device->weights[i] + offset);
    }
    abqc_fail(ctx, ABQC_E_INTERNAL, "the model asked for a weight that is none");
}

/* ---- launches ---- */

void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_work *work = ctx->work;
    const abqc_device *device = ctx->device;
    const abqc_gpu_kernel *info = &abqc_meta.gpu.kernels[kernel];
    if (grid <= 0) return;
    if (grid > INT32_MAX)
        abqc_fail(ctx, ABQC_E_CHECK, "a tensor inside the model is too large: %lld blocks of '%s'",
                  (long long)grid, info->name);
    if (work->planning) return;
    for (int32_t i = 0; i < info->slots; i++) work->parameters[i] = (void *)(uintptr_t)&args[i];
    CUresult code = device->cuda.launch(device->functions[kernel], (uint32_t)grid, 1, 1,
                                        (uint32_t)info->threads, 1, 1, (uint32_t)info->shared_bytes,
                                        work->stream, work->parameters, NULL);
    if (code)
        abqc_leave(ctx, abqc_cuda_error(device, code,
                                        "cannot launch %lld blocks of kernel '%s' (%d threads, %d "
                                        "bytes of shared memory)",
                                        (long long)grid, info->name, (int)info->threads,
                                        (int)info->shared_bytes));
}

void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work) {
    (void)work;
    abqc_rt_launch(ctx, kernel, grid, args);
}

/* ---- single values ---- */

/* A value of an input that lies on the host needs no device. */
static const char *find_on_host(abqc_ctx *ctx, CUdeviceptr data, int32_t bytes) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        const abqc_stage *stage = &ctx->work->stages[i];
        if (!stage->data || data < stage->data ||
            data + (uint64_t)bytes > stage->data + (uint64_t)stage->bytes)
            continue;
        const char *host = abqc_stage_host(ctx, i);
        if (!host) abqc_fail(ctx, ABQC_E_MEMORY, "out of memory");
        return host + (data - stage->data);
    }
    return NULL;
}

uint64_t abqc_rt_read(abqc_ctx *ctx, const void *device, int32_t bytes) {
    abqc_work *work = ctx->work;
    const abqc_cuda *cuda = &ctx->device->cuda;
    uint64_t value = 0;
    work->reads = true;
    const char *host = find_on_host(ctx, address(device), bytes);
    if (host) {
        memcpy(&value, host, (size_t)bytes);
        return value;
    }
    if (work->planning) abqc_leave(ctx, ABQC_UNPLANNED);
    check(ctx, cuda->download_async(&value, address(device), (size_t)bytes, work->stream),
          "cannot read from the GPU");
    check(ctx, cuda->stream_synchronize(work->stream), "cannot read from the GPU");
    return value;
}

void abqc_rt_write(abqc_ctx *ctx, void *device, uint64_t value, int32_t bytes) {
    abqc_work *work = ctx->work;
    const abqc_cuda *cuda = &ctx->device->cuda;
    CUdeviceptr to = address(device);
    CUresult code = CUDA_SUCCESS;
    if (work->planning) return;
    switch (bytes) {
    case 1: code = cuda->set_8_async(to, (uint8_t)value, 1, work->stream); break;
    case 2: code = cuda->set_16_async(to, (uint16_t)value, 1, work->stream); break;
    case 4: code = cuda->set_32_async(to, (uint32_t)value, 1, work->stream); break;
    case 8:
        code = cuda->set_32_async(to, (uint32_t)value, 1, work->stream);
        if (!code) code = cuda->set_32_async(to + 4, (uint32_t)(value >> 32), 1, work->stream);
        break;
    default: abqc_fail(ctx, ABQC_E_INTERNAL, "the model writes a value of %d bytes", (int)bytes);
    }
    check(ctx, code, "cannot write to the GPU");
}

/* ---- copies ---- */

enum { COPY_THREADS = 256, COPY_SLOTS = 4 + 3 * ABQC_MAX_RANK };

static bool is_multiple(const abqc_dims *dims, int64_t factor) {
    int32_t last = dims->rank - 1;
    if (dims->to_strides[last] != 1 || dims->from_strides[last] != 1) return false;
    for (int32_t d = 0; d < last; d++)
        if (dims->to_strides[d] % factor || dims->from_strides[d] % factor) return false;
    return dims->sizes[last] % factor == 0;
}

/* Pairs of neighbours as one element, as long as they come in pairs everywhere. */
static size_t widen(abqc_dims *dims, size_t item, CUdeviceptr to, CUdeviceptr from) {
    for (; item < 8 && is_multiple(dims, 2) && (to | from) % (2 * item) == 0; item *= 2) {
        dims->sizes[dims->rank - 1] /= 2;
        for (int32_t d = 0; d < dims->rank - 1; d++) {
            dims->to_strides[d] /= 2;
            dims->from_strides[d] /= 2;
        }
    }
    return item;
}

static void launch_copy(abqc_ctx *ctx, abqc_dims *dims, size_t item, CUdeviceptr to,
                        CUdeviceptr from) {
    const abqc_device *device = ctx->device;
    uint64_t args[COPY_SLOTS] = {0};
    void *parameters[COPY_SLOTS];
    item = widen(dims, item, to, from);
    int64_t total = 1;
    for (int32_t d = 0; d < dims->rank; d++) {
        total *= dims->sizes[d];
        args[4 + d] = (uint64_t)dims->sizes[d];
        args[4 + ABQC_MAX_RANK + d] = (uint64_t)dims->to_strides[d];
        args[4 + 2 * ABQC_MAX_RANK + d] = (uint64_t)dims->from_strides[d];
    }
    args[0] = to;
    args[1] = from;
    args[2] = (uint64_t)total;
    args[3] = (uint64_t)dims->rank;
    for (int32_t i = 0; i < COPY_SLOTS; i++) parameters[i] = &args[i];
    int64_t grid = (total + COPY_THREADS - 1) / COPY_THREADS;
    if (grid > INT32_MAX) abqc_fail(ctx, ABQC_E_CHECK, "a tensor inside the model is too large");
    CUfunction function = device->copies[__builtin_ctz((unsigned)item)];
    check(ctx,
          device->cuda.launch(function, (uint32_t)grid, 1, 1, COPY_THREADS, 1, 1, 0,
                              ctx->work->stream, parameters, NULL),
          "cannot launch a copy");
}

void abqc_copy(abqc_ctx *ctx, size_t item, int32_t rank, const int64_t *sizes, void *to,
               const int64_t *to_strides, const void *from, const int64_t *from_strides) {
    int64_t bytes = abqc_byte_count(rank, sizes, item);
    if (ctx->work->planning || bytes <= 0) return;
    abqc_dims dims = abqc_join_dims(rank, sizes, to_strides, from_strides);
    if (dims.rank == 1 && dims.to_strides[0] == 1 && dims.from_strides[0] == 1)
        check(ctx,
              ctx->device->cuda.copy_async(address(to), address(from), (size_t)bytes,
                                           ctx->work->stream),
              "cannot copy");
    else launch_copy(ctx, &dims, item, address(to), address(from));
}
