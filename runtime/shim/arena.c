/* The working memory of a run: a two-level segregated fit allocator (Masmano et al., "TLSF: a new
 * dynamic memory allocator for real-time systems", 2004) over chunks from mmap.
 *
 * Constant time, immediate coalescing, one thread. A run that outgrows the arena adds chunks; the
 * next one starts with a single chunk as large as all of them, so a steady state calls no malloc. */

#define _GNU_SOURCE
#include <sys/mman.h>

#include "shim.h"

enum { LINE = ABQC_ALIGNMENT, SUBCLASS_BITS = 3, FIRST_CHUNK = 1 << 20, HUGE_PAGE = 2 << 20 };

struct abqc_block { /* the line before its payload */
    size_t lines;   /* of the payload */
    abqc_block *below, *above;      /* neighbours in the chunk */
    abqc_block *free_next, *free_previous;
    bool free;
};

struct abqc_chunk { /* the first line of a mapping */
    abqc_chunk *next;
    size_t bytes;
};

_Static_assert(sizeof(abqc_block) <= LINE, "a block's header is one line");
_Static_assert(sizeof(abqc_chunk) <= LINE, "a chunk's header is one line");
_Static_assert(1 << SUBCLASS_BITS == ABQC_BINS_PER_CLASS, "bins of a class");

typedef struct {
    uint32_t class, bin;
} place;

/* The bin whose blocks have at least its lower bound of lines: powers of two, cut in eight. */
static place place_of(size_t lines) {
    if (lines < ABQC_BINS_PER_CLASS) return (place){0, (uint32_t)lines};
    uint32_t log = 63 - (uint32_t)__builtin_clzll(lines);
    return (place){log - SUBCLASS_BITS + 1,
                   (uint32_t)(lines >> (log - SUBCLASS_BITS)) & (ABQC_BINS_PER_CLASS - 1)};
}

static void put(abqc_arena *arena, abqc_block *block) {
    place p = place_of(block->lines);
    abqc_block **head = &arena->free[p.class][p.bin];
    block->free = true;
    block->free_previous = NULL;
    block->free_next = *head;
    if (*head) (*head)->free_previous = block;
    *head = block;
    arena->bins[p.class] |= (uint8_t)(1u << p.bin);
    arena->classes |= 1ull << p.class;
}

static void take(abqc_arena *arena, abqc_block *block) {
    place p = place_of(block->lines);
    block->free = false;
    if (block->free_next) block->free_next->free_previous = block->free_previous;
    if (block->free_previous) {
        block->free_previous->free_next = block->free_next;
        return;
    }
    arena->free[p.class][p.bin] = block->free_next;
    if (block->free_next) return;
    arena->bins[p.class] &= (uint8_t)~(1u << p.bin);
    if (!arena->bins[p.class]) arena->classes &= ~(1ull << p.class);
}

/* The first block of the bins in `bins` of `class`, and of all later classes, that is not the last one
 * of its chunk; that one where there is no other. NULL where all are empty. */
static abqc_block *first_of(const abqc_arena *arena, uint32_t class, uint32_t bins) {
    abqc_block *last = NULL;
    uint64_t classes = arena->classes & (~1ull << class);
    for (;;) {
        for (; bins; bins &= bins - 1) {
            abqc_block *block = arena->free[class][__builtin_ctz(bins)];
            for (; block; block = block->free_next) {
                if (block->above) return block;
                last = block;
            }
        }
        if (!classes) return last;
        class = (uint32_t)__builtin_ctzll(classes);
        classes &= classes - 1;
        bins = arena->bins[class];
    }
}

/* A free block of at least `lines`: the last freed one of its own bin where that is large enough
 * (equal layers ask for equal sizes), else one of the next bin that has some. The end of a chunk is
 * left alone while any other block will do: memory that was used is in caches, and what is not used
 * need not be there (the wilderness of Korn and Vo, "In search of a better malloc", 1985). A chunk has
 * one such block, so few are passed over. */
static abqc_block *find(const abqc_arena *arena, size_t lines) {
    place p = place_of(lines);
    abqc_block *same = arena->free[p.class][p.bin];
    bool fits = same && same->lines >= lines;
    if (fits && same->above) return same;
    abqc_block *other = first_of(arena, p.class, arena->bins[p.class] & (uint32_t)(0xfeu << p.bin));
    if (!fits) return other;
    return other && other->above ? other : same;
}

static abqc_block *block_at(void *line) { return line; }
static char *payload(abqc_block *block) { return (char *)block + LINE; }

static void split(abqc_arena *arena, abqc_block *block, size_t lines) {
    if (block->lines < lines + 2) return;
    abqc_block *rest = block_at(payload(block) + lines * LINE);
    rest->lines = block->lines - lines - 1;
    rest->below = block;
    rest->above = block->above;
    if (rest->above) rest->above->below = rest;
    block->above = rest;
    block->lines = lines;
    put(arena, rest);
}

/* Joins a block with the one above it, which is in no bin. */
static void join_above(abqc_block *block) {
    block->lines += block->above->lines + 1;
    block->above = block->above->above;
    if (block->above) block->above->below = block;
}

static void free_whole_chunk(abqc_arena *arena, abqc_chunk *chunk) {
    abqc_block *block = block_at((char *)chunk + LINE);
    *block = (abqc_block){.lines = chunk->bytes / LINE - 2};
    put(arena, block);
}

static bool add_chunk(abqc_arena *arena, size_t bytes) {
    abqc_chunk *chunk =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (chunk == MAP_FAILED) return false;
    if (bytes >= 2 * HUGE_PAGE) madvise(chunk, bytes, MADV_HUGEPAGE);
    *chunk = (abqc_chunk){.next = arena->chunks, .bytes = bytes};
    arena->chunks = chunk;
    arena->capacity += bytes;
    free_whole_chunk(arena, chunk);
    return true;
}

/* Room for `lines`, and a quarter of what there is, so that growing costs few mappings. */
static bool grow(abqc_arena *arena, size_t lines) {
    size_t bytes = (lines + 2) * LINE;
    if (bytes < arena->capacity / 4) bytes = arena->capacity / 4;
    if (bytes < FIRST_CHUNK) bytes = FIRST_CHUNK;
    size_t granule = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 4096;
    return add_chunk(arena, (bytes + granule - 1) / granule * granule);
}

void *abqc_arena_alloc(abqc_arena *arena, size_t bytes) {
    size_t lines = bytes ? (bytes + LINE - 1) / LINE : 1;
    abqc_block *block = find(arena, lines);
    if (!block) {
        if (!grow(arena, lines)) return NULL;
        block = find(arena, lines);
    }
    take(arena, block);
    split(arena, block, lines);
    return payload(block);
}

bool abqc_arena_free(abqc_arena *arena, void *data) {
    abqc_block *block = block_at((char *)data - LINE);
    if (block->free) return false;
    block->free = true; /* its header may end up inside a joined block */
    if (block->above && block->above->free) {
        take(arena, block->above);
        join_above(block);
    }
    if (block->below && block->below->free) {
        block = block->below;
        take(arena, block);
        join_above(block);
    }
    put(arena, block);
    return true;
}

void abqc_arena_destroy(abqc_arena *arena) {
    for (abqc_chunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        munmap(chunk, chunk->bytes);
    }
    *arena = (abqc_arena){0};
}

void abqc_arena_begin(abqc_arena *arena) {
    abqc_chunk *chunk = arena->chunks;
    if (!chunk) return;
    if (chunk->next) {
        size_t capacity = arena->capacity;
        abqc_arena_destroy(arena);
        add_chunk(arena, capacity); /* where this fails, alloc() tries again and reports it */
        return;
    }
    *arena = (abqc_arena){.chunks = chunk, .capacity = arena->capacity};
    free_whole_chunk(arena, chunk);
}
