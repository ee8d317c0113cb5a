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
    abqc_rt_poll(ctx);
    CUdeviceptr given = data = abqc_places_next(ctx, bytes);
    int32_t status =
        given ? ABQC_OK : abqc_gpu_arena_alloc(ctx->device, &ctx->work->arena, bytes, &data);
    if (status) abqc_leave(ctx, status);
    if (!abqc_places_keep(&ctx->work->places, data, given))
        abqc_fail(ctx, ABQC_E_MEMORY, "out of memory");
    return (void *)(uintptr_t)data;
}

void abqc_rt_free(abqc_ctx *ctx, void *data) {
    if (!data || abqc_places_given(&ctx->work->places, address(data))) return;
    if (!abqc_gpu_arena_free(ctx->device, &ctx->work->arena, address(data)))
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
    abqc_put_launch(ctx, kernel, grid, args);
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
    if (work->recording) abqc_leave(ctx, ABQC_UNPLANNED);
    check(ctx, cuda->download_async(&value, address(device), (size_t)bytes, abqc_run_stream(work)),
          "cannot read from the GPU");
    check(ctx, cuda->stream_synchronize(abqc_run_stream(work)), "cannot read from the GPU");
    return value;
}

void abqc_rt_write(abqc_ctx *ctx, void *device, uint64_t value, int32_t bytes) {
    const uint64_t args[] = {address(device), value};
    abqc_put_launch(ctx, abqc_set_kernel((size_t)bytes), 1, args);
}

/* ---- copies ---- */

static bool is_multiple(const abqc_dims *dims, int64_t factor) {
    int32_t last = dims->rank - 1;
    if (dims->to_strides[last] != 1 || dims->from_strides[last] != 1) return false;
    for (int32_t d = 0; d < last; d++)
        if (dims->to_strides[d] % factor || dims->from_strides[d] % factor) return false;
    return dims->sizes[last] % factor == 0;
}

/* Pairs of neighbours as one element, as long as they come in pairs everywhere. */
static size_t widen(abqc_dims *dims, size_t item, CUdeviceptr to, CUdeviceptr from) {
    for (; item < 16 && is_multiple(dims, 2) && (to | from) % (2 * item) == 0; item *= 2) {
        dims->sizes[dims->rank - 1] /= 2;
        for (int32_t d = 0; d < dims->rank - 1; d++) {
            dims->to_strides[d] /= 2;
            dims->from_strides[d] /= 2;
        }
    }
    return item;
}

void abqc_copy(abqc_ctx *ctx, size_t item, int32_t rank, const int64_t *sizes, void *to,
               const int64_t *to_strides, const void *from, const int64_t *from_strides) {
    uint64_t args[4 + 3 * ABQC_MAX_RANK] = {address(to), address(from)};
    if (abqc_byte_count(rank, sizes, item) <= 0) return;
    abqc_dims dims = abqc_join_dims(rank, sizes, to_strides, from_strides);
    item = widen(&dims, item, address(to), address(from));
    int64_t total = 1;
    for (int32_t d = 0; d < dims.rank; d++) {
        total *= dims.sizes[d];
        args[4 + d] = (uint64_t)dims.sizes[d];
        args[4 + ABQC_MAX_RANK + d] = (uint64_t)dims.to_strides[d];
        args[4 + 2 * ABQC_MAX_RANK + d] = (uint64_t)dims.from_strides[d];
    }
    args[2] = (uint64_t)total;
    args[3] = (uint64_t)dims.rank;
    int64_t grid = (total + ABQC_COPY_THREADS - 1) / ABQC_COPY_THREADS;
    abqc_put_launch(ctx, abqc_copy_kernel(item), grid, args);
}
