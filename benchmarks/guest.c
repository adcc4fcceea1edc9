// SPDX-License-Identifier: GPL-2.0-or-later
//
// A process whose memory looks like a guest's to KSM. What happens to it is told on stdin.
//
// usage: guest [WORD...] ID COMMON% ZERO% VOLATILE% REWRITES_PER_S
//   the first words are only seen by those who read command lines
//
//   grow MIB            as much more memory, filled with the four kinds of pages
//   update PERCENT      that part of each area, common pages first, gets new content, common again
//   reboot              all is written anew: the same kinds and common pages at other places
//   sparse TIB PAGES    a mapping of that size with that many pages in it, each one unique
//   press PERCENT       take memory until MemAvailable is that part of MemTotal, then keep it;
//                       again with another PERCENT: take more
//   release             give it back
//
// Common pages are equal in all guests, no two pages of one guest are. Volatile pages (the last of
// the unique ones) are rewritten one after another, for ever. It ends when stdin is closed.
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_AREAS = 16, TICK_MS = 20 };

struct area {
    char *memory;
    uint64_t pages, common, zero, volatiles;
    uint32_t *place; // kinds are dealt by index; this is where in memory each index lies
};

struct hog {
    char *memory;
    uint64_t bytes, taken, target, step;
    int is_taking;
};

static struct area areas[MAX_AREAS];
static struct hog hog;
static uint64_t area_count, id, images, boots, random_state;
static uint64_t common_pct, zero_pct, volatile_pct, rewrites_per_s;
static size_t page_bytes;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

// splitmix64
static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void fill(char *page, uint64_t seed)
{
    uint64_t *words = (uint64_t *)page, state = seed;
    for (size_t i = 0; i < page_bytes / sizeof *words; i++)
        words[i] = draw(&state);
}

static char *map(uint64_t bytes, int flags)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (memory == MAP_FAILED)
        die("guest: mmap");
    return memory;
}

static char *map_mergeable(uint64_t bytes, int flags)
{
    char *memory = map(bytes, flags);
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    if (madvise(memory, bytes, MADV_MERGEABLE))
        die("guest: madvise(MADV_MERGEABLE)");
    return memory;
}

static char *page_at(const struct area *area, uint64_t index)
{
    return area->memory + area->place[index] * page_bytes;
}

static void shuffle(struct area *area, uint64_t seed)
{
    for (uint64_t i = 0; i < area->pages; i++)
        area->place[i] = i;
    for (uint64_t i = area->pages - 1; i > 0; i--) {
        uint64_t j = draw(&seed) % (i + 1);
        uint32_t other = area->place[i];
        area->place[i] = area->place[j];
        area->place[j] = other;
    }
}

static void write_common(const struct area *area, uint64_t first, uint64_t end)
{
    uint64_t number = area - areas;
    for (uint64_t i = first; i < end; i++)
        fill(page_at(area, i), 1ull << 63 | images << 48 | number << 40 | i);
}

static void write_all(const struct area *area)
{
    uint64_t number = area - areas, i = area->common;
    write_common(area, 0, i);
    for (; i < area->common + area->zero; i++)
        memset(page_at(area, i), 0, page_bytes);
    for (; i < area->pages; i++)
        fill(page_at(area, i), id << 48 | boots << 44 | number << 40 | i);
}

static void grow(uint64_t mib)
{
    struct area *area = &areas[area_count];
    uint64_t pages = mib * (1 << 20) / page_bytes;
    if (area_count == MAX_AREAS || !pages)
        die("guest: grow");
    area_count++;
    *area = (struct area){
        .memory = map_mergeable(pages * page_bytes, 0),
        .pages = pages,
        .common = pages * common_pct / 100,
        .zero = pages * zero_pct / 100,
        .volatiles = pages * volatile_pct / 100,
        .place = malloc(pages * sizeof *area->place),
    };
    if (!area->place)
        die("guest: malloc");
    shuffle(area, 42);
    write_all(area);
}

static void update(uint64_t percent)
{
    images++;
    for (uint64_t i = 0; i < area_count; i++)
        write_common(&areas[i], 0, areas[i].pages * percent / 100);
}

static void reboot_in_place(void)
{
    boots++;
    for (uint64_t i = 0; i < area_count; i++) {
        shuffle(&areas[i], id << 32 | boots);
        write_all(&areas[i]);
    }
}

static void map_sparse(uint64_t tib, uint64_t pages)
{
    uint64_t bytes = tib << 40, stride = bytes / pages / page_bytes * page_bytes;
    char *memory = map_mergeable(bytes, MAP_NORESERVE);
    for (uint64_t i = 0; i < pages; i++)
        fill(memory + i * stride, id << 48 | 15ull << 44 | i);
}

// Bytes in one line of the kernel's /proc/meminfo.
static uint64_t meminfo(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128], name[64];
    unsigned long long kib = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%63[^:]: %llu", name, &kib) == 2 && !strcmp(name, key))
            break;
    if (!file || feof(file))
        die("guest: /proc/meminfo");
    fclose(file);
    return kib * 1024;
}

static void press(uint64_t percent)
{
    uint64_t total = meminfo("MemTotal"), least = 1ull << 30;
    if (!hog.memory)
        hog = (struct hog){.bytes = total, .memory = map(total, MAP_NORESERVE)};
    hog.is_taking = 1;
    hog.target = total * percent / 100 > least ? total * percent / 100 : least;
    hog.step = total / 256 / page_bytes * page_bytes;
}

// Once it has what it wants it takes no more, so that what KSM saves then is a relief. It gives
// back where others need the memory: this must not become an OOM kill.
static void press_on(void)
{
    uint64_t available = meminfo("MemAvailable");
    if (hog.taken >= hog.step && available < hog.target / 3 * 2) {
        hog.is_taking = 0;
        hog.taken -= hog.step;
        madvise(hog.memory + hog.taken, hog.step, MADV_DONTNEED);
    } else if (hog.is_taking && available >= hog.target + hog.step &&
               hog.taken + hog.step <= hog.bytes) {
        for (uint64_t end = hog.taken + hog.step; hog.taken < end; hog.taken += page_bytes)
            hog.memory[hog.taken] = 1;
    } else {
        hog.is_taking = 0;
    }
}

static void release(void)
{
    munmap(hog.memory, hog.bytes);
    hog.memory = NULL;
}

static void obey(const char *line)
{
    unsigned long long a = 0, b = 0;
    if (sscanf(line, "grow %llu", &a) == 1)
        grow(a);
    else if (sscanf(line, "update %llu", &a) == 1)
        update(a);
    else if (!strcmp(line, "reboot\n"))
        reboot_in_place();
    else if (sscanf(line, "sparse %llu %llu", &a, &b) == 2 && b)
        map_sparse(a, b);
    else if (sscanf(line, "press %llu", &a) == 1)
        press(a);
    else if (!strcmp(line, "release\n") && hog.memory)
        release();
    else {
        fprintf(stderr, "guest: what is %s", line);
        exit(2);
    }
}

static void rewrite_some(uint64_t count)
{
    static uint64_t next;
    uint64_t all = 0;
    for (uint64_t i = 0; i < area_count; i++)
        all += areas[i].volatiles;
    for (; all && count; count--) {
        uint64_t index = next++ % all;
        const struct area *area = areas;
        for (; index >= area->volatiles; area++)
            index -= area->volatiles;
        fill(page_at(area, area->pages - 1 - index), draw(&random_state));
    }
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void live(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char line[128];
    double since = now_s();
    for (;;) {
        if (poll(&input, 1, rewrites_per_s || hog.memory ? TICK_MS : -1) > 0) {
            if (!fgets(line, sizeof line, stdin))
                return;
            obey(line);
        }
        uint64_t due = (now_s() - since) * rewrites_per_s;
        if (due) {
            since = now_s();
            rewrite_some(due < rewrites_per_s ? due : rewrites_per_s);
        }
        if (hog.memory)
            press_on();
    }
}

int main(int count, char **words)
{
    if (count < 6)
        return 2;
    char **numbers = words + count - 5;
    id = strtoull(numbers[0], NULL, 10) & 0x7fff;
    common_pct = strtoull(numbers[1], NULL, 10);
    zero_pct = strtoull(numbers[2], NULL, 10);
    volatile_pct = strtoull(numbers[3], NULL, 10);
    rewrites_per_s = strtoull(numbers[4], NULL, 10);
    if (common_pct + zero_pct + volatile_pct > 100)
        return 2;
    page_bytes = sysconf(_SC_PAGESIZE);
    random_state = id * 77 + 1;
    setvbuf(stdin, NULL, _IONBF, 0); // or poll() would not see a line that stdio has read
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    FILE *adjust = fopen("/proc/self/oom_score_adj", "w"); // if anybody must go, then we
    if (adjust) {
        fputs("1000", adjust);
        fclose(adjust);
    }
    live();
    return 0;
}
