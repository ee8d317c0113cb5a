/* A run on a GPU.
 *
 * The host function is run with nothing sent to the device: checks fail before anything has begun, it
 * is known how much memory is needed, and its launches are on a list. The list is sent one by one
 * where its kernels come in this order for the first time. After that it is a graph: one that is set
 * to this run's arguments, or where the same sizes and places come again, one of their own, for which
 * the host function need not run.
 *
 * Where launches depend on data of the device, and where every buffer is an allocation of its own, the
 * host function launches as it goes. */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* ---- contexts ---- */

static bool allocate_parts(abqc_work *work) {
    const abqc_model_info *info = &abqc_meta.info;
    work->stages = calloc((size_t)info->input_count + 1, sizeof *work->stages);
    work->results = calloc((size_t)info->output_count + 1, sizeof *work->results);
    work->tensors = calloc((size_t)info->input_count + (size_t)info->output_count + 1,
                           sizeof *work->tensors);
    return work->stages && work->results && work->tensors && abqc_parameters_create(work) &&
           abqc_plans_create(&work->plans) && abqc_places_create(&work->places);
}

static int32_t create_streams(abqc_work *work) {
    const abqc_cuda *cuda = &work->device->cuda;
    int32_t status = abqc_device_enter(work->device);
    if (status) return status;
    CUresult code = cuda->stream_create(&work->own, 0);
    if (!code) code = cuda->event_create(&work->done, CU_EVENT_DISABLE_TIMING);
    status = code ? abqc_cuda_error(work->device, code, "cannot create a stream")
                  : abqc_flag_create(work);
    abqc_device_exit(work->device);
    return status;
}

int32_t abqc_work_create(abqc_device *device, abqc_work **made) {
    abqc_work *work = calloc(1, sizeof *work);
    if (!work) return abqc_error(ABQC_E_MEMORY, "out of memory");
    work->device = device;
    work->dependent = device->dependent;
    int32_t status =
        allocate_parts(work) ? create_streams(work) : abqc_error(ABQC_E_MEMORY, "out of memory");
    if (status) abqc_work_destroy(work);
    else *made = work;
    return status;
}

static void give_back(const abqc_device *device, abqc_work *work) {
    if (work->pending) device->cuda.event_synchronize(work->done);
    abqc_plans_drop_graphs(device, &work->plans);
    abqc_updatable_graphs_destroy(device, &work->updatable);
    abqc_gpu_arena_destroy(device, &work->arena);
    abqc_flag_destroy(work);
    abqc_locked_destroy(device, &work->locked);
    abqc_counters_destroy(work);
    if (work->done) device->cuda.event_destroy(work->done);
    if (work->own) device->cuda.stream_destroy(work->own);
}

void abqc_work_destroy(abqc_work *work) {
    if (!work) return;
    if (abqc_device_force(work->device)) {
        give_back(work->device, work);
        abqc_device_exit(work->device);
    }
    abqc_plans_destroy(&work->plans);
    abqc_places_destroy(&work->places);
    abqc_launches_destroy(&work->launches);
    free(work->stages);
    free(work->results);
    abqc_parameters_destroy(work);
    free(work->tensors);
    free(work);
}

/* ---- the host function: its launches recorded, or sent as they come ---- */

/* Runs it on an arena that has just begun; keeps where the outputs are. */
static int32_t call_host(abqc_ctx *ctx) {
    abqc_result *results = ctx->work->results;
    memset(results, 0, abqc_result_bytes());
    abqc_places_begin(&ctx->work->places);
    int32_t status = abqc_call_host(ctx);
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++) {
        results[i].axis = ctx->slots[i].axis;
        results[i].kept = ctx->slots[i].kept;
    }
    return status;
}

static int32_t plan_inputs(abqc_ctx *ctx, bool in_place) {
    abqc_work *work = ctx->work;
    int32_t status = abqc_gpu_arena_plan(work->device, &work->arena, in_place);
    return status ? status : abqc_stage_inputs(ctx);
}

/* Inputs get places in the arena if it has room for them. Else they must not lie where others' memory
 * is, which abqc_rt_read() would take for theirs. */
static int32_t plan(abqc_ctx *ctx) {
    const abqc_gpu_arena *arena = &ctx->work->arena;
    int32_t status = plan_inputs(ctx, true);
    if (status || abqc_gpu_arena_fits(arena, arena->ranges.peak)) return status;
    return plan_inputs(ctx, false);
}

/* What it would launch, and the bytes that it needs. Addresses are good if these fit. */
static int32_t record(abqc_ctx *ctx, int64_t *bytes) {
    abqc_work *work = ctx->work;
    work->reads = false;
    work->launches.count = work->launches.arg_count = work->launches.touch_count = 0;
    abqc_tensors_begin(ctx);
    int32_t status = plan(ctx);
    work->recording = true;
    if (!status) status = call_host(ctx);
    work->recording = false;
    *bytes = work->arena.ranges.peak;
    if (status != ABQC_MISPLACED) return status;
    work->places.off = true;
    status = record(ctx, bytes);
    work->places.off = false;
    return status;
}

/* Memory and the places of inputs: the same ones whenever `bytes` and sizes are the same. */
static int32_t begin(abqc_ctx *ctx, int64_t bytes) {
    abqc_work *work = ctx->work;
    if (!abqc_gpu_arena_fits(&work->arena, bytes)) {
        if (work->pending) work->device->cuda.event_synchronize(work->done);
        work->pending = false;
        abqc_plans_drop_graphs(work->device, &work->plans);
    }
    int32_t status = abqc_gpu_arena_begin(work->device, &work->arena, bytes);
    return status ? status : abqc_stage_inputs(ctx);
}

static int32_t launch_as_it_goes(abqc_ctx *ctx, int64_t bytes) {
    int32_t status = begin(ctx, bytes);
    if (!status) status = abqc_upload_inputs(ctx);
    return status ? status : call_host(ctx);
}

/* The launches of this run, at addresses that are good. */
static int32_t record_in_place(abqc_ctx *ctx, int64_t *bytes) {
    int32_t status = record(ctx, bytes);
    if (status || abqc_gpu_arena_fits(&ctx->work->arena, *bytes)) return status;
    status = begin(ctx, *bytes);
    if (!status) status = record(ctx, bytes);
    if (status || abqc_gpu_arena_fits(&ctx->work->arena, *bytes)) return status;
    return ABQC_UNPLANNED; /* somebody changed the inputs meanwhile */
}

/* ---- what was recorded ---- */

/* NULL: this run's launches are to be sent one by one. What goes wrong here is no error of the run:
 * sent so they work, or fail with an error of their own. It is told by statistics(). */
static abqc_graph *graph_of(abqc_ctx *ctx, abqc_plan *known) {
    abqc_work *work = ctx->work;
    if (!work->device->graphs || work->refused || !work->launches.count) return NULL;
    if (!known) return abqc_updatable_graph(work, &work->updatable, &work->launches, &work->refused);
    abqc_graph *graph = abqc_graph_create(work, &work->launches);
    work->refused = !graph;
    if (graph) abqc_plans_give(ctx, known, graph);
    return graph;
}

static int32_t launch_graph(abqc_work *work, const abqc_graph *graph) {
    work->as_graph = true;
    work->shape = abqc_graph_shape_of(graph);
    CUresult code = abqc_graph_launch(work->device, graph, abqc_run_stream(work));
    return code ? abqc_cuda_error(work->device, code, "cannot launch the model's graph") : ABQC_OK;
}

static int32_t run_recorded(abqc_ctx *ctx, abqc_plan *known) {
    abqc_work *work = ctx->work;
    int64_t bytes;
    int32_t status = work->device->separate ? record(ctx, &bytes) : record_in_place(ctx, &bytes);
    if (status == ABQC_UNPLANNED) return launch_as_it_goes(ctx, 0);
    if (status) return status;
    if (work->device->separate) return launch_as_it_goes(ctx, bytes);
    status = abqc_upload_inputs(ctx);
    if (status) return status;
    const abqc_graph *graph = graph_of(ctx, known);
    if (!known && !work->reads) abqc_plans_keep(ctx, bytes);
    return graph ? launch_graph(work, graph) : abqc_launches_send(work, &work->launches);
}

/* The same sizes and places as before: the host function would do the same again. */
static int32_t run_again(abqc_ctx *ctx, const abqc_plan *known) {
    abqc_work *work = ctx->work;
    int32_t status = begin(ctx, known->bytes);
    if (!status) status = abqc_upload_inputs(ctx);
    if (status) return status;
    memcpy(work->results, known->results, abqc_result_bytes());
    return launch_graph(work, known->graph);
}

/* ---- the run ---- */

static bool any_input_on_gpu(const abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++)
        if (abqc_on_gpu(ctx->inputs[i])) return true;
    return false;
}

static bool any_on_host(const abqc_ctx *ctx) {
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++)
        if (!abqc_on_gpu(ctx->inputs[i])) return true;
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++)
        if (ctx->outputs[i] ? !abqc_on_gpu(&ctx->outputs[i]->dl_tensor) : !ctx->work->results_on_gpu)
            return true;
    return false;
}

/* This run comes after what an earlier one left in another stream. */
static int32_t follow_earlier_run(abqc_work *work) {
    if (!work->pending) return ABQC_OK;
    CUresult code = work->device->cuda.stream_wait(abqc_run_stream(work), work->done, 0);
    return code ? abqc_cuda_error(work->device, code, "an earlier run failed") : ABQC_OK;
}

static int32_t finish(abqc_work *work, bool wait) {
    const abqc_cuda *cuda = &work->device->cuda;
    CUstream stream = abqc_run_stream(work);
    CUresult code = wait ? cuda->stream_synchronize(stream) : cuda->event_record(work->done, stream);
    work->pending = !wait;
    return code ? abqc_cuda_error(work->device, code, "the run failed on GPU %d",
                                  (int)work->device->ordinal)
                : ABQC_OK;
}

/* The host function's check failed: perhaps on what a kernel made of data that its own check refuses.
 * That error comes first. */
static int32_t earlier_error(const abqc_work *work, int32_t status) {
    int32_t noted = abqc_flag_look(work); /* leaves the error's text as it is if nothing was noted */
    return noted ? noted : status;
}

static int32_t run_entered(abqc_ctx *ctx, bool wait) {
    abqc_work *work = ctx->work;
    int32_t status = follow_earlier_run(work);
    if (status) return status;
    abqc_locked_begin(&work->locked);
    abqc_plan *known = abqc_plans_find(ctx);
    bool again = known && known->graph && abqc_gpu_arena_fits(&work->arena, known->bytes);
    status = again ? run_again(ctx, known) : run_recorded(ctx, known);
    if (!status) status = abqc_deliver_outputs(ctx);
    if (!status) status = finish(work, wait);
    if (!status) abqc_unpack_outputs(ctx);
    if (!status && wait) status = abqc_flag_look(work);
    else if (status == ABQC_E_CHECK) status = earlier_error(work, status);
    if (!status) return ABQC_OK;
    work->device->cuda.stream_synchronize(abqc_run_stream(work)); /* buffers are the caller's again */
    work->pending = false;
    return status;
}

static void count(abqc_ctx *ctx, int32_t status) {
    const abqc_work *work = ctx->work;
    abqc_statistics *counted = &ctx->counted;
    if (!status) *(work->as_graph ? &counted->graph_runs : &counted->launched_runs) = 1;
    if (work->as_graph) {
        counted->graph_launches = work->shape.launches;
        counted->graph_path = work->shape.path;
        counted->graph_edges = work->shape.edges;
        counted->dependent_edges = work->shape.dependent;
    }
    if (!work->graph_error) return;
    counted->graph_error = work->graph_error;
    counted->graph_call = work->graph_call;
    work->device->cuda.error_name(work->graph_error, &counted->graph_error_name);
}

int32_t abqc_work_run(abqc_ctx *ctx, const abqc_run_options *options) {
    abqc_work *work = ctx->work;
    int32_t status = abqc_device_enter(work->device);
    if (status) return status;
    work->caller = options->stream;
    work->results_on_gpu = options->device.device_type ? options->device.device_type == kDLCUDA
                                                       : any_input_on_gpu(ctx);
    work->as_graph = false;
    bool wait = !work->caller || any_on_host(ctx) || abqc_has_kernel_checks();
    status = run_entered(ctx, wait);
    count(ctx, status);
    abqc_free_stages(ctx);
    abqc_device_exit(work->device);
    return status;
}
