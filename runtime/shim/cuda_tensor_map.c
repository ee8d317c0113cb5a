/* Parameters of a launch: its arguments, and the tensor maps that are made of them, by which kernels copy
 * boxes of a tensor (cp.async.bulk.tensor). The driver copies both when it takes the launch. */

#include <stdlib.h>

#include "cuda.h"

static uint64_t extent_of(const abqc_gpu_extent *extent, const uint64_t *args) {
    return extent->slot < 0 ? extent->factor : extent->factor * args[extent->slot];
}

static CUresult encode(const abqc_cuda *cuda, const abqc_gpu_map *map, const uint64_t *args,
                       CUtensorMap *made) {
    uint64_t sizes[ABQC_MAP_RANK], strides[ABQC_MAP_RANK];
    uint32_t steps[ABQC_MAP_RANK];
    for (int32_t i = 0; i < map->rank; i++) {
        sizes[i] = extent_of(&map->sizes[i], args);
        if (i) strides[i - 1] = extent_of(&map->strides[i - 1], args);
        steps[i] = 1;
    }
    return cuda->encode_tiled(made, map->element, (uint32_t)map->rank,
                              (void *)(uintptr_t)args[map->pointer], sizes, strides, map->box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, map->swizzle,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

int32_t abqc_tensor_maps_check(const abqc_device *device, const abqc_gpu_kernel *kernel) {
    if (!kernel->map_count || device->cuda.encode_tiled) return ABQC_OK;
    return abqc_error(ABQC_E_DEVICE,
                      "the NVIDIA driver has no function cuTensorMapEncodeTiled, which kernel '%s' "
                      "needs: it is too old (CUDA 12.0 is needed)", kernel->name);
}

bool abqc_parameters_create(abqc_work *work) {
    const abqc_device *device = work->device;
    size_t slots = (size_t)device->most_slots + (size_t)device->most_maps;
    work->parameters = calloc(slots + 1, sizeof *work->parameters);
    work->maps = aligned_alloc(_Alignof(CUtensorMap),
                               ((size_t)device->most_maps + 1) * sizeof *work->maps);
    return work->parameters && work->maps;
}

void abqc_parameters_destroy(abqc_work *work) {
    free(work->parameters);
    free(work->maps);
}

CUresult abqc_set_parameters(const abqc_work *work, const abqc_gpu_kernel *kernel,
                             const uint64_t *args) {
    for (int32_t i = 0; i < kernel->slots; i++) work->parameters[i] = (void *)(uintptr_t)&args[i];
    for (int32_t i = 0; i < kernel->map_count; i++) {
        CUresult code = encode(&work->device->cuda, &kernel->maps[i], args, &work->maps[i]);
        if (code) return code;
        work->parameters[kernel->slots + i] = &work->maps[i];
    }
    return CUDA_SUCCESS;
}
