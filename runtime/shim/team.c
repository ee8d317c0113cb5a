/* The threads of a run.
 *
 * They come from OpenMP: one parallel region spans the whole run. Its thread 0, the caller, is the
 * leader and executes the host function; the others wait for its launches. A launch is cut into
 * chunks that all threads take from one counter, the leader too, so a thread that comes late costs
 * nothing: others have done its share.
 *
 * Where workers run is left to the kernel, with one exception. In a virtual machine it takes halted
 * cores for busy ones, and wakes a worker on the leader's core while others idle. Queued behind
 * the leader the worker starts milliseconds late; and after the region libgomp lets it spin there,
 * which keeps the leader from running. So the leader yields once to workers that are not there yet,
 * and a worker that finds itself on the leader's core, or goes to sleep, takes that core out of its
 * affinity until it leaves the region. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

/* libgomp's entry points, as compilers call them. */
extern void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

enum {
    CHUNKS_PER_THREAD = 4, /* enough to even out a disturbed core */
    SPINS = 200,           /* pauses before yielding: a few microseconds */
    AWAKE_NS = 200 * 1000  /* yielding before sleeping: some wake-ups */
};

typedef struct {
    abqc_team *team;
    void (*lead)(void *);
    void *context;
} region_data;

/* A worker's affinity, while it is narrowed. */
typedef struct {
    bool narrowed;
    cpu_set_t usual;
} placement;

static void avoid_leader(const abqc_team *team, placement *place) {
    int32_t leader = atomic_load_explicit(&team->leader_cpu, memory_order_relaxed);
    if (place->narrowed || leader < 0 || leader >= CPU_SETSIZE) return;
    if (sched_getaffinity(0, sizeof place->usual, &place->usual) != 0) return;
    cpu_set_t others = place->usual;
    CPU_CLR((size_t)leader, &others);
    if (CPU_COUNT(&others) > 0)
        place->narrowed = sched_setaffinity(0, sizeof others, &others) == 0;
}

static void restore_affinity(const placement *place) {
    if (place->narrowed) sched_setaffinity(0, sizeof place->usual, &place->usual);
}

static uint32_t launch_of(uint64_t work) { return (uint32_t)(work >> 32); }
static uint32_t chunks_of(uint64_t work) { return (uint32_t)work; }
static void pause_cpu(void) { __builtin_ia32_pause(); }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The half of team->work that changes with every launch (x86 is little-endian). */
static uint32_t *launch_word(abqc_team *team) { return (uint32_t *)&team->work + 1; }

static void sleep_until_launch(abqc_team *team, uint32_t seen) {
    atomic_fetch_add(&team->sleepers, 1);
    if (launch_of(atomic_load(&team->work)) == seen)
        syscall(SYS_futex, launch_word(team), FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleepers, 1);
}

static void wake_sleepers(abqc_team *team, int32_t count) {
    if (atomic_load(&team->sleepers) > 0)
        syscall(SYS_futex, launch_word(team), FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Spins, then yields, then sleeps until the launch after `seen` is there. */
static void await_launch(abqc_team *team, uint32_t seen, placement *place) {
    for (int i = 0; i < SPINS; i++) {
        if (launch_of(atomic_load_explicit(&team->work, memory_order_relaxed)) != seen) return;
        pause_cpu();
    }
    int64_t deadline = now_ns() + AWAKE_NS;
    while (now_ns() < deadline) {
        sched_yield();
        if (launch_of(atomic_load_explicit(&team->work, memory_order_relaxed)) != seen) return;
    }
    avoid_leader(team, place);
    while (launch_of(atomic_load(&team->work)) == seen) sleep_until_launch(team, seen);
}

static void await_count(_Atomic int32_t *counter, int32_t value) {
    for (int i = 0; atomic_load_explicit(counter, memory_order_acquire) < value; i++)
        i < SPINS ? pause_cpu() : (void)sched_yield();
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
        team->kernel(begin, begin + base + (chunk < more), team->args);
        finished++;
        work = atomic_load_explicit(&team->work, memory_order_acquire);
    }
    if (finished) atomic_fetch_add_explicit(&team->done, finished, memory_order_release);
}

static void publish(abqc_team *team, uint32_t chunks) {
    uint64_t work = atomic_load_explicit(&team->work, memory_order_relaxed);
    atomic_store(&team->work, (uint64_t)(launch_of(work) + 1) << 32 | chunks);
}

void abqc_team_launch(abqc_team *team, abqc_kernel kernel, int64_t grid, const uint64_t *args) {
    if (grid <= 0) return;
    if (team->size == 1 || grid == 1) {
        kernel(0, grid, args);
        return;
    }
    int32_t most = team->size * CHUNKS_PER_THREAD;
    int32_t chunks = grid < most ? (int32_t)grid : most;
    team->kernel = kernel;
    team->args = args;
    team->grid = grid;
    team->chunks = chunks;
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    publish(team, (uint32_t)chunks);
    wake_sleepers(team, chunks < team->size ? chunks - 1 : team->size - 1);
    take_chunks(team);
    await_count(&team->done, chunks);
}

static void follow(abqc_team *team) {
    uint32_t seen = 0;
    placement place = {.narrowed = false};
    if (sched_getcpu() == team->leader_cpu) avoid_leader(team, &place);
    atomic_fetch_add_explicit(&team->entered, 1, memory_order_release);
    for (;;) {
        take_chunks(team);
        if (atomic_load(&team->closed)) break;
        await_launch(team, seen, &place);
        seen = launch_of(atomic_load(&team->work));
    }
    restore_affinity(&place);
    atomic_fetch_add_explicit(&team->left, 1, memory_order_release);
}

/* Lets workers in that wait for the leader's core. Costs next to nothing where none does. */
static void admit(abqc_team *team) {
    for (int i = 0; i < SPINS / 4; i++) {
        if (atomic_load_explicit(&team->entered, memory_order_acquire) == team->size - 1) return;
        pause_cpu();
    }
    sched_yield();
}

static void close_team(abqc_team *team) {
    atomic_store(&team->closed, true);
    publish(team, 0);
    wake_sleepers(team, team->size - 1);
    await_count(&team->left, team->size - 1);
}

static void region(void *data) {
    region_data *r = data;
    if (omp_get_thread_num() != 0) {
        follow(r->team);
        return;
    }
    r->team->size = omp_get_num_threads();
    admit(r->team);
    r->lead(r->context);
    close_team(r->team);
}

void abqc_team_run(abqc_team *team, int32_t threads, void (*lead)(void *), void *context) {
    *team = (abqc_team){.size = 1, .leader_cpu = sched_getcpu()};
    if (threads == 1) {
        lead(context);
        return;
    }
    region_data data = {team, lead, context};
    GOMP_parallel(region, &data, (unsigned)threads, 0);
}
