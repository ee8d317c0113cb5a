/* The services that the generated host function calls, those of tensors aside. */

#include "shim.h"

void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes) {
    if (bytes < 0 || bytes > ABQC_MAX_BYTES)
        abqc_fail(ctx, ABQC_E_CHECK, "a tensor inside the model has an impossible size (%lld bytes)",
                  (long long)bytes);
    void *data = abqc_arena_alloc(&ctx->arena, (size_t)bytes);
    if (!data)
        abqc_fail(ctx, ABQC_E_MEMORY, "out of memory for %lld bytes inside the model",
                  (long long)bytes);
    return data;
}

void abqc_rt_free(abqc_ctx *ctx, void *data) {
    if (data && !abqc_arena_free(&ctx->arena, data))
        abqc_fail(ctx, ABQC_E_INTERNAL, "memory inside the model was freed twice");
}

void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_team_launch(&ctx->team, ctx->kernels[kernel], grid, args);
}

/* Vectorized loops do about an element in a fraction of a nanosecond; handing work to another thread
 * and waiting for it takes a microsecond or two. */
enum { ABQC_FEW_ELEMENTS = 8192 };

void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work) {
    if (work < ABQC_FEW_ELEMENTS)
        ctx->kernels[kernel](0, grid, args);
    else
        abqc_team_launch(&ctx->team, ctx->kernels[kernel], grid, args);
}

void abqc_rt_check(abqc_ctx *ctx, int32_t condition, const char *message) {
    if (!condition) abqc_fail(ctx, ABQC_E_CHECK, "%s", message);
}
