/* What this CPU can execute, and how many cores the process may use. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "shim.h"

/* Bits of leaf 1 ECX, leaf 7 EBX, leaf 7 ECX, leaf 0x80000001 ECX and XCR0, by Intel's manual
 * (volume 2, CPUID). The sets are those of codegen/isa.py. */
enum {
    LEAF1_FMA = 1 << 12,
    LEAF1_POPCNT = 1 << 23,
    LEAF1_OSXSAVE = 1 << 27,
    LEAF1_F16C = 1 << 29,
    LEAF7_BMI1 = 1 << 3,
    LEAF7_AVX2 = 1 << 5,
    LEAF7_BMI2 = 1 << 8,
    LEAF7_AVX512F = 1 << 16,
    LEAF7_AVX512DQ = 1 << 17,
    LEAF7_AVX512CD = 1 << 28,
    LEAF7_AVX512BW = 1 << 30,
    LEAF7C_AVX512VBMI = 1 << 1,
    LEAF7C_AVX512VBMI2 = 1 << 6,
    LEAF7C_AVX512VNNI = 1 << 11,
    LEAF7C_AVX512BITALG = 1 << 12,
    LEAF7C_AVX512VPOPCNTDQ = 1 << 14,
    EXTENDED_LZCNT = 1 << 5,
    XCR0_AVX = 0x06,   /* SSE and AVX state */
    XCR0_AVX512 = 0xe6 /* and opmask, upper halves, upper registers */
};
#define LEAF7_AVX512VL (1u << 31)

const char *abqc_isa_name(abqc_isa isa) {
    static const char *const names[ABQC_ISA_COUNT] = {"avx512", "avx2", "plain"};
    return names[isa];
}

static bool all_set(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_avx2(uint32_t *leaf7_ebx, uint32_t *leaf7_ecx, uint32_t *xcr0) {
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
    if (!all_set(ecx, LEAF1_OSXSAVE | LEAF1_FMA | LEAF1_F16C | LEAF1_POPCNT)) return false;
    *xcr0 = saved_state();
    if (!all_set(*xcr0, XCR0_AVX)) return false;
    if (!__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx)) return false;
    if (!all_set(ecx, EXTENDED_LZCNT)) return false;
    if (!__get_cpuid_count(7, 0, &eax, leaf7_ebx, leaf7_ecx, &edx)) return false;
    return all_set(*leaf7_ebx, LEAF7_AVX2 | LEAF7_BMI1 | LEAF7_BMI2);
}

bool abqc_cpu_has(abqc_isa isa) {
    uint32_t ebx, ecx, xcr0;
    if (isa == ABQC_ISA_PLAIN) return true;
    if (!has_avx2(&ebx, &ecx, &xcr0)) return false;
    if (isa == ABQC_ISA_AVX2) return true;
    return all_set(xcr0, XCR0_AVX512) &&
           all_set(ebx, LEAF7_AVX512F | LEAF7_AVX512DQ | LEAF7_AVX512CD | LEAF7_AVX512BW |
                            LEAF7_AVX512VL) &&
           all_set(ecx, LEAF7C_AVX512VBMI | LEAF7C_AVX512VBMI2 | LEAF7C_AVX512VNNI |
                            LEAF7C_AVX512BITALG | LEAF7C_AVX512VPOPCNTDQ);
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
