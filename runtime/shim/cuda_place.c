/* Outputs that are computed where the caller wants them.
 *
 * What becomes an output is an allocation of the host function like any other, and only at its end is it
 * known which. But the function does the same each time: the allocation that became an output in the
 * last run will probably become it in this one, and is given the caller's buffer for its memory. Where
 * it becomes something else, the run is recorded again without such guesses: what is in the buffer
 * would be overwritten by the output. */

#include <stdlib.h>

#include "cuda.h"

void abqc_places_begin(abqc_places *places) { places->count = places->given_count = 0; }

void abqc_places_destroy(abqc_places *places) {
    free(places->made);
    free(places->given);
    free(places->number);
    *places = (abqc_places){0};
}

bool abqc_places_create(abqc_places *places) {
    size_t outputs = (size_t)abqc_meta.info.output_count;
    places->number = calloc(outputs + 1, sizeof *places->number);
    places->given = calloc(outputs + 1, sizeof *places->given);
    return places->number && places->given;
}

static bool is_buffer(const abqc_ctx *ctx, int32_t i, int64_t bytes, CUdeviceptr *data) {
    if (!ctx->outputs[i] || !abqc_on_gpu(&ctx->outputs[i]->dl_tensor)) return false;
    const DLTensor *tensor = &ctx->outputs[i]->dl_tensor;
    abqc_view view;
    abqc_view_of(tensor, &view);
    *data = (uintptr_t)view.data;
    return *data && *data % ABQC_BUFFER_ALIGNMENT == 0 &&
           abqc_is_compact(tensor->ndim, view.sizes, view.strides) &&
           abqc_byte_count(tensor->ndim, view.sizes, abqc_item_size(tensor->dtype)) == bytes;
}

/* The memory of the next allocation, of `bytes`; 0: the arena's. */
static CUdeviceptr wanted(const abqc_ctx *ctx, int64_t bytes) {
    const abqc_places *places = &ctx->work->places;
    CUdeviceptr data;
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++)
        if (places->number[i] == places->count + 1 && is_buffer(ctx, i, bytes, &data)) return data;
    return 0;
}

CUdeviceptr abqc_places_next(const abqc_ctx *ctx, int64_t bytes) {
    const abqc_work *work = ctx->work;
    return work->recording && !work->places.off ? wanted(ctx, bytes) : 0;
}

bool abqc_places_keep(abqc_places *places, CUdeviceptr data, bool given) {
    if (places->count == places->room) {
        int32_t room = 2 * places->room + 64;
        CUdeviceptr *more = realloc(places->made, (size_t)room * sizeof *more);
        if (!more) return false;
        places->made = more;
        places->room = room;
    }
    places->made[places->count++] = data;
    if (given) places->given[places->given_count++] = data;
    return true;
}

bool abqc_places_given(const abqc_places *places, CUdeviceptr data) {
    for (int32_t k = 0; k < places->given_count; k++)
        if (places->given[k] == data) return true;
    return false;
}

void abqc_places_learn(abqc_places *places, int32_t output, CUdeviceptr data) {
    int32_t number = places->count; /* from 1; memory is used again, so the last one there */
    while (number && places->made[number - 1] != data) number--;
    places->number[output] = number;
}
