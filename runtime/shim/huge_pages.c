/* The library's weights in huge pages (ABQC_INSTANCE_HUGE_PAGES).
 *
 * A run that reads all weights from memory waits for the translation of addresses as well: every
 * 4 KiB with the pages that files are mapped in. Two ways lead to pages of 2 MiB:
 *
 *     pages of the file    where the file system keeps files in folios of that size (XFS, ext4 since
 *                          Linux 6.16): shared by all processes, no more memory
 *     a copy               anonymous memory in the place of the mapping, of this process alone
 *
 * The first needs the file to be read anew, if it is in memory in smaller pieces. Whether it worked
 * is read in /proc/self/smaps, page by page of what is wanted. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu.h"

#define HUGE ((uintptr_t)2 << 20)
#define SWITCH "/sys/kernel/mm/transparent_hugepage/enabled"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000 /* Linux 4.17 */
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

typedef struct { /* of whole huge pages */
    uintptr_t begin, end;
    off_t offset; /* of `begin` in the file */
    char path[4096];
} region;

/* ---- where the weights are ---- */

/* The largest read-only segment of the library that has abqc_meta. */
static int find_segment(struct dl_phdr_info *library, size_t size, void *data) {
    (void)size;
    region *found = data;
    bool ours = false;
    uintptr_t begin = 0, end = 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &library->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD) continue;
        uintptr_t from = library->dlpi_addr + segment->p_vaddr, to = from + segment->p_memsz;
        ours |= (uintptr_t)&abqc_meta >= from && (uintptr_t)&abqc_meta < to;
        if (segment->p_flags != PF_R || to - from <= end - begin) continue;
        begin = from, end = to;
    }
    if (!ours) return 0;
    found->begin = (begin + HUGE - 1) / HUGE * HUGE;
    found->end = end / HUGE * HUGE;
    return 1;
}

/* ---- what the system says ---- */

static bool switched_off(void) {
    char text[64] = "";
    FILE *file = fopen(SWITCH, "re");
    if (!file) return true;
    bool read = fgets(text, sizeof text, file) != NULL;
    fclose(file);
    return !read || strstr(text, "[never]");
}

/* Bytes of the region that are in huge pages; what is mapped there, and where it is in its file. */
static uintptr_t huge_bytes(region *wanted) {
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) return 0;
    char line[sizeof wanted->path + 128];
    bool inside = false;
    uintptr_t bytes = 0;
    while (fgets(line, sizeof line, file)) {
        uintptr_t begin, end, offset, kilobytes;
        int at = 0;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %" SCNxPTR " %*s %*s %n", &begin, &end,
                   &offset, &at) == 3) {
            inside = begin < wanted->end && end > wanted->begin;
            if (!inside || begin > wanted->begin) continue;
            wanted->offset = (off_t)(offset + (wanted->begin - begin));
            line[strcspn(line, "\n")] = '\0';
            snprintf(wanted->path, sizeof wanted->path, "%s", line + at);
        } else if (inside && (sscanf(line, "AnonHugePages: %" SCNuPTR, &kilobytes) == 1 ||
                              sscanf(line, "FilePmdMapped: %" SCNuPTR, &kilobytes) == 1)) {
            bytes += kilobytes << 10;
        }
    }
    fclose(file);
    return bytes;
}

/* ---- pages of the file ---- */

/* Maps all pages, of whatever size they are. */
static void touch(uintptr_t begin, uintptr_t end) {
    if (madvise((void *)begin, end - begin, MADV_POPULATE_READ) == 0) return;
    for (uintptr_t at = begin; at < end; at += 4096) (void)*(volatile const char *)at;
}

/* Drops a part of the file from memory, where no other process has it mapped, and reads it again. */
static void read_anew(int file, const region *all, uintptr_t begin, uintptr_t end) {
    off_t offset = all->offset + (off_t)(begin - all->begin);
    posix_fadvise(file, offset, (off_t)(end - begin), POSIX_FADV_DONTNEED);
    touch(begin, end);
}

/* Nearly all: where memory is in pieces, a page here and there stays small. */
static bool are_huge(region *wanted) {
    uintptr_t bytes = wanted->end - wanted->begin;
    return huge_bytes(wanted) >= bytes - bytes / 8;
}

/* The first page, read alone, says whether the file system does it at all. */
static bool in_pages_of_the_file(region *wanted) {
    uintptr_t begin = wanted->begin, end = wanted->end;
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    touch(begin, end);
    if (are_huge(wanted)) return true;
    int file = open(wanted->path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    madvise((void *)begin, end - begin, MADV_DONTNEED); /* unmaps it; nobody can have written */
    read_anew(file, wanted, begin, begin + HUGE);
    if (huge_bytes(wanted)) read_anew(file, wanted, begin + HUGE, end);
    close(file);
    return are_huge(wanted);
}

/* ---- a copy ---- */

/* Puts a copy where nothing is mapped any more: an mremap that fails late has unmapped its target. */
static void fill_hole(uintptr_t begin, const char *from, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    char *memory = mmap((void *)begin, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) return; /* the weights are there still */
    if (memory == (char *)begin) {
        memcpy(memory, from, bytes);
        mprotect(memory, bytes, PROT_READ);
    } else { /* before Linux 4.17, where something is mapped */
        munmap(memory, bytes);
    }
}

/* Other threads may read the weights meanwhile: the mapping changes in one system call. */
static int32_t copy(region *wanted) {
    size_t bytes = wanted->end - wanted->begin;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *memory = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        return abqc_error(ABQC_E_MEMORY, "no %zu bytes for weights in huge pages", bytes);
    char *place = (char *)(((uintptr_t)memory + HUGE - 1) / HUGE * HUGE);
    size_t before = (size_t)(place - memory);
    if (before) munmap(memory, before);
    if (before < HUGE) munmap(place + bytes, HUGE - before);
    void *moved = MAP_FAILED;
    if (madvise(place, bytes, MADV_HUGEPAGE) == 0) {
        memcpy(place, (const void *)wanted->begin, bytes);
        mprotect(place, bytes, PROT_READ);
        moved = mremap(place, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)wanted->begin);
    }
    if (moved != MAP_FAILED) return ABQC_OK;
    int why = errno;
    fill_hole(wanted->begin, place, bytes);
    munmap(place, bytes);
    return abqc_error(ABQC_E_MEMORY, "cannot put weights into huge pages: %s", strerror(why));
}

static int32_t use(void) {
    region wanted = {.begin = 0};
    dl_iterate_phdr(find_segment, &wanted);
    if (wanted.begin >= wanted.end) return ABQC_OK; /* less than one */
    if (switched_off())
        return abqc_error(ABQC_E_MEMORY, "the system has no huge pages: %s says so", SWITCH);
    if (in_pages_of_the_file(&wanted)) return ABQC_OK;
    int32_t status = copy(&wanted);
    if (!status && !huge_bytes(&wanted))
        status = abqc_error(ABQC_E_MEMORY, "the system gave no huge pages for %zu bytes of weights",
                            (size_t)(wanted.end - wanted.begin));
    return status;
}

int32_t abqc_use_huge_pages(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool done;
    pthread_mutex_lock(&lock);
    int32_t status = done ? ABQC_OK : use();
    done = !status;
    pthread_mutex_unlock(&lock);
    return status;
}
