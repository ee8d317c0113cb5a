/* The text of the last error, one for each thread. */

#include <stdarg.h>
#include <stdio.h>

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

_Noreturn void abqc_fail(abqc_ctx *ctx, int32_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    ctx->status = status;
    longjmp(ctx->escape, 1);
}
