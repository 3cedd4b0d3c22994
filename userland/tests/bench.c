// The latency and throughput rows of `make bench`: bench [ROW...]. Each prints `row value unit`.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "bench.h"

#define PAGE 4096l
static const char *NOP = "/usr/lib/berth-tests/nop";

// ---- calls --------------------------------------------------------------------------------------------------------
static int fd_a;
static void do_getppid(long n) { while (n--) syscall(SYS_getppid); }
static void do_read(long n) { char c; while (n--) if (pread(fd_a, &c, 1, 0) != 1) die("pread"); }
static void do_write(long n) { char c = 0; while (n--) if (pwrite(fd_a, &c, 1, 0) != 1) die("pwrite"); }
static void do_read4k(long n) { static char b[4096]; while (n--) if (pread(fd_a, b, 4096, 0) != 4096) die("pread"); }
static void do_stat(long n) { struct stat st; while (n--) if (stat("/etc/passwd", &st)) die("stat"); }
static void do_open(long n) {
    while (n--) {
        int fd = open("/etc/passwd", O_RDONLY);
        if (fd < 0) die("open");
        close(fd);
    }
}
static void do_create(long n) {
    while (n--) {
        int fd = open("/tmp/bench-file", O_WRONLY | O_CREAT, 0600);
        if (fd < 0) die("create");
        close(fd);
        unlink("/tmp/bench-file");
    }
}
static void do_clock(long n) { struct timespec ts; while (n--) clock_gettime(CLOCK_MONOTONIC, &ts); }

// ---- pipes and futexes --------------------------------------------------------------------------------------------
static int ping[2], pong[2];
static pid_t start_echo(int cpu) {
    if (pipe(ping) || pipe(pong)) die("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(ping[1]);
        close(pong[0]);
        pin(cpu);
        while (read(ping[0], &c, 1) == 1)
            if (write(pong[1], &c, 1) != 1) break;
        _exit(0);
    }
    close(ping[0]);
    close(pong[1]);
    return pid;
}
static void do_ping(long n) {
    char c = 1;
    while (n--)
        if (write(ping[1], &c, 1) != 1 || read(pong[0], &c, 1) != 1) die("ping");
}
static double round_trip(int mine, int other) {
    pin(mine);
    pid_t pid = start_echo(other);
    double ns = per_round(do_ping, 1 << 20);
    close(ping[1]);
    close(pong[0]);
    waitpid(pid, NULL, 0);
    pin(-1);
    return ns;
}

static int turn __attribute__((aligned(64)));
static volatile long hand_rounds;
static void futex(int *a, int op, int v) { syscall(SYS_futex, a, op | FUTEX_PRIVATE_FLAG, v, NULL, NULL, 0); }
static void pass_to(int who, int next, long n) {
    while (n--) {
        int t;
        while ((t = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != who) futex(&turn, FUTEX_WAIT, t);
        __atomic_store_n(&turn, next, __ATOMIC_RELEASE);
        futex(&turn, FUTEX_WAKE, 1);
    }
}
static void *hand_partner(void *arg) {
    pass_to(1, 0, hand_rounds);
    return NULL;
}
static void do_futex(long n) {
    pthread_t t;
    turn = 0;
    hand_rounds = n;
    if (pthread_create(&t, NULL, hand_partner, NULL)) die("pthread_create");
    pass_to(0, 1, n);
    pthread_join(t, NULL);
}

static double pipe_bandwidth(void) { // MB/s
    enum { CHUNK = 65536 };
    static char buffer[CHUNK];
    long total = 4 << 20;
    double best = 0;
    for (int round = 0; round < 6; round++) {
        int p[2];
        if (pipe(p)) die("pipe");
        uint64_t t0 = now();
        pid_t pid = fork();
        if (pid == 0) {
            close(p[0]);
            for (long left = total; left > 0;) {
                ssize_t w = write(p[1], buffer, CHUNK);
                if (w < 0) _exit(1);
                left -= w;
            }
            _exit(0);
        }
        close(p[1]);
        long got = 0;
        ssize_t r;
        while ((r = read(p[0], buffer, CHUNK)) > 0) got += r;
        double s = (now() - t0) / 1e9, rate = got / 1e6 / s;
        close(p[0]);
        waitpid(pid, NULL, 0);
        if (rate > best) best = rate;
        if (s < 0.05) total *= 4;
    }
    return best;
}

// ---- processes ----------------------------------------------------------------------------------------------------
static void reap(pid_t pid) {
    int status;
    if (pid < 0) die("fork");
    if (waitpid(pid, &status, 0) != pid || status) die("wait");
}
static void do_fork(long n) {
    while (n--) {
        pid_t pid = fork();
        if (pid == 0) _exit(0);
        reap(pid);
    }
}
static void do_fork_exec(long n) {
    while (n--) {
        pid_t pid = fork();
        if (pid == 0) {
            execl(NOP, "nop", (char *)NULL);
            _exit(1);
        }
        reap(pid);
    }
}
static void do_vfork_exec(long n) {
    while (n--) {
        pid_t pid = vfork();
        if (pid == 0) {
            execl(NOP, "nop", (char *)NULL);
            _exit(1);
        }
        reap(pid);
    }
}
static void do_sh(long n) {
    while (n--) {
        pid_t pid = vfork();
        if (pid == 0) {
            execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
            _exit(1);
        }
        reap(pid);
    }
}
static void *nothing(void *arg) { return NULL; }
static void do_thread(long n) {
    while (n--) {
        pthread_t t;
        if (pthread_create(&t, NULL, nothing, NULL)) die("pthread_create");
        pthread_join(t, NULL);
    }
}

// ---- memory and signals -------------------------------------------------------------------------------------------
static void touch(char *p, long pages) {
    for (long i = 0; i < pages; i++) ((volatile char *)p)[i * PAGE] = 1;
}
static char *map(long pages) {
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
    return p;
}
// ns a page, mapping and unmapping left out.
static double fault_anonymous(void) {
    enum { PAGES = 2048 };
    double best = 1e18;
    for (int i = 0; i < 8; i++) {
        char *p = map(PAGES);
        uint64_t t0 = now();
        touch(p, PAGES);
        double ns = (double)(now() - t0) / PAGES;
        munmap(p, PAGES * PAGE);
        if (ns < best) best = ns;
    }
    return best;
}
static double fault_cow(void) {
    enum { PAGES = 2048 };
    char *p = map(PAGES);
    touch(p, PAGES);
    double best = 1e18;
    for (int i = 0; i < 8; i++) {
        int q[2];
        if (pipe(q)) die("pipe");
        pid_t pid = fork();
        if (pid == 0) {
            uint64_t t0 = now();
            touch(p, PAGES);
            double ns = (double)(now() - t0) / PAGES;
            if (write(q[1], &ns, sizeof ns) != sizeof ns) _exit(1);
            _exit(0);
        }
        double ns;
        if (read(q[0], &ns, sizeof ns) != sizeof ns) die("cow");
        close(q[0]);
        close(q[1]);
        reap(pid);
        if (ns < best) best = ns;
    }
    munmap(p, PAGES * PAGE);
    return best;
}
static double fork_64m(void) {
    char *p = map(64 << 8);
    touch(p, 64 << 8);
    double ns = per_round(do_fork, 1000);
    munmap(p, 64 << 20);
    return ns;
}
static volatile int signals;
static void on_signal(int sig) { signals++; }
static void do_signal(long n) { while (n--) raise(SIGUSR1); }
static void do_kill(long n) { pid_t me = getpid(); while (n--) kill(me, SIGUSR1); }
static void do_mmap(long n) {
    while (n--) {
        char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        p[0] = 1;
        munmap(p, 16 * PAGE);
    }
}
static void do_yield(long n) { while (n--) sched_yield(); }

// ---- all CPUs at once ---------------------------------------------------------------------------------------------
static void do_faults(long n) { // a page a round
    while (n > 0) {
        char *p = map(256);
        touch(p, 256);
        munmap(p, 256 * PAGE);
        n -= 256;
    }
}
struct shared { volatile int ready, go, stop; struct { volatile long done; char pad[56]; } by[64]; };
// Rounds a second over all workers, each a process on a CPU of its own.
static double rate(void (*f)(long), long step, int workers) {
    double best = 0;
    struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 3; round++) {
        memset((void *)s, 0, sizeof *s);
        for (int w = 0; w < workers; w++) {
            pid_t pid = fork();
            if (pid < 0) die("fork");
            if (pid == 0) {
                pin(w % cpus);
                __atomic_add_fetch(&s->ready, 1, __ATOMIC_SEQ_CST);
                while (!s->go) sched_yield();
                while (!s->stop) {
                    f(step);
                    s->by[w].done += step;
                }
                _exit(0);
            }
        }
        while (s->ready < workers) usleep(1000);
        uint64_t t0 = now();
        s->go = 1;
        usleep(300000);
        long done = 0;
        for (int w = 0; w < workers; w++) done += s->by[w].done;
        double r = done / ((now() - t0) / 1e9);
        s->stop = 1;
        while (wait(NULL) > 0) {}
        if (r > best) best = r;
    }
    munmap(s, sizeof *s);
    return best;
}

// ---- the disk under no file system: /dev/vda, past every cache (O_DIRECT) ------------------------------------------
#define DISK "/dev/vda"
#define DISK_BYTES (256l << 20)
static int disk_fd;
static char *disk_buf;
static long disk_at;
static bool disk_write;

static uint64_t disk_random(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}
static void disk_seq(long n) {
    while (n--) {
        ssize_t r = disk_write ? pwrite(disk_fd, disk_buf, 1 << 20, disk_at) : pread(disk_fd, disk_buf, 1 << 20, disk_at);
        if (r != 1 << 20) die("sequential");
        disk_at = (disk_at + (1 << 20)) % DISK_BYTES;
    }
}
static double disk_bandwidth(bool write) {
    disk_write = write;
    disk_at = 0;
    return (1 << 20) * 1e3 / per_round(disk_seq, 1024);
}
static void disk_sync(long n) {
    while (n--) {
        if (pwrite(disk_fd, disk_buf, 4096, 0) != 4096 || fdatasync(disk_fd)) die("write and sync");
    }
}
static void disk_buffered(long n) {
    static int fd;
    if (!fd) fd = open(DISK, O_RDONLY);
    while (n--) {
        if (pread(fd, disk_buf, 4096, disk_at) != 4096) die("buffered");
        disk_at = (disk_at + 4096) % DISK_BYTES;
    }
}

static volatile bool disk_stop;
static volatile long disk_done[64];
static void *disk_worker(void *arg) {
    long id = (long)arg, done = 0;
    uint64_t seed = id + 1;
    char *buf = aligned_alloc(4096, 4096);
    memset(buf, 1, 4096);
    while (!disk_stop) {
        long at = disk_random(&seed) % (DISK_BYTES / 4096) * 4096;
        ssize_t r = disk_write ? pwrite(disk_fd, buf, 4096, at) : pread(disk_fd, buf, 4096, at);
        if (r != 4096) die("random");
        disk_done[id] = ++done;
    }
    free(buf);
    return NULL;
}
// Random transfers of 4 KiB a second, so many at a time.
static double disk_iops(bool write, int depth) {
    double best = 0;
    disk_write = write;
    for (int batch = 0; batch < 3; batch++) {
        pthread_t t[64];
        disk_stop = false;
        memset((void *)disk_done, 0, sizeof disk_done);
        uint64_t t0 = now();
        for (long i = 0; i < depth; i++) pthread_create(&t[i], NULL, disk_worker, (void *)i);
        usleep(300000);
        disk_stop = true;
        for (int i = 0; i < depth; i++) pthread_join(t[i], NULL);
        long sum = 0;
        for (int i = 0; i < depth; i++) sum += disk_done[i];
        double r = sum / ((now() - t0) / 1e9);
        if (r > best) best = r;
    }
    return best;
}

#define MANY (1l << 24)

int main(int argc, char **argv) {
    argc_ = argc;
    argv_ = argv;
    cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (cpus < 1) cpus = 1;
    signal(SIGUSR1, on_signal);
    fd_a = open("/tmp/bench-data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd_a < 0 || ftruncate(fd_a, 65536)) die("/tmp/bench-data");
    static char zero[65536];
    if (pwrite(fd_a, zero, sizeof zero, 0) != sizeof zero) die("fill");

    ROW("getppid", "ns", per_round(do_getppid, MANY));
    ROW("read", "ns", per_round(do_read, MANY));
    ROW("write", "ns", per_round(do_write, MANY));
    ROW("read-4k", "ns", per_round(do_read4k, MANY));
    ROW("stat", "ns", per_round(do_stat, MANY));
    ROW("open+close", "ns", per_round(do_open, MANY));
    ROW("create+unlink", "ns", per_round(do_create, MANY));
    ROW("clock_gettime", "ns", per_round(do_clock, MANY));
    ROW("signal", "ns", per_round(do_signal, MANY));
    ROW("kill-self", "ns", per_round(do_kill, MANY));
    ROW("yield", "ns", per_round(do_yield, MANY));
    ROW("pipe-1cpu", "ns", round_trip(0, 0));
    if (cpus > 1) ROW("pipe-2cpu", "ns", round_trip(0, 1));
    pin(0);
    ROW("futex-handover", "ns", per_round(do_futex, 1 << 20) / 2);
    pin(-1);
    ROW("thread", "ns", per_round(do_thread, 1 << 16));
    ROW("fork+exit", "ns", per_round(do_fork, 1 << 14));
    ROW("fork-64M", "ns", fork_64m());
    ROW("fork+exec", "ns", per_round(do_fork_exec, 1 << 14));
    ROW("vfork+exec", "ns", per_round(do_vfork_exec, 1 << 14));
    ROW("sh-c-exit", "ns", per_round(do_sh, 1 << 12));
    ROW("fault-anonymous", "ns", fault_anonymous());
    ROW("fault-cow", "ns", fault_cow());
    ROW("mmap+munmap", "ns", per_round(do_mmap, MANY));
    ROW("pipe-bandwidth", "MB/s", pipe_bandwidth());
    static const struct { const char *name; void (*f)(long); long step; } parallel[] = {
        {"getppid", do_getppid, 256}, {"faults", do_faults, 256}, {"open", do_open, 32},
    };
    for (int i = 0; i < 3; i++) {
        char one[64], all[64];
        snprintf(one, sizeof one, "%s-1worker", parallel[i].name);
        snprintf(all, sizeof all, "%s-%dworkers", parallel[i].name, cpus);
        if (cpus > 1) {
            ROW(one, "/s", rate(parallel[i].f, parallel[i].step, 1));
            ROW(all, "/s", rate(parallel[i].f, parallel[i].step, cpus));
        }
    }
    disk_fd = open(DISK, O_RDWR | O_DIRECT);
    if (disk_fd >= 0) {
        disk_buf = aligned_alloc(4096, 1 << 20);
        memset(disk_buf, 5, 1 << 20);
        ROW("disk-write-1M", "MB/s", disk_bandwidth(true));
        ROW("disk-read-1M", "MB/s", disk_bandwidth(false));
        ROW("disk-read-4k-depth1", "/s", disk_iops(false, 1));
        ROW("disk-read-4k-depth8", "/s", disk_iops(false, 8));
        ROW("disk-write-4k-depth1", "/s", disk_iops(true, 1));
        ROW("disk-write-4k-depth8", "/s", disk_iops(true, 8));
        ROW("disk-write+sync-4k", "ns", per_round(disk_sync, 1 << 14));
        ROW("disk-buffered-read-4k", "ns", per_round(disk_buffered, 1 << 16));
    }
    unlink("/tmp/bench-data");
    puts("bench end");
    return 0;
}
