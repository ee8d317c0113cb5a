/* The CPU as a device: what an instance chose, and what a run works with. */
#ifndef ABQC_CPU_H
#define ABQC_CPU_H

#include "shim.h"

enum { ABQC_MAX_PARTS = 8 };

struct abqc_device {
    const abqc_isa *isa;
    int32_t threads;
};

struct abqc_work {
    abqc_team team;
    abqc_arena arena;
    const abqc_kernel *kernels;
    int32_t waiting; /* parts of the next launch that are known already */
    abqc_part parts[ABQC_MAX_PARTS];
    _Atomic uint32_t error_flag; /* of this run: the smallest number of a kernel's failed check */
};

/* Weights of this library in huge pages, once for all instances; those that do not fill one stay. */
int32_t abqc_use_huge_pages(void); /* huge_pages.c */

#endif /* ABQC_CPU_H */
