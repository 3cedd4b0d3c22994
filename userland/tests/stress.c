// s4: all CPUs at once allocate and free, talk through pipes and sockets, fork and exec, make and remove files, map and
// unmap, for as many seconds as STRESS says (20 without). Every worker checks what it gets back. Afterwards nothing is left: frames,
// inodes, processes and descriptors are as many as before.
#include "t.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/statfs.h>

static struct plan {
    volatile long until; // CLOCK_MONOTONIC, ns
    volatile int stop;
    _Atomic long done[16];
} *plan;
static const char *self_path;

static bool going(void) { return !plan->stop && (long)now_ns() < plan->until; }
static unsigned seed;
static unsigned below(unsigned n) { return (seed = seed * 1103515245 + 12345) / 65536 % n; }

static void memory(int me) {
    size_t n = (1 + below(64)) * PAGE;
    unsigned char *p = (void *)MUST(mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t i = 0; i < n; i += PAGE) {
        CHECK(p[i] == 0, "a fresh page is not zero");
        p[i] = me;
    }
    MUST(mprotect(p, PAGE, PROT_READ));
    MUST(munmap(p + n / 2 / PAGE * PAGE, n - n / 2 / PAGE * PAGE));
    CHECK(n == PAGE || p[0] == me, "the kept half changed");
    if (n > PAGE) MUST(munmap(p, n / 2 / PAGE * PAGE));
    void *at = sbrk(0);
    if (sbrk(5 * PAGE) != (void *)-1) {
        memset(at, me, 5 * PAGE);
        sbrk(-5 * (long)PAGE);
    }
}

static void pipes(int me) {
    int to[2], from[2];
    MUST(pipe2(to, O_CLOEXEC));
    MUST(pipe2(from, O_CLOEXEC));
    pid_t pid = MUST(fork());
    if (!pid) {
        char c[100];
        ssize_t n;
        close(to[1]);
        while ((n = read(to[0], c, sizeof c)) > 0) write(from[1], c, n);
        _exit(0);
    }
    close(to[0]);
    for (int i = 0; i < 50; i++) {
        char out[100], in[100];
        memset(out, me + i, sizeof out);
        MUST(write(to[1], out, sizeof out));
        for (size_t got = 0; got < sizeof in;) got += MUST(read(from[0], in + got, sizeof in - got));
        CHECK(!memcmp(in, out, sizeof in), "other bytes came back through the pipes");
    }
    close(to[1]);
    close(from[0]);
    close(from[1]);
    MUST(waitpid(pid, NULL, 0));
}

__attribute__((noinline)) static pid_t child(bool copy, char *const *argv) {
    pid_t pid = copy ? fork() : vfork();
    if (!pid) {
        execv(self_path, argv);
        _exit(127);
    }
    return pid;
}
static void processes(int me) {
    int code = below(100), status;
    char text[12];
    snprintf(text, sizeof text, "%d", code);
    pid_t pid = MUST(child(below(2), (char *[]){"stress", "code", text, NULL}));
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, code), "0x%x instead of %d", status, code);
}

// All workers in one directory, so that they meet at its lock, but each with names of its own.
static void files(int me) {
    char a[64], b[64], text[64], back[64] = "";
    snprintf(a, sizeof a, "/tmp/stress/%d.%d.a", me, getpid());
    snprintf(b, sizeof b, "/tmp/stress/%d.%d.b", me, getpid());
    int n = snprintf(text, sizeof text, "%d and %u", me, below(1000));
    int fd = MUST(open(a, O_RDWR | O_CREAT | O_EXCL, 0600));
    MUST(write(fd, text, n));
    MUST(rename(a, b));
    CHECK_ERR(open(a, O_RDONLY), ENOENT);
    MUST(link(b, a));
    MUST(unlink(b));
    MUST(pread(fd, back, sizeof back, 0));
    CHECK(!strcmp(text, back), "%s became %s", text, back);
    MUST(ftruncate(fd, below(20) * PAGE));
    MUST(unlink(a));
    close(fd);
    if (below(8) == 0) {
        MUST(mkdir(a, 0700));
        MUST(rmdir(a));
    }
}

static void sockets(int me) {
    int s[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s));
    char out[3000], in[3000];
    memset(out, me, sizeof out);
    MUST(write(s[0], out, sizeof out));
    for (size_t got = 0; got < sizeof in;) got += MUST(read(s[1], in + got, sizeof in - got));
    CHECK(!memcmp(in, out, sizeof in), "other bytes came back through a unix socket");
    close(s[0]);
    close(s[1]);
    // And over loopback; closed with a reset, so that no TIME_WAIT is left.
    int listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof where;
    MUST(bind(listener, (void *)&where, sizeof where));
    MUST(listen(listener, 4));
    MUST(getsockname(listener, (void *)&where, &len));
    int one = MUST(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    MUST(connect(one, (void *)&where, sizeof where));
    int two = MUST(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    MUST(write(one, out, sizeof out));
    memset(in, ~me, sizeof in);
    for (size_t got = 0; got < sizeof in;) {
        ssize_t r = MUST(read(two, in + got, sizeof in - got));
        CHECK(r > 0, "the connection ended early");
        if (r <= 0) break;
        got += r;
    }
    CHECK(!memcmp(in, out, sizeof in), "other bytes came back through TCP");
    struct linger reset = {1, 0};
    MUST(setsockopt(one, SOL_SOCKET, SO_LINGER, &reset, sizeof reset));
    close(one);
    close(two);
    close(listener);
}

static void (*const kinds[])(int) = {memory, pipes, processes, files, sockets};
enum { KINDS = sizeof kinds / sizeof *kinds };
static const char *const kind_names[] = {"memory", "pipes", "processes", "files", "sockets"};

static int cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return CPU_COUNT(&set);
}

// One worker of every kind for each CPU, until time is up or one of them saw something wrong.
static void round_of(int seconds) {
    plan->until = now_ns() + seconds * 1000000000l;
    int n = cpus();
    for (int w = 0; w < n * KINDS; w++) {
        if (MUST(fork()) == 0) {
            seed = w + 1;
            t_failed = 0;
            while (going()) {
                kinds[w % KINDS](w + 1);
                plan->done[w % KINDS]++;
                if (t_failed) plan->stop = 1;
            }
            _exit(t_failed != 0);
        }
    }
    int status;
    while (wait(&status) > 0) CHECK(exited_with(status, 0), "a worker ended with 0x%x", status);
}

struct left {
    long frames, inodes, processes, descriptors;
};
static long count_of(const char *dir) {
    long n = 0;
    char command[64];
    snprintf(command, sizeof command, "ls -1 %s | wc -l", dir);
    FILE *f = popen(command, "r");
    if (f) {
        if (fscanf(f, "%ld", &n) != 1) n = -1;
        pclose(f);
    }
    return n;
}
// Frames that are free or hold objects of the kernel's heap: how full those are is for the objects' own counts to say.
static long free_frames(void) {
    if (!on_berth()) return 0;
    return number_in("/proc/berth/memory", "free_frames") + number_in("/proc/berth/memory", "slab_frames");
}
static struct left count(void) {
    struct left is;
    struct statfs fs;
    // What ended is freed a moment later: wait until the number stands.
    is.frames = free_frames();
    for (int i = 0; i < 100; i++) {
        nap_ms(200);
        long now = free_frames();
        if (now == is.frames) break;
        is.frames = now;
    }
    MUST(statfs("/tmp", &fs));
    is.inodes = fs.f_ffree;
    is.processes = atol(strchr(slurp("/proc/loadavg"), '/') + 1);
    is.descriptors = count_of("/proc/self/fd");
    return is;
}

TEST(all_at_once) {
    int seconds = getenv("STRESS") ? atoi(getenv("STRESS")) : 20;
    plan = (void *)MUST(mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    mkdir("/tmp/stress", 0700);
    round_of(2);
    for (int attempt = 0; !t_failed; attempt++) {
        struct left before = count();
        round_of(attempt ? 2 : seconds);
        struct left after = count();
        CHECK(before.inodes == after.inodes, "inodes free: %ld before, %ld after", before.inodes, after.inodes);
        CHECK(before.processes == after.processes, "threads: %ld before, %ld after", before.processes, after.processes);
        CHECK(before.descriptors == after.descriptors, "descriptors: %ld before, %ld after", before.descriptors, after.descriptors);
        for (int i = 0; i < 20 && after.frames < before.frames; i++) {
            nap_ms(200);
            after.frames = free_frames();
        }
        // A leak shows every time; that a cache of the kernel's grew to its bound only at first.
        if (before.frames <= after.frames) break;
        printf("free frames: %ld before, %ld after\n", before.frames, after.frames);
        if (attempt == 4) CHECK(before.frames <= after.frames, "frames are lost each time");
        if (attempt == 4) break;
    }
    rmdir("/tmp/stress");
    printf("rounds:");
    for (int k = 0; k < KINDS; k++) {
        printf(" %s %ld", kind_names[k], (long)plan->done[k]);
        CHECK(plan->done[k] > 0, "%s never came round", kind_names[k]);
    }
    printf("\n");
}

int main(int argc, char **argv) {
    static const struct test tests[] = {T_FOR(all_at_once, 400)};
    if (argc == 3 && !strcmp(argv[1], "code")) return atoi(argv[2]);
    self_path = argv[0];
    return t_main(argc, argv, tests, 1);
}
