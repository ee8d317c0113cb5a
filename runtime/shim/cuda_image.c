/* Which of the artifact's images a GPU gets: machine code made for it, else PTX that the driver
 * compiles. */

#include <string.h>

#include "cuda.h"

enum { LOG_BYTES = 4096 };

typedef struct {
    int32_t major, minor;
    const char *forced; /* the name of the only image to look at; NULL: any */
} wanted;

static bool newer(const abqc_gpu_image *a, const abqc_gpu_image *b) {
    if (a->major != b->major) return a->major > b->major;
    if (a->minor != b->minor) return a->minor > b->minor;
    return a->specific > b->specific;
}

/* Machine code runs on its own capability, and on later ones of the same major number unless it is
 * specific (CUDA C++ Programming Guide, "Binary Compatibility"). */
static bool cubin_runs(const abqc_gpu_image *image, const wanted *gpu) {
    if (!image->cubin_bytes || image->major != gpu->major) return false;
    return image->minor == gpu->minor || (image->minor < gpu->minor && !image->specific);
}

/* PTX runs on its own and on all later capabilities unless it is specific. */
static bool ptx_runs(const abqc_gpu_image *image, const wanted *gpu) {
    if (image->major == gpu->major && image->minor == gpu->minor) return true;
    return !image->specific && (image->major < gpu->major ||
                                (image->major == gpu->major && image->minor < gpu->minor));
}

static const abqc_gpu_image *best(const wanted *gpu,
                                  bool (*runs)(const abqc_gpu_image *, const wanted *)) {
    const abqc_gpu_image *found = NULL;
    for (int32_t i = 0; i < abqc_meta.gpu.image_count; i++) {
        const abqc_gpu_image *image = &abqc_meta.gpu.images[i];
        if (gpu->forced && strcmp(gpu->forced, image->name) != 0) continue;
        if (runs(image, gpu) && (!found || newer(image, found))) found = image;
    }
    return found;
}

/* The driver's complaints, on one line. */
static void flatten(char *text) {
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '\r' || *c == '\t') *c = ' ';
    for (size_t n = strlen(text); n && text[n - 1] == ' ';) text[--n] = 0;
}

static CUresult load(abqc_device *device, const void *code, char *log) {
    const int options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)(uintptr_t)LOG_BYTES};
    memset(log, 0, LOG_BYTES);
    CUresult result = device->cuda.module_load(&device->module, code, 2, options, values);
    log[LOG_BYTES - 1] = 0;
    flatten(log);
    return result;
}

static int32_t refuse(const abqc_device *device, const wanted *gpu) {
    char name[128] = "";
    device->cuda.device_name(name, sizeof name, device->handle);
    return abqc_error(ABQC_E_ISA,
                      "GPU %d (%s, compute capability %d.%d) can run none of the model's targets: "
                      "%s; compile for sm_%d%d%s%s",
                      (int)device->ordinal, name, (int)gpu->major, (int)gpu->minor,
                      abqc_meta.info.isas, (int)gpu->major, (int)gpu->minor,
                      gpu->forced ? "; asked for was " : "", gpu->forced ? gpu->forced : "");
}

static int32_t refuse_ptx(const abqc_device *device, const abqc_gpu_image *image, CUresult code,
                          const char *log) {
    int version = 0;
    if (code != CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
        return abqc_cuda_error(device, code, "the driver cannot compile the model's PTX for %s%s%s",
                               image->name, *log ? ": " : "", log);
    device->cuda.driver_version(&version);
    return abqc_error(ABQC_E_DEVICE,
                      "the driver (CUDA %d.%d) is too old for the model's PTX for %s: %s; update it, "
                      "or compile the model with ptxas at hand",
                      version / 1000, version % 1000 / 10, image->name,
                      abqc_cuda_error_name(&device->cuda, code));
}

static int32_t check_forced(const char *forced) {
    for (int32_t i = 0; forced && i < abqc_meta.gpu.image_count; i++)
        if (!strcmp(forced, abqc_meta.gpu.images[i].name)) return ABQC_OK;
    if (!forced) return ABQC_OK;
    return abqc_error(ABQC_E_ISA, "the model has no code for '%s'; it has: %s", forced,
                      abqc_meta.info.isas);
}

int32_t abqc_load_image(abqc_device *device, int32_t major, int32_t minor, const char *forced) {
    char log[LOG_BYTES];
    const wanted gpu = {major, minor, forced};
    int32_t status = check_forced(forced);
    if (status) return status;
    device->image = best(&gpu, cubin_runs);
    if (device->image) {
        CUresult code = load(device, device->image->cubin, log);
        if (!code) return ABQC_OK;
        /* An older driver may not read a newer assembler's code, but compile the PTX. */
        if (code != CUDA_ERROR_INVALID_IMAGE && code != CUDA_ERROR_NO_BINARY_FOR_GPU &&
            code != CUDA_ERROR_UNSUPPORTED_PTX_VERSION)
            return abqc_cuda_error(device, code, "cannot load the model's code for %s",
                                   device->image->name);
    }
    device->image = best(&gpu, ptx_runs);
    if (!device->image) return refuse(device, &gpu);
    CUresult code = load(device, device->image->ptx, log);
    return code ? refuse_ptx(device, device->image, code, log) : ABQC_OK;
}
