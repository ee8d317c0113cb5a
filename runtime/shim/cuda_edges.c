/* Which launches of a run must follow which: what reads memory follows what wrote it, and what writes
 * it follows what read or wrote it before. Memory is known by its addresses alone: buffers that lie
 * where others have lain, or that callers let overlap, are the same memory.
 *
 * The addresses that launches touch are cut into segments without overlap, each with the launch that
 * wrote it last and those that have read it since. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { MOST_LAUNCHES = 8192, NONE = -1 }; /* of more, each follows the one before: `before` is square */

typedef struct {
    CUdeviceptr begin, end;
    int32_t writer;  /* NONE: nobody */
    int32_t readers; /* the first of a list; NONE: nobody since the writer */
} segment;

typedef struct { /* lists share their ends, when segments are cut */
    int32_t launch, next;
} reader;

typedef struct {
    segment *segments; /* by address */
    int32_t count, room;
    reader *readers;
    int32_t reader_count, reader_room;
    uint64_t *wanted; /* bits of the launches that the one at hand must follow */
    int32_t launch;   /* the one at hand */
    abqc_edges *edges;
    int32_t edge_room;
} tracker;

/* ---- bits ---- */

static void set_bit(uint64_t *bits, int32_t i) { bits[i / 64] |= (uint64_t)1 << (i % 64); }

static bool has_bit(const uint64_t *bits, int32_t i) { return bits[i / 64] >> (i % 64) & 1; }

static uint64_t *row(const abqc_edges *edges, int32_t launch) {
    return &edges->before[(size_t)launch * (size_t)edges->words];
}

/* ---- segments ---- */

static bool insert(tracker *t, int32_t at, segment made) {
    if (!abqc_make_room((void **)&t->segments, &t->room, (int64_t)t->count + 1, sizeof made))
        return false;
    memmove(&t->segments[at + 1], &t->segments[at], (size_t)(t->count - at) * sizeof made);
    t->segments[at] = made;
    t->count++;
    return true;
}

/* The first segment that ends behind an address. */
static int32_t find(const tracker *t, CUdeviceptr address) {
    int32_t low = 0, high = t->count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (t->segments[middle].end <= address) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Cuts segment `at` in two. */
static bool cut(tracker *t, int32_t at, CUdeviceptr address) {
    segment behind = t->segments[at];
    behind.begin = address;
    if (!insert(t, at + 1, behind)) return false;
    t->segments[at].end = address;
    return true;
}

static void follow(tracker *t, int32_t launch) {
    if (launch != NONE && launch != t->launch) set_bit(t->wanted, launch);
}

static bool add_reader(tracker *t, segment *s) {
    if (s->readers != NONE && t->readers[s->readers].launch == t->launch) return true;
    if (!abqc_make_room((void **)&t->readers, &t->reader_room, (int64_t)t->reader_count + 1,
                        sizeof *t->readers))
        return false;
    t->readers[t->reader_count] = (reader){t->launch, s->readers};
    s->readers = t->reader_count++;
    return true;
}

static bool touch_segment(tracker *t, segment *s, int32_t access) {
    follow(t, s->writer);
    if (!(access & ABQC_ACCESS_WRITTEN)) return add_reader(t, s);
    for (int32_t i = s->readers; i != NONE; i = t->readers[i].next) follow(t, t->readers[i].launch);
    s->writer = t->launch;
    s->readers = NONE;
    return true;
}

static bool touch(tracker *t, const abqc_touch *touched) {
    CUdeviceptr begin = touched->begin, end = touched->end;
    for (int32_t i = find(t, begin); begin < end; i++) {
        if (i == t->count || t->segments[i].begin > begin) {
            CUdeviceptr free_end = i < t->count && t->segments[i].begin < end ? t->segments[i].begin : end;
            if (!insert(t, i, (segment){begin, free_end, NONE, NONE})) return false;
        } else if (t->segments[i].begin < begin) {
            if (!cut(t, i++, begin)) return false;
        }
        if (t->segments[i].end > end && !cut(t, i, end)) return false;
        if (!touch_segment(t, &t->segments[i], touched->access)) return false;
        begin = t->segments[i].end;
    }
    return true;
}

/* ---- edges ---- */

static bool add_edge(tracker *t, int32_t from) {
    abqc_edges *edges = t->edges;
    int32_t to = t->launch;
    if (!abqc_make_room((void **)&edges->from, &t->edge_room, (int64_t)edges->first[to + 1] + 1,
                        sizeof *edges->from))
        return false;
    edges->from[edges->first[to + 1]++] = from;
    const uint64_t *reached = row(edges, from);
    for (int32_t w = 0; w < edges->words; w++) row(edges, to)[w] |= reached[w];
    set_bit(row(edges, to), from);
    return true;
}

/* From the latest on: what an edge leads to by another way needs none. */
static bool add_edges(tracker *t) {
    uint64_t *before = row(t->edges, t->launch);
    t->edges->first[t->launch + 1] = t->edges->first[t->launch];
    for (int32_t w = t->edges->words; w-- > 0;) {
        uint64_t left;
        while ((left = t->wanted[w] & ~before[w]) != 0)
            if (!add_edge(t, 64 * w + 63 - __builtin_clzll(left))) return false;
        t->wanted[w] = 0;
    }
    return true;
}

static bool track(tracker *t, const abqc_launches *launches) {
    for (t->launch = 0; t->launch < launches->count; t->launch++) {
        const abqc_launch *launch = &launches->launches[t->launch];
        for (int32_t i = 0; i < launch->touches; i++)
            if (!touch(t, &launches->touches[launch->first_touch + i])) return false;
        if (!add_edges(t)) return false;
    }
    return true;
}

static bool chain(abqc_edges *edges) {
    edges->from = malloc((size_t)edges->count * sizeof *edges->from);
    if (!edges->from) return false;
    for (int32_t i = 1; i < edges->count; i++) {
        edges->from[i - 1] = i - 1;
        edges->first[i + 1] = i;
    }
    return true;
}

bool abqc_edges_create(abqc_edges *edges, const abqc_launches *launches) {
    size_t count = (size_t)launches->count, words = (count + 63) / 64;
    *edges = (abqc_edges){.count = launches->count, .words = (int32_t)words};
    edges->first = calloc(count + 2, sizeof *edges->first);
    if (!edges->first) return false;
    if (launches->count > MOST_LAUNCHES) return chain(edges);
    tracker t = {.edges = edges, .wanted = calloc(words + 1, sizeof *t.wanted)};
    edges->before = calloc(count * words + 1, sizeof *edges->before);
    bool made = edges->before && t.wanted && track(&t, launches);
    free(t.segments);
    free(t.readers);
    free(t.wanted);
    return made;
}

void abqc_edges_destroy(abqc_edges *edges) {
    free(edges->first);
    free(edges->from);
    free(edges->before);
    *edges = (abqc_edges){0};
}

bool abqc_edges_cover(const abqc_edges *edges, const abqc_edges *needed) {
    if (!edges->before) return true; /* a chain */
    for (int32_t to = 0; to < needed->count; to++)
        for (int32_t i = needed->first[to]; i < needed->first[to + 1]; i++)
            if (!has_bit(row(edges, to), needed->from[i])) return false;
    return true;
}

int32_t abqc_edges_path(const abqc_edges *edges) {
    int32_t *length = calloc((size_t)edges->count + 1, sizeof *length), longest = 0;
    for (int32_t to = 0; length && to < edges->count; to++) {
        for (int32_t i = edges->first[to]; i < edges->first[to + 1]; i++)
            if (length[edges->from[i]] > length[to]) length[to] = length[edges->from[i]];
        if (++length[to] > longest) longest = length[to];
    }
    free(length);
    return longest;
}
