/* Page-locked memory of a context. From and to other memory of the host the driver copies by way of its
 * own, and a copy to the host waits for all that comes before it; from here it takes every copy at once,
 * and a run waits once, at its end.
 *
 * It has room for the small tensors of a run, whose copies are mostly waiting. Large ones go directly, as
 * fast as through here. A run with tensors on the host is waited for, so the next one finds it free. */

#include "cuda.h"

#define LOCKED_BYTES ((size_t)4 << 20)
#define LOCKED_ALIGNMENT 256

void abqc_locked_begin(abqc_locked *locked) { locked->used = 0; }

void *abqc_locked_take(const abqc_device *device, abqc_locked *locked, int64_t bytes) {
    if (locked->refused || (uint64_t)bytes > LOCKED_BYTES - locked->used) return NULL;
    if (!locked->data) {
        void *data = NULL;
        locked->refused = device->cuda.host_allocate(&data, LOCKED_BYTES) != CUDA_SUCCESS;
        if (locked->refused) return NULL;
        locked->data = data;
    }
    void *taken = locked->data + locked->used;
    size_t rounded = ((size_t)bytes + LOCKED_ALIGNMENT - 1) / LOCKED_ALIGNMENT * LOCKED_ALIGNMENT;
    locked->used = rounded < LOCKED_BYTES - locked->used ? locked->used + rounded : LOCKED_BYTES;
    return taken;
}

void abqc_locked_destroy(const abqc_device *device, abqc_locked *locked) {
    if (locked->data) device->cuda.host_release(locked->data);
    locked->data = NULL;
}
