/* What this CPU can execute, and how many cores the process may use. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

enum {
    LEAF1_OSXSAVE = 1 << 27,
    XCR0_TILE_DATA = 1 << 18,
    /* arch_prctl: let this process use a part of the state (Linux 5.16, asm/prctl.h) */
    REQUEST_STATE_PERMISSION = 0x1023,
    STATE_TILE_DATA = 18
};

static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* The words of codegen/cpuid.py; 0 for those of leaves that the CPU does not have. */
static void read_words(uint32_t words[ABQC_CPU_WORDS]) {
    uint32_t eax, ebx, ecx, edx;
    memset(words, 0, ABQC_CPU_WORDS * sizeof *words);
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    words[0] = ecx;
    if (ecx & LEAF1_OSXSAVE) words[6] = saved_state();
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        words[1] = ebx, words[2] = ecx, words[3] = edx;
        uint32_t last_subleaf = eax;
        if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) words[4] = eax;
    }
    if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) words[5] = ecx;
}

bool abqc_cpu_has(const abqc_isa *isa) {
    uint32_t words[ABQC_CPU_WORDS];
    read_words(words);
    for (int i = 0; i < ABQC_CPU_WORDS; i++)
        if ((words[i] & isa->needs[i]) != isa->needs[i]) return false;
    /* Tiles are state that the system grants a process when it asks; a sandbox may refuse. */
    bool tiles = isa->needs[6] & XCR0_TILE_DATA;
    return !tiles || syscall(SYS_arch_prctl, REQUEST_STATE_PERMISSION, STATE_TILE_DATA) == 0;
}

/* Cores that a container's quota leaves, rounded up; INT32_MAX without one. */
static int32_t quota_cores(void) {
    long long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return INT32_MAX;
    int fields = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    if (fields != 2 || quota <= 0 || period <= 0) return INT32_MAX;
    return (int32_t)((quota + period - 1) / period);
}

/* Is a logical processor the first of its core's that is in the set? Kernels that fill the vector
 * units gain nothing from a second thread on a core. */
static bool stands_for_core(int cpu, const cpu_set_t *set) {
    char path[80];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "re");
    if (!file) return true;
    if (fscanf(file, "%d", &first) != 1 || first < 0 || first >= CPU_SETSIZE) first = cpu;
    fclose(file);
    return first == cpu || !CPU_ISSET((size_t)first, set);
}

static int32_t affinity_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        return online > 0 ? (int32_t)online : 1;
    }
    int32_t cores = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((size_t)cpu, &set) && stands_for_core(cpu, &set)) cores++;
    return cores;
}

int32_t abqc_usable_cores(void) {
    int32_t affinity = affinity_cores(), quota = quota_cores();
    return quota < affinity ? quota : affinity;
}
