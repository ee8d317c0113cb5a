/* The threads of a context.
 *
 * They come from OpenMP: a parallel region stays open while the context lives. Its workers wait for
 * launches; the thread that opened it, the keeper, sleeps. The thread that runs the host function is
 * the leader. A launch is cut into chunks that all take from one counter, the leader too, so a worker
 * that comes late costs nothing: others have done its share.
 *
 * A region for every run would be simpler, but a region ends when its last worker has come and gone.
 * On a machine with other work that is milliseconds after the run, although nothing waits for that
 * worker's help. Between regions libgomp also spins for milliseconds before it sleeps.
 *
 * Where workers run is left to the kernel, with one exception: a sleeping worker's affinity leaves
 * out the leader's core. In a virtual machine the kernel takes halted cores for busy ones and would
 * wake it there, behind the leader, while other cores idle. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

struct abqc_worker {
    int32_t id;      /* the kernel's */
    uintptr_t ahead; /* the first region of the hint that it follows */
    int64_t fetched; /* bytes of its share of each region */
    cpu_set_t usual; /* its affinity, as OpenMP set it */
    atomic_bool present;
};

/* libgomp's entry points, as compilers call them. */
extern void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);

enum {
    CHUNKS_PER_THREAD = 4, /* enough to even out a disturbed core */
    SPIN_NS = 40 * 1000,   /* before yielding, which on a busy machine costs a time slice */
    AWAKE_NS = 250 * 1000, /* before sleeping */
    AHEAD_BYTES = 256 << 10, /* of a worker's L2 for what the next launch reads */
    AHEAD_STEP = 512
};

static uint32_t launch_of(uint64_t work) { return (uint32_t)(work >> 32); }
static uint32_t chunks_of(uint64_t work) { return (uint32_t)work; }

int64_t abqc_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Pauses or, after a while, yields; returns how long it has been since `start`. */
static int64_t wait_a_little(int64_t start) {
    int64_t waited = abqc_now_ns() - start;
    if (waited > SPIN_NS) sched_yield();
    else for (int i = 0; i < 4; i++) __builtin_ia32_pause();
    return waited;
}

/* The half of team->work that changes with every launch (x86 is little-endian). */
static uint32_t *launch_word(abqc_team *team) { return (uint32_t *)&team->work + 1; }

static void sleep_while(uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(uint32_t *word, int32_t count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Takes the leader's core out of the workers' affinity, where that leaves one. */
static void avoid_leader(abqc_team *team) {
    int32_t leader = sched_getcpu();
    if (leader < 0 || leader >= CPU_SETSIZE || leader == team->avoided) return;
    bool all = true;
    for (int32_t i = 1; i < team->threads; i++) {
        const abqc_worker *worker = &team->workers[i];
        bool present = atomic_load_explicit(&worker->present, memory_order_acquire);
        all &= present;
        if (!present) continue;
        cpu_set_t others = worker->usual;
        CPU_CLR((size_t)leader, &others);
        if (CPU_COUNT(&others) > 0) sched_setaffinity(worker->id, sizeof others, &others);
    }
    if (all) team->avoided = leader;
}

static void wake_sleepers(abqc_team *team, int32_t count) {
    if (atomic_load(&team->sleepers) == 0) return;
    avoid_leader(team);
    wake(launch_word(team), count);
}

/* Prefetches the next step of what the worker is likely to be given of a launch to come; false where
 * there is no more. Chunks are taken in order, so each thread gets about one in `size`. */
static bool fetch_ahead(const abqc_team *team, abqc_worker *self) {
    int64_t index = self - team->workers, chunks = (int64_t)team->size * CHUNKS_PER_THREAD;
    bool more = false;
    for (int32_t r = 0; r < ABQC_AHEAD_REGIONS; r++) {
        uintptr_t data = atomic_load_explicit(&team->ahead[r].data, memory_order_relaxed);
        int64_t bytes = atomic_load_explicit(&team->ahead[r].bytes, memory_order_relaxed);
        if (r == 0 && data != self->ahead) {
            self->ahead = data;
            self->fetched = 0;
        }
        int64_t chunk = bytes / chunks / AHEAD_STEP * AHEAD_STEP;
        if (chunk == 0 || self->fetched >= AHEAD_BYTES / ABQC_AHEAD_REGIONS) continue;
        int64_t turn = self->fetched / chunk, rest = self->fetched % chunk;
        if (turn == CHUNKS_PER_THREAD) continue;
        const char *at = (const char *)data + (index + turn * team->size) * (bytes / chunks) + rest;
        for (int64_t i = 0; i < AHEAD_STEP; i += ABQC_CACHE_LINE) __builtin_prefetch(at + i, 0, 2);
        more = true;
    }
    self->fetched += AHEAD_STEP;
    return more;
}

/* Spins, then yields, then sleeps until the launch after `seen` is there. */
static void await_launch(abqc_team *team, abqc_worker *self, uint32_t seen) {
    int64_t start = abqc_now_ns();
    bool ahead = true;
    do {
        for (int i = 0; ahead && i < 4; i++) ahead = fetch_ahead(team, self);
        if (launch_of(atomic_load_explicit(&team->work, memory_order_relaxed)) != seen) return;
    } while (wait_a_little(start) < AWAKE_NS);
    atomic_fetch_add(&team->sleepers, 1);
    while (launch_of(atomic_load(&team->work)) == seen) sleep_while(launch_word(team), seen);
    atomic_fetch_sub(&team->sleepers, 1);
}

static void await_count(_Atomic int32_t *counter, int32_t value) {
    if (atomic_load_explicit(counter, memory_order_acquire) >= value) return;
    int64_t start = abqc_now_ns();
    while (atomic_load_explicit(counter, memory_order_acquire) < value) wait_a_little(start);
}

/* Indices of the grids of all parts, one behind the other. */
static void run_indices(const abqc_part *part, int64_t begin, int64_t end) {
    for (;; part++) {
        if (begin < part->grid)
            part->kernel(begin, end < part->grid ? end : part->grid, part->args);
        if (end <= part->grid) return;
        begin = begin < part->grid ? 0 : begin - part->grid;
        end -= part->grid;
    }
}

/* Takes chunks until none is left. Compare-and-swap on launch number and remaining chunks together:
 * success means that the chunk belongs to the launch that was read. */
static void take_chunks(abqc_team *team) {
    int32_t finished = 0;
    uint64_t work = atomic_load_explicit(&team->work, memory_order_acquire);
    while (chunks_of(work)) {
        if (!atomic_compare_exchange_weak_explicit(&team->work, &work, work - 1,
                                                   memory_order_acquire, memory_order_acquire))
            continue;
        int64_t chunk = team->chunks - (int64_t)chunks_of(work);
        int64_t base = team->grid / team->chunks, more = team->grid % team->chunks;
        int64_t begin = chunk * base + (chunk < more ? chunk : more);
        run_indices(team->parts, begin, begin + base + (chunk < more));
        finished++;
        work = atomic_load_explicit(&team->work, memory_order_acquire);
    }
    if (finished) atomic_fetch_add_explicit(&team->done, finished, memory_order_release);
}

static void publish(abqc_team *team, uint32_t chunks) {
    uint64_t work = atomic_load_explicit(&team->work, memory_order_relaxed);
    atomic_store(&team->work, (uint64_t)(launch_of(work) + 1) << 32 | chunks);
}

void abqc_team_launch_parts(abqc_team *team, int32_t count, const abqc_part *parts) {
    int64_t grid = 0;
    for (int32_t i = 0; i < count; i++) grid += parts[i].grid;
    if (grid <= 0) return;
    if (team->size == 1 || grid == 1) {
        run_indices(parts, 0, grid);
        return;
    }
    int32_t most = team->size * CHUNKS_PER_THREAD;
    int32_t chunks = grid < most ? (int32_t)grid : most;
    team->parts = parts;
    team->grid = grid;
    team->chunks = chunks;
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    publish(team, (uint32_t)chunks);
    wake_sleepers(team, chunks < team->size ? chunks - 1 : team->size - 1);
    take_chunks(team);
    await_count(&team->done, chunks);
}

void abqc_team_launch(abqc_team *team, abqc_kernel kernel, int64_t grid, const uint64_t *args) {
    abqc_team_launch_parts(team, 1, &(abqc_part){kernel, grid, args});
}

static void follow(abqc_team *team, abqc_worker *self) {
    uint32_t seen = 0;
    self->id = (int32_t)syscall(SYS_gettid);
    if (sched_getaffinity(0, sizeof self->usual, &self->usual) == 0)
        atomic_store_explicit(&self->present, true, memory_order_release);
    for (;;) {
        take_chunks(team);
        if (atomic_load(&team->closed)) return;
        await_launch(team, self, seen);
        seen = launch_of(atomic_load(&team->work));
    }
}

static void region(void *data) {
    abqc_team *team = data;
    int thread = omp_get_thread_num();
    if (thread > 0) follow(team, &team->workers[thread]);
    else
        while (!atomic_load(&team->closed)) sleep_while((uint32_t *)&team->closed, 0);
}

static void *keeper(void *data) {
    abqc_team *team = data;
    GOMP_parallel(region, team, (unsigned)team->threads, 0);
    return NULL;
}

/* Signals are for the host's own threads: OpenMP's inherit the keeper's mask. */
static bool start_keeper(abqc_team *team) {
    sigset_t all, usual;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &usual);
    bool started = pthread_create(&team->keeper, NULL, keeper, team) == 0;
    pthread_sigmask(SIG_SETMASK, &usual, NULL);
    return started;
}

void abqc_team_close(abqc_team *team) {
    /* After a fork the child has the team's memory but not its threads. */
    if (team->workers && team->process == getpid()) {
        atomic_store(&team->closed, 1);
        publish(team, 0);
        wake(launch_word(team), INT32_MAX);
        wake((uint32_t *)&team->closed, 1);
        pthread_join(team->keeper, NULL);
    }
    free(team->workers);
    *team = (abqc_team){.size = 1};
}

bool abqc_team_begin(abqc_team *team, int32_t threads) {
    team->size = threads;
    if (threads == 1) return true;
    if (team->threads == threads && team->process == getpid()) return true;
    abqc_team_close(team);
    *team = (abqc_team){.size = threads, .threads = threads, .process = getpid(), .avoided = -1};
    team->workers = calloc((size_t)threads, sizeof *team->workers);
    if (team->workers && start_keeper(team)) return true;
    free(team->workers);
    *team = (abqc_team){.size = 1};
    return false;
}
