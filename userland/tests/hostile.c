// Bad input to system calls: every call that takes a pointer is given bad ones, every call takes absurd lengths and flags,
// and every number at all is called with junk. Expected are the documented errors; above all that the machine lives on.
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/utsname.h>

// ---- pointers that lead nowhere -----------------------------------------------------------------------------------
// A page of good bytes whose neighbour is not mapped, one that is read-only, one with no rights; and addresses.
static char *edge, *read_only, *no_rights;
static void lay_out(void) {
    char *p = (char *)MUST(mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(p, 'a', 6 * PAGE);
    MUST(munmap(p + PAGE, PAGE));
    edge = p + PAGE;
    read_only = p + 2 * PAGE;
    MUST(mprotect(read_only, PAGE, PROT_READ));
    no_rights = p + 4 * PAGE;
    MUST(mprotect(no_rights, PAGE, PROT_NONE));
}

// P: the bad pointer; other letters are good values made fresh. W: the kernel writes there (read-only is bad too).
enum { READS, WRITES };
#define P ((long)bad)
static int file, dir_fd, pipe_r, pipe_w, ep, watcher, self_fd;
static char good[8192] __attribute__((aligned(64)));

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

struct row {
    const char *name;
    int way;
    long (*call)(char *bad);
};
#define ROWS(X)                                                                                              \
    X(getcwd, WRITES, P, 256)                                                                                \
    X(epoll_ctl, READS, ep, EPOLL_CTL_ADD, pipe_r, P)                                                        \
    X(pipe2, WRITES, P, 0)                                                                                   \
    X(ioctl, WRITES, pipe_r, FIONREAD, P)                                                                    \
    X(mkdirat, READS, AT_FDCWD, P, 0700)                                                                     \
    X(mknodat, READS, AT_FDCWD, P, S_IFREG | 0600, 0)                                                        \
    X(unlinkat, READS, AT_FDCWD, P, 0)                                                                       \
    X(symlinkat, READS, P, AT_FDCWD, (long)"/tmp/hostile.link")                                              \
    X(linkat, READS, AT_FDCWD, P, AT_FDCWD, (long)"/tmp/hostile.link", 0)                                    \
    X(renameat2, READS, AT_FDCWD, P, AT_FDCWD, (long)"/tmp/x", 0)                                            \
    X(statfs, WRITES, (long)"/tmp", P)                                                                       \
    X(fstatfs, WRITES, file, P)                                                                              \
    X(truncate, READS, P, 0)                                                                                 \
    X(faccessat, READS, AT_FDCWD, P, 0)                                                                      \
    X(chdir, READS, P)                                                                                       \
    X(chroot, READS, P)                                                                                      \
    X(fchmodat, READS, AT_FDCWD, P, 0600)                                                                    \
    X(fchownat, READS, AT_FDCWD, P, 0, 0, 0)                                                                 \
    X(openat, READS, AT_FDCWD, P, O_RDONLY)                                                                  \
    X(getdents64, WRITES, dir_fd, P, 1024)                                                                   \
    X(read, WRITES, file, P, 64)                                                                             \
    X(write, READS, file, P, 64)                                                                             \
    X(pread64, WRITES, file, P, 64, 0)                                                                       \
    X(pwrite64, READS, file, P, 64, 0)                                                                       \
    X(readv, READS, file, P, 1)                                                                              \
    X(writev, READS, file, P, 1)                                                                             \
    X(readlinkat, READS, AT_FDCWD, P, (long)good, 64)                                                        \
    X(readlinkat, WRITES, AT_FDCWD, (long)"/proc/self/exe", P, 64)                                           \
    X(newfstatat, WRITES, AT_FDCWD, (long)"/tmp", P, 0)                                                      \
    X(newfstatat, READS, AT_FDCWD, P, (long)good, 0)                                                         \
    X(fstat, WRITES, file, P)                                                                                \
    X(utimensat, READS, AT_FDCWD, (long)"/tmp", P + 0, 0)                                                    \
    X(statx, WRITES, AT_FDCWD, (long)"/tmp", 0, 0x7ff, P)                                                    \
    X(ppoll, WRITES, P, 1, (long)&zero_time, 0, 0)                                                           \
    X(pselect6, WRITES, 8, P, 0, 0, (long)&zero_time, 0)                                                     \
    X(nanosleep, READS, P, 0)                                                                                \
    X(clock_nanosleep, READS, CLOCK_MONOTONIC, 0, P, 0)                                                      \
    X(clock_gettime, WRITES, CLOCK_REALTIME, P)                                                              \
    X(clock_getres, WRITES, CLOCK_REALTIME, P)                                                               \
    X(clock_settime, READS, CLOCK_REALTIME, P)                                                               \
    X(setitimer, READS, 0, P, 0)                                                                             \
    X(getitimer, WRITES, 0, P)                                                                               \
    X(timer_create, READS, CLOCK_MONOTONIC, P, (long)good)                                                   \
    X(sched_setparam, READS, 0, P)                                                                           \
    X(sched_getparam, WRITES, 0, P)                                                                          \
    X(sched_setaffinity, READS, 0, 8, P)                                                                     \
    X(sched_getaffinity, WRITES, 0, 128, P)                                                                  \
    X(sched_rr_get_interval, WRITES, 0, P)                                                                   \
    X(sigaltstack, READS, P, 0)                                                                              \
    X(sigaltstack, WRITES, 0, P)                                                                             \
    X(rt_sigaction, READS, SIGUSR1, P, 0, 8)                                                                 \
    X(rt_sigaction, WRITES, SIGUSR1, 0, P, 8)                                                                \
    X(rt_sigprocmask, READS, SIG_BLOCK, P, 0, 8)                                                             \
    X(rt_sigprocmask, WRITES, SIG_BLOCK, 0, P, 8)                                                            \
    X(rt_sigpending, WRITES, P, 8)                                                                           \
    X(rt_sigtimedwait, READS, P, 0, (long)&zero_time, 8)                                                     \
    X(rt_sigqueueinfo, READS, getpid(), 0, P)                                                                \
    X(rt_sigsuspend, READS, P, 8)                                                                            \
    X(times, WRITES, P)                                                                                      \
    X(getgroups, WRITES, 64, P)                                                                              \
    X(setgroups, READS, 4, P)                                                                                \
    X(getresuid, WRITES, P, (long)good, (long)good)                                                          \
    X(uname, WRITES, P)                                                                                      \
    X(sethostname, READS, P, 4)                                                                              \
    X(getrlimit, WRITES, RLIMIT_NOFILE, P)                                                                   \
    X(setrlimit, READS, RLIMIT_CORE, P)                                                                      \
    X(prlimit64, WRITES, 0, RLIMIT_NOFILE, 0, P)                                                             \
    X(getrusage, WRITES, 0, P)                                                                               \
    X(prctl, READS, 15, P)                                                                                   \
    X(prctl, WRITES, 16, P)                                                                                  \
    X(getcpu, WRITES, P, 0, 0)                                                                               \
    X(gettimeofday, WRITES, P, 0)                                                                            \
    X(sysinfo, WRITES, P)                                                                                    \
    X(execve, READS, P, (long)good, (long)good)                                                              \
    X(getrandom, WRITES, P, 64, 0)                                                                           \
    X(mincore, WRITES, (long)good & -4096, 4096, P)                                                          \
    X(mount, READS, (long)"tmpfs", P, (long)"tmpfs", 0, 0)                                                   \
    X(umount2, READS, P, 0)                                                                                  \
    X(futex, READS, P, 0, 0x61616162, (long)&zero_time)                                                      \
    X(set_robust_list, READS, P, 1)                                                                          \
    X(get_robust_list, WRITES, 0, P, (long)good)                                                             \
    X(signalfd4, READS, -1, P, 8, 0)                                                                         \
    X(inotify_add_watch, READS, watcher, P, 1)                                                               \
    X(pidfd_send_signal, READS, self_fd, 0, P, 0)                                                            \
    X(futex_waitv, READS, P, 1, 0, 0, 0)                                                                     \
    X(clone3, READS, P, 88)                                                                                  \
    X(setxattr, READS, (long)"/tmp", P, (long)good, 4, 0)                                                    \
    X(getxattr, READS, (long)"/tmp", P, (long)good, 4)                                                      

static struct timespec zero_time;
#define FUNCTION(name, way, ...) static long call_##name##_##way(char *bad) { return syscall(SYS_##name, __VA_ARGS__); }
#define ENTRY(name, way, ...) {#name, way, call_##name##_##way},
ROWS(FUNCTION)
static const struct row rows[] = {ROWS(ENTRY)};

struct attempt {
    const struct row *row;
    char *bad;
};
static int expected(const struct row *r, int e, char *bad) {
    if (e == EFAULT) return 1;
    if (!strcmp(r->name, "set_robust_list")) return e == EINVAL; // only the length is looked at
    if (!strcmp(r->name, "futex") || !strcmp(r->name, "mincore")) return e == EINVAL; // misaligned
    if (!strcmp(r->name, "timer_create") || !strcmp(r->name, "setxattr") || !strcmp(r->name, "getxattr")) return e == EOPNOTSUPP || e == ENOSYS;
    if (!strcmp(r->name, "execve")) return e == EFAULT;
    return 0;
}
static void one_attempt(void *arg) {
    struct attempt *a = arg;
    alarm(20);
    errno = 0;
    long r = a->row->call(a->bad);
    _exit(r >= 0 ? 200 : expected(a->row, errno, a->bad) ? 0 : errno);
}
TEST(bad_pointers) {
    lay_out();
    // Nothing of the kernel's, nothing unmapped, nothing without rights, nothing over an edge.
    char *bad[] = {(char *)8, (char *)0x1000, (char *)0xffff000000000000, (char *)0xffff000040080000, (char *)0xffffc00000000000,
                   (char *)0xfffffffffffff000, (char *)0xffffffffffffffff, (char *)0x0001000000000000, (char *)0x8000000000000000,
                   no_rights, edge, edge + 64, no_rights + 1, read_only};
    char name[64];
    snprintf(name, sizeof name, "/tmp/hostile.%d", getpid());
    file = MUST(open(name, O_RDWR | O_CREAT, 0600));
    MUST(write(file, good, 4096));
    dir_fd = MUST(open("/", O_RDONLY | O_DIRECTORY));
    int p[2];
    MUST(pipe(p));
    pipe_r = p[0];
    pipe_w = p[1];
    ep = MUST(epoll_create1(0));
    watcher = MUST(syscall(SYS_inotify_init1, 0));
    self_fd = MUST(syscall(434, getpid(), 0)); // pidfd_open
    gid_t groups[2] = {1, 2};
    MUST(syscall(SYS_setgroups, 2, groups)); // so that getgroups has something to write
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            if (bad[b] == read_only && rows[i].way == READS) continue;
            MUST(lseek(file, 0, SEEK_SET));
            MUST(lseek(dir_fd, 0, SEEK_SET));
            struct attempt a = {&rows[i], bad[b]};
            int status = in_child(one_attempt, &a);
            if (exited_with(status, 0)) continue;
            if (exited_with(status, 200)) t_fail("%s accepted the pointer %p", rows[i].name, bad[b]);
            else if (WIFEXITED(status)) t_fail("%s with the pointer %p: errno %d (%s), not EFAULT", rows[i].name, bad[b], WEXITSTATUS(status), strerror(WEXITSTATUS(status)));
            else t_fail("%s with the pointer %p: status %x", rows[i].name, bad[b], status);
        }
    }
    unlink(name);
    rmdir("/tmp/hostile.link");
}

TEST(page_ends) {
    // What ends exactly at the end of a page is all there; one byte more is not.
    lay_out();
    char name[64];
    snprintf(name, sizeof name, "/tmp/he.%d", getpid());
    size_t n = strlen(name) + 1;
    memcpy(edge - n, name, n);
    int fd = MUST(open(edge - n, O_RDWR | O_CREAT, 0600));
    memset(edge - n, '/', n);
    CHECK_ERR(open(edge - n, O_RDONLY), EFAULT);
    CHECK(write(fd, edge - 100, 100) == 100);
    long r = write(fd, edge - 100, 200); // tmpfs on Linux writes what it could read
    CHECK(r == 100 || (r == -1 && errno == EFAULT), "%ld", r);
    r = pread(fd, edge - 50, 100, 0);
    CHECK(r == 50 || (r == -1 && errno == EFAULT), "%ld", r);
    CHECK(pread(fd, edge - 50, 50, 0) == 50);
    struct utsname *u = (void *)(edge - sizeof(struct utsname));
    CHECK(syscall(SYS_uname, u) == 0 && !strcmp(u->sysname, "Linux"));
    CHECK_ERR(syscall(SYS_uname, (char *)u + 1), EFAULT);
    struct stat *st = (void *)(edge - sizeof(struct stat));
    CHECK(syscall(SYS_fstat, fd, st) == 0);
    CHECK_ERR(syscall(SYS_fstat, fd, (char *)st + 8), EFAULT);
    struct timespec *ts = (void *)(edge - sizeof *ts);
    CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, ts) == 0);
    CHECK_ERR(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (char *)ts + 8), EFAULT);
    CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, (char *)ts - 3) == 0, "misaligned structures are allowed");
    struct iovec *v = (void *)(edge - 2 * sizeof *v);
    v[0] = (struct iovec){edge - 500, 10};
    v[1] = (struct iovec){edge - 400, 10};
    CHECK(writev(fd, v, 2) == 20);
    CHECK_ERR(writev(fd, v, 3), EFAULT);
    v[1] = (struct iovec){(void *)8, 10};
    r = writev(fd, v, 2);
    CHECK(r == 10 || (r == -1 && errno == EFAULT), "%ld", r);
    // A pipe keeps what it could take; nothing leaks out of a read that failed half way.
    int p[2];
    MUST(pipe(p));
    r = write(p[1], edge - 100, 200);
    CHECK(r == 100 || (r == -1 && errno == EFAULT), "%ld", r);
    unlink(name);
}

TEST(absurd_lengths) {
    int fd = MUST(open("/dev/zero", O_RDWR)), p[2];
    char name[64];
    snprintf(name, sizeof name, "/tmp/hl.%d", getpid());
    int f = MUST(open(name, O_RDWR | O_CREAT, 0600));
    MUST(pipe(p));
    CHECK_ERR(syscall(SYS_read, fd, good, -1l), EFAULT);
    CHECK_ERR(syscall(SYS_read, fd, good, 1ul << 63), EFAULT);
    CHECK_ERR(syscall(SYS_write, f, good, 1ul << 62), EFAULT);
    CHECK_ERR(syscall(SYS_pread64, f, good, 8, -1l), EINVAL);
    CHECK_ERR(syscall(SYS_pwrite64, f, good, 8, (long)(1ul << 63)), EINVAL);
    CHECK_ERR(syscall(SYS_pwrite64, f, good, 8, 0x7ffffffffffffffc), EINVAL);
    CHECK_ERR(syscall(SYS_lseek, f, -1l, SEEK_SET), EINVAL);
    CHECK_ERR(syscall(SYS_lseek, f, 0, 99), EINVAL);
    CHECK_ERR(syscall(SYS_lseek, p[0], 0, SEEK_SET), ESPIPE);
    CHECK_ERR(syscall(SYS_ftruncate, f, -1l), EINVAL);
    CHECK_ERR(syscall(SYS_ftruncate, fd, 10), EINVAL);
    struct iovec v[2] = {{good, 1ul << 63}, {good, 8}};
    CHECK_ERR(syscall(SYS_writev, f, v, 2), EINVAL);
    CHECK_ERR(syscall(SYS_writev, f, v, 1025), EINVAL);
    CHECK_ERR(syscall(SYS_writev, f, v, -1l), EINVAL);
    CHECK(syscall(SYS_writev, f, v, 0) == 0);
    CHECK_ERR(syscall(SYS_getcwd, good, 1), ERANGE);
    CHECK_ERR(syscall(SYS_ppoll, good, 1ul << 31, &zero_time, 0, 0), EINVAL);
    CHECK_ERR(syscall(SYS_pselect6, -1l, 0, 0, 0, &zero_time, 0), EINVAL);
    CHECK_ERR(syscall(SYS_getgroups, -1l, good), EINVAL);
    CHECK_ERR(syscall(SYS_setgroups, 1ul << 20, good), EINVAL);
    CHECK_ERR(syscall(SYS_sethostname, good, 1000), EINVAL);
    CHECK_ERR(syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", good, 0), EINVAL);
    CHECK_ERR(syscall(SYS_readlinkat, AT_FDCWD, "/tmp", good, 64), EINVAL);
    CHECK_ERR(syscall(SYS_munmap, 0, 1ul << 63), EINVAL);
    CHECK_ERR(syscall(SYS_munmap, 0xffff000000000000, 4096), EINVAL);
    CHECK_ERR(syscall(SYS_mprotect, 0xffff000000000000, 4096, PROT_READ), ENOMEM);
    CHECK_ERR(syscall(SYS_madvise, good, 4096, 9999), EINVAL);
    CHECK_ERR(syscall(SYS_nanosleep, &(struct timespec){0, 1000000000}, 0), EINVAL);
    CHECK_ERR(syscall(SYS_nanosleep, &(struct timespec){-1, 0}, 0), EINVAL);
    CHECK_ERR(syscall(SYS_clock_gettime, 99, good), EINVAL);
    struct dirent_buf { char b[8]; } small;
    int d = MUST(open("/", O_RDONLY | O_DIRECTORY));
    CHECK_ERR(syscall(SYS_getdents64, d, &small, 8), EINVAL);
    CHECK_ERR(syscall(SYS_getdents64, f, good, 1024), ENOTDIR);
    char *deep = malloc(5000);
    memset(deep, 'a', 4999);
    deep[4999] = 0;
    CHECK_ERR(open(deep, O_RDONLY), ENAMETOOLONG);
    deep[300] = 0;
    CHECK_ERR(open(deep, O_RDONLY | O_CREAT, 0600), ENAMETOOLONG);
    deep[255] = 0;
    MUST(chdir("/tmp"));
    int long_fd = open(deep, O_RDONLY | O_CREAT, 0600);
    CHECK(long_fd >= 0, "a name of 255 bytes: %s", strerror(errno));
    unlink(deep);
    unlink(name);
}

TEST(bad_descriptors_and_flags) {
    struct rlimit few = {256, 256};
    MUST(setrlimit(RLIMIT_NOFILE, &few));
    int bad[] = {-1, 1000, 1 << 20, (int)0x80000000, 0x7fffffff};
    for (int i = 0; i < 5; i++) {
        long fd = bad[i];
        CHECK_ERR(syscall(SYS_read, fd, good, 1), EBADF);
        CHECK_ERR(syscall(SYS_write, fd, good, 1), EBADF);
        CHECK_ERR(syscall(SYS_close, fd), EBADF);
        CHECK_ERR(syscall(SYS_fstat, fd, good), EBADF);
        CHECK_ERR(syscall(SYS_lseek, fd, 0, 0), EBADF);
        CHECK_ERR(syscall(SYS_dup, fd), EBADF);
        CHECK_ERR(syscall(SYS_fcntl, fd, F_GETFD), EBADF);
        CHECK_ERR(syscall(SYS_ioctl, fd, 0x5401, good), EBADF);
        CHECK_ERR(syscall(SYS_fsync, fd), EBADF);
        CHECK_ERR(syscall(SYS_ftruncate, fd, 0), EBADF);
        CHECK_ERR(syscall(SYS_fchdir, fd), EBADF);
        CHECK_ERR(syscall(SYS_getdents64, fd, good, 1024), EBADF);
        CHECK_ERR(syscall(SYS_openat, fd, "relative", 0), EBADF);
        CHECK_ERR(syscall(SYS_dup3, 0, fd, 0), EBADF);
        CHECK_ERR(syscall(SYS_mmap, 0, 4096, 1, 2, fd, 0), EBADF);
    }
    CHECK_ERR(syscall(SYS_dup3, 0, 0, 0), EINVAL);
    CHECK_ERR(syscall(SYS_dup3, 0, 9, 0x1234), EINVAL);
    CHECK_ERR(syscall(SYS_pipe2, good, 0x1234567), EINVAL);
    CHECK_ERR(syscall(SYS_unlinkat, AT_FDCWD, "/tmp", 0x1234), EINVAL);
    CHECK_ERR(syscall(SYS_newfstatat, AT_FDCWD, "/tmp", good, 0x40000000), EINVAL);
    CHECK_ERR(syscall(SYS_renameat2, AT_FDCWD, "/tmp/a", AT_FDCWD, "/tmp/b", 0x80), EINVAL);
    CHECK_ERR(syscall(SYS_linkat, AT_FDCWD, "/tmp/a", AT_FDCWD, "/tmp/b", 0x80), EINVAL);
    CHECK_ERR(syscall(SYS_getrandom, good, 4, 0x80), EINVAL);
    CHECK_ERR(syscall(SYS_wait4, -1, 0, 0x12345670, 0), EINVAL);
    CHECK_ERR(syscall(SYS_futex, good, 99, 0, 0, 0, 0), ENOSYS);
    CHECK_ERR(syscall(SYS_clone, 0x00000100 | SIGCHLD | 0x00010000, 0, 0, 0, 0), EINVAL); // CLONE_THREAD without SIGHAND
    CHECK_ERR(syscall(SYS_clone3, good, 8), EINVAL);
    CHECK_ERR(syscall(SYS_clone3, good, 1 << 20), E2BIG);
    CHECK_ERR(syscall(SYS_prctl, 99999, 0, 0, 0, 0), EINVAL);
    CHECK_ERR(syscall(SYS_getpriority, 99, 0), EINVAL);
    CHECK_ERR(syscall(SYS_prlimit64, 0, 99, 0, good), EINVAL);
    CHECK_ERR(syscall(SYS_getrusage, 99, good), EINVAL);
    CHECK_ERR(syscall(SYS_eventfd2, 0, 0x1234567), EINVAL);
    CHECK_ERR(syscall(SYS_epoll_create1, 0x1234567), EINVAL);
    CHECK_ERR(syscall(SYS_msync, (long)good & -4096, 4096, 0x100), EINVAL);
    CHECK_ERR(syscall(SYS_mremap, good + 1, 4096, 4096, 0), EINVAL);
    CHECK_ERR(syscall(SYS_reboot, 1, 2, 3, 4), EINVAL);
    CHECK_ERR(syscall(5000), ENOSYS);
    CHECK_ERR(syscall(-1), ENOSYS);
    CHECK_ERR(syscall(0x7fffffffffff), ENOSYS);
}

// ---- junk to every number -----------------------------------------------------------------------------------------
static bool left_alone(long n) {
    switch (n) {
    // ends, stops or reboots what must go on; hangs up the console; changes the machine's clock or name for all
    case SYS_exit: case SYS_exit_group: case SYS_reboot: case SYS_kill: case SYS_tkill: case SYS_tgkill: case SYS_vhangup:
    case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo: case SYS_clock_settime: case SYS_settimeofday: case SYS_adjtimex:
    case SYS_clock_adjtime: case SYS_clone: case SYS_clone3: case SYS_execve: case SYS_execveat: case SYS_umount2: case SYS_mount:
    case SYS_pivot_root: case SYS_sethostname: case SYS_setdomainname: case SYS_rt_sigreturn: case SYS_seccomp: case SYS_swapoff:
    case SYS_delete_module: case SYS_init_module: case SYS_finit_module: case SYS_kexec_load: case SYS_sync: case SYS_chroot:
    case SYS_syslog: case SYS_bpf: case SYS_ptrace: return true;
    }
    return false;
}
static unsigned seed;
static unsigned long junk(void) {
    seed = seed * 1103515245 + 12345;
    static const unsigned long values[] = {
        0, 1, 2, 3, 7, 8, 64, 4095, 4096, -1ul, -2ul, -100ul /* AT_FDCWD */, 0x7fffffff, 0x80000000, 0xffffffff, 1ul << 32, 1ul << 62, 1ul << 63,
        0x7fffffffffffffff, 0xffff000000000000, 0xffff000040080000, 0x0000fffffffff000, 0x0001000000000000, 0xfffffffffffff000,
    };
    unsigned pick = seed >> 16;
    if (pick % 4 == 0) return (unsigned long)edge - pick / 4 % 64;
    if (pick % 4 == 1) return (unsigned long)good + pick / 4 % 64;
    return values[pick / 4 % (sizeof values / sizeof *values)];
}
static void storm(void *arg) {
    long n = (long)arg;
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0), dup2(null, 1), dup2(null, 2);
    struct rlimit r = {64 << 20, 64 << 20};
    setrlimit(RLIMIT_AS, &r);
    for (int i = 0; i < 40; i++) {
        alarm(1); // many sleep: each waits at most so long
        seed = n * 1000 + i;
        syscall(n, junk(), junk(), junk(), junk(), junk(), junk());
    }
    _exit(0);
}
TEST(junk_to_every_number) {
    lay_out();
    MUST(chdir("/tmp"));
    signal(SIGALRM, SIG_DFL);
    for (long n = 0; n < 470; n++) {
        if (left_alone(n)) continue;
        pid_t pid = MUST(fork());
        if (!pid) {
            setpgid(0, 0);
            // As nobody: junk must not remove files or change the machine.
            if (setgid(65534) || setuid(65534)) _exit(1);
            storm((void *)n);
        }
        int status;
        // It ends by itself, or it sleeps with SIGALRM blocked: SIGKILL must end it then.
        bool over = false;
        for (int i = 0; i < 300 && !over; i++) {
            over = waitpid(pid, &status, WNOHANG) == pid;
            if (!over) nap_ms(i < 20 ? 1 : 10);
        }
        kill(-pid, SIGKILL);
        for (int i = 0; i < 500 && !over; i++) {
            kill(pid, SIGKILL);
            over = waitpid(pid, &status, WNOHANG) == pid;
            if (!over) nap_ms(10);
        }
        if (!over) t_fail("call %ld cannot be ended by SIGKILL", n);
    }
    // Alive: a child can be made, a file written, a name resolved.
    pid_t pid = MUST(fork());
    if (!pid) _exit(access("/etc/passwd", R_OK) == 0 ? 0 : 1);
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
}

// Wild code: bytes of noise run as a program. Whatever they do, they do it to their own process.
static void run_noise(void *arg) {
    uint32_t *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned x = (unsigned)(long)arg * 2654435761u;
    for (int i = 0; i < 1024; i++) {
        x = x * 1103515245 + 12345;
        p[i] = x ^ x >> 13;
        if ((p[i] & 0xffe0001f) == 0xd4000001) p[i] = 0; // no system calls here
    }
    mprotect(p, PAGE, PROT_READ | PROT_EXEC);
    __builtin___clear_cache((char *)p, (char *)p + PAGE);
    alarm(2);
    ((void (*)(void))p)();
    _exit(0);
}
TEST(noise_as_code) {
    for (long i = 0; i < 200; i++) in_child(run_noise, (void *)i);
}

// Instructions that are not for programs.
#define PRIVILEGED(X) X("msr daifset, #15") X("mrs x0, ttbr0_el1") X("msr sctlr_el1, x0") X("tlbi vmalle1") X("hvc #0") X("smc #0") X("eret") \
    X("msr vbar_el1, x0") X("mrs x0, esr_el1") X("dc isw, x0") X("at s1e1r, x0") X("mrs x0, cntp_ctl_el0") X("msr cntkctl_el1, x0") X("wfi") X("mrs x0, pmcr_el0") \
    X("mrs x0, midr_el1") X("dc ivac, x0")
static void privileged_number(void *arg) {
    alarm(3);
    int i = 0;
#define X(text) if ((long)arg == i++) __asm__ volatile(text ::: "x0", "memory");
    PRIVILEGED(X)
#undef X
    _exit(77);
}
TEST(privileged_instructions) {
    int count = 0;
#define X(text) count++;
    PRIVILEGED(X)
#undef X
    for (long i = 0; i < count; i++) {
        int status = in_child(privileged_number, (void *)i);
        // Reading the CPU's identity is emulated on Linux; wfi may be allowed and then waits for the alarm's interrupt.
        bool fine = died_of(status, SIGILL) || died_of(status, SIGSEGV) || died_of(status, SIGBUS) || exited_with(status, 77) || died_of(status, SIGALRM);
        CHECK(fine, "instruction %ld: status %x", i, status);
        if (i < 13) CHECK(!exited_with(status, 77), "instruction %ld was allowed", i);
    }
}

MAIN(T_FOR(bad_pointers, 120), T(page_ends), T(absurd_lengths), T(bad_descriptors_and_flags), T_FOR(junk_to_every_number, 400), T_FOR(noise_as_code, 400),
     T(privileged_instructions))
