/* The services that the generated host function calls on a CPU, those of tensors aside. */

#include "cpu.h"

void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes) {
    abqc_check_bytes(ctx, bytes);
    abqc_rt_poll(ctx);
    void *claimed = ctx->claimed;
    ctx->claimed = NULL;
    if (claimed) return claimed;
    void *data = abqc_arena_alloc(&ctx->work->arena, (size_t)bytes);
    if (!data)
        abqc_fail(ctx, ABQC_E_MEMORY, "out of memory for %lld bytes inside the model",
                  (long long)bytes);
    return data;
}

void abqc_rt_free(abqc_ctx *ctx, void *data) {
    if (data && !abqc_arena_free(&ctx->work->arena, data)) abqc_fail_double_free(ctx);
}

uint32_t *abqc_rt_error_flag(abqc_ctx *ctx) { return (uint32_t *)&ctx->work->error_flag; }

/* After a launch, whose threads have joined. */
static void check_run(abqc_ctx *ctx) {
    uint32_t number = atomic_load_explicit(&ctx->work->error_flag, memory_order_relaxed);
    if (number != ABQC_NO_ERROR) abqc_fail_in_kernel(ctx, number);
    abqc_rt_poll(ctx);
}

void abqc_rt_site(abqc_ctx *ctx, int32_t launch, int64_t rows) {
    ctx->launch = launch;
    ctx->rows = rows;
}

/* Of a run that is profiled. */
static void note_launch(abqc_ctx *ctx, int64_t begin) {
    abqc_profile *profile = ctx->profile;
    if (profile->count < profile->capacity)
        profile->launches[profile->count] =
            (abqc_launch_record){ctx->launch, ctx->rows, begin, abqc_now_ns()};
    profile->count++;
}

void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_work *work = ctx->work;
    int64_t begin = ctx->profile ? abqc_now_ns() : 0;
    int32_t count = work->waiting + 1;
    work->parts[work->waiting] = (abqc_part){work->kernels[kernel], grid, args};
    work->waiting = 0;
    abqc_team_launch_parts(&work->team, count, work->parts);
    if (ctx->profile) note_launch(ctx, begin);
    check_run(ctx);
}

void abqc_rt_ahead(abqc_ctx *ctx, uint64_t data, int64_t bytes, uint64_t more, int64_t more_bytes) {
    abqc_ahead *ahead = ctx->work->team.ahead;
    atomic_store_explicit(&ahead[0].bytes, bytes, memory_order_relaxed);
    atomic_store_explicit(&ahead[1].bytes, more_bytes, memory_order_relaxed);
    atomic_store_explicit(&ahead[0].data, data, memory_order_relaxed);
    atomic_store_explicit(&ahead[1].data, more, memory_order_relaxed);
}

int64_t abqc_rt_threads(abqc_ctx *ctx) { return ctx->work->team.size; }

/* A run that is profiled has them one after the other, each with its time. */
void abqc_rt_launch_with_next(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_work *work = ctx->work;
    if (ctx->profile || work->waiting == ABQC_MAX_PARTS - 1) {
        abqc_rt_launch(ctx, kernel, grid, args);
        return;
    }
    work->parts[work->waiting++] = (abqc_part){work->kernels[kernel], grid, args};
}

/* Vectorized loops do about an element in a fraction of a nanosecond; handing work to another thread
 * and waiting for it takes a microsecond or two. */
enum { ABQC_FEW_ELEMENTS = 8192 };

void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work) {
    if (work >= ABQC_FEW_ELEMENTS) {
        abqc_rt_launch(ctx, kernel, grid, args);
        return;
    }
    int64_t begin = ctx->profile ? abqc_now_ns() : 0;
    ctx->work->kernels[kernel](0, grid, args);
    if (ctx->profile) note_launch(ctx, begin);
    check_run(ctx);
}
