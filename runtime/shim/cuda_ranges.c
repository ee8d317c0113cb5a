/* Which parts of a memory are in use, known on the host alone: best fit over a sorted array.
 *
 * The last range is taken only where nothing else fits. So the places of a sequence of calls do not
 * depend on how much there is behind them, and a plan made without an end holds in a memory that
 * ends at the plan's peak. There are tens of ranges, rarely hundreds: a walk over them is quicker than
 * the launch that follows. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

static bool insert(abqc_ranges *r, int32_t at, abqc_range range) {
    if (r->count == r->room) {
        int32_t room = r->room ? 2 * r->room : 64;
        abqc_range *more = realloc(r->ranges, (size_t)room * sizeof *more);
        if (!more) return false;
        r->ranges = more;
        r->room = room;
    }
    memmove(&r->ranges[at + 1], &r->ranges[at], (size_t)(r->count - at) * sizeof range);
    r->ranges[at] = range;
    r->count++;
    return true;
}

static void drop(abqc_ranges *r, int32_t at) {
    r->count--;
    memmove(&r->ranges[at], &r->ranges[at + 1], (size_t)(r->count - at) * sizeof *r->ranges);
}

bool abqc_ranges_begin(abqc_ranges *ranges, int64_t bytes) {
    ranges->count = 0;
    ranges->end = ranges->peak = 0;
    return abqc_ranges_extend(ranges, bytes);
}

bool abqc_ranges_extend(abqc_ranges *ranges, int64_t bytes) {
    if (!bytes) return true;
    if (!insert(ranges, ranges->count, (abqc_range){.offset = ranges->end, .bytes = bytes, .first = true})) return false;
    ranges->end += bytes;
    return true;
}

static int32_t best_fit(const abqc_ranges *r, int64_t bytes) {
    int32_t last = r->count - 1, best = -1;
    for (int32_t i = 0; i < last; i++)
        if (!r->ranges[i].used && r->ranges[i].bytes >= bytes &&
            (best < 0 || r->ranges[i].bytes < r->ranges[best].bytes))
            best = i;
    if (best < 0 && !r->ranges[last].used && r->ranges[last].bytes >= bytes) best = last;
    return best;
}

int64_t abqc_ranges_alloc(abqc_ranges *ranges, int64_t bytes) {
    bytes = (bytes + ABQC_GPU_ALIGNMENT - 1) / ABQC_GPU_ALIGNMENT * ABQC_GPU_ALIGNMENT;
    if (!bytes) bytes = ABQC_GPU_ALIGNMENT;
    int32_t i = ranges->count ? best_fit(ranges, bytes) : -1;
    if (i < 0) return -1;
    abqc_range whole = ranges->ranges[i];
    abqc_range rest = {.offset = whole.offset + bytes, .bytes = whole.bytes - bytes};
    if (rest.bytes && !insert(ranges, i + 1, rest)) return -1;
    ranges->ranges[i].bytes = bytes;
    ranges->ranges[i].used = true;
    if (rest.offset > ranges->peak) ranges->peak = rest.offset;
    return whole.offset;
}

static int32_t find(const abqc_ranges *r, int64_t offset) {
    int32_t low = 0, high = r->count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (r->ranges[middle].offset < offset) low = middle + 1;
        else high = middle;
    }
    return low < r->count && r->ranges[low].offset == offset ? low : -1;
}

const abqc_range *abqc_ranges_find(const abqc_ranges *ranges, int64_t offset) {
    int32_t low = 0, high = ranges->count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (ranges->ranges[middle].offset + ranges->ranges[middle].bytes <= offset) low = middle + 1;
        else high = middle;
    }
    return low < ranges->count && ranges->ranges[low].used ? &ranges->ranges[low] : NULL;
}

/* Joins range i with the one behind it where both are free and of one memory. */
static void join(abqc_ranges *r, int32_t i) {
    if (i < 0 || i + 1 >= r->count) return;
    abqc_range *range = &r->ranges[i], *next = range + 1;
    if (range->used || next->used || next->first) return;
    range->bytes += next->bytes;
    drop(r, i + 1);
}

bool abqc_ranges_free(abqc_ranges *ranges, int64_t offset) {
    int32_t i = find(ranges, offset);
    if (i < 0 || !ranges->ranges[i].used) return false;
    if (ranges->ranges[i].held) return true;
    ranges->ranges[i].used = false;
    join(ranges, i);
    join(ranges, i - 1);
    return true;
}

bool abqc_ranges_hold(abqc_ranges *ranges, int64_t offset) {
    int32_t i = find(ranges, offset);
    if (i < 0 || !ranges->ranges[i].used) return false;
    return ranges->ranges[i].held = true;
}

void abqc_ranges_destroy(abqc_ranges *ranges) {
    free(ranges->ranges);
    *ranges = (abqc_ranges){0};
}
