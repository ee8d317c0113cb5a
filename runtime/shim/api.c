/* The table of functions: instances, the contexts of their runs, and the run itself. */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

enum { MAX_THREADS = 1024 };

struct abqc_instance {
    abqc_device *device;
    pthread_mutex_t lock;
    abqc_ctx *idle; /* contexts that no run uses, the last used first */
    abqc_statistics statistics;
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

int32_t abqc_check_threads(int64_t threads, const char *origin) {
    if (threads >= 0 && threads <= MAX_THREADS) return ABQC_OK;
    return abqc_error(ABQC_E_ARGUMENT, "%s is %lld, expected 1 to %d", origin, (long long)threads,
                      MAX_THREADS);
}

/* ---- contexts ---- */

static void destroy_context(abqc_ctx *ctx) {
    if (!ctx) return;
    abqc_work_destroy(ctx->work);
    free(ctx->views);
    free(ctx->view_ready);
    free(ctx->slots);
    free(ctx->symbol_sizes);
    free(ctx->symbol_inputs);
    free(ctx);
}

static bool allocate_parts(abqc_ctx *ctx) {
    const abqc_model_info *info = &abqc_meta.info;
    ctx->views = calloc((size_t)info->input_count + 1, sizeof *ctx->views);
    ctx->view_ready = calloc((size_t)info->input_count + 1, sizeof *ctx->view_ready);
    ctx->slots = calloc((size_t)info->output_count + 1, sizeof *ctx->slots);
    ctx->symbol_sizes = calloc((size_t)info->symbol_count + 1, sizeof *ctx->symbol_sizes);
    ctx->symbol_inputs = calloc((size_t)info->symbol_count + 1, sizeof *ctx->symbol_inputs);
    return ctx->views && ctx->view_ready && ctx->slots && ctx->symbol_sizes && ctx->symbol_inputs;
}

static int32_t create_context(abqc_device *device, abqc_ctx **made) {
    abqc_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx || !allocate_parts(ctx)) {
        destroy_context(ctx);
        return abqc_error(ABQC_E_MEMORY, "out of memory");
    }
    ctx->device = device;
    int32_t status = abqc_work_create(device, &ctx->work);
    if (status) destroy_context(ctx);
    else *made = ctx;
    return status;
}

static int32_t acquire_context(abqc_instance *instance, abqc_ctx **ctx) {
    pthread_mutex_lock(&instance->lock);
    abqc_ctx *idle = instance->idle;
    if (idle) instance->idle = idle->next;
    pthread_mutex_unlock(&instance->lock);
    *ctx = idle;
    return idle ? ABQC_OK : create_context(instance->device, ctx);
}

/* The first error stays. */
static void count(abqc_statistics *all, const abqc_statistics *run) {
    all->graph_runs += run->graph_runs;
    all->launched_runs += run->launched_runs;
    if (run->graph_runs) {
        all->graph_launches = run->graph_launches;
        all->graph_path = run->graph_path;
        all->graph_edges = run->graph_edges;
        all->dependent_edges = run->dependent_edges;
    }
    if (all->graph_error || !run->graph_error) return;
    all->graph_error = run->graph_error;
    all->graph_call = run->graph_call;
    all->graph_error_name = run->graph_error_name;
}

static void release_context(abqc_instance *instance, abqc_ctx *ctx) {
    pthread_mutex_lock(&instance->lock);
    count(&instance->statistics, &ctx->counted);
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

int32_t abqc_call_host(abqc_ctx *ctx) {
    const abqc_model_info *info = &abqc_meta.info;
    memset(ctx->view_ready, 0, sizeof *ctx->view_ready * (size_t)info->input_count);
    memset(ctx->slots, 0, sizeof *ctx->slots * (size_t)info->output_count);
    ctx->status = ABQC_OK;
    ctx->claimed = NULL;
    if (setjmp(ctx->escape)) return ctx->status; /* abqc_fail() has set it */
    int32_t code = abqc_host_main(ctx);
    if (code) abqc_fail(ctx, ABQC_E_INTERNAL, "the model's host function returned %d", (int)code);
    check_all_given(ctx);
    return ABQC_OK;
}

static int32_t run_in_context(abqc_ctx *ctx, const abqc_run_options *options) {
    int32_t status =
        abqc_check_inputs(ctx->device, ctx->inputs, ctx->symbol_sizes, ctx->symbol_inputs);
    if (!status) status = abqc_check_output_buffers(ctx->device, ctx->outputs);
    if (status) return status;
    memset(ctx->slots, 0, sizeof *ctx->slots * (size_t)abqc_meta.info.output_count);
    status = abqc_work_run(ctx, options);
    if (status) abqc_release_outputs(ctx);
    return status;
}

static int32_t run(abqc_instance *instance, const DLTensor *const *inputs, int32_t input_count,
                   DLManagedTensor **outputs, int32_t output_count,
                   const abqc_run_options *given) {
    const abqc_model_info *info = &abqc_meta.info;
    abqc_run_options options;
    abqc_ctx *ctx;
    if (!instance) return abqc_error(ABQC_E_ARGUMENT, "instance is NULL");
    int32_t status = read_options(&options, sizeof options, given);
    if (!status) status = abqc_check_threads(options.threads, "the number of threads");
    if (!status && options.flags & ~(uint32_t)ABQC_RUN_INTERRUPTIBLE)
        status = abqc_error(ABQC_E_ARGUMENT, "unknown flags %#x", (unsigned)options.flags);
    if (!status && options.profile && options.profile->capacity > 0 && !options.profile->launches)
        status = abqc_error(ABQC_E_ARGUMENT, "a profile has no memory for its launches");
    if (!status) status = abqc_check_run_options(instance->device, &options);
    if (status) return status;
    if (input_count != info->input_count || (input_count && !inputs))
        return abqc_error(ABQC_E_INPUT, "%d inputs, expected %d", (int)(inputs ? input_count : 0),
                          (int)info->input_count);
    if (output_count != info->output_count || (output_count && !outputs))
        return abqc_error(ABQC_E_OUTPUT, "%d outputs, expected %d",
                          (int)(outputs ? output_count : 0), (int)info->output_count);
    status = acquire_context(instance, &ctx);
    if (status) return status;
    ctx->profile = options.profile;
    if (ctx->profile) ctx->profile->count = 0;
    ctx->inputs = inputs;
    ctx->outputs = outputs;
    ctx->counted = (abqc_statistics){0};
    ctx->catches = options.flags & ABQC_RUN_INTERRUPTIBLE;
    if (ctx->catches) {
        ctx->interrupts = atomic_load(&abqc_interrupts);
        abqc_catch_interrupts();
    }
    status = run_in_context(ctx, &options);
    if (ctx->catches) abqc_leave_interrupts();
    release_context(instance, ctx);
    return status;
}

/* ---- the other functions of the table ---- */

static int32_t model_info(const abqc_model_info **info) {
    if (!info) return abqc_error(ABQC_E_ARGUMENT, "info is NULL");
    *info = &abqc_meta.info;
    return ABQC_OK;
}

static int32_t create(const abqc_instance_options *given, abqc_instance **instance) {
    abqc_instance_options options;
    abqc_device *device;
    if (!instance) return abqc_error(ABQC_E_ARGUMENT, "instance is NULL");
    int32_t status = read_options(&options, sizeof options, given);
    uint32_t known = ABQC_INSTANCE_SEPARATE_BUFFERS | ABQC_INSTANCE_HUGE_PAGES;
    if (!status && options.flags & ~known)
        status = abqc_error(ABQC_E_ARGUMENT, "unknown flags %#x", (unsigned)options.flags);
    if (!status) status = abqc_device_open(&options, &device);
    if (status) return status;
    abqc_instance *made = malloc(sizeof *made);
    if (!made) {
        abqc_device_close(device);
        return abqc_error(ABQC_E_MEMORY, "out of memory");
    }
    *made = (abqc_instance){.device = device};
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
    abqc_device_close(instance->device);
    pthread_mutex_destroy(&instance->lock);
    free(instance);
    return ABQC_OK;
}

static int32_t isa_of(const abqc_instance *instance, const char **name) {
    if (!instance || !name) return abqc_error(ABQC_E_ARGUMENT, "instance or name is NULL");
    *name = abqc_device_isa(instance->device);
    return ABQC_OK;
}

static int32_t statistics_of(abqc_instance *instance, abqc_statistics *statistics) {
    if (!instance || !statistics)
        return abqc_error(ABQC_E_ARGUMENT, "instance or statistics is NULL");
    uint32_t known = statistics->struct_size;
    if (known < sizeof known || known > sizeof *statistics)
        return abqc_error(ABQC_E_ARGUMENT, "statistics have struct_size %u, expected at most %zu",
                          known, sizeof *statistics);
    pthread_mutex_lock(&instance->lock);
    memcpy(statistics, &instance->statistics, known);
    pthread_mutex_unlock(&instance->lock);
    statistics->struct_size = known;
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
        .statistics = statistics_of,
    };
    return abi_version == ABQC_ABI_VERSION ? &table : NULL;
}
