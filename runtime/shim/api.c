/* The table of functions: instances, the contexts of their runs, and the run itself. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

enum { MAX_THREADS = 1024 };

struct abqc_instance {
    abqc_isa isa;
    int32_t threads;
    pthread_mutex_t lock;
    abqc_ctx *idle; /* contexts that no run uses, the last used first */
};

/* ---- options ---- */

/* Copies a caller's options, whose struct_size says how much it knows of them; the rest is 0. */
static int32_t read_options(void *options, size_t size, const void *given) {
    memset(options, 0, size);
    if (!given) return ABQC_OK;
    uint32_t known = *(const uint32_t *)given;
    if (known < sizeof known || known > size)
        return abqc_error(ABQC_E_ARGUMENT, "options have struct_size %u, expected at most %zu",
                          known, size);
    memcpy(options, given, known);
    return ABQC_OK;
}

static int32_t check_device(DLDevice device) {
    if (device.device_type == 0 || device.device_type == kDLCPU) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "device type %d: this model was compiled for the CPU (%d)",
                      (int)device.device_type, (int)kDLCPU);
}

static int32_t check_threads(int64_t threads, const char *origin) {
    if (threads >= 0 && threads <= MAX_THREADS) return ABQC_OK;
    return abqc_error(ABQC_E_ARGUMENT, "%s is %lld, expected 1 to %d", origin, (long long)threads,
                      MAX_THREADS);
}

static int32_t choose_threads(int32_t asked, int32_t *threads) {
    const char *text = getenv("ABQC_NUM_THREADS");
    if (asked || !text || !*text) {
        *threads = asked ? asked : abqc_usable_cores();
        return check_threads(asked, "the number of threads");
    }
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*end || errno || value < 1)
        return abqc_error(ABQC_E_ARGUMENT, "ABQC_NUM_THREADS is '%s', expected a positive number",
                          text);
    *threads = (int32_t)value;
    return check_threads(value, "ABQC_NUM_THREADS");
}

static int32_t forced_isa(const char *name, abqc_isa *isa) {
    for (int i = 0; i < ABQC_ISA_COUNT; i++) {
        if (strcmp(name, abqc_isa_name(i)) != 0) continue;
        if (!abqc_meta.kernels[i])
            return abqc_error(ABQC_E_ISA, "the model has no kernels for '%s'; it has: %s", name,
                              abqc_meta.info.isas);
        if (!abqc_cpu_has(i)) return abqc_error(ABQC_E_ISA, "this CPU lacks '%s'", name);
        *isa = i;
        return ABQC_OK;
    }
    return abqc_error(ABQC_E_ISA, "unknown instruction set '%s', expected avx512, avx2 or plain",
                      name);
}

static int32_t choose_isa(const char *asked, abqc_isa *isa) {
    const char *forced = asked ? asked : getenv("ABQC_ISA");
    if (forced && *forced) return forced_isa(forced, isa);
    for (int i = 0; i < ABQC_ISA_COUNT; i++) {
        if (!abqc_meta.kernels[i] || !abqc_cpu_has(i)) continue;
        *isa = i;
        return ABQC_OK;
    }
    return abqc_error(ABQC_E_ISA, "this CPU can run none of the model's instruction sets: %s",
                      abqc_meta.info.isas);
}

/* ---- contexts ---- */

static void destroy_context(abqc_ctx *ctx) {
    if (!ctx) return;
    abqc_team_close(&ctx->team);
    abqc_arena_destroy(&ctx->arena);
    free(ctx->views);
    free(ctx->view_ready);
    free(ctx->slots);
    free(ctx->symbol_sizes);
    free(ctx->symbol_inputs);
    free(ctx);
}

static abqc_ctx *create_context(void) {
    const abqc_model_info *info = &abqc_meta.info;
    abqc_ctx *ctx = aligned_alloc(_Alignof(abqc_ctx), sizeof(abqc_ctx));
    if (!ctx) return NULL;
    memset(ctx, 0, sizeof *ctx);
    ctx->views = calloc((size_t)info->input_count + 1, sizeof *ctx->views);
    ctx->view_ready = calloc((size_t)info->input_count + 1, sizeof *ctx->view_ready);
    ctx->slots = calloc((size_t)info->output_count + 1, sizeof *ctx->slots);
    ctx->symbol_sizes = calloc((size_t)info->symbol_count + 1, sizeof *ctx->symbol_sizes);
    ctx->symbol_inputs = calloc((size_t)info->symbol_count + 1, sizeof *ctx->symbol_inputs);
    if (ctx->views && ctx->view_ready && ctx->slots && ctx->symbol_sizes && ctx->symbol_inputs)
        return ctx;
    destroy_context(ctx);
    return NULL;
}

static abqc_ctx *acquire_context(abqc_instance *instance) {
    pthread_mutex_lock(&instance->lock);
    abqc_ctx *ctx = instance->idle;
    if (ctx) instance->idle = ctx->next;
    pthread_mutex_unlock(&instance->lock);
    return ctx ? ctx : create_context();
}

static void release_context(abqc_instance *instance, abqc_ctx *ctx) {
    pthread_mutex_lock(&instance->lock);
    ctx->next = instance->idle;
    instance->idle = ctx;
    pthread_mutex_unlock(&instance->lock);
}

/* ---- the run ---- */

static void check_all_given(abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++)
        if (ctx->slots[i].state == ABQC_OUTPUT_OPEN)
            abqc_fail(ctx, ABQC_E_INTERNAL, "the model did not give output '%s'",
                      abqc_meta.info.outputs[i].name);
}

static void call_host(abqc_ctx *ctx) {
    if (setjmp(ctx->escape)) return; /* abqc_fail() has set the status */
    int32_t code = abqc_host_main(ctx);
    if (code) abqc_fail(ctx, ABQC_E_INTERNAL, "the model's host function returned %d", (int)code);
    check_all_given(ctx);
}

static int32_t run_in_context(abqc_ctx *ctx, int32_t threads) {
    const abqc_model_info *info = &abqc_meta.info;
    int32_t status = abqc_check_inputs(ctx->inputs, ctx->symbol_sizes, ctx->symbol_inputs);
    if (!status) status = abqc_check_output_buffers(ctx->outputs);
    if (status) return status;
    memset(ctx->view_ready, 0, sizeof *ctx->view_ready * (size_t)info->input_count);
    memset(ctx->slots, 0, sizeof *ctx->slots * (size_t)info->output_count);
    abqc_arena_begin(&ctx->arena);
    ctx->status = ABQC_OK;
    if (!abqc_team_begin(&ctx->team, threads))
        return abqc_error(ABQC_E_MEMORY, "cannot start %d threads", (int)threads);
    call_host(ctx);
    if (ctx->status) abqc_release_outputs(ctx);
    return ctx->status;
}

static int32_t run(abqc_instance *instance, const DLTensor *const *inputs, int32_t input_count,
                   DLManagedTensor **outputs, int32_t output_count,
                   const abqc_run_options *given) {
    const abqc_model_info *info = &abqc_meta.info;
    abqc_run_options options;
    if (!instance) return abqc_error(ABQC_E_ARGUMENT, "instance is NULL");
    int32_t status = read_options(&options, sizeof options, given);
    if (!status) status = check_threads(options.threads, "the number of threads");
    if (!status) status = check_device(options.device);
    if (status) return status;
    if (options.stream) return abqc_error(ABQC_E_DEVICE, "a stream was given, but the CPU has none");
    if (input_count != info->input_count || (input_count && !inputs))
        return abqc_error(ABQC_E_INPUT, "%d inputs, expected %d", (int)(inputs ? input_count : 0),
                          (int)info->input_count);
    if (output_count != info->output_count || (output_count && !outputs))
        return abqc_error(ABQC_E_OUTPUT, "%d outputs, expected %d",
                          (int)(outputs ? output_count : 0), (int)info->output_count);
    abqc_ctx *ctx = acquire_context(instance);
    if (!ctx) return abqc_error(ABQC_E_MEMORY, "out of memory");
    ctx->kernels = abqc_meta.kernels[instance->isa];
    ctx->inputs = inputs;
    ctx->outputs = outputs;
    status = run_in_context(ctx, options.threads ? options.threads : instance->threads);
    release_context(instance, ctx);
    return status;
}

/* ---- the other functions of the table ---- */

static int32_t model_info(const abqc_model_info **info) {
    if (!info) return abqc_error(ABQC_E_ARGUMENT, "info is NULL");
    *info = &abqc_meta.info;
    return ABQC_OK;
}

/* The thread runtime must outlive this library: its workers sleep in its code. */
static void keep_thread_runtime(void) {
    dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NODELETE | RTLD_LOCAL);
}

static int32_t create(const abqc_instance_options *given, abqc_instance **instance) {
    abqc_instance_options options;
    int32_t threads = 0;
    abqc_isa isa = ABQC_ISA_PLAIN;
    if (!instance) return abqc_error(ABQC_E_ARGUMENT, "instance is NULL");
    int32_t status = read_options(&options, sizeof options, given);
    if (!status) status = check_device(options.device);
    if (!status) status = choose_threads(options.threads, &threads);
    if (!status) status = choose_isa(options.isa, &isa);
    if (status) return status;
    abqc_instance *made = malloc(sizeof *made);
    if (!made) return abqc_error(ABQC_E_MEMORY, "out of memory");
    keep_thread_runtime();
    *made = (abqc_instance){.isa = isa, .threads = threads};
    pthread_mutex_init(&made->lock, NULL);
    *instance = made;
    return ABQC_OK;
}

static int32_t destroy(abqc_instance *instance) {
    if (!instance) return ABQC_OK;
    for (abqc_ctx *ctx = instance->idle, *next; ctx; ctx = next) {
        next = ctx->next;
        destroy_context(ctx);
    }
    pthread_mutex_destroy(&instance->lock);
    free(instance);
    return ABQC_OK;
}

static int32_t isa_of(const abqc_instance *instance, const char **name) {
    if (!instance || !name) return abqc_error(ABQC_E_ARGUMENT, "instance or name is NULL");
    *name = abqc_isa_name(instance->isa);
    return ABQC_OK;
}

const abqc_api *abqc_get_api(uint32_t abi_version) {
    static const abqc_api table = {
        .abi_version = ABQC_ABI_VERSION,
        .struct_size = sizeof(abqc_api),
        .last_error = abqc_last_error,
        .model_info = model_info,
        .create = create,
        .destroy = destroy,
        .isa = isa_of,
        .run = run,
    };
    return abi_version == ABQC_ABI_VERSION ? &table : NULL;
}
