/* The services that the generated host function calls on a CPU, those of tensors aside. */

#include "cpu.h"

void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes) {
    abqc_check_bytes(ctx, bytes);
    void *data = abqc_arena_alloc(&ctx->work->arena, (size_t)bytes);
    if (!data)
        abqc_fail(ctx, ABQC_E_MEMORY, "out of memory for %lld bytes inside the model",
                  (long long)bytes);
    return data;
}

void abqc_rt_free(abqc_ctx *ctx, void *data) {
    if (data && !abqc_arena_free(&ctx->work->arena, data)) abqc_fail_double_free(ctx);
}

void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_team_launch(&ctx->work->team, ctx->work->kernels[kernel], grid, args);
}

/* Vectorized loops do about an element in a fraction of a nanosecond; handing work to another thread
 * and waiting for it takes a microsecond or two. */
enum { ABQC_FEW_ELEMENTS = 8192 };

void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work) {
    if (work < ABQC_FEW_ELEMENTS) ctx->work->kernels[kernel](0, grid, args);
    else abqc_rt_launch(ctx, kernel, grid, args);
}
