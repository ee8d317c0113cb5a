/* What the parts of the shim know of each other, of the generated host function and of the
 * generated meta table. Nothing here is visible outside the library. */
#ifndef ABQC_SHIM_H
#define ABQC_SHIM_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abqc.h"

#define ABQC_ALIGNMENT 64
#define ABQC_CACHE_LINE 64
#define ABQC_MAX_BYTES ((int64_t)1 << 46) /* no tensor is larger: below the x86-64 address space */

/* ---- meta.c: generated for every artifact ---- */

typedef void (*abqc_kernel)(int64_t begin, int64_t end, const uint64_t *args);

typedef enum { ABQC_ISA_AVX512, ABQC_ISA_AVX2, ABQC_ISA_PLAIN, ABQC_ISA_COUNT } abqc_isa;

typedef struct {
    abqc_model_info info;
    const abqc_kernel *kernels[ABQC_ISA_COUNT]; /* NULL: the artifact does not have this form */
} abqc_meta_table;

extern const abqc_meta_table abqc_meta;

/* ---- cpu.c ---- */

const char *abqc_isa_name(abqc_isa isa);
bool abqc_cpu_has(abqc_isa isa);
int32_t abqc_usable_cores(void);

/* ---- error.c ---- */

const char *abqc_last_error(void);
/* Keeps the text for last_error() and returns `status`. */
int32_t abqc_error(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- arena.c: the working memory of a run ---- */

enum { ABQC_BIN_CLASSES = 48, ABQC_BINS_PER_CLASS = 8 };

typedef struct abqc_block abqc_block;
typedef struct abqc_chunk abqc_chunk;

typedef struct {
    abqc_chunk *chunks;
    size_t capacity; /* bytes of all chunks */
    uint64_t classes;
    uint8_t bins[ABQC_BIN_CLASSES];
    abqc_block *free[ABQC_BIN_CLASSES][ABQC_BINS_PER_CLASS];
} abqc_arena;

void abqc_arena_begin(abqc_arena *arena); /* all memory is free again, and in one piece */
void abqc_arena_destroy(abqc_arena *arena);
void *abqc_arena_alloc(abqc_arena *arena, size_t bytes); /* NULL: out of memory */
bool abqc_arena_free(abqc_arena *arena, void *data);     /* false: not a block in use */

/* ---- team.c: the threads of a context ---- */

typedef struct abqc_worker abqc_worker;

typedef struct {
    /* High half: number of the launch; low half: chunks of it that nobody has taken. */
    _Alignas(ABQC_CACHE_LINE) _Atomic uint64_t work;
    _Alignas(ABQC_CACHE_LINE) _Atomic int32_t done; /* finished chunks of this launch */
    _Alignas(ABQC_CACHE_LINE) _Atomic int32_t sleepers;
    _Atomic uint32_t closed;
    /* The launch. Stable while a chunk of it is taken and not done. */
    _Alignas(ABQC_CACHE_LINE) abqc_kernel kernel;
    const uint64_t *args;
    int64_t grid;
    int32_t chunks;
    int32_t size;    /* threads of this run, the leader included */
    int32_t threads; /* of the open region, its keeper included; 0: none is open */
    int32_t avoided; /* the core that sleeping workers keep off; -1: none */
    int32_t process; /* that opened the region */
    pthread_t keeper;
    abqc_worker *workers; /* by OpenMP's thread number */
} abqc_team;

/* Before a run on `threads` threads, this one included. false: no thread could be made. */
bool abqc_team_begin(abqc_team *team, int32_t threads);
void abqc_team_launch(abqc_team *team, abqc_kernel kernel, int64_t grid, const uint64_t *args);
void abqc_team_close(abqc_team *team);

/* ---- tensor.c: DLTensors against the signature ---- */

typedef struct {
    void *data;
    int64_t sizes[ABQC_MAX_RANK];
    int64_t strides[ABQC_MAX_RANK]; /* in elements */
} abqc_view;

size_t abqc_item_size(DLDataType dtype);
void abqc_compact_strides(int32_t rank, const int64_t *sizes, int64_t *strides);
bool abqc_is_compact(int32_t rank, const int64_t *sizes, const int64_t *strides);
/* Product of sizes and item; -1 when a size is negative or the product passes ABQC_MAX_BYTES. */
int64_t abqc_byte_count(int32_t rank, const int64_t *sizes, size_t item);
void abqc_view_of(const DLTensor *tensor, abqc_view *view);
bool abqc_overlap(const DLTensor *a, const DLTensor *b);
int32_t abqc_check_inputs(const DLTensor *const *inputs, int64_t *symbol_sizes,
                          int32_t *symbol_inputs);
int32_t abqc_check_output_buffers(DLManagedTensor *const *outputs);
/* "[2, 3, 4]"; returns `text`. */
const char *abqc_format_sizes(int32_t rank, const int64_t *sizes, char *text, size_t length);

/* ---- copy.c ---- */

/* Copies `sizes` elements between strided places that do not overlap, on the team's threads. */
void abqc_copy(abqc_team *team, size_t item, int32_t rank, const int64_t *sizes, void *to,
               const int64_t *to_strides, const void *from, const int64_t *from_strides);

/* ---- api.c: instances and the contexts of their runs ---- */

typedef enum { ABQC_OUTPUT_OPEN, ABQC_OUTPUT_APPENDED, ABQC_OUTPUT_DONE } abqc_output_state;

typedef struct {
    abqc_output_state state;
    bool allocated; /* by us, in this run */
} abqc_output_slot;

typedef struct abqc_ctx abqc_ctx;

struct abqc_ctx {
    abqc_team team;
    abqc_arena arena;
    const abqc_kernel *kernels;
    const DLTensor *const *inputs;
    DLManagedTensor **outputs;
    abqc_view *views; /* of the inputs, made when first asked for */
    bool *view_ready;
    abqc_output_slot *slots;
    int64_t *symbol_sizes;
    int32_t *symbol_inputs;
    int32_t status;
    jmp_buf escape;
    abqc_ctx *next;
};

/* Ends the run with an error: leaves the host function. */
_Noreturn void abqc_fail(abqc_ctx *ctx, int32_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- output.c ---- */

/* The tensor of output i with these sizes: the caller's buffer, checked, or one allocated now. */
DLTensor *abqc_output_tensor(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes);
void abqc_release_outputs(abqc_ctx *ctx);

/* ---- what the generated host function calls, and the host function itself ---- */

int32_t abqc_host_main(abqc_ctx *ctx);

const abqc_view *abqc_rt_input(abqc_ctx *ctx, int32_t i);
void abqc_rt_output(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank, const int64_t *sizes,
                    const int64_t *strides);
void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes);
void abqc_rt_free(abqc_ctx *ctx, void *data);
void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args);
/* The same for a kernel that touches `work` elements in all: a few are done by the calling thread. */
void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work);
void abqc_rt_check(abqc_ctx *ctx, int32_t condition, const char *message);
void *abqc_rt_append(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     abqc_view *result);

#endif /* ABQC_SHIM_H */
