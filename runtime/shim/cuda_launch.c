/* Launches: sent to the device as they come, or kept as a list that is sent later, or becomes a graph.
 * Copies and single values are launches too, so that all a model does on the device is of one kind. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* ---- kernels ---- */

enum { COPY_SLOTS = 4 + 3 * ABQC_MAX_RANK, SET_SLOTS = 2 };

static const uint8_t copy_accesses[COPY_SLOTS] = {ABQC_ACCESS_WRITTEN, ABQC_ACCESS_READ};
static const uint8_t set_accesses[SET_SLOTS] = {ABQC_ACCESS_WRITTEN};

#define COPY(bytes) {"abqc_copy_" #bytes, COPY_SLOTS, copy_accesses, 0, NULL}
#define SET(bytes) {"abqc_set_" #bytes, SET_SLOTS, set_accesses, 0, NULL}

/* codegen/gpu/assembly/builtin.py makes them. */
static const abqc_gpu_kernel builtins[ABQC_BUILTIN_KERNELS] = {
    COPY(1), COPY(2), COPY(4), COPY(8), COPY(16), SET(1), SET(2), SET(4), SET(8),
};

static const abqc_gpu_block copy_block = {.threads = ABQC_COPY_THREADS};
static const abqc_gpu_block set_block = {.threads = 1};

int32_t abqc_kernel_count(void) { return abqc_meta.gpu.kernel_count + ABQC_BUILTIN_KERNELS; }

const abqc_gpu_kernel *abqc_kernel_info(int32_t kernel) {
    int32_t own = abqc_meta.gpu.kernel_count;
    return kernel < own ? &abqc_meta.gpu.kernels[kernel] : &builtins[kernel - own];
}

const abqc_gpu_block *abqc_kernel_block(const abqc_device *device, int32_t kernel) {
    int32_t builtin = kernel - abqc_meta.gpu.kernel_count;
    if (builtin < 0) return &device->image->blocks[kernel];
    return builtin < ABQC_COPY_KERNELS ? &copy_block : &set_block;
}

static int32_t by_item(size_t item) { return __builtin_ctz((unsigned)item); }

int32_t abqc_copy_kernel(size_t item) { return abqc_meta.gpu.kernel_count + by_item(item); }

int32_t abqc_set_kernel(size_t item) {
    return abqc_meta.gpu.kernel_count + ABQC_COPY_KERNELS + by_item(item);
}

/* ---- one launch ---- */

static int32_t send(const abqc_work *work, int32_t kernel, int32_t grid, const uint64_t *args) {
    const abqc_device *device = work->device;
    const abqc_gpu_kernel *info = abqc_kernel_info(kernel);
    const abqc_gpu_block *block = abqc_kernel_block(device, kernel);
    CUresult code = abqc_set_parameters(work, info, args);
    if (code)
        return abqc_cuda_error(device, code, "cannot make the tensor maps of kernel '%s'", info->name);
    code = device->cuda.launch(device->functions[kernel], (uint32_t)grid, 1, 1,
                               (uint32_t)block->threads, 1, 1, (uint32_t)block->shared_bytes,
                               abqc_run_stream(work), work->parameters, NULL);
    return code ? abqc_cuda_error(device, code,
                                  "cannot launch %d blocks of kernel '%s' (%d threads, %d bytes of "
                                  "shared memory)",
                                  (int)grid, info->name, (int)block->threads, (int)block->shared_bytes)
                : ABQC_OK;
}

/* ---- many ---- */

bool abqc_make_room(void **data, int32_t *room, int64_t needed, size_t item) {
    if (needed <= *room) return true;
    if (needed > (INT32_MAX - 64) / 2) return false;
    int32_t more = (int32_t)needed * 2 + 64;
    void *moved = realloc(*data, (size_t)more * item);
    if (!moved) return false;
    *data = moved;
    *room = more;
    return true;
}

static bool make_rooms(abqc_launches *l, int64_t launches, int64_t args, int64_t touches) {
    return abqc_make_room((void **)&l->launches, &l->room, launches, sizeof *l->launches) &&
           abqc_make_room((void **)&l->args, &l->arg_room, args, sizeof *l->args) &&
           abqc_make_room((void **)&l->touches, &l->touch_room, touches, sizeof *l->touches);
}

static bool add(abqc_work *work, int32_t kernel, int32_t grid, const uint64_t *args) {
    abqc_launches *l = &work->launches;
    const abqc_gpu_kernel *info = abqc_kernel_info(kernel);
    int32_t slots = info->slots;
    if (!make_rooms(l, (int64_t)l->count + 1, (int64_t)l->arg_count + slots,
                    (int64_t)l->touch_count + slots))
        return false;
    abqc_launch launch = {kernel, grid, .first = l->arg_count, .first_touch = l->touch_count};
    launch.touches =
        abqc_touches_of(work, info, args, &l->touches[l->touch_count], &launch.early);
    l->launches[l->count++] = launch;
    if (slots) memcpy(&l->args[l->arg_count], args, (size_t)slots * sizeof *args);
    l->arg_count += slots;
    l->touch_count += launch.touches;
    return true;
}

void abqc_put_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args) {
    abqc_work *work = ctx->work;
    if (grid <= 0) return;
    if (grid > INT32_MAX)
        abqc_fail(ctx, ABQC_E_CHECK, "a tensor inside the model is too large: %lld blocks of '%s'",
                  (long long)grid, abqc_kernel_info(kernel)->name);
    if (work->recording) {
        if (!add(work, kernel, (int32_t)grid, args))
            abqc_fail(ctx, ABQC_E_MEMORY, "out of memory");
        return;
    }
    int32_t status = send(work, kernel, (int32_t)grid, args);
    if (status) abqc_leave(ctx, status);
}

int32_t abqc_launches_send(const abqc_work *work, const abqc_launches *launches) {
    for (int32_t i = 0; i < launches->count; i++) {
        const abqc_launch *launch = &launches->launches[i];
        int32_t status = send(work, launch->kernel, launch->grid, &launches->args[launch->first]);
        if (status) return status;
    }
    return ABQC_OK;
}

bool abqc_launches_copy(abqc_launches *to, const abqc_launches *from) {
    if (!make_rooms(to, from->count, from->arg_count, from->touch_count)) return false;
    if (from->count)
        memcpy(to->launches, from->launches, (size_t)from->count * sizeof *from->launches);
    if (from->arg_count) memcpy(to->args, from->args, (size_t)from->arg_count * sizeof *from->args);
    if (from->touch_count)
        memcpy(to->touches, from->touches, (size_t)from->touch_count * sizeof *from->touches);
    to->count = from->count;
    to->arg_count = from->arg_count;
    to->touch_count = from->touch_count;
    return true;
}

void abqc_launches_destroy(abqc_launches *launches) {
    free(launches->launches);
    free(launches->args);
    free(launches->touches);
    *launches = (abqc_launches){0};
}
