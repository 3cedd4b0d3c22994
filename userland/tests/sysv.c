// System V IPC: semaphores, messages, shared memory.
#include "t.h"
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

union semun { int val; struct semid_ds *buf; unsigned short *array; void *any; };
#define SEMCTL(id, n, cmd, x) semctl(id, n, cmd, (union semun){.any = (void *)(long)(x)})
static void nothing(int sig) {}
static void *const BAD = (void *)16;
static pid_t child_that(void (*f)(int), int arg) {
    pid_t pid = MUST(fork());
    if (!pid) {
        t_failed = 0;
        f(arg);
        _exit(t_failed != 0);
    }
    return pid;
}
static void ends_well(pid_t pid) {
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
}

static int segment;
static void attach_and_write(int unused) {
    int *p = shmat(segment, NULL, 0);
    if (p == (void *)-1) _exit(9);
    struct shmid_ds ds;
    MUST(shmctl(segment, IPC_STAT, &ds));
    CHECK(ds.shm_nattch == 3 && ds.shm_lpid == getpid(), "%lu attached", (long)ds.shm_nattch); // the parent's, which it has too, and its own
    p[1000] = 77;
}
TEST(shm_is_shared) {
    segment = MUST(shmget(IPC_PRIVATE, 10000, IPC_CREAT | 0600));
    int *p = shmat(segment, NULL, 0), *again;
    CHECK(p != (void *)-1 && p[0] == 0);
    ends_well(child_that(attach_and_write, 0));
    CHECK(p[1000] == 77);
    struct shmid_ds ds;
    MUST(shmctl(segment, IPC_STAT, &ds));
    CHECK(ds.shm_nattch == 1 && ds.shm_segsz == 10000 && ds.shm_cpid == getpid() && (ds.shm_perm.mode & 0777) == 0600, "%lu", (long)ds.shm_nattch);
    again = shmat(segment, NULL, SHM_RDONLY);
    CHECK(again != (void *)-1 && again[1000] == 77);
    CHECK_ERR(mprotect(again, 4096, PROT_READ | PROT_WRITE), EACCES);
    MUST(shmctl(segment, IPC_RMID, NULL));
    MUST(shmctl(segment, IPC_STAT, &ds));
    CHECK(ds.shm_nattch == 2 && ds.shm_perm.mode == (SHM_DEST | 0600), "%lu, mode %o", (long)ds.shm_nattch, ds.shm_perm.mode);
    MUST(shmdt(again));
    CHECK_ERR(shmdt(again), EINVAL);
    CHECK(p[1000] == 77);
    MUST(shmdt(p));
    CHECK_ERR(shmctl(segment, IPC_STAT, &ds), EINVAL);
    CHECK_ERR(shmat(segment, NULL, 0), EINVAL);
}

static long attached(void) {
    struct shmid_ds ds;
    MUST(shmctl(segment, IPC_STAT, &ds));
    return ds.shm_nattch;
}
static void waits(int fd) {
    char c;
    MUST(read(fd, &c, 1));
}
static void runs_another(int fd) { execl("/bin/sleep", "sleep", "50", NULL); }
TEST(shm_goes_with_its_last_mapping) {
    struct shmid_ds ds;
    int told[2], execs[2], status;
    char c;
    MUST(pipe(told));
    segment = MUST(shmget(IPC_PRIVATE, 3 * PAGE, 0600));
    CHECK(attached() == 0);
    char *p = shmat(segment, NULL, 0);
    CHECK(attached() == 1);
    pid_t pid = child_that(waits, told[0]);
    CHECK(attached() == 2);
    MUST(munmap(p + PAGE, PAGE));
    CHECK(attached() == 3, "%ld", attached()); // two areas here, one there
    MUST(shmdt(p));
    CHECK_ERR(shmdt(p), EINVAL);
    CHECK(attached() == 1);
    MUST(shmctl(segment, IPC_RMID, NULL));
    CHECK(attached() == 1);
    p = shmat(segment, NULL, 0); // removed, and in use still
    CHECK(attached() == 2);
    MUST(shmdt(p));
    MUST(write(told[1], "", 1));
    ends_well(pid);
    CHECK_ERR(shmctl(segment, IPC_STAT, &ds), EINVAL);

    for (int how = 0; how < 3; how++) {
        segment = MUST(shmget(IPC_PRIVATE, PAGE, 0600));
        p = shmat(segment, NULL, 0);
        *p = 1;
        MUST(pipe2(execs, O_CLOEXEC));
        pid = child_that(how == 1 ? runs_another : waits, told[0]);
        close(execs[1]);
        MUST(shmctl(segment, IPC_RMID, NULL));
        if (how == 2) kill(pid, SIGKILL), MUST(waitpid(pid, &status, 0));
        if (how == 1) CHECK(read(execs[0], &c, 1) == 0);
        CHECK(attached() == (how == 0 ? 2 : 1), "%d: %ld", how, attached());
        MUST(how == 0 ? munmap(p, PAGE) : shmdt(p));
        if (how == 0) {
            MUST(write(told[1], "", 1));
            ends_well(pid);
        }
        CHECK_ERR(shmctl(segment, IPC_STAT, &ds), EINVAL);
        if (how == 1) kill(pid, SIGKILL), MUST(waitpid(pid, &status, 0));
        close(execs[0]);
    }
    segment = MUST(shmget(IPC_PRIVATE, PAGE, 0600));
    MUST(shmctl(segment, IPC_RMID, NULL));
    CHECK_ERR(shmctl(segment, IPC_STAT, &ds), EINVAL);
}

TEST(identifiers_and_owners) {
    struct shmid_ds s;
    struct semid_ds e;
    struct msqid_ds q;
    int old = MUST(shmget(IPC_PRIVATE, PAGE, 0600));
    MUST(shmctl(old, IPC_RMID, NULL));
    int id = MUST(shmget(IPC_PRIVATE, PAGE, 0600));
    CHECK(id != old);
    CHECK_ERR(shmctl(old, IPC_STAT, &s), EINVAL);
    MUST(shmctl(id, IPC_STAT, &s));
    s.shm_perm.uid = -1;
    CHECK_ERR(shmctl(id, IPC_SET, &s), EINVAL);
    MUST(shmctl(id, IPC_RMID, NULL));

    old = MUST(semget(IPC_PRIVATE, 1, 0600));
    MUST(SEMCTL(old, 0, IPC_RMID, 0));
    id = MUST(semget(IPC_PRIVATE, 1, 0600));
    CHECK(id != old);
    CHECK_ERR(SEMCTL(old, 0, IPC_STAT, &e), EINVAL);
    MUST(SEMCTL(id, 0, IPC_STAT, &e));
    e.sem_perm.gid = -1;
    CHECK_ERR(SEMCTL(id, 0, IPC_SET, &e), EINVAL);
    MUST(SEMCTL(id, 0, IPC_RMID, 0));

    old = MUST(msgget(IPC_PRIVATE, 0600));
    MUST(msgctl(old, IPC_RMID, NULL));
    id = MUST(msgget(IPC_PRIVATE, 0600));
    CHECK(id != old);
    CHECK_ERR(msgctl(old, IPC_STAT, &q), EINVAL);
    MUST(msgctl(id, IPC_STAT, &q));
    q.msg_perm.uid = -1;
    CHECK_ERR(msgctl(id, IPC_SET, &q), EINVAL);
    MUST(msgctl(id, IPC_RMID, NULL));
}

TEST(shm_keys_and_errors) {
    key_t key = 0x5e5e0000 + getpid();
    CHECK_ERR(shmget(key, 4096, 0), ENOENT);
    CHECK_ERR(shmget(key, 0, IPC_CREAT | 0600), EINVAL);
    int id = MUST(shmget(key, 4096, IPC_CREAT | 0600));
    CHECK(shmget(key, 0, 0) == id && shmget(key, 4096, IPC_CREAT) == id);
    CHECK_ERR(shmget(key, 4097, 0), EINVAL);
    CHECK_ERR(shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    CHECK_ERR(shmat(-1, NULL, 0), EINVAL);
    CHECK_ERR(shmat(id, (void *)0x10001, 0), EINVAL);
    CHECK_ERR(shmat(id, NULL, SHM_REMAP), EINVAL);
    CHECK_ERR(shmctl(id, IPC_STAT, BAD), EFAULT);
    CHECK_ERR(shmctl(id, IPC_SET, BAD), EFAULT);
    CHECK_ERR(shmctl(id, 99, NULL), EINVAL);
    CHECK_ERR(shmctl(-1, IPC_STAT, NULL), EINVAL);
    char *hole = mmap(NULL, 4 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK_ERR(shmat(id, hole, 0), EINVAL);
    CHECK(shmat(id, hole + PAGE + 5, SHM_RND | SHM_REMAP) == hole + PAGE);
    hole[PAGE] = 1;
    CHECK(strstr(slurp("/proc/self/maps"), "/SYSV5e5e"));
    CHECK(strstr(slurp("/proc/sysvipc/shm"), " 4096 "), "%s", slurp("/proc/sysvipc/shm"));
    MUST(munmap(hole + PAGE, PAGE));
    CHECK_ERR(shmdt(hole + PAGE), EINVAL);
    struct shmid_ds ds;
    MUST(shmctl(id, IPC_STAT, &ds));
    ds.shm_perm.mode = 0440, ds.shm_perm.uid = 1234;
    MUST(shmctl(id, IPC_SET, &ds));
    pid_t pid = MUST(fork());
    if (!pid) {
        MUST(setgid(4321)), MUST(setuid(4321));
        CHECK_ERR(shmat(id, NULL, SHM_RDONLY), EACCES);
        CHECK_ERR(shmctl(id, IPC_STAT, &ds), EACCES);
        CHECK_ERR(shmctl(id, IPC_RMID, NULL), EPERM);
        CHECK_ERR(shmget(key, 0, 0400), EACCES);
        exit(t_failed != 0);
    }
    ends_well(pid);
    if (!(pid = MUST(fork()))) {
        MUST(setuid(1234));
        CHECK(shmat(id, NULL, SHM_RDONLY) != (void *)-1);
        CHECK_ERR(shmat(id, NULL, 0), EACCES);
        MUST(shmctl(id, IPC_RMID, NULL));
        exit(t_failed != 0);
    }
    ends_well(pid);
    CHECK_ERR(shmctl(id, IPC_STAT, &ds), EINVAL);
    CHECK_ERR(shmget(key, 4096, 0), ENOENT);
}

static int set;
static void op(int n, int by, int flags) { struct sembuf b = {n, by, flags}; MUST(semop(set, &b, 1)); }
static int try_op(int n, int by, int flags) { struct sembuf b = {n, by, flags}; return semop(set, &b, 1); }
static void take_two(int unused) {
    struct sembuf b[2] = {{0, -1, 0}, {1, -1, 0}};
    MUST(semop(set, b, 2));
    op(2, 1, 0);
}
static void until(int n, int command, int count) {
    while (SEMCTL(set, n, command, 0) != count) nap_ms(1);
}
TEST(sem_operations_are_whole) {
    set = MUST(semget(IPC_PRIVATE, 3, IPC_CREAT | 0600));
    CHECK_ERR(try_op(0, -1, IPC_NOWAIT), EAGAIN);
    struct sembuf b[2] = {{0, 1, 0}, {1, -1, IPC_NOWAIT}};
    CHECK_ERR(semop(set, b, 2), EAGAIN);
    CHECK(SEMCTL(set, 0, GETVAL, 0) == 0, "a part was done");
    CHECK_ERR(semtimedop(set, (struct sembuf[]){{1, -1, 0}}, 1, &(struct timespec){0, 20000000}), EAGAIN);
    CHECK_ERR(semtimedop(set, (struct sembuf[]){{1, -1, 0}}, 1, &(struct timespec){0, -1}), EINVAL);
    pid_t pid = child_that(take_two, 0);
    until(0, GETNCNT, 1);
    op(0, 1, 0);
    until(1, GETNCNT, 1);
    CHECK(SEMCTL(set, 0, GETNCNT, 0) == 0 && SEMCTL(set, 0, GETVAL, 0) == 1);
    op(1, 1, 0);
    op(2, -1, 0);
    ends_well(pid);
    CHECK(SEMCTL(set, 0, GETPID, 0) == pid && SEMCTL(set, 0, GETVAL, 0) == 0);
    unsigned short v[3] = {5, 6, 7}, w[3] = {0};
    MUST(SEMCTL(set, 0, SETALL, v));
    MUST(SEMCTL(set, 0, GETALL, w));
    CHECK(w[0] == 5 && w[2] == 7);
    CHECK_ERR(try_op(0, 32767, 0), ERANGE);
    CHECK_ERR(try_op(3, 1, 0), EFBIG);
    CHECK_ERR(SEMCTL(set, 3, GETVAL, 0), EINVAL);
    CHECK_ERR(SEMCTL(set, 0, SETVAL, 32768), ERANGE);
    CHECK_ERR(SEMCTL(set, 0, GETALL, BAD), EFAULT);
    CHECK_ERR(semop(set, BAD, 1), EFAULT);
    CHECK_ERR(semop(set, b, 0), EINVAL);
    CHECK_ERR(semop(set, b, 501), E2BIG);
    CHECK_ERR(semget(IPC_PRIVATE, 0, 0600), EINVAL);
    CHECK_ERR(semget(IPC_PRIVATE, 32001, 0600), EINVAL);
    MUST(SEMCTL(set, 0, IPC_RMID, 0));
    CHECK_ERR(try_op(0, 1, 0), EINVAL);
}
static void wait_for_zero(int unused) { op(0, 0, 0); }
static void is_removed(int unused) { CHECK_ERR(try_op(1, -1, 0), EIDRM); }
static void is_interrupted(int flags) {
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = flags};
    sigaction(SIGUSR1, &sa, NULL);
    CHECK_ERR(try_op(1, -1, 0), EINTR);
}
TEST(sem_sleepers) {
    set = MUST(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
    MUST(SEMCTL(set, 0, SETVAL, 1));
    pid_t pid = child_that(wait_for_zero, 0);
    until(0, GETZCNT, 1);
    op(0, -1, 0);
    ends_well(pid);
    for (int i = 0; i < 2; i++) {
        pid = child_that(is_interrupted, i ? SA_RESTART : 0);
        until(1, GETNCNT, 1);
        kill(pid, SIGUSR1);
        ends_well(pid);
        CHECK(SEMCTL(set, 1, GETNCNT, 0) == 0);
    }
    pid = child_that(is_removed, 0);
    until(1, GETNCNT, 1);
    MUST(SEMCTL(set, 0, IPC_RMID, 0));
    ends_well(pid);
}
static void with_undo(int how) {
    op(0, 3, SEM_UNDO);
    op(1, -2, SEM_UNDO);
    if (how) raise(SIGKILL);
}
TEST(sem_undo) {
    set = MUST(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
    MUST(SEMCTL(set, 1, SETVAL, 2));
    for (int how = 0; how < 2; how++) {
        int status;
        MUST(waitpid(child_that(with_undo, how), &status, 0));
        CHECK(SEMCTL(set, 0, GETVAL, 0) == 0 && SEMCTL(set, 1, GETVAL, 0) == 2, "%d", how);
    }
    op(0, 3, SEM_UNDO); // what SETVAL sets is not undone
    struct semid_ds ds;
    MUST(SEMCTL(set, 0, IPC_STAT, &ds));
    CHECK(ds.sem_nsems == 2 && ds.sem_otime > 0);
    CHECK(strstr(slurp("/proc/sysvipc/sem"), "perms      nsems"));
    MUST(SEMCTL(set, 0, IPC_RMID, 0));
}

// All together take a bounded part of memory.
TEST(sem_sets_end) {
    static int ids[32001];
    int n = 0;
    if (!on_berth()) return;
    do ids[n] = semget(IPC_PRIVATE, 1000, 0600);
    while (ids[n] != -1 && ++n < 32001);
    CHECK(n > 100 && n < 32001 && errno == ENOSPC, "%d sets, %s", n, strerror(errno));
    while (n > 0) MUST(SEMCTL(ids[--n], 0, IPC_RMID, 0));
    set = MUST(semget(IPC_PRIVATE, 1000, 0600));
    MUST(SEMCTL(set, 0, IPC_RMID, 0));
}

static int queue;
struct text { long type; char s[8200]; };
static void send_one(int type) {
    struct text m = {type, "child"};
    MUST(msgsnd(queue, &m, 8000, 0));
}
static void receive_removed(int unused) {
    struct text m;
    CHECK_ERR(msgrcv(queue, &m, 10, 99, 0), EIDRM);
}
static void receive_interrupted(int unused) {
    struct text m;
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &sa, NULL);
    CHECK_ERR(msgrcv(queue, &m, 10, 99, 0), EINTR);
}
static void until_sleeping(pid_t pid) {
    char file[64];
    snprintf(file, sizeof file, "/proc/%d/stat", pid);
    for (;;) {
        char *s = strrchr(slurp(file), ')');
        if (s && s[2] == 'S') return;
        nap_ms(1);
    }
}
TEST(messages) {
    static struct text m;
    queue = MUST(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    for (int i = 1; i <= 4; i++) {
        m.type = 5 - i, m.s[0] = '0' + i;
        MUST(msgsnd(queue, &m, i, 0));
    }
    long n = msgrcv(queue, &m, 100, 1, 040000 | IPC_NOWAIT); // MSG_COPY, which a Linux may lack
    CHECK((n == 2 && m.type == 3 && m.s[0] == '2') || (n == -1 && errno == ENOSYS), "%ld", n);
    CHECK(msgrcv(queue, &m, 100, 3, 0) == 2 && m.type == 3 && m.s[0] == '2');
    CHECK(msgrcv(queue, &m, 100, -3, 0) == 4 && m.type == 1);
    CHECK_ERR(msgrcv(queue, &m, 0, 0, 0), E2BIG);
    CHECK(msgrcv(queue, &m, 100, 4, 020000) == 3 && m.type == 2);
    CHECK(msgrcv(queue, &m, 0, 0, MSG_NOERROR) == 0 && m.type == 4);
    CHECK_ERR(msgrcv(queue, &m, 100, 0, IPC_NOWAIT), ENOMSG);
    m.type = 0;
    CHECK_ERR(msgsnd(queue, &m, 1, 0), EINVAL);
    m.type = 1;
    CHECK_ERR(msgsnd(queue, &m, 8193, 0), EINVAL);
    CHECK_ERR(msgsnd(queue, BAD, 1, 0), EFAULT);
    CHECK_ERR(msgsnd(-1, &m, 1, 0), EINVAL);
    MUST(msgsnd(queue, &m, 8192, 0));
    MUST(msgsnd(queue, &m, 8192, 0));
    CHECK_ERR(msgsnd(queue, &m, 1, IPC_NOWAIT), EAGAIN);
    pid_t pid = child_that(send_one, 7);
    until_sleeping(pid);
    CHECK(msgrcv(queue, &m, 8192, 0, 0) == 8192);
    ends_well(pid);
    CHECK(msgrcv(queue, &m, 8192, 7, 0) == 8000 && !strcmp(m.s, "child"));
    struct msqid_ds ds;
    MUST(msgctl(queue, IPC_STAT, &ds));
    CHECK(ds.msg_qnum == 1 && ds.msg_qbytes == 16384 && ds.msg_lspid == pid && ds.msg_lrpid == getpid());
    pid = child_that(receive_interrupted, 0);
    until_sleeping(pid);
    kill(pid, SIGUSR1);
    ends_well(pid);
    pid = child_that(receive_removed, 0);
    until_sleeping(pid);
    CHECK(strstr(slurp("/proc/sysvipc/msg"), " 8192 "));
    MUST(msgctl(queue, IPC_RMID, NULL));
    ends_well(pid);
    CHECK_ERR(msgctl(queue, IPC_STAT, &ds), EINVAL);
}

// Many processes take turns by a semaphore over a counter in shared memory.
static int *counter;
static void count_up(int rounds) {
    for (int i = 0; i < rounds; i++) {
        op(0, -1, SEM_UNDO);
        ++*(volatile int *)counter;
        op(0, 1, SEM_UNDO);
    }
}
TEST(together) {
    segment = MUST(shmget(IPC_PRIVATE, 4096, 0600));
    counter = shmat(segment, NULL, 0);
    set = MUST(semget(IPC_PRIVATE, 1, 0600));
    MUST(SEMCTL(set, 0, SETVAL, 1));
    pid_t pids[6];
    for (int i = 0; i < 6; i++) pids[i] = child_that(count_up, 300);
    for (int i = 0; i < 6; i++) ends_well(pids[i]);
    CHECK(*counter == 1800, "%d", *counter);
    MUST(shmctl(segment, IPC_RMID, NULL));
    MUST(SEMCTL(set, 0, IPC_RMID, 0));
}

MAIN(T(shm_is_shared), T(shm_goes_with_its_last_mapping), T(identifiers_and_owners), T(shm_keys_and_errors), T(sem_operations_are_whole), T(sem_sleepers), T(sem_undo), T(sem_sets_end), T(messages), T(together))
