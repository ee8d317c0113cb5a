/* The threads of a context.
 *
 * They come from OpenMP: a parallel region stays open while the context lives. Its workers wait for
 * launches; the thread that opened it, the keeper, sleeps. The thread that runs the host function is
 * the leader. A launch is cut into chunks, and each thread has a share of them that lie side by side,
 * which it takes in order: what it reads of memory is one stream, as the CPU's prefetchers like it (a
 * decoder's step takes 0.92 of what it takes where all threads take from one counter, in w4a8). Who has
 * done its share goes on with the ends of the others', so a worker that comes late costs nothing.
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
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

struct abqc_worker {
    /* Chunks of this launch that nobody has taken: low half the first one, high half the end. */
    _Alignas(ABQC_CACHE_LINE) _Atomic uint64_t share;
    int32_t id;      /* the kernel's */
    cpu_set_t usual; /* its affinity, as OpenMP set it */
    atomic_bool present;
};

/* libgomp's entry points, as compilers call them. */
extern void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);

enum {
    CHUNKS_PER_THREAD = 4, /* enough to even out a disturbed core */
    SPIN_NS = 40 * 1000,   /* before yielding, which on a busy machine costs a time slice */
    AWAKE_NS = 250 * 1000  /* before sleeping */
};

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
    wake((uint32_t *)&team->launch, count);
}

/* Spins, then yields, then sleeps until the launch after `seen` is there. */
static void await_launch(abqc_team *team, uint32_t seen) {
    int64_t start = abqc_now_ns();
    do {
        if (atomic_load_explicit(&team->launch, memory_order_relaxed) != seen) return;
    } while (wait_a_little(start) < AWAKE_NS);
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->launch) == seen) sleep_while((uint32_t *)&team->launch, seen);
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

/* One chunk of a share: the first one of one's own, the last one of another's; -1: none is left.
 * What was read may be of a launch that has ended meanwhile; if the share of the next one is the same,
 * so is the chunk that is taken of it. */
static int32_t take(_Atomic uint64_t *share, bool own) {
    uint64_t left = atomic_load_explicit(share, memory_order_acquire);
    for (;;) {
        uint32_t first = (uint32_t)left, end = (uint32_t)(left >> 32);
        if (first >= end) return -1;
        uint64_t less = own ? left + 1 : left - ((uint64_t)1 << 32);
        if (atomic_compare_exchange_weak_explicit(share, &left, less, memory_order_acquire,
                                                  memory_order_acquire))
            return (int32_t)(own ? first : end - 1);
    }
}

/* Those of `count` things that come before the share of `i`, one of `sharers`. Larger shares stand
 * between smaller ones: those of a thread's chunks add up to as much as another's. */
static int64_t before(int64_t i, int64_t count, int64_t sharers) {
    int64_t each = count / sharers, more = count % sharers;
    return i * each + (i * more + sharers - 1) / sharers;
}

/* Takes chunks until none is left. */
static void take_chunks(abqc_team *team, int32_t self) {
    int32_t finished = 0;
    for (int32_t i = 0; i < team->threads; i++) {
        int32_t chunk, whose = self + i < team->threads ? self + i : self + i - team->threads;
        while ((chunk = take(&team->workers[whose].share, i == 0)) >= 0) {
            run_indices(team->parts, before(chunk, team->grid, team->chunks),
                        before(chunk + 1, team->grid, team->chunks));
            finished++;
        }
    }
    if (finished) atomic_fetch_add_explicit(&team->done, finished, memory_order_release);
}

static void share_out(abqc_team *team) {
    for (int32_t i = 0; i < team->threads; i++) {
        uint64_t first = (uint64_t)before(i, team->chunks, team->threads);
        uint64_t end = (uint64_t)before(i + 1, team->chunks, team->threads);
        atomic_store_explicit(&team->workers[i].share, end << 32 | first, memory_order_release);
    }
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
    share_out(team);
    atomic_fetch_add(&team->launch, 1);
    wake_sleepers(team, chunks < team->size ? chunks - 1 : team->size - 1);
    take_chunks(team, 0);
    await_count(&team->done, chunks);
}

void abqc_team_launch(abqc_team *team, abqc_kernel kernel, int64_t grid, const uint64_t *args) {
    abqc_team_launch_parts(team, 1, &(abqc_part){kernel, grid, args});
}

static void follow(abqc_team *team, int32_t number) {
    uint32_t seen = 0;
    abqc_worker *self = &team->workers[number];
    self->id = (int32_t)syscall(SYS_gettid);
    if (sched_getaffinity(0, sizeof self->usual, &self->usual) == 0)
        atomic_store_explicit(&self->present, true, memory_order_release);
    for (;;) {
        take_chunks(team, number);
        if (atomic_load(&team->closed)) return;
        await_launch(team, seen);
        seen = atomic_load(&team->launch);
    }
}

static void region(void *data) {
    abqc_team *team = data;
    int thread = omp_get_thread_num();
    if (thread > 0) follow(team, thread);
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
        atomic_fetch_add(&team->launch, 1);
        wake((uint32_t *)&team->launch, INT32_MAX);
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
    size_t bytes = (size_t)threads * sizeof *team->workers;
    team->workers = aligned_alloc(_Alignof(abqc_worker), bytes);
    if (team->workers) memset(team->workers, 0, bytes);
    if (team->workers && start_keeper(team)) return true;
    free(team->workers);
    *team = (abqc_team){.size = 1};
    return false;
}
