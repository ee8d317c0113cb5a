/* The CPU as the device of instances: the ISA of the kernels, the threads, the run. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

/* ---- options ---- */

static int32_t check_device(DLDevice device) {
    if (device.device_type == 0 || device.device_type == kDLCPU) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "device type %d: this model was compiled for the CPU (%d)",
                      (int)device.device_type, (int)kDLCPU);
}

int32_t abqc_check_run_options(const abqc_device *device, const abqc_run_options *options) {
    (void)device;
    int32_t status = check_device(options->device);
    if (status) return status;
    if (options->stream)
        return abqc_error(ABQC_E_DEVICE, "a stream was given, but the CPU has none");
    return ABQC_OK;
}

int32_t abqc_check_place(const abqc_device *device, DLDevice place, const char *role,
                         const char *name) {
    (void)device;
    if (place.device_type == kDLCPU) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE, "%s '%s' lies on device type %d, expected the CPU (%d)", role,
                      name, (int)place.device_type, (int)kDLCPU);
}

static int32_t choose_threads(int32_t asked, int32_t *threads) {
    const char *text = getenv("ABQC_NUM_THREADS");
    if (asked || !text || !*text) {
        *threads = asked ? asked : abqc_usable_cores();
        return abqc_check_threads(asked, "the number of threads");
    }
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*end || errno || value < 1)
        return abqc_error(ABQC_E_ARGUMENT, "ABQC_NUM_THREADS is '%s', expected a positive number",
                          text);
    *threads = (int32_t)value;
    return abqc_check_threads(value, "ABQC_NUM_THREADS");
}

static int32_t unknown_isa(const char *name) {
    char known[128] = "";
    size_t length = 0;
    for (int i = 0; i < abqc_meta.isa_count && length < sizeof known; i++)
        length += (size_t)snprintf(known + length, sizeof known - length, "%s%s", i ? ", " : "",
                                   abqc_meta.isas[i].name);
    return abqc_error(ABQC_E_ISA, "unknown instruction set '%s', expected one of %s", name, known);
}

static int32_t forced_isa(const char *name, const abqc_isa **isa) {
    const abqc_isa *all = abqc_meta.isas;
    for (int i = 0; i < abqc_meta.isa_count; i++) {
        if (strcmp(name, all[i].name) != 0) continue;
        const abqc_isa *found = &all[i];
        bool runs = abqc_cpu_has(found);
        while (!found->kernels && found->extends >= 0) found = &all[found->extends];
        if (!found->kernels)
            return abqc_error(ABQC_E_ISA, "the model has no kernels for '%s'; it has: %s", name,
                              abqc_meta.info.isas);
        if (!runs) return abqc_error(ABQC_E_ISA, "this CPU lacks '%s'", name);
        *isa = found;
        return ABQC_OK;
    }
    return unknown_isa(name);
}

static int32_t choose_isa(const char *asked, const abqc_isa **isa) {
    const char *forced = asked ? asked : getenv("ABQC_ISA");
    if (forced && *forced) return forced_isa(forced, isa);
    for (int i = 0; i < abqc_meta.isa_count; i++) {
        const abqc_isa *each = &abqc_meta.isas[i];
        if (!each->kernels || !abqc_cpu_has(each)) continue;
        *isa = each;
        return ABQC_OK;
    }
    return abqc_error(ABQC_E_ISA, "this CPU can run none of the model's instruction sets: %s",
                      abqc_meta.info.isas);
}

/* ---- the device ---- */

/* The thread runtime must outlive this library: its workers sleep in its code. */
static void keep_thread_runtime(void) {
    dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NODELETE | RTLD_LOCAL);
}

int32_t abqc_device_open(const abqc_instance_options *options, abqc_device **device) {
    abqc_device chosen = {.isa = NULL};
    int32_t status = check_device(options->device);
    if (!status) status = choose_threads(options->threads, &chosen.threads);
    if (!status) status = choose_isa(options->isa, &chosen.isa);
    if (!status && options->flags & ABQC_INSTANCE_HUGE_PAGES) status = abqc_use_huge_pages();
    if (status) return status;
    *device = malloc(sizeof **device);
    if (!*device) return abqc_error(ABQC_E_MEMORY, "out of memory");
    **device = chosen;
    keep_thread_runtime();
    return ABQC_OK;
}

void abqc_device_close(abqc_device *device) { free(device); }

const char *abqc_device_isa(const abqc_device *device) { return device->isa->name; }

/* ---- a context's threads and memory ---- */

int32_t abqc_work_create(abqc_device *device, abqc_work **work) {
    *work = aligned_alloc(_Alignof(abqc_work), sizeof(abqc_work));
    if (!*work) return abqc_error(ABQC_E_MEMORY, "out of memory");
    memset(*work, 0, sizeof **work);
    (*work)->kernels = device->isa->kernels;
    return ABQC_OK;
}

void abqc_work_destroy(abqc_work *work) {
    if (!work) return;
    abqc_team_close(&work->team);
    abqc_arena_destroy(&work->arena);
    free(work);
}

int32_t abqc_work_run(abqc_ctx *ctx, const abqc_run_options *options) {
    int32_t threads = options->threads ? options->threads : ctx->device->threads;
    abqc_arena_begin(&ctx->work->arena);
    ctx->work->error_flag = ABQC_NO_ERROR;
    ctx->work->waiting = 0;
    if (!abqc_team_begin(&ctx->work->team, threads))
        return abqc_error(ABQC_E_MEMORY, "cannot start %d threads", (int)threads);
    return abqc_call_host(ctx);
}

/* ---- tensors ---- */

void abqc_input_place(abqc_ctx *ctx, int32_t i, abqc_view *view) {
    abqc_view_of(ctx->inputs[i], view);
}

bool abqc_output_stays(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank,
                       const int64_t *sizes, const int64_t *strides) {
    (void)ctx, (void)i, (void)data, (void)rank, (void)sizes, (void)strides;
    return false; /* what it is written in is needed for the next run */
}

void abqc_output_place(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes, int64_t bytes,
                       abqc_view *view) {
    if (!ctx->outputs[i]) {
        const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
        ctx->outputs[i] = abqc_allocate_tensor(info->dtype, rank, sizes, (size_t)bytes);
        if (!ctx->outputs[i]) abqc_fail_output_memory(ctx, i, rank, sizes);
        ctx->slots[i].allocated = true;
    }
    abqc_view_of(&ctx->outputs[i]->dl_tensor, view);
}

/* The caller's buffer, or one allocated for as many bytes. NULL where kernels cannot write there. */
static void *output_memory(abqc_ctx *ctx, int32_t i, int64_t bytes) {
    static const int64_t none[ABQC_MAX_RANK];
    const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
    abqc_view view;
    if (!ctx->outputs[i]) { /* abqc_rt_output() will tell the sizes */
        ctx->outputs[i] = abqc_allocate_tensor(info->dtype, info->ndim, none, (size_t)bytes);
        ctx->slots[i].allocated = ctx->outputs[i] != NULL;
        return ctx->outputs[i] ? ctx->outputs[i]->dl_tensor.data : NULL;
    }
    abqc_view_of(&ctx->outputs[i]->dl_tensor, &view);
    if (abqc_byte_count(info->ndim, view.sizes, abqc_item_size(info->dtype)) != bytes ||
        !abqc_is_compact(info->ndim, view.sizes, view.strides) ||
        (uintptr_t)view.data % ABQC_ALIGNMENT || abqc_output_overlaps_input(ctx, i) ||
        abqc_output_overlaps_output(ctx, i))
        return NULL;
    return view.data;
}

void abqc_rt_claim(abqc_ctx *ctx, int32_t i, int64_t bytes) {
    abqc_output_slot *slot = &ctx->slots[i];
    if (bytes < 0 || bytes > ABQC_MAX_BYTES) return; /* the allocation will say so */
    if (slot->state != ABQC_OUTPUT_OPEN || slot->claimed) return;
    ctx->claimed = slot->claimed = output_memory(ctx, i, bytes);
}

size_t abqc_input_alignment(size_t item) { return item; }

void abqc_copy(abqc_ctx *ctx, size_t item, int32_t rank, const int64_t *sizes, void *to,
               const int64_t *to_strides, const void *from, const int64_t *from_strides) {
    abqc_host_copy(&ctx->work->team, item, rank, sizes, to, to_strides, from, from_strides);
}
