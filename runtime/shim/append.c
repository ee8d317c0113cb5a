/* output = concat(input, data) along an axis: how a cache grows. */

#include <string.h>

#include "shim.h"

static void check_sizes(abqc_ctx *ctx, const abqc_tensor_info *info, const abqc_view *old,
                        int32_t axis, int32_t rank, const int64_t *sizes) {
    char got[256], have[256];
    if (rank != info->ndim || axis < 0 || axis >= rank)
        abqc_fail(ctx, ABQC_E_INTERNAL, "append to input '%s': rank %d, axis %d", info->name,
                  (int)rank, (int)axis);
    for (int32_t d = 0; d < rank; d++)
        if (d != axis && sizes[d] != old->sizes[d])
            abqc_fail(ctx, ABQC_E_CHECK, "cannot append %s to input '%s' %s along dimension %d",
                      abqc_format_sizes(rank, sizes, got, sizeof got), info->name,
                      abqc_format_sizes(rank, old->sizes, have, sizeof have), (int)axis);
}

/* Do elements of the input lie where the same elements of the output do? Strides of dimensions
 * with one element or none say nothing. */
static bool same_place(int32_t rank, const abqc_view *old, const abqc_view *whole) {
    if (old->data != whole->data) return false;
    for (int32_t d = 0; d < rank; d++)
        if (old->sizes[d] > 1 && old->strides[d] != whole->strides[d]) return false;
    return true;
}

static void refuse_overlap(abqc_ctx *ctx, int32_t output, bool in_place, int32_t input) {
    const DLTensor *tensor = &ctx->outputs[output]->dl_tensor;
    if (ctx->slots[output].allocated || in_place || !abqc_overlap(tensor, ctx->inputs[input])) return;
    abqc_fail(ctx, ABQC_E_OUTPUT,
              "the buffer for output '%s' overlaps input '%s', but is not that input grown: it must "
              "start at the same place and have the same strides",
              abqc_meta.info.outputs[output].name, abqc_meta.info.inputs[input].name);
}

void *abqc_rt_append(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     abqc_view *result) {
    const abqc_tensor_info *info = &abqc_meta.info.inputs[input];
    size_t item = abqc_item_size(info->dtype);
    abqc_view old;
    abqc_view_of(ctx->inputs[input], &old);
    check_sizes(ctx, info, &old, axis, rank, sizes);

    int64_t whole_sizes[ABQC_MAX_RANK];
    memcpy(whole_sizes, old.sizes, sizeof whole_sizes);
    whole_sizes[axis] += sizes[axis];
    DLTensor *tensor = abqc_output_tensor(ctx, output, rank, whole_sizes);
    abqc_view_of(tensor, result);

    bool in_place = same_place(rank, &old, result);
    refuse_overlap(ctx, output, in_place, input);
    if (!in_place)
        abqc_copy(&ctx->team, item, rank, old.sizes, result->data, result->strides, old.data,
                  old.strides);
    char *grown = (char *)result->data + old.sizes[axis] * result->strides[axis] * (int64_t)item;
    abqc_copy(&ctx->team, item, rank, sizes, grown, result->strides, data, strides);
    ctx->slots[output].state = ABQC_OUTPUT_APPENDED;
    return result->data;
}
