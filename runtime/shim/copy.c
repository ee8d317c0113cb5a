/* Copies between strided places on the host, cut into rows that the team's threads share. */

#include <string.h>

#include "shim.h"

enum {
    TASK_BYTES = 64 << 10,     /* what one grid index copies, at least */
    PARALLEL_BYTES = 256 << 10 /* below, waking threads costs more than it gains */
};

typedef struct {
    size_t item;
    int32_t rank; /* of the dimensions around a row */
    int64_t row;  /* elements */
    int64_t rows, rows_per_task;
    int64_t sizes[ABQC_MAX_RANK];
    int64_t to_strides[ABQC_MAX_RANK], from_strides[ABQC_MAX_RANK]; /* in bytes */
    char *to;
    const char *from;
} copy_plan;

static void copy_elements(char *to, int64_t to_stride, const char *from, int64_t from_stride,
                          int64_t count, size_t item) {
    switch (item) {
#define COPY_ELEMENTS(type)                                                 \
    for (int64_t i = 0; i < count; i++) {                                   \
        type value;                                                         \
        memcpy(&value, from + i * from_stride, sizeof value);               \
        memcpy(to + i * to_stride, &value, sizeof value);                   \
    }                                                                       \
    break
    case 1: COPY_ELEMENTS(uint8_t);
    case 2: COPY_ELEMENTS(uint16_t);
    case 4: COPY_ELEMENTS(uint32_t);
    case 8: COPY_ELEMENTS(uint64_t);
#undef COPY_ELEMENTS
    default:
        for (int64_t i = 0; i < count; i++) memcpy(to + i * to_stride, from + i * from_stride, item);
    }
}

static void copy_row(const copy_plan *plan, int64_t row) {
    char *to = plan->to;
    const char *from = plan->from;
    for (int32_t d = plan->rank - 1; d >= 0; d--) {
        int64_t index = row % plan->sizes[d];
        row /= plan->sizes[d];
        to += index * plan->to_strides[d];
        from += index * plan->from_strides[d];
    }
    int64_t item = (int64_t)plan->item;
    int64_t to_step = plan->to_strides[plan->rank], from_step = plan->from_strides[plan->rank];
    if (to_step == item && from_step == item) memcpy(to, from, (size_t)(plan->row * item));
    else copy_elements(to, to_step, from, from_step, plan->row, plan->item);
}

/* A grid function of one argument, the plan. */
static void copy_rows(int64_t begin, int64_t end, const uint64_t *args) {
    const copy_plan *plan = (const copy_plan *)(uintptr_t)args[0];
    int64_t last = end * plan->rows_per_task;
    if (last > plan->rows) last = plan->rows;
    for (int64_t row = begin * plan->rows_per_task; row < last; row++) copy_row(plan, row);
}

/* A grid function of to, from and the number of bytes. */
static void copy_bytes(int64_t begin, int64_t end, const uint64_t *args) {
    int64_t first = begin * TASK_BYTES, last = end * TASK_BYTES, bytes = (int64_t)args[2];
    if (last > bytes) last = bytes;
    memcpy((char *)(uintptr_t)args[0] + first, (const char *)(uintptr_t)args[1] + first,
           (size_t)(last - first));
}

abqc_dims abqc_join_dims(int32_t rank, const int64_t *sizes, const int64_t *to_strides,
                         const int64_t *from_strides) {
    abqc_dims dims = {0};
    int32_t n = 0;
    for (int32_t d = 0; d < rank; d++) {
        if (sizes[d] == 1) continue;
        bool joins = n > 0 && dims.to_strides[n - 1] == to_strides[d] * sizes[d] &&
                     dims.from_strides[n - 1] == from_strides[d] * sizes[d];
        n -= joins;
        dims.sizes[n] = (joins ? dims.sizes[n] : 1) * sizes[d];
        dims.to_strides[n] = to_strides[d];
        dims.from_strides[n] = from_strides[d];
        n++;
    }
    dims.rank = n;
    if (n == 0) dims = (abqc_dims){1, {1}, {1}, {1}}; /* one element */
    return dims;
}

/* The innermost dimension is the row. */
static void make_plan(copy_plan *plan, int32_t rank, const int64_t *sizes,
                      const int64_t *to_strides, const int64_t *from_strides) {
    int64_t item = (int64_t)plan->item;
    abqc_dims dims = abqc_join_dims(rank, sizes, to_strides, from_strides);
    plan->rank = dims.rank - 1;
    plan->row = dims.sizes[plan->rank];
    plan->rows = 1;
    for (int32_t d = 0; d < dims.rank; d++) {
        plan->sizes[d] = dims.sizes[d];
        plan->to_strides[d] = dims.to_strides[d] * item;
        plan->from_strides[d] = dims.from_strides[d] * item;
        if (d < plan->rank) plan->rows *= dims.sizes[d];
    }
}

void abqc_host_copy(abqc_team *team, size_t item, int32_t rank, const int64_t *sizes, void *to,
                    const int64_t *to_strides, const void *from, const int64_t *from_strides) {
    int64_t bytes = abqc_byte_count(rank, sizes, item);
    if (bytes <= 0) return;
    copy_plan plan = {.item = item, .to = to, .from = from};
    make_plan(&plan, rank, sizes, to_strides, from_strides);
    if (plan.rows == 1) {
        if (plan.to_strides[0] != (int64_t)item || plan.from_strides[0] != (int64_t)item ||
            bytes < PARALLEL_BYTES) {
            copy_row(&plan, 0);
            return;
        }
        const uint64_t args[] = {(uintptr_t)to, (uintptr_t)from, (uint64_t)bytes};
        abqc_team_launch(team, copy_bytes, (bytes + TASK_BYTES - 1) / TASK_BYTES, args);
        return;
    }
    int64_t row_bytes = bytes / plan.rows;
    plan.rows_per_task = bytes < PARALLEL_BYTES ? plan.rows
                         : row_bytes < TASK_BYTES ? TASK_BYTES / row_bytes
                                                  : 1;
    const uint64_t args[] = {(uintptr_t)&plan};
    abqc_team_launch(team, copy_rows, (plan.rows + plan.rows_per_task - 1) / plan.rows_per_task, args);
}
