/* The device memory of a context: one piece as large as a plan says. Where a run cannot be planned,
 * because sizes depend on data, pieces are added as it goes; the next run has one of their sum.
 *
 * What checks every access (compute-sanitizer, the PTX machine) wants each buffer as an allocation of
 * its own: ABQC_INSTANCE_SEPARATE_BUFFERS. */

#include <stdlib.h>

#include "cuda.h"

enum { FIRST_CHUNK = 1 << 20 };

/* Of a plan that has no memory: an address that leads nowhere. */
enum { NOWHERE = ABQC_GPU_ALIGNMENT };

static const int64_t endless = INT64_MAX / 2;

static const char purpose[] = "the working memory of a run";

static int32_t out_of_host_memory(void) { return abqc_error(ABQC_E_MEMORY, "out of memory"); }

/* ---- buffers that are allocations of their own ---- */

static int32_t add_piece(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes,
                         CUdeviceptr *data) {
    if (arena->piece_count == arena->piece_room) {
        int32_t room = 2 * arena->piece_room + 64;
        CUdeviceptr *more = realloc(arena->pieces, (size_t)room * sizeof *more);
        if (!more) return out_of_host_memory();
        arena->pieces = more;
        arena->piece_room = room;
    }
    int32_t status = abqc_device_allocate(device, bytes ? bytes : 1, purpose, data);
    if (!status) arena->pieces[arena->piece_count++] = *data;
    return status;
}

static bool free_piece(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data) {
    for (int32_t i = 0; i < arena->piece_count; i++) {
        if (arena->pieces[i] != data) continue;
        arena->pieces[i] = arena->pieces[--arena->piece_count];
        return device->cuda.release(data) == CUDA_SUCCESS;
    }
    return false;
}

static void free_pieces(const abqc_device *device, abqc_gpu_arena *arena) {
    while (arena->piece_count) device->cuda.release(arena->pieces[--arena->piece_count]);
}

/* ---- buffers in common memory ---- */

void abqc_gpu_arena_destroy(const abqc_device *device, abqc_gpu_arena *arena) {
    for (int32_t i = 0; i < arena->count; i++) device->cuda.release(arena->chunks[i].base);
    free_pieces(device, arena);
    free(arena->pieces);
    abqc_ranges_destroy(&arena->ranges);
    *arena = (abqc_gpu_arena){0};
}

static int64_t capacity(const abqc_gpu_arena *arena) {
    if (!arena->count) return 0;
    const abqc_gpu_chunk *last = &arena->chunks[arena->count - 1];
    return last->offset + last->bytes;
}

int32_t abqc_gpu_arena_plan(const abqc_device *device, abqc_gpu_arena *arena, bool in_place) {
    bool has_place = in_place && arena->count == 1 && !device->separate;
    arena->planning = true;
    arena->first = has_place ? arena->chunks[0].base : NOWHERE;
    return abqc_ranges_begin(&arena->ranges, endless) ? ABQC_OK : out_of_host_memory();
}

/* In place of all chunks one of `bytes`, and a quarter more than there was where that is to be had:
 * sequences grow step by step. */
static int32_t replace(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes) {
    int64_t more = capacity(arena) / 4 * 5;
    for (int32_t i = 0; i < arena->count; i++) device->cuda.release(arena->chunks[i].base);
    arena->count = 0;
    if (more < bytes || device->cuda.allocate(&arena->chunks[0].base, (size_t)more)) {
        int32_t status = abqc_device_allocate(device, bytes, purpose, &arena->chunks[0].base);
        if (status) return status;
        more = bytes;
    }
    arena->chunks[0].offset = 0;
    arena->chunks[0].bytes = more;
    arena->count = 1;
    return ABQC_OK;
}

bool abqc_gpu_arena_fits(const abqc_gpu_arena *arena, int64_t bytes) {
    return bytes <= capacity(arena) && arena->count <= 1;
}

int32_t abqc_gpu_arena_begin(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes) {
    arena->planning = false;
    free_pieces(device, arena);
    if (device->separate) return ABQC_OK;
    if (!abqc_gpu_arena_fits(arena, bytes)) {
        int64_t present = capacity(arena);
        int32_t status = replace(device, arena, bytes > present ? bytes : present);
        if (status) return status;
    }
    bool begun = abqc_ranges_begin(&arena->ranges, capacity(arena));
    return begun ? ABQC_OK : out_of_host_memory();
}

/* Room for `bytes`, and a quarter of what there is, so that growing costs few allocations. */
static int32_t grow(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes) {
    int64_t present = capacity(arena);
    bytes += ABQC_GPU_ALIGNMENT;
    if (bytes < present / 4) bytes = present / 4;
    if (bytes < FIRST_CHUNK) bytes = FIRST_CHUNK;
    bytes = bytes / ABQC_GPU_ALIGNMENT * ABQC_GPU_ALIGNMENT;
    if (arena->count == ABQC_GPU_CHUNKS) return out_of_host_memory();
    abqc_gpu_chunk *chunk = &arena->chunks[arena->count];
    int32_t status = abqc_device_allocate(device, bytes, purpose, &chunk->base);
    if (status) return status;
    chunk->offset = present;
    chunk->bytes = bytes;
    arena->count++;
    return abqc_ranges_extend(&arena->ranges, bytes) ? ABQC_OK : out_of_host_memory();
}

static CUdeviceptr address_of(const abqc_gpu_arena *arena, int64_t offset) {
    if (arena->planning) return arena->first + (uint64_t)offset;
    const abqc_gpu_chunk *chunk = &arena->chunks[arena->count - 1];
    while (offset < chunk->offset) chunk--;
    return chunk->base + (uint64_t)(offset - chunk->offset);
}

int32_t abqc_gpu_arena_alloc(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes,
                             CUdeviceptr *data) {
    if (device->separate && !arena->planning) return add_piece(device, arena, bytes, data);
    int64_t offset = abqc_ranges_alloc(&arena->ranges, bytes);
    if (offset < 0 && !arena->planning) {
        int32_t status = grow(device, arena, bytes);
        if (status) return status;
        offset = abqc_ranges_alloc(&arena->ranges, bytes);
    }
    if (offset < 0) return out_of_host_memory();
    *data = address_of(arena, offset);
    return ABQC_OK;
}

/* -1: it is not of the arena. */
static int64_t offset_of(const abqc_gpu_arena *arena, CUdeviceptr data) {
    if (arena->planning) return data >= arena->first ? (int64_t)(data - arena->first) : -1;
    for (int32_t i = 0; i < arena->count; i++) {
        const abqc_gpu_chunk *chunk = &arena->chunks[i];
        if (data >= chunk->base && data - chunk->base < (uint64_t)chunk->bytes)
            return chunk->offset + (int64_t)(data - chunk->base);
    }
    return -1;
}

bool abqc_gpu_arena_find(const abqc_gpu_arena *arena, CUdeviceptr address, CUdeviceptr *begin,
                         CUdeviceptr *end) {
    int64_t offset = offset_of(arena, address);
    const abqc_range *range = offset < 0 ? NULL : abqc_ranges_find(&arena->ranges, offset);
    if (!range) return false;
    *begin = address - (uint64_t)(offset - range->offset);
    *end = *begin + (uint64_t)range->bytes;
    return true;
}

bool abqc_gpu_arena_free(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data) {
    if (device->separate && !arena->planning) return free_piece(device, arena, data);
    return abqc_ranges_free(&arena->ranges, offset_of(arena, data));
}

bool abqc_gpu_arena_hold(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data) {
    return !device->separate && abqc_ranges_hold(&arena->ranges, offset_of(arena, data));
}
