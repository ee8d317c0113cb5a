/* What is known of runs with the same sizes and places: how much memory they take, and from the
 * second one on their graph. The least recently used makes room for the next: of those without a
 * graph, so that the steps of a decoder, none of which comes twice, leave the others alone. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* What stands for the place of a tensor that is staged; no device address is that small. */
enum { ON_HOST = 1, ALLOCATED = 2, ALLOCATED_ON_GPU = 3 };

static int32_t words_of(const abqc_tensor_info *info, int32_t count) {
    int32_t words = 0;
    for (int32_t i = 0; i < count; i++) words += 1 + 2 * info[i].ndim;
    return words;
}

bool abqc_plans_create(abqc_plans *plans) {
    const abqc_model_info *info = &abqc_meta.info;
    plans->words =
        words_of(info->inputs, info->input_count) + words_of(info->outputs, info->output_count);
    plans->key = calloc((size_t)plans->words + 1, sizeof *plans->key);
    return plans->key;
}

static void drop_graph(const abqc_device *device, abqc_plan *plan) {
    abqc_graph_destroy(device, plan->graph);
    plan->graph = NULL;
}

static void forget(abqc_plan *plan) {
    free(plan->key);
    free(plan->results);
    *plan = (abqc_plan){0};
}

void abqc_plans_destroy(abqc_plans *plans) {
    for (int32_t i = 0; i < ABQC_PLANS; i++) forget(&plans->plans[i]);
    free(plans->key);
    *plans = (abqc_plans){0};
}

void abqc_plans_drop_graphs(const abqc_device *device, abqc_plans *plans) {
    for (int32_t i = 0; i < ABQC_PLANS; i++) drop_graph(device, &plans->plans[i]);
}

/* ---- keys: place, sizes and strides of every tensor ---- */

static uint64_t *put_tensor(uint64_t *key, const abqc_tensor_info *info, const DLTensor *tensor) {
    abqc_view view;
    abqc_view_of(tensor, &view);
    bool on_gpu = abqc_on_gpu(tensor);
    *key++ = on_gpu ? (uintptr_t)view.data : ON_HOST;
    for (int32_t d = 0; d < info->ndim; d++) {
        *key++ = (uint64_t)view.sizes[d];
        *key++ = on_gpu ? (uint64_t)view.strides[d] : 0;
    }
    return key;
}

static uint64_t *put_absent(uint64_t *key, const abqc_tensor_info *info, bool on_gpu) {
    *key++ = on_gpu ? ALLOCATED_ON_GPU : ALLOCATED;
    for (int32_t d = 0; d < 2 * info->ndim; d++) *key++ = 0;
    return key;
}

/* A buffer on the host that overlaps an input is looked at in every run: its place is in no key. */
static bool overlaps_input(const abqc_ctx *ctx, int32_t output) {
    const DLTensor *tensor = &ctx->outputs[output]->dl_tensor;
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++)
        if (!abqc_on_gpu(tensor) && abqc_overlap(tensor, ctx->inputs[i])) return true;
    return false;
}

static bool make_key(abqc_ctx *ctx, uint64_t *key) {
    const abqc_model_info *info = &abqc_meta.info;
    for (int32_t i = 0; i < info->input_count; i++)
        key = put_tensor(key, &info->inputs[i], ctx->inputs[i]);
    for (int32_t i = 0; i < info->output_count; i++) {
        if (!ctx->outputs[i]) {
            key = put_absent(key, &info->outputs[i], ctx->work->results_on_gpu);
            continue;
        }
        if (overlaps_input(ctx, i)) return false;
        key = put_tensor(key, &info->outputs[i], &ctx->outputs[i]->dl_tensor);
    }
    return true;
}

/* ---- the table ---- */

abqc_plan *abqc_plans_find(abqc_ctx *ctx) {
    abqc_plans *plans = &ctx->work->plans;
    size_t bytes = (size_t)plans->words * sizeof *plans->key;
    plans->clock++;
    plans->key[plans->words] = make_key(ctx, plans->key);
    for (int32_t i = 0; plans->key[plans->words] && i < ABQC_PLANS; i++) {
        abqc_plan *plan = &plans->plans[i];
        if (!plan->key || memcmp(plan->key, plans->key, bytes) != 0) continue;
        plan->used = plans->clock;
        return plan;
    }
    return NULL;
}

/* Free entries were never used. NULL: there is none of that kind. */
static abqc_plan *least_recently_used(abqc_plans *plans, bool with_graph) {
    abqc_plan *oldest = NULL;
    for (int32_t i = 0; i < ABQC_PLANS; i++) {
        abqc_plan *plan = &plans->plans[i];
        if ((plan->graph != NULL) != with_graph) continue;
        if (!oldest || plan->used < oldest->used) oldest = plan;
    }
    return oldest;
}

void abqc_plans_keep(abqc_ctx *ctx, int64_t bytes) {
    abqc_plans *plans = &ctx->work->plans;
    size_t key_bytes = (size_t)plans->words * sizeof *plans->key;
    if (!plans->key[plans->words]) return;
    abqc_plan *entry = least_recently_used(plans, false); /* there are more than ever have graphs */
    forget(entry);
    abqc_plan plan = {.key = malloc(key_bytes + 1), .used = plans->clock, .bytes = bytes,
                      .results = calloc(1, abqc_result_bytes() + 1)};
    if (!plan.key || !plan.results) {
        free(plan.key);
        free(plan.results);
        return; /* the next run records its launches again */
    }
    memcpy(plan.key, plans->key, key_bytes);
    *entry = plan;
}

static int32_t count_graphs(const abqc_plans *plans) {
    int32_t count = 0;
    for (int32_t i = 0; i < ABQC_PLANS; i++) count += plans->plans[i].graph != NULL;
    return count;
}

void abqc_plans_give(abqc_ctx *ctx, abqc_plan *plan, abqc_graph *graph) {
    abqc_plans *plans = &ctx->work->plans;
    if (count_graphs(plans) == ABQC_PLAN_GRAPHS) {
        abqc_plan *oldest = least_recently_used(plans, true);
        drop_graph(ctx->device, oldest);
        forget(oldest);
    }
    plan->graph = graph;
    memcpy(plan->results, ctx->work->results, abqc_result_bytes());
}
