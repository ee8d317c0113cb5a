/* Launches as a CUDA graph: one call of the driver, and no gaps between kernels.
 *
 * A graph is made of the list of a run's launches, each behind those that it depends on. When the same
 * kernels come in the same order with other arguments, the nodes whose arguments differ are set anew,
 * which is cheaper than launches; a launch of before that is still under way keeps its own. Where other
 * arguments depend on each other in a way that the graph does not keep, there is a new one.
 *
 * Where the driver and the kernels can, an edge is programmatic: the launch behind it begins while the
 * one before still runs, and waits for it by itself (codegen/gpu/assembly/dependent_launch.py). */

#include <stdlib.h>
#include <string.h>

#include "cuda.h"

struct abqc_graph {
    CUgraph graph; /* its nodes are the names of those of `executable` */
    CUgraphExec executable;
    CUgraphNode *nodes;
    abqc_launches launches; /* what it makes */
    abqc_edges edges;
    int32_t path;      /* of these: launches of the longest */
    int32_t dependent; /* how many are programmatic */
};

static CUresult node_of(const abqc_work *work, const abqc_launches *launches, int32_t i,
                        CUDA_KERNEL_NODE_PARAMS *node) {
    const abqc_launch *launch = &launches->launches[i];
    const abqc_gpu_kernel *info = abqc_kernel_info(launch->kernel);
    const abqc_gpu_block *block = abqc_kernel_block(work->device, launch->kernel);
    *node = (CUDA_KERNEL_NODE_PARAMS){
        .function = work->device->functions[launch->kernel],
        .grid_x = (uint32_t)launch->grid,
        .grid_y = 1,
        .grid_z = 1,
        .block_x = (uint32_t)block->threads,
        .block_y = 1,
        .block_z = 1,
        .shared_bytes = (uint32_t)block->shared_bytes,
        .parameters = work->parameters,
    };
    return abqc_set_parameters(work, info, &launches->args[launch->first]);
}

/* Whether a call failed. The first error stays for statistics(): without graphs a model runs, but
 * slowly, and nobody would know. After one that is sticky the run's launches will fail too. */
static bool failed(abqc_work *work, const char *call, CUresult code) {
    if (!code) return false;
    if (abqc_cuda_is_sticky(code)) atomic_store(&work->device->lost, code);
    if (work->graph_error) return true;
    work->graph_error = code;
    work->graph_call = call;
    return true;
}

/* ---- making ---- */

/* The edges that lead to a launch, as programmatic ones. */
static CUresult add_dependent(abqc_work *work, abqc_graph *graph, CUgraphNode to,
                              const CUgraphNode *before, int32_t count) {
    static const CUgraphEdgeData programmatic = {
        .from_port = CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC,
        .type = CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC,
    };
    const abqc_cuda *cuda = &work->device->cuda;
    graph->dependent += count;
    for (int32_t i = 0; i < count; i++) {
        CUresult code = cuda->graph_depend(graph->graph, &before[i], &to, &programmatic, 1);
        if (code) return code;
    }
    return CUDA_SUCCESS;
}

static bool add_node(abqc_work *work, abqc_graph *graph, int32_t i, CUgraphNode *before) {
    const abqc_cuda *cuda = &work->device->cuda;
    const abqc_edges *edges = &graph->edges;
    int32_t count = edges->first[i + 1] - edges->first[i];
    for (int32_t k = 0; k < count; k++) before[k] = graph->nodes[edges->from[edges->first[i] + k]];
    bool dependent = work->dependent && count && graph->launches.launches[i].early;
    CUDA_KERNEL_NODE_PARAMS node;
    CUresult code = node_of(work, &graph->launches, i, &node);
    if (failed(work, "cuTensorMapEncodeTiled", code)) return false;
    code = cuda->graph_add(&graph->nodes[i], graph->graph, before,
                                    dependent ? 0 : (size_t)count, &node);
    if (failed(work, "cuGraphAddKernelNode", code)) return false;
    if (!dependent) return true;
    code = add_dependent(work, graph, graph->nodes[i], before, count);
    return !failed(work, "cuGraphAddDependencies_v2", code);
}

static bool add_nodes(abqc_work *work, abqc_graph *graph) {
    CUgraphNode *before = calloc((size_t)graph->launches.count, sizeof *before);
    bool added = before || !failed(work, "malloc", CUDA_ERROR_OUT_OF_MEMORY);
    for (int32_t i = 0; added && i < graph->launches.count; i++)
        added = add_node(work, graph, i, before);
    free(before);
    return added;
}

static bool fill(abqc_work *work, abqc_graph *graph, const abqc_launches *launches) {
    const abqc_cuda *cuda = &work->device->cuda;
    graph->nodes = calloc((size_t)launches->count, sizeof *graph->nodes);
    if (!graph->nodes || !abqc_launches_copy(&graph->launches, launches) ||
        !abqc_edges_create(&graph->edges, launches)) {
        failed(work, "malloc", CUDA_ERROR_OUT_OF_MEMORY);
        return false;
    }
    graph->path = abqc_edges_path(&graph->edges);
    if (failed(work, "cuGraphCreate", cuda->graph_create(&graph->graph, 0))) {
        graph->graph = NULL;
        return false;
    }
    if (!add_nodes(work, graph)) return false;
    CUresult code = cuda->graph_instantiate(&graph->executable, graph->graph, 0);
    if (!failed(work, "cuGraphInstantiateWithFlags", code)) return true;
    graph->executable = NULL;
    return false;
}

/* A driver that refuses a graph with programmatic edges is asked for one without them. */
abqc_graph *abqc_graph_create(abqc_work *work, const abqc_launches *launches) {
    abqc_graph *graph = calloc(1, sizeof *graph);
    if (!graph) failed(work, "malloc", CUDA_ERROR_OUT_OF_MEMORY);
    if (graph && fill(work, graph, launches)) return graph;
    bool again = graph && graph->dependent && !atomic_load(&work->device->lost);
    abqc_graph_destroy(work->device, graph);
    if (again) work->dependent = false;
    return again ? abqc_graph_create(work, launches) : NULL;
}

void abqc_graph_destroy(const abqc_device *device, abqc_graph *graph) {
    if (!graph) return;
    if (graph->executable) device->cuda.graph_exec_destroy(graph->executable);
    if (graph->graph) device->cuda.graph_destroy(graph->graph);
    abqc_launches_destroy(&graph->launches);
    abqc_edges_destroy(&graph->edges);
    free(graph->nodes);
    free(graph);
}

CUresult abqc_graph_launch(const abqc_device *device, const abqc_graph *graph, CUstream stream) {
    return device->cuda.graph_launch(graph->executable, stream);
}

abqc_graph_shape abqc_graph_shape_of(const abqc_graph *graph) {
    return (abqc_graph_shape){
        .launches = graph->launches.count,
        .path = graph->path,
        .edges = graph->edges.first[graph->edges.count],
        .dependent = graph->dependent,
    };
}

/* ---- setting anew ---- */

static bool is_copy(int32_t kernel) {
    int32_t first = abqc_meta.gpu.kernel_count;
    return kernel >= first && kernel < first + ABQC_COPY_KERNELS;
}

/* How wide a copy's elements are depends on sizes; it is the same node all the same. */
static int32_t kind_of(const abqc_launch *launch) {
    return is_copy(launch->kernel) ? abqc_copy_kernel(1) : launch->kernel;
}

static bool same_kinds(const abqc_launches *a, const abqc_launches *b) {
    if (a->count != b->count) return false;
    for (int32_t i = 0; i < a->count; i++)
        if (kind_of(&a->launches[i]) != kind_of(&b->launches[i])) return false;
    return true;
}

/* FNV-1a over the kinds; never 0. */
static uint64_t hash_of(const abqc_launches *launches) {
    uint64_t hash = 0xcbf29ce484222325;
    for (int32_t i = 0; i < launches->count; i++)
        hash = (hash ^ (uint32_t)kind_of(&launches->launches[i])) * 0x100000001b3;
    return hash | 1;
}

static bool same_launch(const abqc_launches *a, const abqc_launches *b, int32_t i) {
    const abqc_launch *x = &a->launches[i], *y = &b->launches[i];
    size_t bytes = (size_t)abqc_kernel_info(x->kernel)->slots * sizeof *a->args;
    return x->kernel == y->kernel && x->grid == y->grid &&
           (!bytes || memcmp(&a->args[x->first], &b->args[y->first], bytes) == 0);
}

static bool same_touches(const abqc_launches *a, const abqc_launches *b) {
    if (a->touch_count != b->touch_count) return false;
    for (int32_t i = 0; i < a->touch_count; i++) {
        const abqc_touch *x = &a->touches[i], *y = &b->touches[i];
        if (x->begin != y->begin || x->end != y->end || x->access != y->access) return false;
    }
    for (int32_t i = 0; i < a->count; i++)
        if (a->launches[i].touches != b->launches[i].touches) return false;
    return true;
}

/* Whether the graph's edges keep launches of the same kinds in their order. */
static bool keeps_order(abqc_work *work, const abqc_graph *graph, const abqc_launches *launches) {
    abqc_edges needed;
    for (int32_t i = 0; i < launches->count; i++)
        if (graph->launches.launches[i].early && !launches->launches[i].early) return false;
    if (same_touches(&graph->launches, launches)) return true;
    bool made = abqc_edges_create(&needed, launches);
    bool kept = made && abqc_edges_cover(&graph->edges, &needed);
    if (!made) failed(work, "malloc", CUDA_ERROR_OUT_OF_MEMORY);
    abqc_edges_destroy(&needed);
    return kept;
}

/* false: the graph is good for nothing any more. */
static bool set(abqc_work *work, abqc_graph *graph, const abqc_launches *launches) {
    const abqc_cuda *cuda = &work->device->cuda;
    if (!keeps_order(work, graph, launches)) return false;
    for (int32_t i = 0; i < launches->count; i++) {
        if (same_launch(&graph->launches, launches, i)) continue;
        CUDA_KERNEL_NODE_PARAMS node;
        CUresult code = node_of(work, launches, i, &node);
        if (failed(work, "cuTensorMapEncodeTiled", code)) return false;
        code = cuda->graph_set(graph->executable, graph->nodes[i], &node);
        if (failed(work, "cuGraphExecKernelNodeSetParams", code)) return false;
    }
    return abqc_launches_copy(&graph->launches, launches);
}

/* ---- the table ---- */

static bool seen_before(abqc_updatable_graphs *updatable, uint64_t hash) {
    for (int32_t i = 0; i < ABQC_SEEN; i++)
        if (updatable->seen[i] == hash) return true;
    updatable->seen[updatable->clock % ABQC_SEEN] = hash;
    return false;
}

static int32_t find(const abqc_updatable_graphs *updatable, const abqc_launches *launches) {
    for (int32_t i = 0; i < ABQC_UPDATABLE_GRAPHS; i++)
        if (updatable->graphs[i] && same_kinds(&updatable->graphs[i]->launches, launches)) return i;
    return -1;
}

static int32_t least_recently_used(const abqc_updatable_graphs *updatable) {
    int32_t oldest = 0;
    for (int32_t i = 1; i < ABQC_UPDATABLE_GRAPHS; i++)
        if (updatable->used[i] < updatable->used[oldest]) oldest = i;
    return oldest;
}

abqc_graph *abqc_updatable_graph(abqc_work *work, abqc_updatable_graphs *updatable,
                                 const abqc_launches *launches, bool *refused) {
    updatable->clock++;
    int32_t i = find(updatable, launches);
    if (i < 0 && !seen_before(updatable, hash_of(launches))) return NULL;
    bool fits = i >= 0 && set(work, updatable->graphs[i], launches);
    if (i < 0) i = least_recently_used(updatable);
    if (!fits) {
        abqc_graph_destroy(work->device, updatable->graphs[i]);
        updatable->graphs[i] = abqc_graph_create(work, launches);
    }
    updatable->used[i] = updatable->clock;
    *refused = !updatable->graphs[i];
    return updatable->graphs[i];
}

void abqc_updatable_graphs_destroy(const abqc_device *device, abqc_updatable_graphs *updatable) {
    for (int32_t i = 0; i < ABQC_UPDATABLE_GRAPHS; i++)
        abqc_graph_destroy(device, updatable->graphs[i]);
    *updatable = (abqc_updatable_graphs){0};
}
