/* What the parts of the shim know of each other, of the generated host function and of the
 * generated meta table. Nothing here is visible outside the library.
 *
 * An artifact runs on CPUs or on GPUs. Both share api.c, append.c, copy.c, error.c, output.c and
 * tensor.c; "the device's side" below is done by cpu_device.c, host.c and what they use, or by
 * cuda_*.c. The linker takes one of them. */
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
#define ABQC_NO_ERROR UINT32_MAX /* what an error flag holds: the number of no check */
#define ABQC_MAX_BYTES ((int64_t)1 << 46) /* no tensor is larger: below the x86-64 address space */

/* ---- meta.c: generated for every artifact ---- */

typedef void (*abqc_kernel)(int64_t begin, int64_t end, const uint64_t *args);

enum { ABQC_CPU_WORDS = 7 }; /* codegen/cpuid.py: WORDS */

typedef struct { /* an instruction set */
    const char *name;
    uint32_t needs[ABQC_CPU_WORDS]; /* the bits that a CPU and its system must have set */
    int32_t extends;            /* the one whose kernels it has where the model has none for it; -1 */
    const abqc_kernel *kernels; /* NULL: the artifact has none for it */
} abqc_isa;

typedef struct { /* of a block of threads; shared memory beside what the kernel declares */
    int32_t threads, shared_bytes;
} abqc_gpu_block;

typedef struct { /* code for one target */
    int32_t major, minor;
    int32_t specific; /* runs on exactly this capability */
    const char *name; /* "sm_90a" */
    const char *ptx;  /* NUL-terminated */
    const void *cubin;
    int64_t cubin_bytes; /* 0: there was no assembler */
    const abqc_gpu_block *blocks; /* by kernel: a target's code may take more of the GPU's memory */
    int32_t waits; /* kernels wait for those before them, and until then they touch weights alone */
} abqc_gpu_image;

enum { /* what a kernel does with the memory that a parameter points to */
    ABQC_ACCESS_READ = 1,
    ABQC_ACCESS_WRITTEN = 2,
    ABQC_ACCESS_EARLY = 4 /* maybe before it waits for other kernels: a weight must be there */
};

enum { ABQC_MAP_RANK = 5 };

typedef struct { /* times the argument in a slot, where that is not negative */
    int32_t slot;
    uint64_t factor;
} abqc_gpu_extent;

typedef struct { /* a tensor map that is made of a launch's arguments (runtime/tensor_parameter.py) */
    int32_t pointer; /* the slot of the tensor's address */
    int32_t element, swizzle; /* CUtensorMapDataType, CUtensorMapSwizzle */
    int32_t rank;
    abqc_gpu_extent sizes[ABQC_MAP_RANK], strides[ABQC_MAP_RANK - 1]; /* elements; bytes */
    uint32_t box[ABQC_MAP_RANK];
} abqc_gpu_map;

typedef struct {
    const char *name;
    int32_t slots; /* 8-byte parameters */
    const uint8_t *accesses; /* by slot; NULL: nothing is known */
    int32_t map_count; /* parameters behind the slots */
    const abqc_gpu_map *maps;
} abqc_gpu_kernel;

typedef struct { /* weights that lie one after the other */
    const void *data;
    int64_t bytes;
} abqc_gpu_weight;

typedef struct {
    int32_t image_count, kernel_count, weight_count;
    const abqc_gpu_image *images;
    const abqc_gpu_kernel *kernels;
    const abqc_gpu_weight *weights;
} abqc_gpu_table;

typedef struct { /* factor * the sizes of these symbols */
    int64_t factor;
    int32_t count;
    const int32_t *symbols;
} abqc_term;

typedef struct { /* a sum; no terms: the symbol is a name, any size */
    int32_t count;
    const abqc_term *terms;
} abqc_expression;

typedef struct {
    abqc_model_info info;
    const abqc_expression *expressions; /* by symbol */
    int32_t isa_count;
    const abqc_isa *isas; /* best first */
    abqc_gpu_table gpu;   /* empty in an artifact for CPUs */
    int32_t message_count;
    const char *const *messages; /* of the checks in kernels, by number */
} abqc_meta_table;

extern const abqc_meta_table abqc_meta;

/* ---- cpu.c ---- */

bool abqc_cpu_has(const abqc_isa *isa);
int32_t abqc_usable_cores(void);

/* ---- error.c ---- */

const char *abqc_last_error(void);
/* Keeps the text for last_error() and returns `status`. */
int32_t abqc_error(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- arena.c: the working memory of a run on a CPU ---- */

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

int64_t abqc_now_ns(void); /* CLOCK_MONOTONIC */

typedef struct abqc_worker abqc_worker;

/* One of some launches that run at the same time. */
typedef struct {
    abqc_kernel kernel;
    int64_t grid;
    const uint64_t *args;
} abqc_part;

typedef struct {
    _Alignas(ABQC_CACHE_LINE) _Atomic uint32_t launch; /* its number */
    _Alignas(ABQC_CACHE_LINE) _Atomic int32_t done; /* finished chunks of this launch */
    _Alignas(ABQC_CACHE_LINE) _Atomic int32_t sleepers;
    _Atomic uint32_t closed;
    /* The launch. Stable while a chunk of it is taken and not done. */
    _Alignas(ABQC_CACHE_LINE) const abqc_part *parts;
    int64_t grid; /* of all parts, one behind the other */
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
void abqc_team_launch_parts(abqc_team *team, int32_t count, const abqc_part *parts);
void abqc_team_close(abqc_team *team);

/* ---- tensor.c: DLTensors against the signature ---- */

typedef struct {
    void *data;
    int64_t sizes[ABQC_MAX_RANK];
    int64_t strides[ABQC_MAX_RANK]; /* in elements */
} abqc_view;

typedef struct abqc_device abqc_device;

size_t abqc_item_size(DLDataType dtype);
void abqc_compact_strides(int32_t rank, const int64_t *sizes, int64_t *strides);
bool abqc_is_compact(int32_t rank, const int64_t *sizes, const int64_t *strides);
/* Product of sizes and item; -1 when a size is negative or the product passes ABQC_MAX_BYTES. */
int64_t abqc_byte_count(int32_t rank, const int64_t *sizes, size_t item);
void abqc_view_of(const DLTensor *tensor, abqc_view *view);
static inline bool abqc_on_gpu(const DLTensor *tensor) {
    return tensor->device.device_type == kDLCUDA;
}
bool abqc_overlap(const DLTensor *a, const DLTensor *b);
/* The bytes from the first to the last element of a tensor, either way; none of an empty one. */
void abqc_span(const DLTensor *tensor, uintptr_t *begin, uintptr_t *end);
int32_t abqc_check_inputs(const abqc_device *device, const DLTensor *const *inputs,
                          int64_t *symbol_sizes, int32_t *symbol_inputs);
int32_t abqc_check_output_buffers(const abqc_device *device, DLManagedTensor *const *outputs);
/* "[2, 3, 4]"; returns `text`. */
const char *abqc_format_sizes(int32_t rank, const int64_t *sizes, char *text, size_t length);

/* ---- copy.c ---- */

typedef struct { /* a copy's dimensions, in elements; `rank` is at least 1 */
    int32_t rank;
    int64_t sizes[ABQC_MAX_RANK], to_strides[ABQC_MAX_RANK], from_strides[ABQC_MAX_RANK];
} abqc_dims;

/* Drops dimensions of size one and joins those that lie one after the other in both places. */
abqc_dims abqc_join_dims(int32_t rank, const int64_t *sizes, const int64_t *to_strides,
                         const int64_t *from_strides);
/* Copies `sizes` elements between strided places on the host that do not overlap, on the team's
 * threads. */
void abqc_host_copy(abqc_team *team, size_t item, int32_t rank, const int64_t *sizes, void *to,
                    const int64_t *to_strides, const void *from, const int64_t *from_strides);

/* ---- api.c: instances and the contexts of their runs ---- */

typedef enum { ABQC_OUTPUT_OPEN, ABQC_OUTPUT_APPENDED, ABQC_OUTPUT_DONE } abqc_output_state;

typedef struct {
    abqc_output_state state;
    bool allocated; /* by us, in this run */
    void *claimed;  /* the output's own memory, where the host function makes it there; or NULL */
    int32_t axis;
    int64_t kept; /* along `axis` the caller's buffer already has that much: it is an input, grown */
} abqc_output_slot;

typedef struct abqc_ctx abqc_ctx;
typedef struct abqc_work abqc_work;

struct abqc_ctx {
    const abqc_device *device;
    abqc_work *work; /* the device's side of the context */
    const DLTensor *const *inputs;
    DLManagedTensor **outputs;
    abqc_view *views; /* of the inputs, made when first asked for */
    bool *view_ready;
    abqc_output_slot *slots;
    int64_t *symbol_sizes;
    int32_t *symbol_inputs;
    int32_t status;
    const char *allocating; /* the ONNX node whose buffer is being allocated, or NULL */
    void *claimed;          /* what the next allocation gets, or NULL */
    bool catches;        /* SIGINT ends this run */
    uint32_t interrupts; /* before it */
    abqc_statistics counted; /* what this run adds to its instance's */
    abqc_profile *profile;   /* where launches are noted, or NULL */
    int64_t launch, rows;    /* of the launch that comes next, as abqc_launch_record has them */
    jmp_buf escape;
    abqc_ctx *next;
};

/* Runs the host function from a clean state; returns the status. */
int32_t abqc_call_host(abqc_ctx *ctx);
/* Ends the run with an error: leaves the host function. */
_Noreturn void abqc_fail(abqc_ctx *ctx, int32_t status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same with the text that abqc_error() has kept. */
_Noreturn void abqc_leave(abqc_ctx *ctx, int32_t status);
/* Leaves the run unless a tensor can have that many bytes. */
void abqc_check_bytes(abqc_ctx *ctx, int64_t bytes);
_Noreturn void abqc_fail_double_free(abqc_ctx *ctx);
/* What a kernel's check number `number` has to say. */
const char *abqc_message(uint32_t number);
_Noreturn void abqc_fail_in_kernel(abqc_ctx *ctx, uint32_t number);

/* ---- interrupt.c ---- */

extern _Atomic uint32_t abqc_interrupts; /* caught so far */
/* Around a run that SIGINT shall end. */
void abqc_catch_interrupts(void);
void abqc_leave_interrupts(void);

/* ---- output.c ---- */

/* A tensor in the host's memory, row-major; NULL: out of memory. */
DLManagedTensor *abqc_allocate_tensor(DLDataType dtype, int32_t rank, const int64_t *sizes,
                                      size_t bytes);
/* Where kernels write output i; leaves the run where the model cannot have made these sizes, or where
 * the caller's buffer has others. */
void abqc_output_view(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes,
                      abqc_view *view);
/* Whether output i is a buffer of the caller's. */
static inline bool abqc_output_given(const abqc_ctx *ctx, int32_t i) {
    return ctx->outputs[i] && !ctx->slots[i].allocated;
}
/* Whether the caller's buffer for output i has bytes in common with an input, or with the buffer of
 * another output. */
bool abqc_output_overlaps_input(abqc_ctx *ctx, int32_t i);
bool abqc_output_overlaps_output(const abqc_ctx *ctx, int32_t i);
_Noreturn void abqc_fail_output_memory(abqc_ctx *ctx, int32_t i, int32_t rank,
                                       const int64_t *sizes);
void abqc_release_outputs(abqc_ctx *ctx);

/* ---- the device's side ---- */

/* A device as an instance asks for it; shared by instances or not. */
int32_t abqc_device_open(const abqc_instance_options *options, abqc_device **device);
void abqc_device_close(abqc_device *device);
const char *abqc_device_isa(const abqc_device *device);
int32_t abqc_check_threads(int64_t threads, const char *origin); /* api.c */
/* Whether a run may have these options, and a tensor lie there. */
int32_t abqc_check_run_options(const abqc_device *device, const abqc_run_options *options);
int32_t abqc_check_place(const abqc_device *device, DLDevice place, const char *role,
                         const char *name);

int32_t abqc_work_create(abqc_device *device, abqc_work **work);
void abqc_work_destroy(abqc_work *work);
/* A whole run: calls the host function and sees to it that outputs are where they belong. */
int32_t abqc_work_run(abqc_ctx *ctx, const abqc_run_options *options);

/* Where kernels read input i, and write output i of these (checked) sizes. */
void abqc_input_place(abqc_ctx *ctx, int32_t i, abqc_view *view);
void abqc_output_place(abqc_ctx *ctx, int32_t i, int32_t rank, const int64_t *sizes, int64_t bytes,
                       abqc_view *view);
/* Whether output i, of these (checked) sizes, is delivered at the end of the run from where it is, and
 * need not be copied. Nobody writes there any more. */
bool abqc_output_stays(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank,
                       const int64_t *sizes, const int64_t *strides);
/* What the data of a compact input must be a multiple of. */
size_t abqc_input_alignment(size_t item);
/* Copies between strided places on the device that do not overlap. */
void abqc_copy(abqc_ctx *ctx, size_t item, int32_t rank, const int64_t *sizes, void *to,
               const int64_t *to_strides, const void *from, const int64_t *from_strides);

/* ---- what the generated host function calls, and the host function itself ---- */

int32_t abqc_host_main(abqc_ctx *ctx);

const abqc_view *abqc_rt_input(abqc_ctx *ctx, int32_t i);
void abqc_rt_output(abqc_ctx *ctx, int32_t i, const void *data, int32_t rank, const int64_t *sizes,
                    const int64_t *strides);
/* On a CPU: the next allocation is of output i, `bytes` without padding, and nothing else is in it. It
 * gets the output's own memory where that can be, which saves the copy. */
void abqc_rt_claim(abqc_ctx *ctx, int32_t i, int64_t bytes);
void *abqc_rt_alloc(abqc_ctx *ctx, int64_t bytes);
/* The same; errors name the ONNX node. */
void *abqc_rt_alloc_for(abqc_ctx *ctx, int64_t bytes, const char *node);
void abqc_rt_poll(abqc_ctx *ctx); /* in every iteration of a loop: leaves an interrupted run */
void abqc_rt_free(abqc_ctx *ctx, void *data);
/* On a CPU before each launch: which one comes, and its rows where it is a product with weights. */
void abqc_rt_site(abqc_ctx *ctx, int32_t launch, int64_t rows);
void abqc_rt_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args);
/* On a CPU: this launch runs at the same time as the next one, which may be another of these.
 * `args` stay as they are until then. */
void abqc_rt_launch_with_next(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args);
/* abqc_rt_launch for a kernel that touches `work` elements in all: a few are done by the calling thread. */
void abqc_rt_launch_loops(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args,
                          int64_t work);
int64_t abqc_rt_threads(abqc_ctx *ctx); /* CPUs: that launches run on */
void abqc_rt_check(abqc_ctx *ctx, int32_t condition, const char *message);
/* Where kernels note the smallest number of a failed check (atomically; all ones: none failed). A
 * CPU looks at it after every launch, a GPU, in whose memory it is, at the end of the run. */
uint32_t *abqc_rt_error_flag(abqc_ctx *ctx);
/* On a GPU: `bytes` of words that are 0, of this context alone; always the same ones. */
uint32_t *abqc_rt_counters(abqc_ctx *ctx, int64_t bytes);
void *abqc_rt_append(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     abqc_view *result);
/* The same, but the new rows, of these `sizes`, are left to the caller, who writes them to the end. */
void *abqc_rt_grow(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                   const int64_t *sizes, abqc_view *result);
/* As abqc_rt_append, but sample b's rows lie from begins[b] on in a cache of `capacity`, zeros behind the
 * input's; rows outside of it are left out. On the host only. */
void *abqc_rt_update(abqc_ctx *ctx, int32_t input, int32_t output, int32_t axis, int32_t rank,
                     const void *data, const int64_t *sizes, const int64_t *strides,
                     const int64_t *begins, int64_t capacity, abqc_view *result);

/* For GPUs only: the device's address of a weight; and values of 1, 2, 4 or 8 bytes in its memory,
 * read (which waits for it) and written. */
void *abqc_rt_weight(abqc_ctx *ctx, const void *host);
uint64_t abqc_rt_read(abqc_ctx *ctx, const void *device, int32_t bytes);
void abqc_rt_write(abqc_ctx *ctx, void *device, uint64_t value, int32_t bytes);

#endif /* ABQC_SHIM_H */
