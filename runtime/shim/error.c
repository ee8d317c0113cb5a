/* The text of the last error, one for each thread; how a run is left with one. */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "shim.h"

static _Thread_local char last_error[1024];

const char *abqc_last_error(void) { return last_error; }

int32_t abqc_error(int32_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

/* Put the node's name before the text, both cut off where they are too long. */
static void blame(const char *node) {
    char text[sizeof last_error];
    memcpy(text, last_error, sizeof text);
    snprintf(last_error, sizeof last_error, "node '%.400s': %.600s", node, text);
}

_Noreturn void abqc_leave(abqc_ctx *ctx, int32_t status) {
    if (ctx->allocating && (status == ABQC_E_MEMORY || status == ABQC_E_CHECK))
        blame(ctx->allocating);
    ctx->allocating = NULL;
    ctx->status = status;
    longjmp(ctx->escape, 1);
}

_Noreturn void abqc_fail(abqc_ctx *ctx, int32_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    abqc_leave(ctx, status);
}

/* ---- failures that CPUs and GPUs have in common ---- */

void abqc_check_bytes(abqc_ctx *ctx, int64_t bytes) {
    if (bytes < 0 || bytes > ABQC_MAX_BYTES)
        abqc_fail(ctx, ABQC_E_CHECK, "a tensor inside the model has an impossible size (%lld bytes)",
                  (long long)bytes);
}

void *abqc_rt_alloc_for(abqc_ctx *ctx, int64_t bytes, const char *node) {
    ctx->allocating = node;
    void *data = abqc_rt_alloc(ctx, bytes);
    ctx->allocating = NULL;
    return data;
}

_Noreturn void abqc_fail_double_free(abqc_ctx *ctx) {
    abqc_fail(ctx, ABQC_E_INTERNAL, "memory inside the model was freed twice");
}

const char *abqc_message(uint32_t number) {
    return number < (uint32_t)abqc_meta.message_count ? abqc_meta.messages[number]
                                                      : "a check inside the model failed";
}

_Noreturn void abqc_fail_in_kernel(abqc_ctx *ctx, uint32_t number) {
    abqc_fail(ctx, ABQC_E_CHECK, "%s", abqc_message(number));
}

void abqc_rt_check(abqc_ctx *ctx, int32_t condition, const char *message) {
    if (!condition) abqc_fail(ctx, ABQC_E_CHECK, "%s", message);
}
