/* How a cache grows: output = concat(input, data) along an axis, or rows of each sample from places
 * on that differ. */

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

/* Is the caller's buffer for the output the input, grown? */
static bool grows_in_place(const abqc_ctx *ctx, int32_t input, int32_t output) {
    if (!abqc_output_given(ctx, output)) return false;
    const DLTensor *from = ctx->inputs[input], *to = &ctx->outputs[output]->dl_tensor;
    abqc_view old, whole;
    abqc_view_of(from, &old);
    abqc_view_of(to, &whole);
    return abqc_on_gpu(from) == abqc_on_gpu(to) && same_place(from->ndim, &old, &whole);
}

static void refuse_overlap(abqc_ctx *ctx, int32_t output, int32_t input) {
    if (!abqc_output_given(ctx, output) ||
        !abqc_overlap(&ctx->outputs[output]->dl_tensor, ctx->inputs[input]))
        return;
    abqc_fail(ctx, ABQC_E_OUTPUT,
              "the buffer for output '%s' overlaps input '%s', but is not that input grown: it must "
              "start at the same place and have the same strides",
              abqc_meta.info.outputs[output].name, abqc_meta.info.inputs[input].name);
}

/* Kernels and loops take rows of neighbours; the other strides of a cache are free. */
static void check_rows(abqc_ctx *ctx, int32_t output, int32_t rank, const abqc_view *whole) {
    if (whole->sizes[rank - 1] <= 1 || whole->strides[rank - 1] == 1) return;
    abqc_fail(ctx, ABQC_E_OUTPUT,
              "the buffer for output '%s' must have the elements of its last dimension next to each "
              "other, not %lld apart",
              abqc_meta.info.outputs[output].name, (long long)whole->strides[rank - 1]);
}

/* The buffer of an output that has `rows` along `axis` and begins with the input's; is it in place? */
static bool grown_cache(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                        int64_t rows, const abqc_view *old, abqc_view *result) {
    size_t item = abqc_item_size(abqc_meta.info.inputs[input].dtype);
    memcpy(result->sizes, old->sizes, sizeof old->sizes);
    result->sizes[axis] = rows;
    abqc_output_view(ctx, output, rank, result->sizes, result);

    check_rows(ctx, output, rank, result);
    bool in_place = grows_in_place(ctx, input, output);
    if (!in_place) refuse_overlap(ctx, output, input);
    if (!same_place(rank, old, result)) /* a GPU has a copy of a cache that lies on the host */
        abqc_copy(ctx, item, rank, old->sizes, result->data, result->strides, old->data, old->strides);
    abqc_output_slot *slot = &ctx->slots[output];
    slot->state = ABQC_OUTPUT_APPENDED;
    slot->axis = axis;
    slot->kept = in_place ? old->sizes[axis] : 0;
    return in_place;
}

/* The cache with room for the new rows at its end, which the caller writes; gives these rows' place. */
static char *grow(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                  const int64_t *sizes, abqc_view *result) {
    const abqc_tensor_info *info = &abqc_meta.info.inputs[input];
    int64_t item = (int64_t)abqc_item_size(info->dtype);
    abqc_view old;
    abqc_input_place(ctx, input, &old);
    check_sizes(ctx, info, &old, axis, rank, sizes);
    grown_cache(ctx, input, output, axis, rank, old.sizes[axis] + sizes[axis], &old, result);
    return (char *)result->data + old.sizes[axis] * result->strides[axis] * item;
}

void *abqc_rt_grow(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                   const int64_t *sizes, abqc_view *result) {
    grow(ctx, input, output, axis, rank, sizes, result);
    return result->data;
}

void *abqc_rt_append(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     abqc_view *result) {
    size_t item = abqc_item_size(abqc_meta.info.inputs[input].dtype);
    char *grown = grow(ctx, input, output, axis, rank, sizes, result);
    abqc_copy(ctx, item, rank, sizes, grown, result->strides, data, strides);
    return result->data;
}

/* Zeros behind the input's rows. */
static void clear_rest(abqc_ctx *ctx, int64_t item, int32_t axis, int32_t rank, int64_t old_rows,
                       const abqc_view *result) {
    static const char zeros[16];
    static const int64_t nowhere[ABQC_MAX_RANK];
    int64_t sizes[ABQC_MAX_RANK];
    memcpy(sizes, result->sizes, (size_t)rank * sizeof *sizes);
    sizes[axis] -= old_rows;
    char *rest = (char *)result->data + old_rows * result->strides[axis] * item;
    abqc_copy(ctx, (size_t)item, rank, sizes, rest, result->strides, zeros, nowhere);
}

void *abqc_rt_update(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     const int64_t *begins, int64_t capacity, abqc_view *result) {
    const abqc_tensor_info *info = &abqc_meta.info.inputs[input];
    int64_t item = (int64_t)abqc_item_size(info->dtype);
    abqc_view old;
    abqc_input_place(ctx, input, &old);
    check_sizes(ctx, info, &old, axis, rank, sizes);
    if (axis < 1 || capacity < old.sizes[axis])
        abqc_fail(ctx, ABQC_E_CHECK, "input '%s' has %lld rows, which do not fit into a cache of %lld",
                  info->name, (long long)old.sizes[axis], (long long)capacity);
    bool in_place = grown_cache(ctx, input, output, axis, rank, capacity, &old, result);
    if (!in_place) clear_rest(ctx, item, axis, rank, old.sizes[axis], result);

    int64_t part[ABQC_MAX_RANK];
    memcpy(part, sizes, (size_t)rank * sizeof *part);
    part[0] = 1;
    for (int64_t sample = 0; sample < sizes[0]; sample++) {
        int64_t begin = begins[sample];
        if (begin >= capacity || begin <= -sizes[axis]) continue;
        int64_t first = begin < 0 ? -begin : 0; /* of the new rows, those that the cache has */
        int64_t last = sizes[axis] < capacity - begin ? sizes[axis] : capacity - begin;
        part[axis] = last - first;
        char *to = (char *)result->data +
                   (sample * result->strides[0] + (begin + first) * result->strides[axis]) * item;
        const char *from = (const char *)data + (sample * strides[0] + first * strides[axis]) * item;
        abqc_copy(ctx, (size_t)item, rank, part, to, result->strides, from, strides);
    }
    return result->data;
}
