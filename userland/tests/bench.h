// What the programs of `make bench` share: clocks, rounds, and rows. A row prints `name value unit`.
//
// Every row finds its own number of rounds: it raises them until a batch lasts long enough to measure, then takes the
// best of many short batches, since disturbance only ever adds, and a short batch has a chance to escape it on a busy
// host. In all, a row lasts a fraction of a second.
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int cpus;

static uint64_t now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}
static void die(const char *what) {
    fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
    _exit(1);
}
static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0) for (int i = 0; i < cpus; i++) CPU_SET(i, &set);
    else CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

#define BATCH_NS 2000000ull
#define BATCHES 100

// ns for one round of f(n), which does n rounds.
static double per_round(void (*f)(long n), long most) {
    long n = 1;
    uint64_t t = 0;
    f(1); // warm
    for (;;) {
        uint64_t t0 = now();
        f(n);
        t = now() - t0;
        if (t >= BATCH_NS || n >= most) break;
        n = t ? (long)(n * (1.2 * BATCH_NS / t) + 1) : n * 16;
        if (n > most) n = most;
    }
    double best = (double)t / n;
    for (int i = 1; i < BATCHES; i++) {
        uint64_t t0 = now();
        f(n);
        double each = (double)(now() - t0) / n;
        if (each < best) best = each;
    }
    return best;
}

static int argc_;
static char **argv_;
static bool wanted(const char *name) {
    bool any = false;
    for (int i = 1; i < argc_; i++) any |= strstr(name, argv_[i]) != NULL;
    return argc_ < 2 || any;
}
#define ROW(name, unit, expr)                                                                                \
    do {                                                                                                     \
        if (wanted(name)) {                                                                                  \
            double v_ = (expr);                                                                              \
            printf("%s %.1f %s\n", name, v_, unit);                                                          \
            fflush(stdout);                                                                                  \
        }                                                                                                    \
    } while (0)
