// Futexes and threads: what musl and a busy program ask of them.
#include "t.h"
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>

static long fx(volatile int *a, int op, long v, const void *t, volatile int *b, int v3) { return syscall(SYS_futex, a, op, v, t, b, v3); }

TEST(values_and_errors) {
    static volatile int a = 5, b;
    struct timespec ts = {0, 20000000}, bad = {0, 1000000000};
    CHECK_ERR(fx(&a, FUTEX_WAIT, 4, NULL, NULL, 0), EAGAIN);
    CHECK_ERR(fx(&a, FUTEX_WAIT, 5, &ts, NULL, 0), ETIMEDOUT);
    CHECK_ERR(fx(&a, FUTEX_WAIT, 5, &bad, NULL, 0), EINVAL);
    CHECK_ERR(fx((void *)((char *)&a + 1), FUTEX_WAIT, 5, &ts, NULL, 0), EINVAL);
    CHECK_ERR(fx(&a, FUTEX_WAIT_BITSET, 5, &ts, NULL, 0), EINVAL); // no bits
    CHECK(fx(&a, FUTEX_WAKE, 1, NULL, NULL, 0) == 0);
    CHECK_ERR(fx(&a, FUTEX_CMP_REQUEUE, 1, (void *)1, &b, 6), EAGAIN);
    struct timespec past = {0, 0};
    CHECK_ERR(fx(&a, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 5, &past, NULL, -1), ETIMEDOUT);
    CHECK(a == 5);
}

static volatile int gate, woken;
static void *sleeper(void *arg) {
    long bits = (long)arg;
    while (!gate) fx(&gate, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0, NULL, NULL, bits ? bits : -1);
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}
TEST(wake_counts) {
    pthread_t t[16];
    for (int i = 0; i < 16; i++) pthread_create(&t[i], NULL, sleeper, NULL);
    nap_ms(300);
    gate = 1;
    int sum = 0;
    for (int i = 0; i < 50 && sum < 16; i++) {
        int n = fx(&gate, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 5, NULL, NULL, 0);
        CHECK(n >= 0 && n <= 5, "woke %d of at most 5", n);
        sum += n;
        if (!n) break;
    }
    CHECK(sum == 16, "woke %d of 16", sum);
    for (int i = 0; i < 16; i++) pthread_join(t[i], NULL);
    CHECK(woken == 16);
}

TEST(bitsets) {
    pthread_t t[4];
    for (long i = 0; i < 4; i++) pthread_create(&t[i], NULL, sleeper, (void *)(1l << i));
    nap_ms(300);
    gate = 1;
    CHECK(fx(&gate, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 10, NULL, NULL, 5) == 2);
    CHECK(fx(&gate, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 10, NULL, NULL, 2) == 1);
    CHECK(fx(&gate, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 10, NULL, NULL, 0) == 1);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

static volatile int other;
TEST(requeue) {
    pthread_t t[8];
    for (int i = 0; i < 8; i++) pthread_create(&t[i], NULL, sleeper, NULL);
    nap_ms(300);
    long r = fx(&gate, FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG, 1, (void *)100, &other, 0);
    CHECK(r == 8, "%ld woken and moved", r);
    nap_ms(50);
    // The one that was woken found the gate shut and waits again.
    gate = 1;
    CHECK(fx(&gate, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 100, NULL, NULL, 0) == 1);
    CHECK(fx(&other, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 100, NULL, NULL, 0) == 7);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
}

TEST(shared_between_processes) {
    volatile int *s = (int *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    char name[64];
    snprintf(name, sizeof name, "/tmp/futex.%d", getpid());
    int fd = MUST(open(name, O_RDWR | O_CREAT, 0600));
    MUST(ftruncate(fd, PAGE));
    volatile int *f1 = (int *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    volatile int *f2 = (int *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    pid_t pid = MUST(fork());
    if (!pid) {
        while (!*s) fx(s, FUTEX_WAIT, 0, NULL, NULL, 0);
        while (!*f1) fx(f1, FUTEX_WAIT, 0, NULL, NULL, 0);
        _exit(0);
    }
    nap_ms(200);
    *s = 1;
    CHECK(fx(s, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
    nap_ms(200);
    *f2 = 1; // the same word at another address
    CHECK(fx(f2, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
    unlink(name);
}

static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static int queue, produced, consumed;
static void *producer(void *arg) {
    for (int i = 0; i < 3000; i++) {
        pthread_mutex_lock(&m);
        queue++;
        produced++;
        pthread_cond_signal(&cv);
        pthread_mutex_unlock(&m);
    }
    return NULL;
}
static void *consumer(void *arg) {
    for (;;) {
        pthread_mutex_lock(&m);
        while (!queue && consumed < 9000) pthread_cond_wait(&cv, &m);
        if (consumed >= 9000) {
            pthread_cond_broadcast(&cv);
            pthread_mutex_unlock(&m);
            return NULL;
        }
        queue--;
        if (++consumed >= 9000) pthread_cond_broadcast(&cv);
        pthread_mutex_unlock(&m);
    }
}
TEST(condition_variables) {
    pthread_t t[6];
    for (int i = 0; i < 6; i++) pthread_create(&t[i], NULL, i < 3 ? producer : consumer, NULL);
    for (int i = 0; i < 6; i++) pthread_join(t[i], NULL);
    CHECK(produced == 9000 && consumed == 9000 && queue == 0, "%d %d %d", produced, consumed, queue);
}

static __thread int mine;
static void *own_tls(void *arg) {
    for (int i = 0; i < 100; i++) {
        if (mine != i) return (void *)1;
        mine++;
        if (i % 10 == 0) sched_yield();
    }
    return NULL;
}
TEST(many_threads) {
    enum { N = 200 };
    static pthread_t t[N];
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 65536);
    for (int i = 0; i < N; i++) CHECK(pthread_create(&t[i], &a, own_tls, NULL) == 0, "thread %d", i);
    for (int i = 0; i < N; i++) {
        void *r;
        CHECK(pthread_join(t[i], &r) == 0 && !r);
    }
    // A joined thread has let go of its memory; that it has left the process altogether is a moment later.
    long left = 0;
    for (int i = 0; i < 2000 && (left = number_in("/proc/self/status", "Threads")) != 1; i++) nap_ms(5);
    CHECK(left == 1, "%ld threads left", left);
}

static void *forever(void *arg) {
    for (;;) pause();
    return NULL;
}
static void ends_with_threads(void *arg) {
    pthread_t t;
    for (int i = 0; i < 8; i++) pthread_create(&t, NULL, forever, NULL);
    if (arg) _exit(9);
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGKILL);
}
static void *exits(void *arg) { _exit(11); }
static void exit_from_thread(void *arg) {
    pthread_t t;
    pthread_create(&t, NULL, exits, NULL);
    for (;;) pause();
}
static void *execs(void *arg) {
    execl("/usr/lib/berth-tests/nop", "nop", (char *)NULL);
    _exit(1);
}
static void exec_from_thread(void *arg) {
    pthread_t t;
    pthread_create(&t, NULL, forever, NULL);
    pthread_create(&t, NULL, execs, NULL);
    for (;;) pause();
}
static void leader_leaves_first(void *arg) {
    pthread_t t;
    pthread_create(&t, NULL, exits, NULL);
    syscall(SYS_exit, 3); // only this thread: the process ends with the other's status
}
TEST(process_ends) {
    CHECK(exited_with(in_child(ends_with_threads, "x"), 9));
    CHECK(died_of(in_child(ends_with_threads, NULL), SIGKILL));
    CHECK(exited_with(in_child(exit_from_thread, NULL), 11));
    CHECK(exited_with(in_child(exec_from_thread, NULL), 0));
    int s = in_child(leader_leaves_first, NULL);
    CHECK(exited_with(s, 11) || exited_with(s, 3), "status %x", s);
}

static pthread_mutex_t robust;
static void *dies_holding(void *arg) {
    pthread_mutex_lock(&robust);
    return NULL;
}
TEST(robust_mutex) {
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &a);
    pthread_t t;
    pthread_create(&t, NULL, dies_holding, NULL);
    pthread_join(t, NULL);
    CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD);
    CHECK(pthread_mutex_consistent(&robust) == 0 && pthread_mutex_unlock(&robust) == 0);
}

static sem_t sem;
static void *posts(void *arg) {
    nap_ms(50);
    sem_post(&sem);
    return NULL;
}
static void *blocks_in_read(void *arg) {
    char c;
    int *p = arg;
    return (void *)read(p[0], &c, 1);
}
TEST(semaphores_and_cancel) {
    pthread_t t;
    sem_init(&sem, 0, 0);
    pthread_create(&t, NULL, posts, NULL);
    CHECK(sem_wait(&sem) == 0);
    pthread_join(t, NULL);
    int p[2];
    MUST(pipe(p));
    void *r;
    pthread_create(&t, NULL, blocks_in_read, p);
    nap_ms(100);
    pthread_cancel(t);
    CHECK(pthread_join(t, &r) == 0 && r == PTHREAD_CANCELED);
}

MAIN(T(values_and_errors), T(wake_counts), T(bitsets), T(requeue), T(shared_between_processes), T(condition_variables), T(many_threads),
     T(process_ends), T(robust_mutex), T(semaphores_and_cancel))
