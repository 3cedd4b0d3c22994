// m2: address spaces. A stray pointer kills its own process alone; the kernel's half can be neither read nor probed;
// fork is copy-on-write, counted; a thousand rounds of fork, exec and exit return every frame.
#include "t.h"
#include <sys/resource.h>
#include <sys/uio.h>

static void poke(void *p) { *(volatile int *)p = 1; }
static void peek(void *p) { (void)*(volatile int *)p; }

// Addresses that no program may touch: null, the kernel's half (linear map, device window, image), holes, non-canonical.
static const uintptr_t forbidden[] = {
    0, 8, 0xfff, 0xffff000000000000, 0xffff000040000000, 0xffff000040080000, 0xffff800000000000, 0xffff800008000000,
    0xffffc00000000000, 0xffffc00000200000, 0xffffffffffffff00, 0xfffffffffffffff8, 0x0001000000000000, 0x00ff000000000000,
    0x8000000000000000, 0xdead000000000000, 0x0000fffffffff000,
};
#define FORBIDDEN (sizeof forbidden / sizeof *forbidden)

TEST(stray_pointer) {
    static int mine = 7;
    for (size_t i = 0; i < FORBIDDEN; i++) {
        int r = in_child(peek, (void *)forbidden[i]), w = in_child(poke, (void *)forbidden[i]);
        CHECK(died_of(r, SIGSEGV) || died_of(r, SIGBUS), "read of %lx: status %x", forbidden[i], r);
        CHECK(died_of(w, SIGSEGV) || died_of(w, SIGBUS), "write of %lx: status %x", forbidden[i], w);
    }
    CHECK(mine == 7);
}

static volatile uintptr_t seen_addr;
static volatile int seen_code, seen_sig;
static void on_segv(int sig, siginfo_t *si, void *ctx) {
    seen_addr = (uintptr_t)si->si_addr;
    seen_code = si->si_code;
    seen_sig = sig;
    _exit(seen_addr == *(uintptr_t *)0x10000000 && seen_code == (int)*(uintptr_t *)0x10000008 ? 0 : 3);
}
static void fault_report(void *arg) {
    uintptr_t *want = arg;
    uintptr_t *known = mmap((void *)0x10000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    known[0] = want[0];
    known[1] = want[1];
    struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &sa, NULL);
    *(volatile char *)want[0] = 1;
    _exit(4);
}
TEST(siginfo_names_address) {
    char *ro = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uintptr_t maperr[2] = {0x20, SEGV_MAPERR}, accerr[2] = {(uintptr_t)ro + 17, SEGV_ACCERR};
    CHECK(exited_with(in_child(fault_report, maperr), 0));
    CHECK(exited_with(in_child(fault_report, accerr), 0));
}

TEST(kernel_not_through_syscalls) {
    int p[2];
    MUST(pipe(p));
    MUST(write(p[1], "0123456789", 10));
    int zero = MUST(open("/dev/zero", O_RDONLY));
    char name[64];
    snprintf(name, sizeof name, "/tmp/mem.%d", getpid());
    int file = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(write(file, "0123456789", 10));
    for (size_t i = 0; i < FORBIDDEN; i++) {
        void *a = (void *)forbidden[i];
        struct iovec v = {a, 8};
        CHECK_ERR(write(p[1], a, 8), EFAULT);
        CHECK_ERR(read(p[0], a, 8), EFAULT);
        CHECK_ERR(pread(zero, a, 8, 0), EFAULT);
        CHECK_ERR(pread(file, a, 8, 0), EFAULT);
        CHECK_ERR(pwrite(file, a, 8, 0), EFAULT);
        CHECK_ERR(writev(p[1], &v, 1), EFAULT);
        if (a) CHECK_ERR(open(a, O_RDONLY), EFAULT);
        if (a) CHECK_ERR(syscall(SYS_fstat, file, a), EFAULT);
        if (a) CHECK_ERR(syscall(SYS_clock_gettime, CLOCK_REALTIME, a), EFAULT);
        CHECK_ERR(syscall(SYS_futex, a, 0 /* WAIT */, 0, NULL), ((uintptr_t)a & 3) ? EINVAL : EFAULT);
    }
    CHECK(lseek(file, 0, SEEK_END) == 10, "a refused write changed the file");
    unlink(name);
}

TEST(kernel_not_through_proc) {
    int fd = open("/proc/self/mem", O_RDWR);
    if (fd == -1) return; // not offered: nothing to get through
    for (size_t i = 0; i < FORBIDDEN; i++) {
        char b[8];
        if ((int64_t)forbidden[i] >= 0 && forbidden[i] < 0x1000) continue;
        ssize_t n = syscall(SYS_pread64, fd, b, 8, forbidden[i]);
        CHECK(n <= 0, "pread of /proc/self/mem at %lx gave %zd", forbidden[i], n);
    }
}

TEST(maps_show_no_kernel) {
    FILE *f = fopen("/proc/self/maps", "r");
    CHECK(f != NULL);
    char line[512];
    int n = 0, stack = 0;
    while (f && fgets(line, sizeof line, f)) {
        uintptr_t from, to;
        char perm[5];
        CHECK(sscanf(line, "%lx-%lx %4s", &from, &to, perm) == 3, "%s", line);
        CHECK(from < to && to <= 0x1000000000000, "%s", line);
        CHECK(!(perm[1] == 'w' && perm[2] == 'x'), "%s", line);
        stack |= strstr(line, "[stack]") != NULL;
        n++;
    }
    CHECK(n >= 3 && stack, "%d lines, stack %d", n, stack);
}

TEST(guard_and_protect) {
    char *p = (char *)MUST(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(p, 1, 3 * PAGE);
    MUST(mprotect(p + PAGE, PAGE, PROT_NONE));
    CHECK(died_of(in_child(peek, p + PAGE), SIGSEGV));
    CHECK(exited_with(in_child(peek, p), 0) && exited_with(in_child(peek, p + 2 * PAGE), 0));
    MUST(mprotect(p + PAGE, PAGE, PROT_READ));
    CHECK(p[PAGE] == 1);
    CHECK(died_of(in_child(poke, p + PAGE), SIGSEGV));
    MUST(munmap(p + PAGE, PAGE));
    CHECK(died_of(in_child(peek, p + PAGE), SIGSEGV));
    CHECK(p[0] == 1 && p[2 * PAGE] == 1);
    CHECK_ERR(mprotect(p, 3 * PAGE, PROT_READ), ENOMEM);
    CHECK_ERR(syscall(SYS_mprotect, p + 1, PAGE, PROT_READ), EINVAL);
    CHECK_ERR(munmap(p + 1, PAGE), EINVAL);
    CHECK_ERR(munmap(p, 0), EINVAL);
    CHECK_ERR(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_ERR(mmap(NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_ERR(mmap(NULL, 1ul << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
    CHECK_ERR(mmap((void *)0xffff000000000000, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), ENOMEM);
    CHECK_ERR(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 1000, 0), EBADF);
    CHECK_ERR(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
}

static void deep(void *arg) {
    volatile char frame[PAGE * 4];
    frame[0] = 1;
    if (arg) deep((char *)arg - 1);
    frame[1] = frame[0];
}
TEST(stack_grows_to_its_limit) {
    CHECK(exited_with(in_child(deep, (void *)200), 0), "3 MiB of stack");
    CHECK(died_of(in_child(deep, (void *)100000), SIGSEGV), "1.6 GiB of stack");
}

TEST(zero_filled) {
    for (int round = 0; round < 3; round++) {
        unsigned char *p = (void *)MUST(mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        for (int i = 0; i < 1 << 20; i++)
            if (p[i]) { CHECK(0, "old content at %d", i); break; }
        memset(p, 0xaa, 1 << 20);
        MUST(madvise(p, 64 * PAGE, MADV_DONTNEED));
        CHECK(p[0] == 0 && p[63 * PAGE] == 0 && p[64 * PAGE] == 0xaa);
        munmap(p, 1 << 20);
    }
}

TEST(brk_moves) {
    char *b = sbrk(0);
    char *now = (char *)syscall(SYS_brk, 0);
    CHECK(b == (void *)-1 || b <= now + PAGE); // musl's sbrk only answers sbrk(0)
    char *up = (char *)syscall(SYS_brk, now + 10 * PAGE);
    CHECK(up == now + 10 * PAGE);
    memset(now, 5, 10 * PAGE);
    CHECK((char *)syscall(SYS_brk, now) == now);
    CHECK(died_of(in_child(peek, (void *)(((uintptr_t)now + PAGE - 1) / PAGE * PAGE + PAGE)), SIGSEGV));
    CHECK((char *)syscall(SYS_brk, 1ul << 60) == now, "an absurd brk must leave it where it is");
}

TEST(mremap_keeps_content) {
    char *p = (char *)MUST(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int i = 0; i < 4; i++) p[i * PAGE] = 'a' + i;
    char *q = (char *)MUST(mremap(p, 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE));
    for (int i = 0; i < 4; i++) CHECK(q[i * PAGE] == 'a' + i);
    CHECK(q[63 * PAGE] == 0);
    q = (char *)MUST(mremap(q, 64 * PAGE, 2 * PAGE, 0));
    CHECK(q[PAGE] == 'b');
    CHECK(died_of(in_child(peek, q + 2 * PAGE), SIGSEGV));
    char *at = (char *)MUST(mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK((char *)mremap(q, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at && at[PAGE] == 'b');
    CHECK(died_of(in_child(peek, q), SIGSEGV));
    CHECK_ERR(mremap(at, 2 * PAGE, 0, MREMAP_MAYMOVE), EINVAL);
    CHECK_ERR(mremap(at + 1, PAGE, PAGE, MREMAP_MAYMOVE), EINVAL);
    CHECK_ERR(mremap((void *)0x7000000000, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
}

TEST(shared_is_shared) {
    volatile int *s = (int *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    volatile int *m = (int *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    s[0] = m[0] = 1;
    pid_t pid = MUST(fork());
    if (!pid) {
        s[0] = 2;
        m[0] = 2;
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    CHECK(s[0] == 2, "shared is %d", s[0]);
    CHECK(m[0] == 1, "private is %d", m[0]);
}

TEST(file_mappings) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/map.%d", getpid());
    int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(ftruncate(fd, 2 * PAGE + 100));
    char *s = (char *)MUST(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    char *m = (char *)MUST(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    strcpy(s, "through the mapping");
    char b[32] = "";
    MUST(pread(fd, b, 20, 0));
    CHECK(!strcmp(b, "through the mapping"), "read gives %s", b);
    MUST(pwrite(fd, "WRITE", 5, 0));
    CHECK(!memcmp(s, "WRITEgh", 7) && !memcmp(m, "WRITEgh", 7), "write does not show");
    m[0] = 'x';
    CHECK(s[0] == 'W', "private write shows in the file");
    s[2 * PAGE + 200] = 9; // behind the end, within the page: not part of the file
    CHECK(lseek(fd, 0, SEEK_END) == 2 * PAGE + 100);
    MUST(ftruncate(fd, PAGE));
    CHECK(died_of(in_child(peek, s + PAGE), SIGBUS), "access behind the end");
    MUST(ftruncate(fd, 3 * PAGE));
    CHECK(s[PAGE] == 0 && s[2 * PAGE + 200] == 0, "what was cut off must not come back");
    MUST(msync(s, 3 * PAGE, MS_SYNC));
    int ro = MUST(open(name, O_RDONLY));
    CHECK_ERR(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0), EACCES);
    CHECK_ERR(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 100), EINVAL);
    char *r = (char *)MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0));
    CHECK_ERR(mprotect(r, PAGE, PROT_READ | PROT_WRITE), EACCES);
    unlink(name);
    close(fd);
    CHECK(!memcmp(r, "WRITE", 5), "the mapping keeps an unlinked file");
}

// A gate's sentence: fork copies nothing until someone writes, and then one page.
TEST(cow_counted) {
    enum { PAGES = 1024 };
    char *p = (char *)MUST(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE); // so that faults are counted by page; unknown to kernels without huge pages
    for (int i = 0; i < PAGES; i++) p[i * PAGE] = 1;
    int up[2], down[2];
    MUST(pipe(up));
    MUST(pipe(down));
    bool berth = on_berth();
    long free0 = number_in("/proc/berth/memory", "free_frames");
    pid_t pid = MUST(fork());
    if (!pid) {
        char c;
        struct rusage a, b;
        CHECK(write(up[1], "f", 1) == 1 && read(down[0], &c, 1) == 1);
        long cow0 = berth_counter("cow_faults");
        getrusage(RUSAGE_SELF, &a);
        for (int i = 0; i < 100; i++) p[i * PAGE] = 2;
        getrusage(RUSAGE_SELF, &b);
        long faults = b.ru_minflt - a.ru_minflt, cow = berth_counter("cow_faults") - cow0;
        CHECK(faults >= 100 && faults < 200, "%ld faults for 100 pages written", faults);
        if (berth) CHECK(cow >= 100 && cow < 200, "%ld copies counted for 100 pages written", cow);
        CHECK(p[0] == 2 && p[100 * PAGE] == 1);
        CHECK(write(up[1], "w", 1) == 1 && read(down[0], &c, 1) == 1);
        exit(t_failed != 0);
    }
    char c;
    MUST(read(up[0], &c, 1));
    long used = free0 - number_in("/proc/berth/memory", "free_frames");
    if (berth) CHECK(used < 200, "fork of %d pages took %ld frames", PAGES, used);
    MUST(write(down[1], "g", 1));
    MUST(read(up[0], &c, 1));
    CHECK(p[0] == 1 && p[99 * PAGE] == 1, "the child's writes show in the parent");
    p[500 * PAGE] = 3;
    MUST(write(down[1], "g", 1));
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0));
}

static void rounds(int n, const char *self) {
    for (int i = 0; i < n; i++) {
        pid_t pid = MUST(fork());
        if (!pid) {
            execl(self, self, "quick", (char *)NULL);
            _exit(127);
        }
        int status;
        MUST(waitpid(pid, &status, 0));
        if (!exited_with(status, 0)) {
            CHECK(0, "round %d: status %x", i, status);
            return;
        }
    }
}
static long settled_free(void) {
    // Threads that just died hand their stacks over when their CPU next runs: wait until two looks agree.
    long last = -1;
    for (int i = 0; i < 100; i++) {
        long now = number_in("/proc/berth/memory", "free_frames");
        if (now == last) return now;
        last = now;
        nap_ms(50);
    }
    return last;
}
TEST(frames_return) {
    rounds(50, "/proc/self/exe");
    if (!on_berth()) {
        rounds(200, "/proc/self/exe");
        return;
    }
    static char was[8192]; // touched before the count, as all that the report needs
    memset(was, 1, sizeof was);
    strcpy(was, slurp("/proc/berth/memory"));
    // A leak shows every time. That a long-lived object of the kernel's moved to a heap page of its own may happen once;
    // that it left one gives a frame more than before.
    for (int attempt = 0;; attempt++) {
        long before = settled_free();
        strcpy(was, slurp("/proc/berth/memory"));
        rounds(1000, "/proc/self/exe");
        long after = settled_free();
        char *is = slurp("/proc/berth/memory");
        if (before <= after) return;
        if (attempt < 2) continue;
        CHECK(before <= after, "free frames: %ld before, %ld after", before, after);
        printf("before:\n%safter:\n%s", was, is);
        return;
    }
}

TEST(randomised) {
    // Two programs see different places for stack, heap and mappings.
    char first[4096] = "";
    int differ = 0;
    for (int i = 0; i < 4; i++) {
        int p[2];
        MUST(pipe(p));
        pid_t pid = MUST(fork());
        if (!pid) {
            dup2(p[1], 1);
            execl("/proc/self/exe", "mem", "where", (char *)NULL);
            _exit(127);
        }
        close(p[1]);
        char line[4096] = "";
        MUST(read(p[0], line, sizeof line - 1));
        close(p[0]);
        waitpid(pid, NULL, 0);
        if (i == 0) strcpy(first, line);
        else differ |= strcmp(first, line) != 0;
    }
    CHECK(differ, "always %s", first);
}

static const struct test tests[] = {
    T(stray_pointer), T(siginfo_names_address), T(kernel_not_through_syscalls), T(kernel_not_through_proc), T(maps_show_no_kernel),
    T(guard_and_protect), T(stack_grows_to_its_limit), T(zero_filled), T(brk_moves), T(mremap_keeps_content), T(shared_is_shared),
    T(file_mappings), T(cow_counted), T(randomised), T_FOR(frames_return, 300),
};
int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "quick")) {
        char *p = malloc(100000);
        memset(p, 1, 100000);
        return p[5] - 1;
    }
    if (argc == 2 && !strcmp(argv[1], "where")) {
        int local;
        printf("%p %p\n", (void *)&local, mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        return 0;
    }
    return t_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
