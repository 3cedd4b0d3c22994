// What every test program shares: checks that say what did not hold, children that are waited for, and the verdict.
//
// A program is a list of tests: TEST(name) { CHECK(...); } and a main that calls t_main. It prints one line for each
// check that fails, `FAIL program.test: why`, and ends with `N passed, N failed`, counting tests. Each test runs in a
// child of its own with an alarm, so a crash or a hang is that test's failure and the rest still run.
//
// Everything here is plain Linux: the same binaries run there, and there they must pass. What only Berth has is asked
// for with on_berth().
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct test {
    const char *name;
    void (*run)(void);
    int seconds; // limit, 0: the common one
};

static const char *t_program, *t_name;
static int t_failed;
#define T_LIMIT 60
#define PAGE 4096ul

// Report a failed check: where, and what was seen.
__attribute__((format(printf, 2, 3))) static inline void t_report(const char *where, const char *fmt, ...) {
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    t_failed++;
    dprintf(1, "FAIL %s.%s: %s%s\n", t_program, t_name, where, line);
}
#define t_fail(...) t_report("", __VA_ARGS__)

#define T_STR2(x) #x
#define T_STR(x) T_STR2(x)

// Assert that a condition holds; more arguments say what was seen, printf-like.
#define CHECK(cond, ...)                                                                                     \
    do {                                                                                                     \
        if (!(cond)) t_report("line " T_STR(__LINE__) ": " #cond, " " __VA_ARGS__);                           \
    } while (0)

// Assert that a call returns -1 with this errno.
#define CHECK_ERR(call, want)                                                                                \
    do {                                                                                                     \
        errno = 0;                                                                                           \
        long r_ = (long)(call);                                                                              \
        int e_ = errno;                                                                                      \
        if (r_ != -1 || e_ != (want))                                                                        \
            t_report("line " T_STR(__LINE__) ": " #call, " gave %ld, errno %d (%s), not %s", r_, e_, strerror(e_), #want); \
    } while (0)

// Assert that a call does not return -1; gives its result.
#define MUST(call)                                                                                           \
    ({                                                                                                       \
        errno = 0;                                                                                           \
        long r_ = (long)(call);                                                                              \
        if (r_ == -1) {                                                                                      \
            t_report("line " T_STR(__LINE__) ": " #call, " failed: %s", strerror(errno));                    \
            exit(1);                                                                                         \
        }                                                                                                    \
        r_;                                                                                                  \
    })

static inline bool on_berth(void) { return access("/proc/berth", F_OK) == 0; }

static inline uint64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static inline void nap_ms(int ms) {
    struct timespec ts = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&ts, &ts) == -1 && errno == EINTR) {}
}

// Run f in a child and give its wait status.
static inline int in_child(void (*f)(void *), void *arg) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == -1) {
        t_fail("fork: %s", strerror(errno));
        return -1;
    }
    if (pid == 0) {
        t_failed = 0;
        f(arg);
        _exit(t_failed != 0);
    }
    int status = -1;
    while (waitpid(pid, &status, 0) == -1 && errno == EINTR) {}
    return status;
}

static inline bool died_of(int status, int sig) { return WIFSIGNALED(status) && WTERMSIG(status) == sig; }
static inline bool exited_with(int status, int code) { return WIFEXITED(status) && WEXITSTATUS(status) == code; }

// A whole small file as a string (static buffer); empty if it cannot be read.
static inline char *slurp(const char *path) {
    static char text[65536];
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    text[0] = 0;
    if (fd == -1) return text;
    ssize_t r;
    while (n < sizeof text - 1 && (r = read(fd, text + n, sizeof text - 1 - n)) > 0) n += r;
    close(fd);
    text[n] = 0;
    return text;
}

// The number behind a word at the start of a line of a file, -1 if it is not there.
static inline long number_in(const char *path, const char *word) {
    size_t n = strlen(word);
    for (char *line = slurp(path); line && *line;) {
        if (!strncmp(line, word, n) && strchr(" \t:", line[n])) return strtol(line + n + strspn(line + n, " \t:"), NULL, 10);
        line = strchr(line, '\n');
        if (line) line++;
    }
    return -1;
}

// One of Berth's counters summed over all CPUs, -1 where there is none.
static inline long berth_counter(const char *name) {
    size_t n = strlen(name);
    for (char *line = slurp("/proc/berth/counters"); line && *line;) {
        char *end = strchr(line, '\n');
        if (!strncmp(line, name, n) && (line[n] == ' ' || line[n] == '\t')) {
            long sum = 0;
            if (end) *end = 0;
            for (char *p = line + n; *p;) {
                char *q;
                long v = strtol(p, &q, 10);
                if (q == p) break;
                sum += v;
                p = q;
            }
            return sum;
        }
        line = end ? end + 1 : NULL;
    }
    return -1;
}

static inline int t_main(int argc, char **argv, const struct test *tests, int count) {
    int passed = 0, failed = 0, most = 0;
    t_program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (argc > 1 && !strncmp(argv[1], "-t", 2)) { // -tN: no test gets more than N seconds (for those that must fail)
        most = atoi(argv[1] + 2);
        argv++, argc--;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < count; i++) {
        bool chosen = argc < 2;
        for (int a = 1; a < argc; a++) chosen |= !strcmp(argv[a], tests[i].name);
        if (!chosen) continue;
        t_name = tests[i].name;
        int limit = tests[i].seconds ? tests[i].seconds : T_LIMIT;
        if (most && most < limit) limit = most;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            t_failed = 0;
            setpgid(0, 0);
            alarm(limit);
            tests[i].run();
            exit(t_failed != 0);
        }
        if (pid == -1) {
            t_fail("fork: %s", strerror(errno));
            failed++;
            continue;
        }
        int status = -1;
        while (waitpid(pid, &status, 0) == -1 && errno == EINTR) {}
        kill(-pid, SIGKILL); // what it left behind
        if (exited_with(status, 0)) {
            passed++;
        } else {
            failed++;
            if (died_of(status, SIGALRM)) t_fail("not done within %d s", limit);
            else if (WIFSIGNALED(status)) t_fail("died of signal %d", WTERMSIG(status));
            else if (!exited_with(status, 1)) t_fail("ended with status 0x%x", status);
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}

#define TEST(name) static void test_##name(void)
#define T(name) {#name, test_##name, 0}
#define T_FOR(name, seconds) {#name, test_##name, seconds}
#define MAIN(...)                                                                                            \
    int main(int argc, char **argv) {                                                                        \
        static const struct test tests[] = {__VA_ARGS__};                                                    \
        return t_main(argc, argv, tests, sizeof tests / sizeof *tests);                                      \
    }
