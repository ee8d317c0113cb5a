/* The C interface of a compiled model.
 *
 * A model is one shared library with one exported function. Open it with dlopen, ask for the table,
 * create an instance, run it:
 *
 *     void *library = dlopen("./model.so", RTLD_NOW | RTLD_LOCAL);
 *     abqc_get_api_fn get_api = (abqc_get_api_fn)dlsym(library, "abqc_get_api");
 *     const abqc_api *api = get_api(ABQC_ABI_VERSION);
 *
 * Tensors are DLPack's. Every call returns an abqc_status; api->last_error() has the text.
 */
#ifndef ABQC_H
#define ABQC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The structures of DLPack 1.1, for programs that do not have dlpack.h. A program that does
 * includes its own first. */
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_

typedef enum { kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3 } DLDeviceType;

typedef struct {
    DLDeviceType device_type;
    int32_t device_id;
} DLDevice;

typedef enum {
    kDLInt = 0,
    kDLUInt = 1,
    kDLFloat = 2,
    kDLBfloat = 4,
    kDLBool = 6,
    kDLFloat8_e3m4 = 7,
    kDLFloat8_e4m3fn = 10,
    kDLFloat8_e4m3fnuz = 11,
    kDLFloat8_e5m2 = 12,
    kDLFloat8_e5m2fnuz = 13,
    kDLFloat8_e8m0fnu = 14,
    kDLFloat6_e2m3fn = 15,
    kDLFloat6_e3m2fn = 16,
    kDLFloat4_e2m1fn = 17
} DLDataTypeCode;

typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: compact, row-major */
    uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
    DLTensor dl_tensor;
    void *manager_ctx;
    void (*deleter)(struct DLManagedTensor *self);
} DLManagedTensor;

#endif /* DLPACK_DLPACK_H_ */

#define ABQC_ABI_VERSION 1
#define ABQC_MAX_RANK 8

typedef enum {
    ABQC_OK = 0,
    ABQC_E_ARGUMENT = 1, /* NULL where a pointer is needed, a wrong count, an unknown option */
    ABQC_E_INPUT = 2,    /* an input's type, rank, size, strides or data */
    ABQC_E_OUTPUT = 3,   /* a buffer handed in for an output does not fit it */
    ABQC_E_DEVICE = 4,   /* a device that is not there, or that the model or a tensor cannot be on */
    ABQC_E_ISA = 5,      /* no kernels run on this CPU, or those of the ISA asked for do not */
    ABQC_E_MEMORY = 6,   /* out of memory */
    ABQC_E_CHECK = 7,    /* a check inside the model failed: sizes that do not go together */
    ABQC_E_INTERNAL = 8, /* a defect of the compiler */
    ABQC_E_LAUNCH = 9,   /* the GPU failed during a run */
    ABQC_E_INTERRUPTED = 10 /* SIGINT came during a run with ABQC_RUN_INTERRUPTIBLE */
} abqc_status;

enum {
    /* The input is read where it lies, whatever its strides. Others are copied when not compact. */
    ABQC_TENSOR_STRIDED = 1,
    /* The output's sizes are the same in all runs whose inputs have the same sizes. */
    ABQC_TENSOR_SIZED = 2
};

/* Elements of less than 8 bits (int2, int4, uint2, uint4, float4, float6) have a byte each, which
 * DLPack calls padded. The element is its low bits; the others are ignored in inputs, and in outputs
 * continue the value: 0, or the sign of an integer. Bools are bytes of 0 or 1. Quantized key/value
 * caches are uint8 [.., rows, row bytes]; the manifest says under `caches` what a row's bytes are. */
typedef struct {
    const char *name;
    DLDataType dtype;
    int32_t ndim;
    uint32_t flags;
    const int64_t *dims; /* >= 0: the size; < 0: symbol number -1 - dims[i], any size */
} abqc_tensor_info;

typedef struct {
    int32_t input_count;
    int32_t output_count;
    int32_t symbol_count;
    const abqc_tensor_info *inputs;
    const abqc_tensor_info *outputs;
    const char *const *symbols; /* names of the symbolic dimensions, "" for nameless ones. Inputs
                                   that share one must agree on its size. A sum of products of
                                   names that inputs have ("past + seq") must be what these say. */
    const char *isas;           /* instruction sets: "amx avx512 avxvnni avx2 plain", best first; for
                                   a GPU its targets, such as "sm_80 sm_90a" */
    const char *manifest;       /* JSON: how the model was compiled */
} abqc_model_info;

typedef struct {
    uint32_t struct_size; /* sizeof(abqc_instance_options) */
    int32_t threads;      /* 0: ABQC_NUM_THREADS, else the number of usable cores; CPU only */
    DLDevice device;      /* {0, 0}: the CPU, or the first GPU: what the model was compiled for */
    const char *isa;      /* NULL: the best that the device has; on a CPU ABQC_ISA comes first */
    void *(*driver)(const char *name); /* resolves names of the CUDA driver API, as dlsym() does;
                                          NULL: libcuda.so.1 */
    uint32_t flags;       /* of abqc_instance_flags */
} abqc_instance_options;

typedef enum {
    /* Every buffer of a run is an allocation of its own, and runs are no graphs: what checks memory
     * (compute-sanitizer) then sees one step too far. Slow; GPU only. */
    ABQC_INSTANCE_SEPARATE_BUFFERS = 1,
    /* Weights in pages of 2 MiB, for all instances of this library in the process, until it is
     * closed: those of its file where the file system has such, else a copy. ABQC_E_MEMORY where
     * the system has none (docs/c-api.md). CPU only. */
    ABQC_INSTANCE_HUGE_PAGES = 2
} abqc_instance_flags;

/* A launch of a kernel: from when to when, in nanoseconds of CLOCK_MONOTONIC. */
typedef struct {
    int64_t launch; /* which: a place in the manifest's `launches` */
    int64_t rows;   /* of a product with weights: its rows, M; of others nothing */
    int64_t begin;
    int64_t end;
} abqc_launch_record;

/* Where a run notes its launches. */
typedef struct {
    abqc_launch_record *launches;
    int64_t capacity; /* how many there is room for */
    int64_t count;    /* set by the run: how many there were, with those that found no room */
} abqc_profile;

typedef struct {
    uint32_t struct_size; /* sizeof(abqc_run_options) */
    int32_t threads;      /* 0: as the instance says */
    DLDevice device;      /* where outputs[i] == NULL goes; {0, 0}: where the inputs lie */
    void *stream;         /* a CUstream of the GPU's primary context; NULL: one of the instance's */
    uint32_t flags;       /* of abqc_run_flags */
    abqc_profile *profile; /* CPU only; NULL: launches are not timed */
} abqc_run_options;

typedef enum {
    /* SIGINT ends the run between two kernels or iterations of a loop; then the handler that was
     * there before the run has been called. */
    ABQC_RUN_INTERRUPTIBLE = 1
} abqc_run_flags;

/* The runs of an instance since it was created. On a CPU all is 0. */
typedef struct {
    uint32_t struct_size;   /* sizeof(abqc_statistics), set by the caller */
    int32_t graph_error;    /* the driver's first error (a CUresult) in making a graph; 0: none */
    const char *graph_call; /* what it was an answer to: the name of a driver function */
    const char *graph_error_name; /* "CUDA_ERROR_..."; NULL where the driver has none for it */
    int64_t graph_runs;           /* ended well as one graph */
    int64_t launched_runs; /* ended well, kernel by kernel: those of a new sequence of kernels (the
                              first of all), of sizes that depend on data, and with graph_error all */
    /* Of the last run that was a graph: */
    int64_t graph_launches;
    int64_t graph_path;      /* launches of the longest path; all of them where it is a chain */
    int64_t graph_edges;     /* those that follow from others not counted */
    int64_t dependent_edges; /* of these: the launch behind may begin before the other has ended */
} abqc_statistics;

typedef struct abqc_instance abqc_instance;

typedef struct {
    uint32_t abi_version;
    uint32_t struct_size;

    /* The text of this thread's last error; "" when there was none. Valid until the thread's next
     * failing call. */
    const char *(*last_error)(void);

    /* Signature and manifest. The answer lives as long as the library. */
    int32_t (*model_info)(const abqc_model_info **info);

    /* An instance holds the settings and the working memory; weights belong to the library and are
     * shared. `options` may be NULL. destroy() must not be called while a run is on. */
    int32_t (*create)(const abqc_instance_options *options, abqc_instance **instance);
    int32_t (*destroy)(abqc_instance *instance);

    /* The ISA of the kernels that the instance uses. */
    int32_t (*isa)(const abqc_instance *instance, const char **name);

    /* Runs the model. `inputs` and `outputs` are in the order of model_info(). May be called by
     * several threads at once on one instance. `options` may be NULL.
     *
     * outputs[i] == NULL: the model allocates, and outputs[i] becomes a tensor that the caller
     * releases with outputs[i]->deleter(outputs[i]), before the library is closed.
     * outputs[i] != NULL: its dl_tensor is a buffer of the output's exact type and shape, any
     * strides, which is filled; its other fields are not looked at.
     *
     * A buffer for an output must not overlap an input, with one exception: an output that is an
     * input grown along one axis (a cache) may start where that input starts, with the same
     * strides. Then only the new part is written.
     *
     * On an error no output is allocated; buffers handed in may have been written.
     *
     * A GPU takes tensors that lie on it or on the host, mixed as one likes. Outputs that it
     * allocates lie on the GPU when an input does; their deleter gives the memory back in the order of
     * the run's stream (without one: of the legacy default stream). Work on them in that stream need
     * not have ended then; work in other streams must be waited for, by the host or by that stream,
     * which must still be there. When all tensors lie on the GPU, a stream was
     * given, and the model has no checks of data (indices of a Gather), the call returns once the
     * work is in the stream; else the work is done. */
    int32_t (*run)(abqc_instance *instance, const DLTensor *const *inputs, int32_t input_count,
                   DLManagedTensor **outputs, int32_t output_count,
                   const abqc_run_options *options);

    /* Fills in what `statistics->struct_size` says that the caller knows of. A table whose
     * struct_size ends before this member does not have it. */
    int32_t (*statistics)(abqc_instance *instance, abqc_statistics *statistics);
} abqc_api;

/* The one exported symbol. NULL when the library does not have that version of the interface. */
typedef const abqc_api *(*abqc_get_api_fn)(uint32_t abi_version);
#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const abqc_api *abqc_get_api(uint32_t abi_version);

#ifdef __cplusplus
}
#endif
#endif /* ABQC_H */
