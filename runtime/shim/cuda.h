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
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUmemPoolHandle_st *CUmemoryPool;

typedef struct { /* the first version of the struct and of the functions that take it */
    CUfunction function;
    uint32_t grid_x, grid_y, grid_z, block_x, block_y, block_z;
    uint32_t shared_bytes;
    void **parameters;
    void **extra;
} CUDA_KERNEL_NODE_PARAMS;

typedef struct {
    int32_t allocation_type, handle_types;
    int32_t location_type, location_id;
    void *security_attributes;
    size_t most_bytes; /* 0: the driver's own bound */
    uint8_t reserved[56];
} CUmemPoolProps;

typedef struct { /* a tensor map; what is in it only the driver knows */
    _Alignas(64) uint64_t words[16];
} CUtensorMap;

typedef struct {
    uint8_t from_port, to_port, type;
    uint8_t reserved[5];
} CUgraphEdgeData;

enum { /* CUresult */
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_DEINITIALIZED = 4,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_ECC_UNCORRECTABLE = 214,
    CUDA_ERROR_NVLINK_UNCORRECTABLE = 220,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_CONTAINED = 226,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714, /* to 719: illegal instruction, misaligned address, ... */
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_TENSOR_MEMORY_LEAK = 721,
    CUDA_ERROR_SYSTEM_NOT_READY = 802,
    CUDA_ERROR_MPS_CLIENT_TERMINATED = 810,
    CUDA_ERROR_EXTERNAL_DEVICE = 911,
    CUDA_ERROR_UNKNOWN = 999
};

enum {
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED = 115,
    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
    CU_MEMPOOL_ATTR_RELEASE_THRESHOLD = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_JIT_ERROR_LOG_BUFFER = 5,
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC = 1,
    CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC = 1,
    CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0
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
    F(cuMemPoolCreate, pool_create, (CUmemoryPool *, const CUmemPoolProps *))                    \
    F(cuMemPoolDestroy, pool_destroy, (CUmemoryPool))                                            \
    F(cuMemPoolSetAttribute, pool_attribute, (CUmemoryPool, int attribute, void *value))         \
    F(cuMemPoolTrimTo, pool_trim, (CUmemoryPool, size_t kept))                                   \
    F(cuMemAllocFromPoolAsync, pool_allocate,                                                    \
      (CUdeviceptr *, size_t bytes, CUmemoryPool, CUstream))                                     \
    F(cuMemFreeAsync, release_async, (CUdeviceptr, CUstream))                                    \
    F(cuMemAllocHost_v2, host_allocate, (void **, size_t bytes))                                 \
    F(cuMemFreeHost, host_release, (void *))                                                     \
    F(cuMemcpyHtoD_v2, upload, (CUdeviceptr to, const void *from, size_t bytes))                 \
    F(cuMemcpyHtoDAsync_v2, upload_async,                                                        \
      (CUdeviceptr to, const void *from, size_t bytes, CUstream))                                \
    F(cuMemcpyDtoHAsync_v2, download_async,                                                      \
      (void *to, CUdeviceptr from, size_t bytes, CUstream))                                      \
    F(cuMemcpyDtoDAsync_v2, copy_async,                                                          \
      (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream))                                \
    F(cuLaunchKernel, launch,                                                                    \
      (CUfunction, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z, uint32_t block_x,          \
       uint32_t block_y, uint32_t block_z, uint32_t shared_bytes, CUstream, void **parameters,   \
       void **extra))                                                                            \
    F(cuStreamCreate, stream_create, (CUstream *, uint32_t flags))                               \
    F(cuStreamDestroy_v2, stream_destroy, (CUstream))                                            \
    F(cuStreamSynchronize, stream_synchronize, (CUstream))                                       \
    F(cuStreamWaitEvent, stream_wait, (CUstream, CUevent, uint32_t flags))                       \
    F(cuEventCreate, event_create, (CUevent *, uint32_t flags))                                  \
    F(cuEventDestroy_v2, event_destroy, (CUevent))                                               \
    F(cuEventRecord, event_record, (CUevent, CUstream))                                          \
    F(cuEventSynchronize, event_synchronize, (CUevent))                                          \
    F(cuGraphCreate, graph_create, (CUgraph *, uint32_t flags))                                  \
    F(cuGraphAddKernelNode, graph_add,                                                           \
      (CUgraphNode *, CUgraph, const CUgraphNode *dependencies, size_t count,                    \
       const CUDA_KERNEL_NODE_PARAMS *))                                                         \
    F(cuGraphExecKernelNodeSetParams, graph_set,                                                 \
      (CUgraphExec, CUgraphNode, const CUDA_KERNEL_NODE_PARAMS *))                               \
    F(cuGraphInstantiateWithFlags, graph_instantiate, (CUgraphExec *, CUgraph, uint64_t flags))  \
    F(cuGraphDestroy, graph_destroy, (CUgraph))                                                  \
    F(cuGraphExecDestroy, graph_exec_destroy, (CUgraphExec))                                     \
    F(cuGraphLaunch, graph_launch, (CUgraphExec, CUstream))

/* Those that older drivers do not have: NULL. */
#define ABQC_CUDA_NEWER_FUNCTIONS(F)                                                             \
    F(cuGraphAddDependencies_v2, graph_depend, /* CUDA 12.3 */                                   \
      (CUgraph, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *,         \
       size_t count))                                                                            \
    F(cuTensorMapEncodeTiled, encode_tiled, /* CUDA 12.0 */                                      \
      (CUtensorMap *, int32_t element, uint32_t rank, void *tensor, const uint64_t *sizes,       \
       const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int32_t interleave,  \
       int32_t swizzle, int32_t promotion, int32_t fill))

typedef struct {
#define ABQC_CUDA_MEMBER(name, member, parameters) CUresult(*member) parameters;
    ABQC_CUDA_FUNCTIONS(ABQC_CUDA_MEMBER)
    ABQC_CUDA_NEWER_FUNCTIONS(ABQC_CUDA_MEMBER)
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
    CUfunction *functions; /* by kernel, the builtin ones included */
    CUdeviceptr *weights; /* by entry of the table of weights */
    int32_t most_slots;   /* of any kernel */
    int32_t most_maps;
    CUmemoryPool pool;    /* of outputs; NULL: the GPU has none */
    bool graphs;          /* whether runs become graphs */
    bool may_depend;      /* whether launches of these may begin before others have ended, */
    bool dependent;       /* and kernels and driver can */
    bool separate;        /* whether buffers are allocations of their own, for what checks memory */
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
/* The error of an allocation names the bytes, what they are for, and how many are free. */
int32_t abqc_device_refuse(const abqc_device *device, CUresult code, int64_t bytes,
                           const char *purpose);
/* cuMemAlloc, if need be of what the pool does not use. */
int32_t abqc_device_allocate(const abqc_device *device, int64_t bytes, const char *purpose,
                             CUdeviceptr *data);

/* ---- cuda_launch.c: launches, kept or sent ---- */

enum { ABQC_COPY_THREADS = 256 };

/* Kernels that every artifact has; their numbers follow those of the model's. */
enum {
    ABQC_COPY_KERNELS = 5, /* of elements of 1, 2, 4, 8 and 16 bytes */
    ABQC_SET_KERNELS = 4,  /* of a value of 1, 2, 4 and 8 bytes */
    ABQC_BUILTIN_KERNELS = ABQC_COPY_KERNELS + ABQC_SET_KERNELS
};

/* Of all kernels, the builtin ones included. */
int32_t abqc_kernel_count(void);
const abqc_gpu_kernel *abqc_kernel_info(int32_t kernel);
/* Of the image that the device has loaded. */
const abqc_gpu_block *abqc_kernel_block(const abqc_device *device, int32_t kernel);
int32_t abqc_copy_kernel(size_t item);
int32_t abqc_set_kernel(size_t item);

typedef struct { /* a launch and the memory that one of its arguments leads to, all of it */
    CUdeviceptr begin, end;
    int32_t access; /* ABQC_ACCESS_* */
} abqc_touch;

typedef struct {
    int32_t kernel;
    int32_t grid;
    int32_t first; /* of its arguments, among all */
    int32_t first_touch, touches;
    bool early; /* it may begin before those that it depends on have ended */
} abqc_launch;

typedef struct {
    abqc_launch *launches;
    uint64_t *args;
    abqc_touch *touches;
    int32_t count, room;
    int32_t arg_count, arg_room;
    int32_t touch_count, touch_room;
} abqc_launches;

/* Room for `needed` elements of `item` bytes; false: out of memory. */
bool abqc_make_room(void **data, int32_t *room, int64_t needed, size_t item);

/* Adds a launch to those of a run that is recorded, or sends it to the device. Leaves the run where
 * that fails. */
void abqc_put_launch(abqc_ctx *ctx, int32_t kernel, int64_t grid, const uint64_t *args);
/* Sends all, one by one. */
int32_t abqc_launches_send(const abqc_work *work, const abqc_launches *launches);
bool abqc_launches_copy(abqc_launches *to, const abqc_launches *from); /* false: out of memory */
void abqc_launches_destroy(abqc_launches *launches);

/* ---- cuda_tensor_map.c: the parameters of a launch ---- */

/* The error of a driver that cannot make the kernel's tensor maps. */
int32_t abqc_tensor_maps_check(const abqc_device *device, const abqc_gpu_kernel *kernel);
bool abqc_parameters_create(abqc_work *work); /* false: out of memory */
void abqc_parameters_destroy(abqc_work *work);
/* Has the work's `parameters` point at these arguments, and at tensor maps of them; until the next call. */
CUresult abqc_set_parameters(const abqc_work *work, const abqc_gpu_kernel *kernel,
                             const uint64_t *args);

/* ---- cuda_touch.c: the memory that launches touch ---- */

/* Looks where the caller's tensors of this run lie. */
void abqc_tensors_begin(abqc_ctx *ctx);
/* Of a launch, at most one by slot; how many. */
int32_t abqc_touches_of(const abqc_work *work, const abqc_gpu_kernel *kernel, const uint64_t *args,
                        abqc_touch *touches, bool *early);

/* ---- cuda_edges.c: which launches must follow which ---- */

typedef struct {
    int32_t count;    /* of launches */
    int32_t words;    /* of a row of `before` */
    int32_t *first;   /* by launch, and one more: where its part of `from` begins */
    int32_t *from;    /* the launches that each must follow, but for those that these follow */
    uint64_t *before; /* by launch, a bit for each that it follows, directly or not; NULL: for all
                         that come before it */
} abqc_edges;

/* false: out of memory; to be destroyed in any case. */
bool abqc_edges_create(abqc_edges *edges, const abqc_launches *launches);
void abqc_edges_destroy(abqc_edges *edges);
/* Whether launches in the order of `edges` are in that of `needed`. */
bool abqc_edges_cover(const abqc_edges *edges, const abqc_edges *needed);
int32_t abqc_edges_path(const abqc_edges *edges); /* launches of the longest path */

/* ---- cuda_graph.c: launches as one ---- */

typedef struct abqc_graph abqc_graph;

/* NULL: the driver makes none of these launches, or there is no memory; the work has the error. */
abqc_graph *abqc_graph_create(abqc_work *work, const abqc_launches *launches);
void abqc_graph_destroy(const abqc_device *device, abqc_graph *graph);
CUresult abqc_graph_launch(const abqc_device *device, const abqc_graph *graph, CUstream stream);

typedef struct {
    int32_t launches;
    int32_t path;      /* launches one behind the other, at most */
    int32_t edges;     /* those that follow from others not counted */
    int32_t dependent; /* of these: the launch behind begins before the other has ended */
} abqc_graph_shape;

abqc_graph_shape abqc_graph_shape_of(const abqc_graph *graph);

/* Graphs whose arguments and grids are set anew before a launch: for runs of the same kernels in the
 * same order, whatever the sizes. A step of a decoder whose cache grows is one. */
enum { ABQC_UPDATABLE_GRAPHS = 4, ABQC_SEEN = 8 };

typedef struct {
    abqc_graph *graphs[ABQC_UPDATABLE_GRAPHS];
    uint64_t used[ABQC_UPDATABLE_GRAPHS]; /* when */
    uint64_t seen[ABQC_SEEN];             /* hashes of the sequences of recent runs */
    uint64_t clock;
} abqc_updatable_graphs;

/* A graph that makes these launches; NULL where their kernels come in this order for the first time,
 * and where the driver makes none: `*refused`. */
abqc_graph *abqc_updatable_graph(abqc_work *work, abqc_updatable_graphs *updatable,
                                 const abqc_launches *launches, bool *refused);
void abqc_updatable_graphs_destroy(const abqc_device *device, abqc_updatable_graphs *updatable);

/* ---- cuda_image.c ---- */

/* Loads the code that suits the device best. */
int32_t abqc_load_image(abqc_device *device, int32_t major, int32_t minor, const char *forced);

/* ---- cuda_ranges.c: which parts of a memory are in use, known on the host alone ---- */

enum { ABQC_GPU_ALIGNMENT = 256 };

typedef struct {
    int64_t offset, bytes;
    bool used;
    bool held;  /* to the end: freeing it does nothing */
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
bool abqc_ranges_hold(abqc_ranges *ranges, int64_t offset);    /* false: not in use */
/* The range in use that an offset lies in, perhaps behind its beginning; NULL: none. */
const abqc_range *abqc_ranges_find(const abqc_ranges *ranges, int64_t offset);
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
    bool planning;     /* there is no end to the memory */
    CUdeviceptr first; /* then: the address of its beginning */
    CUdeviceptr *pieces; /* allocations of their own */
    int32_t piece_count, piece_room;
} abqc_gpu_arena;

/* Whether the next run can have `bytes` where this one's memory is. */
bool abqc_gpu_arena_fits(const abqc_gpu_arena *arena, int64_t bytes);
/* All is free: for planning; or in one piece of at least `bytes`. Where that does not fit, the device
 * must be idle, and addresses of before are no longer valid. Addresses of a plan `in_place` are those
 * of a run if the plan's peak fits, and other plans' lead nowhere. */
int32_t abqc_gpu_arena_plan(const abqc_device *device, abqc_gpu_arena *arena, bool in_place);
int32_t abqc_gpu_arena_begin(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes);
int32_t abqc_gpu_arena_alloc(const abqc_device *device, abqc_gpu_arena *arena, int64_t bytes,
                             CUdeviceptr *data);
/* Keeps what begins there to the end of the run, though it will be freed; false: no buffer does, or
 * buffers are allocations of their own. */
bool abqc_gpu_arena_hold(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data);
/* From where to where the buffer reaches that an address lies in; false: none does. */
bool abqc_gpu_arena_find(const abqc_gpu_arena *arena, CUdeviceptr address, CUdeviceptr *begin,
                         CUdeviceptr *end);
bool abqc_gpu_arena_free(const abqc_device *device, abqc_gpu_arena *arena, CUdeviceptr data);
void abqc_gpu_arena_destroy(const abqc_device *device, abqc_gpu_arena *arena);

/* ---- cuda_place.c: outputs that are computed where the caller wants them ---- */

enum { ABQC_BUFFER_ALIGNMENT = 16 }; /* vectors of 16 bytes are the widest that kernels store */

typedef struct {
    CUdeviceptr *made; /* by allocation of this run of the host function */
    int32_t count, room;
    CUdeviceptr *given; /* those that are callers' buffers: at most one for each output */
    int32_t given_count;
    int32_t *number; /* by output: which allocation it was in the last run, from 1; 0: none */
    bool off;        /* no buffer is given to any allocation */
} abqc_places;

bool abqc_places_create(abqc_places *places); /* false: out of host memory */
void abqc_places_destroy(abqc_places *places);
void abqc_places_begin(abqc_places *places);
/* The caller's buffer for the next allocation; 0: it is not one that becomes an output. */
CUdeviceptr abqc_places_next(const abqc_ctx *ctx, int64_t bytes);
bool abqc_places_keep(abqc_places *places, CUdeviceptr data, bool given);
bool abqc_places_given(const abqc_places *places, CUdeviceptr data);
/* What lies at `data` is this output. */
void abqc_places_learn(abqc_places *places, int32_t output, CUdeviceptr data);

/* ---- cuda_plans.c: what is known of runs with the same sizes and places ---- */

typedef struct { /* where an output is when the host function has ended */
    bool staged; /* compact, in the arena: it must be copied to where it belongs */
    CUdeviceptr data;
    int64_t sizes[ABQC_MAX_RANK];
    int32_t axis; /* as in abqc_output_slot */
    int64_t kept;
    const char *locked; /* where it comes to the host, until it is unpacked; NULL: elsewhere */
} abqc_result;

/* Of the results of a run. */
static inline size_t abqc_result_bytes(void) {
    return (size_t)abqc_meta.info.output_count * sizeof(abqc_result);
}

enum { ABQC_PLANS = 12, ABQC_PLAN_GRAPHS = 8 };

typedef struct {
    uint64_t *key;  /* NULL: the entry is free */
    uint64_t used;  /* when */
    int64_t bytes;  /* of the arena */
    abqc_graph *graph; /* from the second run on */
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
/* Keeps a plan for the key that find() has made. */
void abqc_plans_keep(abqc_ctx *ctx, int64_t bytes);
/* Gives the plan of this run its graph, and keeps where the outputs are; the least recently used
 * graph goes where there are too many. */
void abqc_plans_give(abqc_ctx *ctx, abqc_plan *plan, abqc_graph *graph);

/* ---- cuda_locked.c: page-locked memory, through which tensors between host and device pass ---- */

typedef struct {
    char *data; /* NULL: not asked for yet, or refused */
    size_t used;
    bool refused;
} abqc_locked;

/* All of it is free again: the run before has ended. */
void abqc_locked_begin(abqc_locked *locked);
/* Memory until the next begin(); NULL where there is no room. */
void *abqc_locked_take(const abqc_device *device, abqc_locked *locked, int64_t bytes);
void abqc_locked_destroy(const abqc_device *device, abqc_locked *locked);

/* ---- cuda_run.c ---- */

typedef struct {      /* an input that lies on the host */
    const void *host; /* compact */
    void *owned;      /* the same, to be freed after the run: the caller's tensor is not compact */
    CUdeviceptr data; /* 0: the input lies on the device */
    int64_t bytes;
} abqc_stage;

enum { /* statuses of a recording */
    ABQC_UNPLANNED = -1, /* launches depend on data that is not there yet */
    ABQC_MISPLACED = -2  /* a buffer for an output was given to something else */
};

struct abqc_work {
    abqc_device *device;
    bool recording;      /* launches are kept, and nothing is sent to the device */
    bool reads;          /* the host function read data: the next run may go another way */
    bool as_graph;       /* this run is one */
    bool refused;        /* the driver makes no graphs of this model */
    bool dependent;      /* and takes programmatic edges in them, as far as is known */
    abqc_graph_shape shape; /* of the last graph that was launched */
    CUresult graph_error;   /* the driver's first error in making or setting a graph; 0: none */
    const char *graph_call; /* what it was an answer to */
    bool results_on_gpu; /* outputs that we allocate */
    CUstream own;        /* for runs without a stream */
    CUstream caller;     /* of this run; NULL: none */
    CUevent done;        /* after the work put into a caller's stream */
    bool pending;        /* nobody has waited for that */
    CUdeviceptr error_flag; /* 0: no kernel of the model checks anything */
    CUdeviceptr counters;   /* 0: nobody has asked for any */
    int64_t counters_bytes;
    abqc_gpu_arena arena;
    abqc_places places;
    abqc_stage *stages;   /* by input */
    abqc_result *results; /* by output */
    abqc_locked locked;
    abqc_touch *tensors;  /* those of the caller that lie on the device: where */
    int32_t tensor_count;
    void **parameters;    /* room for those of any kernel */
    CUtensorMap *maps;    /* likewise */
    abqc_launches launches; /* of this run */
    abqc_plans plans;
    abqc_updatable_graphs updatable;
};

static inline CUstream abqc_run_stream(const abqc_work *work) {
    return work->caller ? work->caller : work->own;
}

/* ---- cuda_flag.c: checks in kernels ---- */

/* Does a run end with a look at the error flag, so that it must be waited for? */
static inline bool abqc_has_kernel_checks(void) { return abqc_meta.message_count > 0; }
int32_t abqc_flag_create(abqc_work *work);
void abqc_flag_destroy(const abqc_work *work);
/* Waits for the run's work; the error of the first failed check, and the flag is as new. */
int32_t abqc_flag_look(const abqc_work *work);

/* ---- cuda_counters.c: words that are 0 between launches ---- */

void abqc_counters_destroy(abqc_work *work);

/* ---- cuda_output.c: outputs on the GPU that we allocate ---- */

int32_t abqc_pool_create(abqc_device *device);
void abqc_pool_destroy(const abqc_device *device);
void abqc_pool_trim(const abqc_device *device); /* gives the system what no tensor has */
/* A tensor for an output of this run, in the order of its stream. */
int32_t abqc_allocate_on_gpu(const abqc_work *work, const abqc_tensor_info *info,
                             const int64_t *sizes, DLManagedTensor **made);

/* ---- cuda_stage.c: tensors between host and device ---- */

int32_t abqc_stage_inputs(abqc_ctx *ctx); /* gives places to inputs that lie on the host */
/* The compact data of an input that lies on the host; NULL: out of memory. */
const void *abqc_stage_host(abqc_ctx *ctx, int32_t i);
int32_t abqc_upload_inputs(abqc_ctx *ctx);
/* Sends outputs to where they belong; waits for some of those that belong to the host. */
int32_t abqc_deliver_outputs(abqc_ctx *ctx);
/* Once the run has been waited for: those that came to page-locked memory. */
void abqc_unpack_outputs(abqc_ctx *ctx);
void abqc_free_stages(abqc_ctx *ctx);

#endif /* ABQC_CUDA_H */
