/* Tensors that enter and leave a run. */

#include <stdlib.h>

#include "shim.h"

/* An output allocated by us: the header, then the data, in one piece. */
typedef struct {
    DLManagedTensor managed;
    int64_t sizes[ABQC_MAX_RANK];
    int64_t strides[ABQC_MAX_RANK];
    size_t bytes; /* of the piece */
} owned_tensor;

/* Large pieces that were given back, for the next run: a few, of MOST_KEPT bytes together. malloc
 * would return them to the system, and writing to fresh pages takes longer than what most kernels do
 * there. */
enum { LARGE = 8 << 20, KEPT = 4, MOST_KEPT = 1 << 30 };
static _Atomic(owned_tensor *) kept[KEPT];
static atomic_uint last_kept;
static atomic_size_t kept_bytes;

/* What a slot holds, which becomes the caller's; NULL where it is empty. */
static owned_tensor *take(unsigned slot) {
    owned_tensor *owned = atomic_exchange(&kept[slot], NULL);
    if (owned) atomic_fetch_sub(&kept_bytes, owned->bytes);
    return owned;
}

static void keep(owned_tensor *owned) {
    if (atomic_fetch_add(&kept_bytes, owned->bytes) + owned->bytes > MOST_KEPT) {
        atomic_fetch_sub(&kept_bytes, owned->bytes);
        free(owned);
        return;
    }
    unsigned slot = atomic_fetch_add(&last_kept, 1) % KEPT;
    for (unsigned i = 0; i < KEPT; i++) {
        owned_tensor *none = NULL;
        if (atomic_compare_exchange_strong(&kept[(slot + i) % KEPT], &none, owned)) return;
    }
    owned_tensor *other = atomic_exchange(&kept[slot], owned);
    if (other) atomic_fetch_sub(&kept_bytes, other->bytes);
    free(other);
}

/* A kept piece of at least `bytes`, and not far more; NULL where there is none. */
static owned_tensor *kept_piece(size_t bytes) {
    for (unsigned i = 0; i < KEPT; i++) {
        owned_tensor *owned = take(i);
        if (!owned) continue;
        if (owned->bytes >= bytes && owned->bytes / 2 <= bytes) return owned;
        keep(owned);
    }
    return NULL;
}

__attribute__((destructor)) static void free_kept(void) {
    for (unsigned i = 0; i < KEPT; i++) free(take(i));
}

static size_t round_up(size_t bytes) {
    return (bytes + ABQC_ALIGNMENT - 1) / ABQC_ALIGNMENT * ABQC_ALIGNMENT;
}

static void delete_owned(DLManagedTensor *tensor) {
    owned_tensor *owned = tensor->manager_ctx;
    if (owned->bytes >= LARGE) keep(owned);
    else free(owned);
}

DLManagedTensor *abqc_allocate_tensor(DLDataType dtype, int32_t rank, const int64_t *sizes,
                                      size_t bytes) {
    size_t header = round_up(sizeof(owned_tensor)), all = header + round_up(bytes);
    owned_tensor *owned = all >= LARGE ? kept_piece(all) : NULL;
    if (!owned) {
        owned = aligned_alloc(ABQC_ALIGNMENT, all);
        if (!owned) { /* where memory is short, none is kept */
            free_kept();
            owned = aligned_alloc(ABQC_ALIGNMENT, all);
        }
        if (!owned) return NULL;
        owned->bytes = all;
    }
    for (int32_t d = 0; d < rank; d++) owned->sizes[d] = sizes[d];
    abqc_compact_strides(rank, sizes, owned->strides);
    owned->managed = (DLManagedTensor){
        .dl_tensor = {.data = (char *)owned + header,
                      .device = {kDLCPU, 0},
                      .ndim = rank,
                      .dtype = dtype,
                      .shape = owned->sizes,
                      .strides = owned->strides},
        .manager_ctx = owned,
        .deleter = delete_owned,
    };
    return &owned->managed;
}

static bool same_sizes(int32_t rank, const int64_t *a, const int64_t *b) {
    for (int32_t d = 0; d < rank; d++)
        if (a[d] != b[d]) return false;
    return true;
}

static void check_buffer_sizes(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes) {
    char got[256], expected[256];
    if (!abqc_output_given(ctx, i) || same_sizes(rank, ctx->outputs[i]->dl_tensor.shape, sizes))
        return;
    abqc_fail(ctx, ABQC_E_OUTPUT, "the buffer for output '%s' is %s, but the output is %s",
              abqc_meta.info.outputs[i].name,
              abqc_format_sizes(rank, ctx->outputs[i]->dl_tensor.shape, got, sizeof got),
              abqc_format_sizes(rank, sizes, expected, sizeof expected));
}

/* The bytes of an output; leaves the run where it cannot have these sizes. */
static int64_t checked_bytes(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes) {
    const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
    char got[256];
    if (rank != info->ndim)
        abqc_fail(ctx, ABQC_E_INTERNAL, "output '%s' came out with rank %d instead of %d",
                  info->name, (int)rank, (int)info->ndim);
    int64_t bytes = abqc_byte_count(rank, sizes, abqc_item_size(info->dtype));
    if (bytes < 0)
        abqc_fail(ctx, ABQC_E_CHECK, "output '%s' has an impossible size %s", info->name,
                  abqc_format_sizes(rank, sizes, got, sizeof got));
    check_buffer_sizes(ctx, i, rank, sizes);
    return bytes;
}

void abqc_output_view(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes,
                      abqc_view *view) {
    int64_t bytes = checked_bytes(ctx, i, rank, sizes);
    abqc_output_place(ctx, i, rank, sizes, bytes, view);
}

_Noreturn void abqc_fail_output_memory(abqc_ctx *ctx, int32_t i, int32_t rank,
                                       const int64_t *sizes) {
    char text[256];
    abqc_fail(ctx, ABQC_E_MEMORY, "out of memory for output '%s' %s",
              abqc_meta.info.outputs[i].name, abqc_format_sizes(rank, sizes, text, sizeof text));
}

void abqc_release_outputs(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++) {
        if (!ctx->slots[i].allocated) continue;
        ctx->outputs[i]->deleter(ctx->outputs[i]);
        ctx->outputs[i] = NULL;
    }
}

/* The first input that overlaps the caller's buffer for an output; -1 where there is none. */
static int32_t overlapped_input(const abqc_ctx *ctx, int32_t output) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++)
        if (abqc_overlap(&ctx->outputs[output]->dl_tensor, ctx->inputs[i])) return i;
    return -1;
}

bool abqc_output_overlaps_input(abqc_ctx *ctx, int32_t i) { return overlapped_input(ctx, i) >= 0; }

bool abqc_output_overlaps_output(const abqc_ctx *ctx, int32_t i) {
    for (int32_t j = 0; j < abqc_meta.info.output_count; j++)
        if (j != i && ctx->outputs[j] &&
            abqc_overlap(&ctx->outputs[i]->dl_tensor, &ctx->outputs[j]->dl_tensor))
            return true;
    return false;
}

static void refuse_overlap(abqc_ctx *ctx, int32_t output) {
    if (!abqc_output_given(ctx, output)) return;
    int32_t input = overlapped_input(ctx, output);
    if (input >= 0)
        abqc_fail(ctx, ABQC_E_OUTPUT, "the buffer for output '%s' overlaps input '%s'",
                  abqc_meta.info.outputs[output].name, abqc_meta.info.inputs[input].name);
}

/* Output i was made where it belongs. */
static void deliver_claimed(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank,
                            const int64_t *sizes, const int64_t *strides) {
    const DLTensor *tensor = &ctx->outputs[i]->dl_tensor;
    if (data != ctx->slots[i].claimed || !abqc_is_compact(rank, sizes, strides))
        abqc_fail(ctx, ABQC_E_INTERNAL, "output '%s' is not where its memory was asked for",
                  abqc_meta.info.outputs[i].name);
    if (!ctx->slots[i].allocated) return;
    for (int32_t d = 0; d < rank; d++) tensor->shape[d] = sizes[d];
    abqc_compact_strides(rank, sizes, tensor->strides);
}

void abqc_rt_output(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank, const int64_t *sizes,
                    const int64_t *strides) {
    abqc_output_slot *slot = &ctx->slots[i];
    const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
    if (slot->state == ABQC_OUTPUT_DONE)
        abqc_fail(ctx, ABQC_E_INTERNAL, "output '%s' was given twice", info->name);
    bool appended = slot->state == ABQC_OUTPUT_APPENDED;
    abqc_view view;
    checked_bytes(ctx, i, rank, sizes);
    slot->state = ABQC_OUTPUT_DONE;
    if (slot->claimed) {
        deliver_claimed(ctx, i, data, rank, sizes, strides);
        return;
    }
    if (!appended) refuse_overlap(ctx, i);
    if (!appended && abqc_output_stays(ctx, i, data, rank, sizes, strides)) return;
    abqc_output_view(ctx, i, rank, sizes, &view);
    if (appended && view.data == data) return;
    slot->kept = 0;
    if (appended) refuse_overlap(ctx, i);
    abqc_copy(ctx, abqc_item_size(info->dtype), rank, sizes, view.data, view.strides, data, strides);
}

/* A compact copy, for inputs whose strides or alignment the kernels do not take. */
static void *compacted(abqc_ctx *ctx, const abqc_tensor_info *info, abqc_view *view) {
    size_t item = abqc_item_size(info->dtype);
    int64_t strides[ABQC_MAX_RANK];
    abqc_compact_strides(info->ndim, view->sizes, strides);
    void *data = abqc_rt_alloc(ctx, abqc_byte_count(info->ndim, view->sizes, item));
    abqc_copy(ctx, item, info->ndim, view->sizes, data, strides, view->data, view->strides);
    return data;
}

const abqc_view *abqc_rt_input(abqc_ctx *ctx, int32_t i) {
    const abqc_tensor_info *info = &abqc_meta.info.inputs[i];
    abqc_view *view = &ctx->views[i];
    if (ctx->view_ready[i]) return view;
    abqc_input_place(ctx, i, view);
    size_t item = abqc_item_size(info->dtype);
    bool compact = abqc_is_compact(info->ndim, view->sizes, view->strides);
    bool strided = !compact && info->flags & ABQC_TENSOR_STRIDED;
    bool aligned = (uintptr_t)view->data % (strided ? item : abqc_input_alignment(item)) == 0;
    if (!aligned || (!compact && !strided)) {
        view->data = compacted(ctx, info, view);
        compact = true;
    }
    if (compact) abqc_compact_strides(info->ndim, view->sizes, view->strides);
    ctx->view_ready[i] = true;
    return view;
}
