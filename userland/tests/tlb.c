// s3: what one CPU changes in an address space holds on every other when the call returns. A thread on one CPU maps and
// fills a page, one on a second keeps writing to it (so that CPU has the translation), one on a third takes the page, its
// permission or its place away; from then on the second must not reach it. With fewer CPUs the threads share them.
#include "t.h"
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>

static int ncpu(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return CPU_COUNT(&set);
}
static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu % ncpu(), &set);
    MUST(sched_setaffinity(0, sizeof set, &set));
}

// Steps of a round, one number that only grows: whose turn it is. The writer spins, so that its CPU keeps what it has
// translated; the others sleep, so that three turns need no three CPUs of the host.
static _Atomic int turn;
static void await(int t) {
    for (int i = 0; turn < t; i++)
        if (i % 1024 == 1023) sched_yield();
}
static void await_asleep(int t) {
    int now;
    while ((now = turn) < t) syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, NULL);
}
static void pass(void) {
    turn++;
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 3);
}

enum { MAPPED, REACHED, CHANGED, LOOKED, STEPS };
static int step(long round, int s) { return round * STEPS + s; }

static __thread sigjmp_buf away;
static __thread volatile int caught;
static void fault(int sig, siginfo_t *info, void *context) {
    caught = info->si_code;
    siglongjmp(away, 1);
}
static void catch_faults(void) {
    struct sigaction sa = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &sa, NULL);
}
// Whether a byte can be written: 0, or the code of the fault.
static int try_write(volatile char *p, char value) {
    caught = 0;
    if (sigsetjmp(away, 0) == 0) *p = value;
    return caught;
}
static int try_read(volatile char *p, char *value) {
    caught = 0;
    if (sigsetjmp(away, 0) == 0) *value = *p;
    return caught;
}

struct job {
    long rounds;
    int pages;
    void (*change)(volatile char *p, size_t n); // on the third CPU
    void (*look)(volatile char *p, size_t n);   // on the second: what must be seen
};
static volatile char *_Atomic page;

static void *changer(void *arg) {
    struct job *j = arg;
    pin(2);
    for (long r = 0; r < j->rounds && !t_failed; r++) {
        await_asleep(step(r, CHANGED));
        j->change(page, j->pages * PAGE);
        pass();
    }
    return NULL;
}
static void *writer(void *arg) {
    struct job *j = arg;
    pin(1);
    for (long r = 0; r < j->rounds && !t_failed; r++) {
        await(step(r, REACHED));
        for (int i = 0; i < j->pages; i++) CHECK(page[i * PAGE] == (char)r && !try_write(page + i * PAGE, 'w'), "round %ld", r);
        pass();
        await(step(r, LOOKED));
        j->look(page, j->pages * PAGE);
        if (t_failed) printf("in round %ld\n", r);
        pass();
    }
    return NULL;
}
static void run(struct job j) {
    pthread_t w, c;
    catch_faults();
    turn = 0;
    MUST(-pthread_create(&w, NULL, writer, &j));
    MUST(-pthread_create(&c, NULL, changer, &j));
    pin(0);
    size_t n = j.pages * PAGE;
    for (long r = 0; r < j.rounds && !t_failed; r++) {
        await_asleep(step(r, MAPPED));
        volatile char *p = (void *)MUST(mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        for (int i = 0; i < j.pages; i++) p[i * PAGE] = (char)r;
        page = p;
        pass();
        await_asleep(step(r + 1, MAPPED));
        munmap((void *)p, n);
    }
    if (t_failed) _exit(1); // the others wait for turns that do not come
    pthread_join(w, NULL);
    pthread_join(c, NULL);
}

static void unmap(volatile char *p, size_t n) { MUST(munmap((void *)p, n)); }
static void gone(volatile char *p, size_t n) {
    char c;
    for (size_t i = 0; i < n; i += PAGE) {
        CHECK(try_write(p + i, 'x') == SEGV_MAPERR, "a write reached a page that was unmapped (%d)", caught);
        CHECK(try_read(p + i, &c) == SEGV_MAPERR, "a read reached a page that was unmapped (%d)", caught);
    }
}
TEST(unmapped_everywhere) { run((struct job){10000, 1, unmap, gone}); }
TEST(many_pages_unmapped) { run((struct job){100, 300, unmap, gone}); }

static void read_only(volatile char *p, size_t n) { MUST(mprotect((void *)p, n, PROT_READ)); }
static void not_writable(volatile char *p, size_t n) {
    for (size_t i = 0; i < n; i += PAGE) {
        CHECK(try_write(p + i, 'x') == SEGV_ACCERR, "a write reached a page that was made read-only (%d)", caught);
        CHECK(p[i] == 'w', "%d", p[i]);
    }
}
TEST(protected_everywhere) { run((struct job){3000, 1, read_only, not_writable}); }
TEST(many_pages_protected) { run((struct job){100, 300, read_only, not_writable}); }

static void no_access(volatile char *p, size_t n) { MUST(mprotect((void *)p, n, PROT_NONE)); }
static void not_readable(volatile char *p, size_t n) {
    char c;
    for (size_t i = 0; i < n; i += PAGE) CHECK(try_read(p + i, &c) == SEGV_ACCERR, "a read reached a page without access (%d)", caught);
}
TEST(no_access_anywhere) { run((struct job){1000, 2, no_access, not_readable}); }

static void forget(volatile char *p, size_t n) { MUST(madvise((void *)p, n, MADV_DONTNEED)); }
static void zero(volatile char *p, size_t n) {
    for (size_t i = 0; i < n; i += PAGE) CHECK(p[i] == 0, "old contents after MADV_DONTNEED: %d", p[i]);
}
TEST(dropped_everywhere) { run((struct job){2000, 1, forget, zero}); }

static void replace(volatile char *p, size_t n) {
    MUST(mmap((void *)p, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    p[0] = 'n';
}
static void replaced(volatile char *p, size_t n) { CHECK(p[0] == 'n', "the old page behind a new mapping: %d", p[0]); }
TEST(replaced_everywhere) { run((struct job){2000, 1, replace, replaced}); }

// While one thread writes without rest another forks: the child's memory must stand still from the fork on.
static volatile long counter;
static _Atomic int stop;
static void *counts(void *arg) {
    pin((int)(long)arg);
    while (!stop) counter++;
    return NULL;
}
TEST(fork_is_a_snapshot) {
    pthread_t t;
    MUST(-pthread_create(&t, NULL, counts, (void *)1));
    pin(0);
    for (int i = 0; i < 500 && !t_failed; i++) {
        pid_t pid = MUST(fork());
        if (!pid) {
            long before = counter;
            for (int k = 0; k < 3; k++) sched_yield();
            for (volatile int k = 0; k < 2000; k++) {}
            _exit(counter == before ? 0 : 1);
        }
        int status;
        MUST(waitpid(pid, &status, 0));
        CHECK(exited_with(status, 0), "the parent's thread wrote into the child (round %d)", i);
    }
    stop = 1;
    pthread_join(t, NULL);
}

// All CPUs map, write, protect and unmap at the same time in one address space, and nobody meets another's page.
static void *churns(void *arg) {
    long me = (long)arg;
    pin((int)me);
    for (int r = 0; r < 1500; r++) {
        size_t n = (1 + (r * 7 + me) % 5) * PAGE;
        volatile char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return (void *)1;
        for (size_t i = 0; i < n; i += PAGE) {
            if (p[i]) return (void *)2; // a fresh page is zero
            p[i] = (char)(me + 1);
        }
        if (r % 3 == 0 && mprotect((void *)p, n, PROT_READ)) return (void *)3;
        for (size_t i = 0; i < n; i += PAGE)
            if (p[i] != (char)(me + 1)) return (void *)4;
        if (munmap((void *)p, n)) return (void *)5;
    }
    return NULL;
}
TEST(all_cpus_at_once) {
    pthread_t t[16];
    int n = ncpu() * 2;
    if (n > 16) n = 16;
    for (long i = 0; i < n; i++) MUST(-pthread_create(&t[i], NULL, churns, (void *)i));
    for (int i = 0; i < n; i++) {
        void *r;
        pthread_join(t[i], &r);
        CHECK(!r, "thread %d: %ld", i, (long)r);
    }
}

// The limits are for an emulator on a busy host, which stops all CPUs for each invalidation.
MAIN(T_FOR(unmapped_everywhere, 300), T_FOR(many_pages_unmapped, 200), T_FOR(protected_everywhere, 200), T_FOR(many_pages_protected, 200),
     T_FOR(no_access_anywhere, 200), T_FOR(dropped_everywhere, 200), T_FOR(replaced_everywhere, 200), T_FOR(fork_is_a_snapshot, 200),
     T_FOR(all_cpus_at_once, 200))
