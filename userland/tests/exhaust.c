// Running out: of processes, memory, descriptors, space. Each must end in the documented error or in the OOM killer's
// choice, and afterwards all must be as before.
#include "t.h"
#include <sys/resource.h>

static void wait_all(void) { while (wait(NULL) > 0 || errno == EINTR) {} }

TEST(fork_bomb) {
    // As a user with a limit: forks fail with EAGAIN, the bomb is ended by one kill of its group.
    pid_t pid = MUST(fork());
    if (!pid) {
        setpgid(0, 0);
        struct rlimit r = {200, 200};
        MUST(setrlimit(RLIMIT_NPROC, &r));
        MUST(setgid(2000));
        MUST(setuid(2000));
        for (;;)
            if (fork() == -1 && errno != EAGAIN && errno != ENOMEM) _exit(3);
    }
    setpgid(pid, pid);
    nap_ms(3000);
    CHECK(waitpid(pid, NULL, WNOHANG) == 0, "the bomb fizzled out");
    // The machine still answers.
    pid_t other = MUST(fork());
    if (!other) _exit(5);
    int status;
    waitpid(other, &status, 0);
    CHECK(exited_with(status, 5));
    // A new member may be born behind the sweep: sweep until none is left.
    for (int i = 0; i < 200; i++) {
        if (kill(-pid, SIGKILL) == -1 && errno == ESRCH) break;
        while (waitpid(-pid, NULL, WNOHANG) > 0) {}
        nap_ms(20);
    }
    CHECK_ERR(kill(-pid, 0), ESRCH);
}

TEST(memory_hog) {
    long total = number_in("/proc/meminfo", "MemTotal");
    pid_t pid = MUST(fork());
    if (!pid) {
        for (long i = 0; i < total / 64 * 3; i++) {
            char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (p == MAP_FAILED) _exit(errno == ENOMEM ? 7 : 8);
            for (int k = 0; k < 16; k++) p[k * PAGE] = 1;
        }
        _exit(9);
    }
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(died_of(status, SIGKILL) || exited_with(status, 7), "status %x", status);
    if (died_of(status, SIGKILL)) {
        // The kernel's log names whom it chose.
        static char log[262144];
        long n = syscall(SYS_syslog, 3, log, sizeof log - 1);
        char name[32];
        snprintf(name, sizeof name, "%d", pid);
        log[n > 0 ? n : 0] = 0;
        char *said = strstr(log, "ut of memory");
        CHECK(said && strstr(said, name), "the log does not name process %s", name);
    }
    long free = number_in("/proc/meminfo", "MemFree");
    CHECK(free > total / 4, "%ld of %ld KiB free afterwards", free, total);
}

TEST(tmpfs_hog) {
    // Files until there is no memory or no room: an error, and all of it back after unlink.
    long before = number_in("/proc/meminfo", "MemFree");
    char name[64];
    snprintf(name, sizeof name, "/tmp/hog.%d", getpid());
    int fd = MUST(open(name, O_RDWR | O_CREAT, 0600));
    static char b[1 << 16];
    long n = 0, r, total = number_in("/proc/meminfo", "MemTotal");
    while ((r = write(fd, b, sizeof b)) > 0 && n < total * 2048) n += r;
    CHECK(r == -1 && (errno == ENOSPC || errno == ENOMEM), "%ld bytes, result %ld, errno %d", n, r, errno);
    unlink(name);
    close(fd);
    nap_ms(200);
    long after = number_in("/proc/meminfo", "MemFree");
    CHECK(after > before - before / 20, "free: %ld before, %ld after", before, after);
}

TEST(address_space) {
    // More mappings than anyone needs; a limit on the address space; both refuse and go on.
    struct rlimit r = {256 << 20, 256 << 20};
    pid_t pid = MUST(fork());
    if (!pid) {
        MUST(setrlimit(RLIMIT_AS, &r));
        CHECK_ERR(mmap(NULL, 512 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
        CHECK(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
        exit(t_failed != 0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
    pid = MUST(fork());
    if (!pid) {
        int n = 0;
        // Alternating rights, so that neighbours cannot be merged.
        while (n < 70000 && mmap(NULL, PAGE, n & 1 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) n++;
        CHECK(n > 60000 && n < 70000 && errno == ENOMEM, "%d mappings, errno %d", n, errno);
        exit(t_failed != 0);
    }
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
}

TEST(everything_open) {
    struct rlimit r = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &r);
    pid_t pid = MUST(fork());
    if (!pid) {
        int n = 0, p[2];
        while (n < 20000 && pipe(p) == 0) n++;
        CHECK(n == 20000 || errno == EMFILE || errno == ENFILE || errno == ENOMEM, "%d pipes, errno %d", n, errno);
        CHECK(n > 400);
        exit(t_failed != 0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0), "%x", status);
    wait_all();
}

MAIN(T_FOR(fork_bomb, 90), T_FOR(memory_hog, 180), T_FOR(tmpfs_hog, 180), T(address_space), T(everything_open))
