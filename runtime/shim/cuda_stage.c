/* Tensors between host and device: inputs that lie on the host get a place in the arena, and so do
 * outputs but for buffers on the device, which are written where they are. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* What copies on the host are cut for: here the calling thread does them all. */
void abqc_team_launch(abqc_team *team, abqc_kernel kernel, int64_t grid, const uint64_t *args) {
    (void)team;
    kernel(0, grid, args);
}

/* ---- inputs ---- */

static int64_t tensor_bytes(const DLTensor *tensor) {
    return abqc_byte_count(tensor->ndim, tensor->shape, abqc_item_size(tensor->dtype));
}

int32_t abqc_stage_inputs(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        abqc_stage *stage = &ctx->work->stages[i];
        if (abqc_on_gpu(ctx->inputs[i])) continue;
        stage->bytes = tensor_bytes(ctx->inputs[i]);
        int32_t status =
            abqc_gpu_arena_alloc(ctx->device, &ctx->work->arena, stage->bytes, &stage->data);
        if (status) return status;
    }
    return ABQC_OK;
}

const void *abqc_stage_host(abqc_ctx *ctx, int32_t i) {
    abqc_stage *stage = &ctx->work->stages[i];
    const DLTensor *tensor = ctx->inputs[i];
    int64_t strides[ABQC_MAX_RANK];
    abqc_view view;
    if (stage->host) return stage->host;
    abqc_view_of(tensor, &view);
    if (abqc_is_compact(tensor->ndim, view.sizes, view.strides)) return stage->host = view.data;
    stage->host = stage->owned = malloc((size_t)stage->bytes);
    if (!stage->owned) return NULL;
    abqc_compact_strides(tensor->ndim, view.sizes, strides);
    abqc_host_copy(NULL, abqc_item_size(tensor->dtype), tensor->ndim, view.sizes, stage->owned,
                   strides, view.data, view.strides);
    return stage->host;
}

int32_t abqc_upload_inputs(abqc_ctx *ctx) {
    const abqc_device *device = ctx->device;
    CUstream stream = abqc_run_stream(ctx->work);
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        const abqc_stage *stage = &ctx->work->stages[i];
        if (!stage->data || !stage->bytes) continue;
        const void *host = abqc_stage_host(ctx, i);
        if (!host) return abqc_error(ABQC_E_MEMORY, "out of memory");
        void *locked = abqc_locked_take(device, &ctx->work->locked, stage->bytes);
        if (locked) host = memcpy(locked, host, (size_t)stage->bytes);
        CUresult code = device->cuda.upload_async(stage->data, host, (size_t)stage->bytes, stream);
        if (code) return abqc_cuda_error(device, code, "cannot copy input '%s' to GPU %d",
                                         abqc_meta.info.inputs[i].name, (int)device->ordinal);
    }
    return ABQC_OK;
}

void abqc_free_stages(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        free(ctx->work->stages[i].owned);
        ctx->work->stages[i] = (abqc_stage){0};
    }
}

void abqc_input_place(abqc_ctx *ctx, int32_t i, abqc_view *view) {
    const abqc_stage *stage = &ctx->work->stages[i];
    abqc_view_of(ctx->inputs[i], view);
    if (!stage->data) return;
    view->data = (void *)(uintptr_t)stage->data;
    abqc_compact_strides(ctx->inputs[i]->ndim, view->sizes, view->strides);
}

/* Vectors of 16 bytes are the widest that kernels load. */
size_t abqc_input_alignment(size_t item) { return item > 16 ? item : 16; }

/* ---- outputs ---- */

void abqc_output_place(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes, int64_t bytes,
                       abqc_view *view) {
    abqc_result *result = &ctx->work->results[i];
    if (ctx->outputs[i] && abqc_on_gpu(&ctx->outputs[i]->dl_tensor)) {
        abqc_view_of(&ctx->outputs[i]->dl_tensor, view);
        return;
    }
    if (!result->staged) {
        result->staged = true;
        result->data = (uintptr_t)abqc_rt_alloc(ctx, bytes);
        for (int32_t d = 0; d < rank; d++) result->sizes[d] = sizes[d];
    }
    view->data = (void *)(uintptr_t)result->data;
    for (int32_t d = 0; d < rank; d++) view->sizes[d] = sizes[d];
    abqc_compact_strides(rank, view->sizes, view->strides);
}

bool abqc_output_stays(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank,
                       const int64_t *sizes, const int64_t *strides) {
    abqc_work *work = ctx->work;
    bool compact = abqc_is_compact(rank, sizes, strides);
    if (ctx->outputs[i] && abqc_on_gpu(&ctx->outputs[i]->dl_tensor)) {
        abqc_view view;
        abqc_view_of(&ctx->outputs[i]->dl_tensor, &view);
        abqc_places_learn(&work->places, i, (uintptr_t)data);
        if (!abqc_places_given(&work->places, (uintptr_t)view.data)) return false;
        if (!compact || view.data != data) abqc_leave(ctx, ABQC_MISPLACED);
        return true;
    }
    if (!compact) return false;
    if (!abqc_gpu_arena_hold(ctx->device, &work->arena, (uintptr_t)data)) return false;
    abqc_result *result = &work->results[i];
    result->staged = true;
    result->data = (uintptr_t)data;
    for (int32_t d = 0; d < rank; d++) result->sizes[d] = sizes[d];
    return true;
}

/* ---- delivery ---- */

static int32_t allocate_output(abqc_ctx *ctx, int32_t i) {
    const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
    const int64_t *sizes = ctx->work->results[i].sizes;
    int32_t status = ABQC_OK;
    if (ctx->work->results_on_gpu) {
        status = abqc_allocate_on_gpu(ctx->work, info, sizes, &ctx->outputs[i]);
    } else {
        int64_t bytes = abqc_byte_count(info->ndim, sizes, abqc_item_size(info->dtype));
        ctx->outputs[i] = abqc_allocate_tensor(info->dtype, info->ndim, sizes, (size_t)bytes);
        if (!ctx->outputs[i])
            status = abqc_error(ABQC_E_MEMORY, "out of memory for output '%s'", info->name);
    }
    ctx->slots[i].allocated = !status;
    return status;
}

/* From compact memory on the host into a buffer, but for what a cache had before. */
static void scatter(const abqc_result *result, const DLTensor *tensor, const char *from) {
    int64_t strides[ABQC_MAX_RANK], item = (int64_t)abqc_item_size(tensor->dtype);
    abqc_view view;
    abqc_view_of(tensor, &view);
    abqc_compact_strides(tensor->ndim, view.sizes, strides);
    char *to = view.data;
    if (result->kept) {
        view.sizes[result->axis] -= result->kept;
        to += result->kept * view.strides[result->axis] * item;
        from += result->kept * strides[result->axis] * item;
    }
    abqc_host_copy(NULL, (size_t)item, tensor->ndim, view.sizes, to, view.strides, from, strides);
}

static CUresult download(abqc_work *work, abqc_result *result, const DLTensor *tensor,
                         size_t bytes) {
    const abqc_cuda *cuda = &work->device->cuda;
    CUstream stream = abqc_run_stream(work);
    abqc_view view;
    void *locked = abqc_locked_take(work->device, &work->locked, (int64_t)bytes);
    if (locked) {
        result->locked = locked;
        return cuda->download_async(locked, result->data, bytes, stream);
    }
    abqc_view_of(tensor, &view);
    if (!result->kept && abqc_is_compact(tensor->ndim, view.sizes, view.strides))
        return cuda->download_async(view.data, result->data, bytes, stream);
    void *copy = malloc(bytes);
    if (!copy) return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult code = cuda->download_async(copy, result->data, bytes, stream);
    if (!code) code = cuda->stream_synchronize(stream);
    if (!code) scatter(result, tensor, copy);
    free(copy);
    return code;
}

static int32_t deliver(abqc_ctx *ctx, int32_t i) {
    abqc_work *work = ctx->work;
    abqc_result *result = &work->results[i];
    result->locked = NULL;
    if (!ctx->outputs[i]) {
        int32_t status = allocate_output(ctx, i);
        if (status) return status;
    }
    const DLTensor *tensor = &ctx->outputs[i]->dl_tensor;
    size_t bytes = (size_t)tensor_bytes(tensor);
    if (!bytes) return ABQC_OK;
    CUresult code = abqc_on_gpu(tensor)
                        ? work->device->cuda.copy_async((uintptr_t)tensor->data, result->data, bytes,
                                                        abqc_run_stream(work))
                        : download(work, result, tensor, bytes);
    return code ? abqc_cuda_error(work->device, code, "cannot copy output '%s'",
                                  abqc_meta.info.outputs[i].name)
                : ABQC_OK;
}

int32_t abqc_deliver_outputs(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++) {
        int32_t status = ctx->work->results[i].staged ? deliver(ctx, i) : ABQC_OK;
        if (status) return status;
    }
    return ABQC_OK;
}

void abqc_unpack_outputs(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++) {
        abqc_result *result = &ctx->work->results[i];
        if (!result->staged || !result->locked) continue;
        scatter(result, &ctx->outputs[i]->dl_tensor, result->locked);
        result->locked = NULL;
    }
}
