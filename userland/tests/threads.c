// Threads as a C library makes them: mutexes of every kind, condition variables, barriers, read-write locks, keys and
// thread-local memory, cancellation, detached threads, hundreds at once, and the ends of processes with threads.
#include "t.h"
#include <pthread.h>
#include <semaphore.h>
#include <sys/resource.h>

static void *shared(size_t n) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

// ---- mutexes --------------------------------------------------------------------------------------------------------
struct locked {
    pthread_mutex_t m;
    long n;
    int rounds;
};
static void *count(void *arg) {
    struct locked *l = arg;
    for (int i = 0; i < l->rounds; i++) {
        pthread_mutex_lock(&l->m);
        l->n++;
        pthread_mutex_unlock(&l->m);
    }
    return NULL;
}
static void contend(struct locked *l, int kind, int protocol, int robust) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, kind);
    CHECK(pthread_mutexattr_setprotocol(&a, protocol) == 0, "protocol %d", protocol);
    if (robust) pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    CHECK(pthread_mutex_init(&l->m, &a) == 0);
    l->n = 0;
    l->rounds = 3000;
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, count, l);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    CHECK(l->n == 12000, "kind %d protocol %d robust %d: %ld", kind, protocol, robust, l->n);
    pthread_mutex_destroy(&l->m);
}
TEST(mutex_kinds) {
    static struct locked l;
    int kinds[] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK};
    for (int k = 0; k < 3; k++)
        for (int robust = 0; robust < 2; robust++) contend(&l, kinds[k], PTHREAD_PRIO_NONE, robust);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&l.m, &a);
    pthread_mutex_lock(&l.m);
    CHECK(pthread_mutex_lock(&l.m) == EDEADLK);
    pthread_mutex_unlock(&l.m);
    CHECK(pthread_mutex_unlock(&l.m) == EPERM);
    struct timespec past = {1, 0};
    pthread_mutex_lock(&l.m);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_NORMAL);
    pthread_mutex_t other;
    pthread_mutex_init(&other, &a);
    pthread_mutex_lock(&other);
    CHECK(pthread_mutex_timedlock(&other, &past) == ETIMEDOUT);
}

// A mutex in shared memory whose owner is killed: the next one is told, and only the kernel can tell.
static void killed_owner(int protocol) {
    struct { pthread_mutex_t m; volatile int held; } *s = shared(PAGE);
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setprotocol(&a, protocol);
    CHECK(pthread_mutex_init(&s->m, &a) == 0);
    for (int waiting = 0; waiting < 2; waiting++) {
        s->held = 0;
        pid_t pid = fork();
        if (pid == 0) {
            if (pthread_mutex_lock(&s->m)) _exit(1);
            s->held = 1;
            for (;;) pause();
        }
        while (!s->held) nap_ms(1);
        pid_t killer = fork(); // once before the lock is asked for, once (most likely) while we sleep on it
        if (killer == 0) {
            if (waiting) nap_ms(100);
            kill(pid, SIGKILL);
            _exit(0);
        }
        if (!waiting) waitpid(pid, NULL, 0);
        CHECK(pthread_mutex_lock(&s->m) == EOWNERDEAD);
        CHECK(pthread_mutex_consistent(&s->m) == 0 && pthread_mutex_unlock(&s->m) == 0);
        CHECK(pthread_mutex_lock(&s->m) == 0 && pthread_mutex_unlock(&s->m) == 0);
        while (wait(NULL) > 0) {}
    }
}
TEST(robust_between_processes) { killed_owner(PTHREAD_PRIO_NONE); }

// ---- priority inheritance ------------------------------------------------------------------------------------------
enum { LOCK_PI = 6, UNLOCK_PI = 7, TRYLOCK_PI = 8, WAIT_REQUEUE_PI = 11, CMP_REQUEUE_PI = 12, LOCK_PI2 = 13 };
static long futex(volatile uint32_t *at, int op, uint32_t val, const void *timeout, volatile uint32_t *at2, uint32_t val3) {
    return syscall(SYS_futex, at, op, val, timeout, at2, val3);
}
static volatile uint32_t word, word2, word3;
static volatile pid_t waiter_tid;
static pid_t self_tid(void) { return syscall(SYS_gettid); }
static void *locks_word(void *arg) {
    waiter_tid = self_tid();
    if (arg) {
        struct sched_param p = {.sched_priority = (int)(long)arg};
        if (syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &p)) return (void *)2;
    }
    long r = futex(&word, LOCK_PI, 0, NULL, NULL, 0);
    if (r || (word & 0x3fffffff) != (uint32_t)self_tid()) return (void *)1;
    return (void *)futex(&word, UNLOCK_PI, 0, NULL, NULL, 0);
}
// The policy's priority as /proc shows it: what a thread runs with, which its own settings do not show.
static long shown_priority(pid_t tid) {
    char path[64], *s;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    s = strrchr(slurp(path), ')');
    long v = 0;
    for (int field = 2; s && field < 18; field++) s = strchr(s + 1, ' ');
    if (s) v = strtol(s, NULL, 10);
    return v;
}
static int sleeps(pid_t tid) {
    char path[64], *s;
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    s = strrchr(slurp(path), ')');
    return s && s[2] == 'S';
}
TEST(pi_words) {
    uint32_t me = self_tid();
    CHECK(futex(&word, LOCK_PI, 0, NULL, NULL, 0) == 0 && word == me);
    CHECK_ERR(futex(&word, LOCK_PI, 0, NULL, NULL, 0), EDEADLK);
    CHECK_ERR(futex(&word, TRYLOCK_PI, 0, NULL, NULL, 0), EDEADLK);
    CHECK(futex(&word, UNLOCK_PI, 0, NULL, NULL, 0) == 0 && word == 0);
    CHECK_ERR(futex(&word, UNLOCK_PI, 0, NULL, NULL, 0), EPERM);
    word = 0x3ffffff0; // nobody's number
    CHECK_ERR(futex(&word, LOCK_PI, 0, NULL, NULL, 0), ESRCH);
    word = 0x40000000; // the owner died
    CHECK(futex(&word, TRYLOCK_PI, 0, NULL, NULL, 0) == 0 && word == (me | 0x40000000));
    word = me;
    pthread_t t;
    void *r;
    waiter_tid = 0;
    pthread_create(&t, NULL, locks_word, NULL);
    while (!waiter_tid || !sleeps(waiter_tid)) nap_ms(1);
    CHECK(word == (me | 0x80000000));
    CHECK(futex(&word, UNLOCK_PI, 0, NULL, NULL, 0) == 0);
    CHECK(pthread_join(t, &r) == 0 && !r && word == 0, "%lx %x", (long)r, word);
    // A limit, by the wall clock (LOCK_PI) and by either (LOCK_PI2).
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) pause();
    }
    struct timespec past = {1, 0}, soon;
    word = pid;
    CHECK_ERR(futex(&word, LOCK_PI, 0, &past, NULL, 0), ETIMEDOUT);
    clock_gettime(CLOCK_MONOTONIC, &soon);
    soon.tv_sec += 1;
    CHECK_ERR(futex(&word, LOCK_PI2, 0, &past, NULL, 0), ETIMEDOUT);
    CHECK_ERR(futex(&word, LOCK_PI2, 0, &soon, NULL, 0), ETIMEDOUT);
    CHECK_ERR(futex(&word, TRYLOCK_PI, 0, NULL, NULL, 0), EAGAIN);
    CHECK_ERR(futex((void *)((long)&word + 1), LOCK_PI, 0, NULL, NULL, 0), EINVAL);
    CHECK_ERR(futex((void *)16, LOCK_PI, 0, NULL, NULL, 0), EFAULT);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}
TEST(pi_inherits) {
    if (geteuid()) return;
    uint32_t me = self_tid();
    pthread_t t[3];
    void *r;
    CHECK(shown_priority(me) == 20, "%ld", shown_priority(me));
    word = me;
    for (long i = 0; i < 3; i++) { // priorities 10, 30, 20
        waiter_tid = 0;
        pthread_create(&t[i], NULL, locks_word, (void *)(i == 0 ? 10l : i == 1 ? 30l : 20l));
        while (!waiter_tid || !sleeps(waiter_tid)) nap_ms(1);
    }
    CHECK(shown_priority(me) == -31, "%ld", shown_priority(me));
    CHECK(syscall(SYS_sched_getscheduler, 0) == SCHED_OTHER);
    CHECK(futex(&word, UNLOCK_PI, 0, NULL, NULL, 0) == 0);
    CHECK(shown_priority(me) == 20, "%ld", shown_priority(me));
    for (int i = 0; i < 3; i++) CHECK(pthread_join(t[i], &r) == 0 && !r, "%ld", (long)r);
    CHECK(word == 0);
}
static void *requeues(void *arg) {
    waiter_tid = self_tid();
    long r = futex(&word2, WAIT_REQUEUE_PI, 0, NULL, &word3, 0);
    if (r || (word3 & 0x3fffffff) != (uint32_t)self_tid()) return (void *)1;
    return (void *)futex(&word3, UNLOCK_PI, 0, NULL, NULL, 0);
}
TEST(pi_requeue) {
    pthread_t t[3];
    void *r;
    for (int i = 0; i < 3; i++) {
        waiter_tid = 0;
        pthread_create(&t[i], NULL, requeues, NULL);
        while (!waiter_tid || !sleeps(waiter_tid)) nap_ms(1);
    }
    CHECK_ERR(futex(&word2, CMP_REQUEUE_PI, 1, (void *)9, &word3, 5), EAGAIN);
    CHECK_ERR(futex(&word2, CMP_REQUEUE_PI, 2, (void *)9, &word3, 0), EINVAL);
    CHECK_ERR(futex(&word2, CMP_REQUEUE_PI, 1, (void *)9, &word, 0), EINVAL);
    CHECK(futex(&word2, CMP_REQUEUE_PI, 1, (void *)9, &word3, 0) == 3);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(t[i], &r) == 0 && !r, "%ld", (long)r);
    CHECK(word3 == 0, "%x", word3);
    struct timespec past = {1, 0};
    CHECK_ERR(futex(&word2, WAIT_REQUEUE_PI, 0, &past, &word3, 0), ETIMEDOUT);
    CHECK_ERR(futex(&word2, WAIT_REQUEUE_PI, 1, NULL, &word3, 0), EAGAIN);
    CHECK_ERR(futex(&word2, WAIT_REQUEUE_PI, 0, NULL, &word2, 0), EINVAL);
}
TEST(pi_mutexes) {
    static struct locked l;
    for (int k = 0; k < 2; k++) contend(&l, k ? PTHREAD_MUTEX_ERRORCHECK : PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_INHERIT, k);
    killed_owner(PTHREAD_PRIO_INHERIT);
}

// Waiting on several words at once.
struct waitv {
    uint64_t val, at;
    uint32_t flags, reserved;
};
static volatile uint32_t several[3];
static void *wakes_the_second(void *arg) {
    nap_ms(30);
    several[1] = 1;
    futex(&several[1], 1 | 128, 1, NULL, NULL, 0);
    return NULL;
}
TEST(wait_on_several) {
    struct waitv w[3];
    for (int i = 0; i < 3; i++) w[i] = (struct waitv){0, (uintptr_t)&several[i], 2 | 128, 0};
    pthread_t t;
    pthread_create(&t, NULL, wakes_the_second, NULL);
    CHECK(syscall(449, w, 3, 0, NULL, 0) == 1);
    pthread_join(t, NULL);
    CHECK_ERR(syscall(449, w, 3, 0, NULL, 0), EAGAIN);
    several[1] = 0;
    struct timespec past = {1, 0};
    CHECK_ERR(syscall(449, w, 3, 0, &past, CLOCK_MONOTONIC), ETIMEDOUT);
    CHECK_ERR(syscall(449, w, 3, 0, &past, CLOCK_REALTIME), ETIMEDOUT);
    CHECK_ERR(syscall(449, w, 3, 0, &past, 7), EINVAL);
    CHECK_ERR(syscall(449, w, 3, 1, NULL, 0), EINVAL);
    CHECK_ERR(syscall(449, w, 0, 0, NULL, 0), EINVAL);
    CHECK_ERR(syscall(449, w, 129, 0, NULL, 0), EINVAL);
    CHECK_ERR(syscall(449, 16, 3, 0, NULL, 0), EFAULT);
    w[2].flags = 3;
    CHECK_ERR(syscall(449, w, 3, 0, NULL, 0), EINVAL);
}

// ---- condition variables, barriers, read-write locks -----------------------------------------------------------------
static struct {
    pthread_mutex_t m;
    pthread_cond_t c;
    int turn, rounds;
} ring = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
static void *takes_turns(void *arg) {
    int me = (int)(long)arg;
    pthread_mutex_lock(&ring.m);
    for (int i = 0; i < 100; i++) {
        while (ring.turn != me) pthread_cond_wait(&ring.c, &ring.m);
        ring.turn = (me + 1) % 8;
        ring.rounds++;
        pthread_cond_broadcast(&ring.c);
    }
    pthread_mutex_unlock(&ring.m);
    return NULL;
}
static pthread_barrier_t barrier;
static int serial;
static void *meets(void *arg) {
    for (int i = 0; i < 100; i++)
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) __atomic_add_fetch(&serial, 1, __ATOMIC_RELAXED);
    return NULL;
}
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static long pair[2];
static void *reads_and_writes(void *arg) {
    long bad = 0;
    for (int i = 0; i < 500; i++) {
        if (i % 10 == (long)arg) {
            pthread_rwlock_wrlock(&rw);
            pair[0]++, pair[1]++;
        } else {
            pthread_rwlock_rdlock(&rw);
            bad += pair[0] != pair[1];
        }
        pthread_rwlock_unlock(&rw);
    }
    return (void *)bad;
}
TEST(meeting_points) {
    pthread_t t[8];
    void *r;
    for (long i = 0; i < 8; i++) pthread_create(&t[i], NULL, takes_turns, (void *)i);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
    CHECK(ring.rounds == 800);
    pthread_barrier_init(&barrier, NULL, 5);
    for (long i = 0; i < 5; i++) pthread_create(&t[i], NULL, meets, NULL);
    for (int i = 0; i < 5; i++) pthread_join(t[i], NULL);
    CHECK(serial == 100, "%d", serial);
    for (long i = 0; i < 8; i++) pthread_create(&t[i], NULL, reads_and_writes, (void *)i);
    for (int i = 0; i < 8; i++) CHECK(pthread_join(t[i], &r) == 0 && !r);
    CHECK(pair[0] == 400);
    // A wait with a limit ends by it, by either clock.
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    for (int clock = 0; clock < 2; clock++) {
        pthread_condattr_setclock(&a, clock ? CLOCK_MONOTONIC : CLOCK_REALTIME);
        pthread_cond_t c;
        pthread_cond_init(&c, &a);
        struct timespec until;
        clock_gettime(clock ? CLOCK_MONOTONIC : CLOCK_REALTIME, &until);
        until.tv_nsec += 20000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_mutex_lock(&ring.m);
        CHECK(pthread_cond_timedwait(&c, &ring.m, &until) == ETIMEDOUT);
        pthread_mutex_unlock(&ring.m);
    }
}

// ---- thread-local memory, keys, cancellation, detached threads ---------------------------------------------------------
static __thread long tls_zero;
static __thread long tls_set = 42;
static pthread_key_t key;
static int destroyed, cleaned;
static void destroys(void *p) { __atomic_add_fetch(&destroyed, (int)(long)p, __ATOMIC_RELAXED); }
static void cleans(void *p) { __atomic_add_fetch(&cleaned, 1, __ATOMIC_RELAXED); }
static void *has_its_own(void *arg) {
    long ok = tls_zero == 0 && tls_set == 42 && !pthread_getspecific(key);
    tls_zero = tls_set = (long)arg;
    pthread_setspecific(key, arg);
    sched_yield();
    return (void *)(long)(ok && tls_zero == (long)arg && tls_set == (long)arg && pthread_getspecific(key) == arg);
}
static void unlocks(void *m) { pthread_mutex_unlock(m); }
static void *to_be_cancelled(void *arg) {
    pthread_cleanup_push(cleans, NULL);
    if ((long)arg == 0) pause();
    if ((long)arg == 1)
        for (;;) nap_ms(1000);
    if ((long)arg == 2) {
        sem_t s;
        sem_init(&s, 0, 0);
        sem_wait(&s);
    }
    if ((long)arg == 3) {
        pthread_mutex_lock(&ring.m);
        pthread_cleanup_push(unlocks, &ring.m);
        for (;;) pthread_cond_wait(&ring.c, &ring.m);
        pthread_cleanup_pop(1);
    }
    if ((long)arg == 4) {
        int p[2];
        char c;
        pipe(p);
        read(p[0], &c, 1);
    }
    pthread_cleanup_pop(1);
    return NULL;
}
static sem_t done;
static void *says_done(void *arg) {
    sem_post(&done);
    return NULL;
}
TEST(own_memory_and_cancellation) {
    pthread_t t[5];
    void *r;
    pthread_key_create(&key, destroys);
    for (long i = 0; i < 5; i++) pthread_create(&t[i], NULL, has_its_own, (void *)(i + 1));
    for (int i = 0; i < 5; i++) CHECK(pthread_join(t[i], &r) == 0 && r == (void *)1);
    CHECK(destroyed == 15 && tls_set == 42, "%d", destroyed);
    for (long i = 0; i < 5; i++) pthread_create(&t[i], NULL, to_be_cancelled, (void *)i);
    nap_ms(50);
    for (int i = 0; i < 5; i++) pthread_cancel(t[i]);
    for (int i = 0; i < 5; i++) CHECK(pthread_join(t[i], &r) == 0 && r == PTHREAD_CANCELED, "thread %d", i);
    CHECK(cleaned == 5, "%d", cleaned);
    CHECK(pthread_mutex_lock(&ring.m) == 0 && pthread_mutex_unlock(&ring.m) == 0);
    sem_init(&done, 0, 0);
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < 50; i++) CHECK(pthread_create(&t[0], &a, says_done, NULL) == 0);
    for (int i = 0; i < 50; i++) CHECK(sem_wait(&done) == 0);
}

// ---- hundreds ---------------------------------------------------------------------------------------------------------
enum { MANY = 500 };
static volatile int arrived, go;
static void *stands(void *arg) {
    __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
    while (!go) syscall(SYS_futex, &go, 0, 0, NULL, NULL, 0);
    return (void *)(long)syscall(SYS_gettid);
}
static void *ends_all(void *arg) { _exit(77); }
static void many(void *arg) {
    static pthread_t t[MANY];
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 32768);
    int made = 0;
    while (made < MANY && pthread_create(&t[made], &a, stands, NULL) == 0) made++;
    CHECK(made == MANY, "%d threads", made);
    while (arrived < made) nap_ms(2);
    CHECK(number_in("/proc/self/status", "Threads") == made + 1);
    if (arg) { // one of them ends the process
        pthread_t last;
        pthread_create(&last, NULL, ends_all, NULL);
        for (;;) pause();
    }
    go = 1;
    syscall(SYS_futex, &go, 1, MANY, NULL, NULL, 0);
    for (int i = 0; i < made; i++) {
        void *r;
        CHECK(pthread_join(t[i], &r) == 0 && (long)r > 0);
    }
}
TEST(five_hundred) {
    CHECK(exited_with(in_child(many, NULL), 0));
    CHECK(exited_with(in_child(many, "x"), 77));
}

MAIN(T(mutex_kinds), T(robust_between_processes), T(pi_words), T(pi_inherits), T(pi_requeue),
     T(pi_mutexes), T(wait_on_several), T(meeting_points), T(own_memory_and_cancellation), T_FOR(five_hundred, 120))
