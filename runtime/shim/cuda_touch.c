/* What memory an argument of a launch leads to: a whole buffer of the arena, an input or an output of
 * the caller, a weight, all counters. */

#include <stdlib.h>

#include "cuda.h"

static const abqc_touch everything = {.begin = 0, .end = UINT64_MAX};

/* The tensors of the caller that lie on the device. */
void abqc_tensors_begin(abqc_ctx *ctx) {
    abqc_work *work = ctx->work;
    work->tensor_count = 0;
    for (int32_t i = 0; i < abqc_meta.info.input_count + abqc_meta.info.output_count; i++) {
        int32_t output = i - abqc_meta.info.input_count;
        if (output >= 0 && !ctx->outputs[output]) continue;
        const DLTensor *tensor = output < 0 ? ctx->inputs[i] : &ctx->outputs[output]->dl_tensor;
        uintptr_t begin, end;
        if (!abqc_on_gpu(tensor)) continue;
        abqc_span(tensor, &begin, &end);
        work->tensors[work->tensor_count++] = (abqc_touch){.begin = begin, .end = end};
    }
}

static bool is_in(const abqc_touch *memory, CUdeviceptr address) {
    return address >= memory->begin && address < memory->end;
}

static bool is_weight(const abqc_device *device, CUdeviceptr address) {
    for (int32_t i = 0; i < abqc_meta.gpu.weight_count; i++)
        if (address - device->weights[i] < (uint64_t)abqc_meta.gpu.weights[i].bytes) return true;
    return false;
}

static bool is_empty(const abqc_touch *memory) { return memory->begin == memory->end; }

/* Of several tensors that an address lies in, all that they reach; of an empty one there is nothing. */
static bool find_tensor(const abqc_work *work, CUdeviceptr address, abqc_touch *found) {
    abqc_touch all = {.begin = address, .end = address};
    bool any = false;
    for (int32_t i = 0; i < work->tensor_count; i++) {
        const abqc_touch *tensor = &work->tensors[i];
        if (!is_in(tensor, address) && !(is_empty(tensor) && tensor->begin == address)) continue;
        if (tensor->begin < all.begin) all.begin = tensor->begin;
        if (tensor->end > all.end) all.end = tensor->end;
        any = true;
    }
    if (any) *found = all;
    return any;
}

static bool find_memory(const abqc_work *work, CUdeviceptr address, abqc_touch *found) {
    if (abqc_gpu_arena_find(&work->arena, address, &found->begin, &found->end)) return true;
    if (find_tensor(work, address, found)) return true;
    uint64_t bytes = address == work->error_flag ? sizeof(uint32_t)
                     : address == work->counters ? (uint64_t)work->counters_bytes
                                                 : 0;
    if (!bytes) return false;
    found->begin = address;
    found->end = address + bytes;
    return true;
}

/* What a launch does by its argument; nothing (0) where that is a number or a weight. `*early`: it
 * may be launched before what it depends on has ended. */
static abqc_touch touch_of(const abqc_work *work, int32_t access, CUdeviceptr address, bool *early) {
    abqc_touch touched = everything;
    bool known = access >= 0;
    if (!known) access = ABQC_ACCESS_READ | ABQC_ACCESS_WRITTEN;
    if (!access || !address) return (abqc_touch){0};
    if (is_weight(work->device, address)) return (abqc_touch){0};
    if (access & ABQC_ACCESS_EARLY) *early = false;
    if (!find_memory(work, address, &touched) && !known) return (abqc_touch){0};
    touched.access = access;
    return touched;
}

int32_t abqc_touches_of(const abqc_work *work, const abqc_gpu_kernel *kernel, const uint64_t *args,
                        abqc_touch *touches, bool *early) {
    int32_t count = 0;
    *early = true;
    for (int32_t i = 0; i < kernel->slots; i++) {
        int32_t access = kernel->accesses ? kernel->accesses[i] : -1;
        abqc_touch touched = touch_of(work, access, args[i], early);
        if (touched.access) touches[count++] = touched;
    }
    return count;
}
