/* NVIDIA GPUs as devices: the driver, the device that instances share, and what a run works with.
 *
 * The few types of the driver API that are needed are declared here; their layout and the numbers are
 * those of cuda.h, which is not needed to build. */
#ifndef ABQC_CUDA_H
#define ABQC_CUDA_H

#include "shim.h"

/* ---- the driver API ---- */

typedef int32_t CUresult;
typedef int32_t CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

enum { /* CUresult */
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_DEINITIALIZED = 4,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_ECC_UNCORRECTABLE = 214,
    CUDA_ERROR_NVLINK_UNCORRECTABLE = 220,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714, /* to 719: illegal instruction, misaligned address, ... */
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_SYSTEM_NOT_READY = 802
};

enum {
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_JIT_ERROR_LOG_BUFFER = 5,
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
};

/* Name in the driver, name in the table, parameters. */
#define ABQC_CUDA_FUNCTIONS(F)                                                                   \
    F(cuInit, init, (uint32_t flags))                                                            \
    F(cuDriverGetVersion, driver_version, (int *version))                                        \
    F(cuGetErrorName, error_name, (CUresult, const char **name))                                 \
    F(cuDeviceGetCount, device_count, (int *count))                                              \
    F(cuDeviceGet, device_get, (CUdevice *, int ordinal))                                        \
    F(cuDeviceGetName, device_name, (char *name, int length, CUdevice))                          \
    F(cuDeviceGetAttribute, device_attribute, (int *value, int attribute, CUdevice))             \
    F(cuDevicePrimaryCtxRetain, context_retain, (CUcontext *, CUdevice))                         \
    F(cuDevicePrimaryCtxRelease_v2, context_release, (CUdevice))                                 \
    F(cuCtxPushCurrent_v2, context_push, (CUcontext))                                            \
    F(cuCtxPopCurrent_v2, context_pop, (CUcontext *))                                            \
    F(cuCtxSynchronize, context_synchronize, (void))                                             \
    F(cuModuleLoadDataEx, module_load, (CUmodule *, const void *image, uint32_t count,           \
                                        const int *options, void **values))                      \
    F(cuModuleUnload, module_unload, (CUmodule))                                                 \
    F(cuModuleGetFunction, module_function, (CUfunction *, CUmodule, const char *name))          \
    F(cuFuncSetAttribute, function_attribute, (CUfunction, int attribute, int value))            \
    F(cuMemGetInfo_v2, memory_info, (size_t *free, size_t *total))                               \
    F(cuMemAlloc_v2, allocate, (CUdeviceptr *, size_t bytes))                                    \
    F(cuMemFree_v2, release, (CUdeviceptr))                                                      \
    F(cuMemcpyHtoD_v2, upload, (CUdeviceptr to, const void *from, size_t bytes))                 \
    F(cuMemcpyHtoDAsync_v2, upload_async,                                                        \
      (CUdeviceptr to, const void *from, size_t bytes, CUstream))                                \
    F(cuMemcpyDtoHAsync_v2, download_async,                                                      \
      (void *to, CUdeviceptr from, size_t bytes, CUstream))                                      \
    F(cuMemcpyDtoDAsync_v2, copy_async,                                                          \
      (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream))                                \
    F(cuMemsetD8Async, set_8_async, (CUdeviceptr, uint8_t value, size_t count, CUstream))        \
    F(cuMemsetD16Async, set_16_async, (CUdeviceptr, uint16_t value, size_t count, CUstream))     \
    F(cuMemsetD32Async, set_32_async, (CUdeviceptr, uint32_t value, size_t count, CUstream))     \
    F(cuLaunchKernel, launch,                                                                    \
      (CUfunction, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t block_x,          \
       uint32_t block_y, uint32_t block_z, uint32_t shared_bytes, CUstream, void **parameters,   \
       void **extra))                                                                            \
    F(cuStreamCreate, stream_create, (CUstream *, uint32_t flags))                               \
    F(cuStreamDestroy_v2, stream_destroy, (CUstream))                                            \
    F(cuStreamSynchronize, stream_synchronize, (CUstream))                                       \
    F(cuStreamWaitEvent, stream_wait, (CUstream, CUevent, uint32_t flags))                       \
    F(cuStreamBeginCapture_v2, capture_begin, (CUstream, int mode))                              \
    F(cuStreamEndCapture, capture_end, (CUstream, CUgraph *))                                    \
    F(cuEventCreate, event_create, (CUevent *, uint32_t flags))                                  \
    F(cuEventDestroy_v2, event_destroy, (CUevent))                                               \
    F(cuEventRecord, event_record, (CUevent, CUstream))                                          \
    F(cuEventSynchronize, event_synchronize, (CUevent))                                          \
    F(cuGraphInstantiateWithFlags, graph_instantiate, (CUgraphExec *, CUgraph, uint64_t flags))  \
    F(cuGraphDestroy, graph_destroy, (CUgraph))                                                  \
    F(cuGraphExecDestroy, graph_exec_destroy, (CUgraphExec))                                     \
    F(cuGraphLaunch, graph_launch, (CUgraphExec, CUstream))

typedef struct {
#define ABQC_CUDA_MEMBER(name, member, parameters) CUresult(*member) parameters;
    ABQC_CUDA_FUNCTIONS(ABQC_CUDA_MEMBER)
#undef ABQC_CUDA_MEMBER
} abqc_cuda;

typedef void *(*abqc_cuda_resolver)(const char *name);

/* ---- cuda_driver.c ---- */

/* Fills the table from `resolver`, or from libcuda.so.1 where that is NULL, and starts the driver. */
int32_t abqc_cuda_load(abqc_cuda *cuda, abqc_cuda_resolver resolver);
/* "CUDA_ERROR_...", also for numbers that the driver does not know. */
const char *abqc_cuda_error_name(const abqc_cuda *cuda, CUresult code);
/* Does this error outlast the call: can the context do nothing more? */
bool abqc_cuda_is_sticky(CUresult code);

/* ---- cuda_device.c: a GPU with the model's code and weights on it ---- */

enum { ABQC_COPY_KERNELS = 4 }; /* for elements of 1, 2, 4 and 8 bytes */

struct abqc_device {
    abqc_cuda cuda;
    abqc_cuda_resolver resolver;
    int32_t ordinal;
    int32_t references; /* of instances and of tensors that were handed out */
    CUdevice handle;
    CUcontext context;
    const abqc_gpu_image *image;
    bool forced; /* the image, by the caller */
    CUmodule module;
    CUfunction *functions; /* by kernel */
    CUfunction copies[ABQC_COPY_KERNELS];
    CUdeviceptr *weights; /* by entry of the table of weights */
    int32_t most_slots;   /* of any kernel */
    bool graphs;          /* whether runs are captured */
    bool separate;        /* whether buffers are allocations of their own, for a driver that checks */
    _Atomic CUresult lost; /* the sticky error, or 0 */
    abqc_device *next;
};

void abqc_device_keep(abqc_device *device);
/* Makes the device's context current; exit() makes current the one before. A lost device is refused,
 * but not by force(), for giving back what is there: errors do not matter then. */
int32_t abqc_device_enter(const abqc_device *device);
bool abqc_device_force(const abqc_device *device);
void abqc_device_exit(const abqc_device *device);
/* Keeps "<what>: <the driver's name of the error>" and returns the status that fits; a sticky error
 * makes the device lost. */
int32_t abqc_cuda_error(const abqc_device *device, CUresult code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* cuMemAlloc; the error names the bytes, what they are for, and how many are free. */
int32_t abqc_device_allocate(const abqc_device *device, int64_t bytes, const char *purpose,
                             CUdeviceptr *data);

/* ---- cuda_image.c ---- */

/* Loads the code that suits the device best. */
int32_t abqc_load_image(abqc_device *device, int32_t major, int32_t minor, const char *forced);

/* ---- cuda_ranges.c: which parts of a memory are in use, known on the host alone ---- */

enum { ABQC_GPU_ALIGNMENT = 256 };

typedef struct {
    int64_t offset, bytes;
    bool used;
    bool first; /* of its memory: not joined with the range before */
} abqc_range;

typedef struct {
    abqc_range *ranges; /* by offset, without gaps */
    int32_t count, room;
    int64_t end;  /* of the last range */
    int64_t peak; /* the largest end of a range that was in use */
} abqc_ranges;

/* Offsets below `bytes` are free, no others exist. false: out of host memory. */
bool abqc_ranges_begin(abqc_ranges *ranges, int64_t bytes);
/* Adds free bytes behind the end, as a memory of their own. */
bool abqc_ranges_extend(abqc_ranges *ranges, int64_t bytes);
int64_t abqc_ranges_alloc(abqc_ranges *ranges, int64_t bytes); /* -1: nothing fits */
bool abqc_ranges_free(abqc_ranges *ranges, int64_t offset);    /* false: not in use */
void abqc_ranges_destroy(abqc_ranges *ranges);

/* ---- cuda_arena.c: the device memory of a context ---- */

enum { ABQC_GPU_CHUNKS = 64 };

typedef struct {
    CUdeviceptr base;
    int64_t offset, bytes;
} abqc_gpu_chunk;

typedef struct {
    abqc_ranges ranges;
    abqc_gpu_chunk chunks[ABQC_GPU_CHUNKS];
    int32_t count;
    bool planning; /* addresses lead nowhere, and there is no end to them */
    CUdeviceptr *pieces; /* allocations of their own */
    int32_t piece_count, piece_room;
} abqc_gpu_arena;

/* Whether the next run can have `bytes` where this one's memory is. */
bool abqc_gpu_arena_fits(const abqc_gpu_arena *arena, int64_t bytes);
/* All is free: for planning; or in one piece of at least `bytes`. Where that does not fit, the device
 * must be idle, and addresses of before are no longer valid. */
int32_t abqc_gpu_arena_plan(abqc_gpu_arena *arena);
int32_t abqc_gpu_arena_begin(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes);
int32_t abqc_gpu_arena_alloc(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes,
                             CUdeviceptr *data);
bool abqc_gpu_arena_free(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data);
void abqc_gpu_arena_destroy(const abqc_device *device, abqc_gpu_arena *arena);

/* ---- cuda_plans.c: what is known of runs with the same sizes and places ---- */

typedef struct { /* where an output is when the host function has ended */
    bool staged; /* compact, in the arena: it must be copied to where it belongs */
    CUdeviceptr data;
    int64_t sizes[ABQC_MAX_RANK];
    int32_t axis; /* as in abqc_output_slot */
    int64_t kept;
} abqc_result;

enum { ABQC_PLANS = 8 };

typedef struct {
    uint64_t *key;     /* NULL: the entry is free */
    uint64_t used;     /* when */
    int64_t bytes;     /* of the arena */
    bool refused;      /* by the driver, to be captured */
    CUgraphExec graph; /* from the second run on */
    abqc_result *results;
} abqc_plan;

typedef struct {
    abqc_plan plans[ABQC_PLANS];
    uint64_t clock;
    uint64_t *key; /* of this run */
    int32_t words; /* of a key */
} abqc_plans;

bool abqc_plans_create(abqc_plans *plans);
void abqc_plans_destroy(abqc_plans *plans);
/* Drops the graphs but not the plans: what they point to moves, or the context goes. */
void abqc_plans_drop_graphs(const abqc_device *device, abqc_plans *plans);
/* The plan of this run; NULL: there is none. */
abqc_plan *abqc_plans_find(abqc_ctx *ctx);
/* Keeps what the last planning run found, for the key that find() has made. */
void abqc_plans_keep(abqc_ctx *ctx, int64_t bytes);

/* ---- cuda_run.c ---- */

typedef struct {      /* an input that lies on the host */
    const void *host; /* compact */
    void *owned;      /* the same, to be freed after the run: the caller's tensor is not compact */
    CUdeviceptr data; /* 0: the input lies on the device */
    int64_t bytes;
} abqc_stage;

enum { ABQC_UNPLANNED = -1 }; /* a status: sizes depend on data that is not there yet */

struct abqc_work {
    abqc_device *device;
    bool planning;       /* the host function runs for its sizes: nothing is sent to the device */
    bool reads;          /* it read data: the next run may go another way */
    bool results_on_gpu; /* outputs that we allocate */
    CUstream own;        /* for runs without a stream */
    CUstream capture;    /* unlike `own` no part of the legacy stream's order */
    CUstream caller;     /* of this run; NULL: none */
    CUstream stream;     /* where launches go */
    CUevent done;        /* after the work put into a caller's stream */
    bool pending;        /* nobody has waited for that */
    abqc_gpu_arena arena;
    abqc_stage *stages;   /* by input */
    abqc_result *results; /* by output */
    void **parameters;    /* room for those of any kernel */
    abqc_plans plans;
};

static inline CUstream abqc_run_stream(const abqc_work *work) {
    return work->caller ? work->caller : work->own;
}

/* ---- cuda_stage.c: tensors between host and device ---- */

int32_t abqc_stage_inputs(abqc_ctx *ctx); /* gives places to inputs that lie on the host */
/* The compact data of an input that lies on the host; NULL: out of memory. */
const void *abqc_stage_host(abqc_ctx *ctx, int32_t i);
int32_t abqc_upload_inputs(abqc_ctx *ctx);
/* Brings outputs to where they belong; waits for those that belong to the host. */
int32_t abqc_deliver_outputs(abqc_ctx *ctx);
void abqc_free_stages(abqc_ctx *ctx);

#endif /* ABQC_CUDA_H */
