// Files that stand for events: signalfd, pidfd, inotify, timerfd and eventfd, waited for with poll, select and every kind of
// epoll, beside pipes, sockets and terminals.
#include "t.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/timex.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static sigset_t set_of(int a, int b) {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, a);
    if (b) sigaddset(&s, b);
    return s;
}
static int ready(int fd, int events) {
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, 0) == 1 ? p.revents : 0;
}

// ---- the wall clock --------------------------------------------------------------------------------------------------
static int64_t clock_ns(int clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
// A correction bends the clock; it never jumps, and in the end it is as far as was asked.
TEST(adjtimex_bends_the_clock_without_a_jump) {
    struct timex t = {0};
    CHECK(adjtimex(&t) >= 0 && t.tick == 10000 && t.time.tv_sec == time(NULL));
    for (int sign = 1; sign >= -1; sign -= 2) {
        // 200 microseconds take 0.4 s at 500 millionths.
        int64_t began = clock_ns(CLOCK_MONOTONIC), offset = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC), left;
        struct timeval by = {.tv_sec = sign < 0 ? -1 : 0, .tv_usec = sign < 0 ? 999800 : 200}, old;
        MUST(adjtime(&by, NULL));
        int64_t last = clock_ns(CLOCK_REALTIME);
        int back = 0;
        do {
            for (int n = 0; n < 1000; n++) {
                int64_t now = clock_ns(CLOCK_REALTIME);
                back += now < last;
                last = now;
            }
            MUST(adjtime(NULL, &old));
            left = old.tv_sec * 1000000ll + old.tv_usec;
        } while (left && clock_ns(CLOCK_MONOTONIC) - began < 60000000000ll);
        CHECK(left == 0 && back == 0);
        CHECK(clock_ns(CLOCK_MONOTONIC) - began >= 390000000);
        // Two clocks cannot be read at once: the smallest of several differences is closest.
        int64_t best = 1ll << 62;
        for (int n = 0; n < 2000; n++) {
            int64_t a = clock_ns(CLOCK_MONOTONIC), r = clock_ns(CLOCK_REALTIME), b = clock_ns(CLOCK_MONOTONIC);
            if (b - a < 20000) best = llabs(r - a - offset - sign * 200000) < best ? llabs(r - a - offset - sign * 200000) : best;
        }
        CHECK(best < 100000);
    }
}
TEST(the_clock_is_not_set_to_before_the_start) {
    struct timespec early = {0, 1000000};
    CHECK_ERR(clock_settime(CLOCK_REALTIME, &early), EINVAL);
    struct timespec odd = {1, 1000000000};
    CHECK_ERR(clock_settime(CLOCK_REALTIME, &odd), EINVAL);
    struct timeval wrong = {time(NULL), 1000000};
    CHECK_ERR(syscall(SYS_settimeofday, &wrong, NULL), EINVAL);
    int far[2] = {15 * 60 + 1, 0};
    CHECK_ERR(syscall(SYS_settimeofday, NULL, far), EINVAL);
    int utc[2] = {0, 0};
    CHECK(syscall(SYS_settimeofday, NULL, utc) == 0);
    CHECK(labs(time(NULL) - wrong.tv_sec) <= 2);
}

TEST(adjtimex_refuses_what_is_wrong) {
    struct timex t = {.modes = ADJ_TICK, .tick = 20000};
    CHECK_ERR(adjtimex(&t), EINVAL);
    t = (struct timex){.modes = ADJ_SETOFFSET, .time.tv_usec = 1000000};
    CHECK_ERR(adjtimex(&t), EINVAL);
    t = (struct timex){.modes = ADJ_TICK, .tick = INT64_MIN};
    CHECK_ERR(adjtimex(&t), EINVAL);
    t = (struct timex){.modes = ADJ_SETOFFSET, .time.tv_sec = -9000000000};
    CHECK_ERR(adjtimex(&t), EINVAL);
    t = (struct timex){.modes = ADJ_SETOFFSET, .time.tv_sec = 9000000000};
    CHECK_ERR(adjtimex(&t), EINVAL);
    t = (struct timex){0};
    CHECK_ERR(clock_adjtime(CLOCK_MONOTONIC, &t), EOPNOTSUPP);
    CHECK_ERR(syscall(SYS_adjtimex, 8), EFAULT);
    pid_t child = fork();
    if (!child) {
        if (setuid(1000)) _exit(1);
        t = (struct timex){.modes = ADJ_OFFSET_SINGLESHOT, .offset = 1};
        if (adjtimex(&t) != -1 || errno != EPERM) _exit(2);
        t = (struct timex){0};
        _exit(adjtimex(&t) < 0 ? 3 : 0);
    }
    int status;
    MUST(waitpid(child, &status, 0));
    CHECK(status == 0);
}

// ---- signalfd -------------------------------------------------------------------------------------------------------
TEST(signalfd_takes_what_is_blocked) {
    sigset_t s = set_of(SIGUSR1, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &s, NULL));
    int fd = MUST(signalfd(-1, &s, SFD_NONBLOCK | SFD_CLOEXEC));
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    struct signalfd_siginfo i[3];
    CHECK_ERR(read(fd, i, sizeof i), EAGAIN);
    CHECK_ERR(read(fd, i, 127), EINVAL);
    CHECK(ready(fd, POLLIN) == 0);
    kill(getpid(), SIGUSR2);
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 77});
    CHECK(ready(fd, POLLIN) == POLLIN);
    CHECK(read(fd, i, sizeof i) == 256);
    CHECK(i[0].ssi_signo == SIGUSR1 && i[0].ssi_code == SI_QUEUE && i[0].ssi_int == 77 && i[0].ssi_pid == (uint32_t)getpid());
    CHECK(i[1].ssi_signo == SIGUSR2 && i[1].ssi_code == SI_USER && i[1].ssi_uid == getuid());
    CHECK_ERR(read(fd, i, sizeof i), EAGAIN);
    // Real-time signals queue, lowest number first, each with its value.
    s = set_of(SIGRTMIN, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &s, NULL);
    CHECK(signalfd(fd, &s, 0) == fd);
    for (int n = 0; n < 3; n++) sigqueue(getpid(), SIGRTMIN + (n == 0), (union sigval){.sival_int = n});
    CHECK(read(fd, i, sizeof i) == 384 && i[0].ssi_int == 1 && i[1].ssi_int == 2 && i[2].ssi_int == 0);
    // The mask was changed: SIGUSR1 is nothing to it now.
    kill(getpid(), SIGUSR1);
    CHECK(ready(fd, POLLIN) == 0);
    struct timespec zero = {0, 0};
    s = set_of(SIGUSR1, 0);
    CHECK(sigtimedwait(&s, NULL, &zero) == SIGUSR1);
    CHECK_ERR(signalfd(0, &s, 0), EINVAL);
    CHECK_ERR(signalfd(99, &s, 0), EBADF);
    CHECK_ERR(signalfd(-1, &s, 0x10), EINVAL);
    CHECK_ERR(syscall(SYS_signalfd4, -1, &s, 4, 0), EINVAL);
}

static void *read_one(void *arg) {
    static struct signalfd_siginfo i;
    return (void *)(long)(read((int)(long)arg, &i, sizeof i) == sizeof i ? (long)i.ssi_signo : -1);
}
TEST(signalfd_wakes_sleepers) {
    sigset_t s = set_of(SIGCHLD, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &s, NULL));
    int fd = MUST(signalfd(-1, &s, 0));
    pthread_t t;
    pthread_create(&t, NULL, read_one, (void *)(long)fd);
    nap_ms(20);
    kill(getpid(), SIGUSR1);
    void *r;
    pthread_join(t, &r);
    CHECK((long)r == SIGUSR1);
    // A child's end, through epoll, and who it was.
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 5};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
    pid_t pid = fork();
    if (pid == 0) _exit(9);
    CHECK(epoll_wait(ep, &e, 1, 10000) == 1 && e.data.u64 == 5);
    struct signalfd_siginfo i;
    CHECK(read(fd, &i, sizeof i) == sizeof i);
    CHECK(i.ssi_signo == SIGCHLD && i.ssi_pid == (uint32_t)pid && i.ssi_status == 9 && i.ssi_code == CLD_EXITED);
    waitpid(pid, NULL, 0);
    CHECK(epoll_wait(ep, &e, 1, 0) == 0);
}

// ---- pidfd ----------------------------------------------------------------------------------------------------------
static int pidfd_open_(pid_t pid, unsigned flags) { return syscall(SYS_pidfd_open, pid, flags); }
TEST(pidfd_tells_of_the_end) {
    int gate[2];
    MUST(pipe(gate));
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(gate[1]);
        read(gate[0], &c, 1);
        _exit(3);
    }
    int fd = MUST(pidfd_open_(pid, 0)), slow = MUST(pidfd_open_(pid, O_NONBLOCK));
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK(ready(fd, POLLIN) == 0);
    siginfo_t si;
    CHECK_ERR(waitid(P_PIDFD, slow, &si, WEXITED), EAGAIN);
    si.si_pid = 1;
    CHECK(waitid(P_PIDFD, fd, &si, WEXITED | WNOHANG) == 0 && si.si_pid == 0);
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
    close(gate[1]);
    CHECK(epoll_wait(ep, &e, 1, 10000) == 1 && e.events == EPOLLIN);
    CHECK(ready(fd, POLLIN) == POLLIN);
    CHECK(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0, "a zombie can be asked for");
    CHECK(waitid(P_PIDFD, fd, &si, WEXITED) == 0 && si.si_pid == pid && si.si_status == 3 && si.si_code == CLD_EXITED);
    CHECK_ERR(waitid(P_PIDFD, fd, &si, WEXITED), ECHILD);
    CHECK_ERR(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0), ESRCH);
    CHECK(ready(fd, POLLIN) == POLLIN);
    char b;
    CHECK_ERR(read(fd, &b, 1), EINVAL);
    CHECK_ERR(pidfd_open_(0, 0), EINVAL);
    CHECK_ERR(pidfd_open_(-3, 0), EINVAL);
    CHECK_ERR(pidfd_open_(getpid(), 1), EINVAL);
    CHECK_ERR(waitid(P_PIDFD, ep, &si, WEXITED), EBADF);
    CHECK_ERR(waitid(P_PIDFD, 99, &si, WEXITED), EBADF);
}
static volatile sig_atomic_t got;
static void note(int n, siginfo_t *i, void *u) { got = n * 1000 + i->si_value.sival_int; }
TEST(pidfd_signals_and_descriptors) {
    struct sigaction a = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &a, NULL);
    int self = MUST(pidfd_open_(getpid(), 0));
    CHECK(syscall(SYS_pidfd_send_signal, self, SIGUSR1, NULL, 0) == 0 && got == SIGUSR1 * 1000);
    siginfo_t si = {.si_signo = SIGUSR1, .si_code = SI_QUEUE, .si_value.sival_int = 12};
    CHECK(syscall(SYS_pidfd_send_signal, self, SIGUSR1, &si, 0) == 0 && got == SIGUSR1 * 1000 + 12);
    CHECK_ERR(syscall(SYS_pidfd_send_signal, self, SIGUSR2, &si, 0), EINVAL);
    CHECK_ERR(syscall(SYS_pidfd_send_signal, self, 99, NULL, 0), EINVAL);
    CHECK_ERR(syscall(SYS_pidfd_send_signal, 0, SIGUSR1, NULL, 0), EBADF);
    CHECK_ERR(syscall(SYS_pidfd_send_signal, self, SIGUSR1, NULL, 1u << 20), EINVAL);
    int dir = MUST(open("/proc/self", O_RDONLY | O_DIRECTORY)), task = MUST(open("/proc/self/task", O_RDONLY));
    got = 0;
    CHECK(syscall(SYS_pidfd_send_signal, dir, SIGUSR1, NULL, 0) == 0 && got == SIGUSR1 * 1000, "/proc/PID stands for its process");
    CHECK_ERR(syscall(SYS_pidfd_send_signal, task, SIGUSR1, NULL, 0), EBADF);
    close(dir), close(task);
    // Another's descriptor, taken out of its table.
    int p[2], q[2];
    MUST(pipe(p));
    MUST(pipe(q));
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        int mine = dup2(p[1], 77);
        close(p[0]), close(p[1]), close(q[1]);
        read(q[0], &c, 1);
        _exit(mine != 77);
    }
    close(p[1]);
    int child = MUST(pidfd_open_(pid, 0)), got_fd = -1;
    for (int i = 0; i < 200 && got_fd == -1; i++, nap_ms(5)) got_fd = syscall(SYS_pidfd_getfd, child, 77, 0);
    CHECK(got_fd >= 0 && write(got_fd, "x", 1) == 1);
    char c;
    CHECK(read(p[0], &c, 1) == 1 && c == 'x');
    CHECK_ERR(syscall(SYS_pidfd_getfd, child, 78, 0), EBADF);
    CHECK_ERR(syscall(SYS_pidfd_getfd, child, 77, 1), EINVAL);
    siginfo_t other = {.si_signo = SIGUSR1, .si_code = SI_USER};
    CHECK_ERR(syscall(SYS_pidfd_send_signal, child, SIGUSR1, &other, 0), EPERM);
    CHECK(syscall(SYS_pidfd_send_signal, child, SIGKILL, NULL, 0) == 0);
    int st;
    CHECK(waitpid(pid, &st, 0) == pid && died_of(st, SIGKILL));
    CHECK_ERR(syscall(SYS_pidfd_getfd, child, 77, 0), ESRCH);
}
TEST(clone_gives_a_pidfd) {
    int fd = -1;
    long pid = syscall(SYS_clone, 0x1000 | SIGCHLD, 0, &fd, 0, 0);
    if (pid == 0) _exit(fcntl(fd, F_GETFD) == -1 ? 4 : 5);
    CHECK(pid > 0 && fd >= 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 10000) == 1);
    siginfo_t si;
    CHECK(waitid(P_PIDFD, fd, &si, WEXITED) == 0 && si.si_pid == pid && si.si_status == 4);
    CHECK_ERR(syscall(SYS_clone, 0x1000 | 0x100000 | SIGCHLD, 0, &fd, 0, 0), EINVAL);
    uint64_t args[11] = {0x1000, (uint64_t)(uintptr_t)&fd, 0, 0, SIGCHLD};
    pid = syscall(SYS_clone3, args, sizeof args);
    if (pid == 0) _exit(6);
    CHECK(pid > 0 && waitid(P_PIDFD, fd, &si, WEXITED) == 0 && si.si_status == 6);
}

// ---- inotify --------------------------------------------------------------------------------------------------------
static char got_events[4096];
static int got_len, got_at;
// The next event as text: watch, mask, name.
static const char *next_event(int fd) {
    static char text[300];
    if (got_at >= got_len) {
        got_len = read(fd, got_events, sizeof got_events);
        got_at = 0;
        if (got_len <= 0) return "";
    }
    struct inotify_event *e = (void *)(got_events + got_at);
    got_at += sizeof *e + e->len;
    snprintf(text, sizeof text, "%d %x %s", e->wd, e->mask, e->len ? e->name : "-");
    return text;
}
#define EXPECT(text)                                                                                         \
    do {                                                                                                     \
        const char *e_ = next_event(in);                                                                     \
        CHECK(!strcmp(e_, text), "%s, not %s", e_, text);                                                     \
    } while (0)
TEST(inotify_tells_of_files) {
    char dir[] = "/tmp/inotify.XXXXXX", path[64], other[64];
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/a", dir);
    snprintf(other, sizeof other, "%s/b", dir);
    int in = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    CHECK_ERR(read(in, got_events, 100), EAGAIN);
    CHECK(inotify_add_watch(in, dir, IN_ALL_EVENTS & ~IN_ACCESS) == 1);
    CHECK(inotify_add_watch(in, dir, IN_ALL_EVENTS & ~IN_ACCESS) == 1, "the same watch");
    CHECK(ready(in, POLLIN) == 0);
    int f = MUST(open(path, O_RDWR | O_CREAT, 0600));
    CHECK(ready(in, POLLIN) == POLLIN);
    EXPECT("1 100 a");
    EXPECT("1 20 a");
    CHECK(inotify_add_watch(in, path, IN_MODIFY | IN_CLOSE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF) == 2);
    MUST(write(f, "x", 1));
    MUST(write(f, "y", 1));
    EXPECT("1 2 a");
    EXPECT("2 2 -");
    EXPECT("1 2 a");
    EXPECT("2 2 -");
    MUST(fchmod(f, 0640));
    EXPECT("1 4 a");
    EXPECT("2 4 -");
    close(f);
    EXPECT("1 8 a");
    EXPECT("2 8 -");
    close(MUST(open(path, O_RDONLY)));
    EXPECT("1 20 a");
    EXPECT("1 10 a");
    EXPECT("2 10 -");
    MUST(rename(path, other));
    EXPECT("1 40 a");
    EXPECT("1 80 b");
    EXPECT("2 800 -");
    MUST(mkdir(path, 0700));
    EXPECT("1 40000100 a");
    MUST(rmdir(path));
    EXPECT("1 40000200 a");
    MUST(unlink(other));
    char seen[400] = "";
    for (int i = 0; i < 4; i++) strcat(strcat(seen, next_event(in)), ";"); // in what order they come is not promised
    CHECK(strstr(seen, "1 200 b;") && strstr(seen, "2 4 -;") && strstr(seen, "2 400 -;2 8000 -;"), "%s", seen);
    CHECK_ERR(inotify_rm_watch(in, 2), EINVAL);
    MUST(inotify_rm_watch(in, 1));
    EXPECT("1 8000 -");
    MUST(mkdir(path, 0700));
    CHECK_ERR(read(in, got_events, 100), EAGAIN);
    // Once only; the end of what is watched; too little room.
    CHECK(inotify_add_watch(in, dir, IN_CREATE | IN_ONESHOT) == 3);
    MUST(mkdir(other, 0700));
    CHECK_ERR(read(in, got_events, 20), EINVAL);
    EXPECT("3 40000100 b");
    EXPECT("3 8000 -");
    CHECK_ERR(inotify_add_watch(in, dir, 0), EINVAL);
    CHECK_ERR(inotify_add_watch(in, "/tmp/none", IN_CREATE), ENOENT);
    CHECK_ERR(inotify_add_watch(0, dir, IN_CREATE), EINVAL);
    CHECK_ERR(inotify_add_watch(in, "/proc/version", IN_OPEN | IN_ONLYDIR), ENOTDIR);
    CHECK_ERR(inotify_add_watch(in, (char *)16, IN_CREATE), EFAULT);
    CHECK_ERR(inotify_init1(1), EINVAL);
    rmdir(path);
    rmdir(other);
    rmdir(dir);
}
static void *makes_a_file(void *arg) {
    nap_ms(30);
    close(open(arg, O_CREAT | O_WRONLY, 0600));
    return NULL;
}
TEST(inotify_wakes_sleepers) {
    char dir[] = "/tmp/inotify.XXXXXX", path[64];
    CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/new", dir);
    int in = MUST(inotify_init1(0)), ep = MUST(epoll_create1(0));
    MUST(inotify_add_watch(in, dir, IN_CREATE | IN_CLOSE_WRITE));
    struct epoll_event e = {.events = EPOLLIN | EPOLLET};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, in, &e));
    for (int i = 0; i < 2; i++) {
        pthread_t t;
        pthread_create(&t, NULL, makes_a_file, path);
        if (i == 0) CHECK(epoll_wait(ep, &e, 1, 10000) == 1);
        EXPECT("1 100 new");
        EXPECT("1 8 new");
        pthread_join(t, NULL);
        unlink(path);
    }
    // A full queue says so, once.
    MUST(inotify_add_watch(in, dir, IN_CREATE | IN_DELETE));
    for (int i = 0; i < 8300; i++) {
        close(open(path, O_CREAT | O_WRONLY, 0600));
        unlink(path);
    }
    int overflows = 0, events = 0;
    fcntl(in, F_SETFL, O_NONBLOCK);
    for (const char *t; *(t = next_event(in)); events++) overflows += !strcmp(t, "-1 4000 -");
    CHECK(overflows == 1 && events == 16385, "%d %d", overflows, events);
    rmdir(dir);
}

MAIN(T(inotify_tells_of_files), T(inotify_wakes_sleepers), T(signalfd_takes_what_is_blocked), T(signalfd_wakes_sleepers), T(pidfd_tells_of_the_end),
     T(pidfd_signals_and_descriptors), T(clone_gives_a_pidfd), T(adjtimex_bends_the_clock_without_a_jump),
     T(adjtimex_refuses_what_is_wrong), T(the_clock_is_not_set_to_before_the_start))
