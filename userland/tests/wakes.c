// Every call that can sleep, and a signal: without SA_RESTART it ends with EINTR; with it, it goes on after the handler as if
// nothing had been, or ends with EINTR all the same where signal(7) says so. Each row of the table makes its own ground, a child
// sleeps in the call, the parent signals it as often as it takes, and ends what it waits for.
#include "t.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <net/if.h>
#include <netinet/in.h>
#include <termios.h>

// What both processes see.
struct ground {
    int a, b, c;        // descriptors
    volatile int word;  // a futex word
    volatile int inside; // the sleeper is about to call
    volatile int hits;  // signals handled
    volatile int done;  // its call has ended
    volatile pid_t sleeper;
    pid_t extra;
    char path[64];
};
static struct ground *g;

enum after { RESTARTS, ALWAYS_EINTR, NEVER_EINTR };
struct row {
    const char *name;
    void (*make)(void);
    long (*call)(void);
    void (*end)(void);
    enum after after;
};

static void on_usr1(int sig) { g->hits++; }

static void fill(int fd) { // until it takes no more
    static char junk[4096];
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (write(fd, junk, sizeof junk) > 0) {}
    while (write(fd, junk, 1) > 0) {}
    fcntl(fd, F_SETFL, flags);
}
// The same where what was written goes on by itself and makes room again: until it has long been full.
static void fill_up(int fd) {
    for (int quiet = 0; quiet < 6; quiet++) {
        struct pollfd p = {fd, POLLOUT, 0};
        if (poll(&p, 1, 30) == 1) {
            fill(fd);
            quiet = 0;
        }
    }
}
static void drain(int fd) {
    static char junk[65536];
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    while (read(fd, junk, sizeof junk) > 0) {}
    fcntl(fd, F_SETFL, flags);
}
static void pair(int fds[2]) { g->a = fds[0], g->b = fds[1]; }

// ---- makes ----------------------------------------------------------------------------------------------------------
static void m_nothing(void) {}
static void m_pipe(void) { int p[2]; MUST(pipe(p)); pair(p); }
static void m_full_pipe(void) { m_pipe(); fill(g->b); }
static void m_stream(void) { int p[2]; MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, p)); pair(p); }
static void m_full_stream(void) { m_stream(); fill(g->b); }
static void m_dgram(void) { int p[2]; MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, p)); pair(p); }
static void m_full_dgram(void) { m_dgram(); fill(g->b); }
static void m_seqpacket(void) { int p[2]; MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p)); pair(p); }
static void m_stream_timeout(void) {
    m_stream();
    struct timeval t = {1000, 0};
    MUST(setsockopt(g->a, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
}
static struct sockaddr_in lo(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return a;
}
static void m_udp(void) {
    struct sockaddr_in a = lo(0);
    socklen_t n = sizeof a;
    g->a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(g->a, (void *)&a, n));
    MUST(getsockname(g->a, (void *)&a, &n));
    g->b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(connect(g->b, (void *)&a, n));
}
// Buffers of a set size, lest they grow while a writer sleeps.
static int tcp_socket(void) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), size = 16384;
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
    return fd;
}
static void m_tcp_listener(void) {
    struct sockaddr_in a = lo(0);
    g->a = tcp_socket();
    MUST(bind(g->a, (void *)&a, sizeof a));
    MUST(listen(g->a, 4));
}
static void m_tcp(void) {
    m_tcp_listener();
    int listener = g->a;
    struct sockaddr_in a;
    socklen_t n = sizeof a;
    MUST(getsockname(listener, (void *)&a, &n));
    g->b = tcp_socket();
    MUST(connect(g->b, (void *)&a, n));
    g->a = MUST(accept(listener, NULL, NULL));
}
static void m_full_tcp(void) { m_tcp(); fill(g->b); fill_up(g->b); }
static struct sockaddr_un unix_name(void) {
    struct sockaddr_un u = {.sun_family = AF_UNIX};
    snprintf(u.sun_path, sizeof u.sun_path, "%s", g->path);
    return u;
}
static void m_unix_listener(void) {
    struct sockaddr_un u = unix_name();
    g->a = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(g->a, (void *)&u, sizeof u));
    MUST(listen(g->a, 0));
}
static void m_full_unix_listener(void) {
    m_unix_listener();
    struct sockaddr_un u = unix_name();
    for (;;) {
        int s = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
        if (connect(s, (void *)&u, sizeof u) == -1) break;
    }
    g->b = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
}
static void m_eventfd(void) { g->a = MUST(eventfd(0, 0)); }
static void m_full_eventfd(void) {
    g->a = MUST(eventfd(0, 0));
    uint64_t v = UINT64_MAX - 1;
    MUST(write(g->a, &v, 8));
}
static void m_timerfd(void) { g->a = MUST(timerfd_create(CLOCK_MONOTONIC, 0)); }
static void m_signalfd(void) {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR2);
    sigprocmask(SIG_BLOCK, &s, NULL);
    g->a = MUST(signalfd(-1, &s, 0));
}
static void m_inotify(void) {
    g->a = MUST(inotify_init1(0));
    g->b = MUST(open(g->path, O_CREAT | O_RDWR, 0600));
    MUST(inotify_add_watch(g->a, g->path, IN_MODIFY));
}
static void m_pty(void) {
    g->a = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    int unlock = 0;
    char name[32];
    unsigned n;
    MUST(ioctl(g->a, TIOCSPTLCK, &unlock));
    MUST(ioctl(g->a, TIOCGPTN, &n));
    snprintf(name, sizeof name, "/dev/pts/%u", n);
    g->b = MUST(open(name, O_RDWR | O_NOCTTY));
}
static void m_full_pty(void) { m_pty(); fill(g->b); fill_up(g->b); }
static void m_epoll(void) {
    m_pipe();
    g->c = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(g->c, EPOLL_CTL_ADD, g->a, &e));
}
static void m_fifo(void) { MUST(mkfifo(g->path, 0600)); }
static void m_locked(void) {
    g->a = MUST(open(g->path, O_CREAT | O_RDWR, 0600));
    MUST(flock(g->a, LOCK_EX));
}
static struct flock whole(short type) { struct flock l = {.l_type = type}; return l; }
static void m_record(void) {
    struct flock l = whole(F_WRLCK);
    g->a = MUST(open(g->path, O_CREAT | O_RDWR, 0600));
    MUST(fcntl(g->a, F_SETLK, &l));
}
static void m_file_full_pipe(void) {
    m_full_pipe();
    g->c = MUST(open("/proc/self/exe", O_RDONLY));
}

// ---- calls ----------------------------------------------------------------------------------------------------------
static char byte[1];
static long c_read(void) { static char eight[1024]; return read(g->a, eight, sizeof eight); }
static long c_read_b(void) { return read(g->b, byte, 1); }
static long c_readv(void) { struct { void *p; size_t n; } v = {byte, 1}; return syscall(SYS_readv, g->a, &v, 1); }
static long c_write_b(void) { return write(g->b, byte, 1); }
static long c_write_8(void) { uint64_t v = 1; return write(g->a, &v, 8); }
static long c_recv(void) { return recv(g->a, byte, 1, 0); }
static long c_recvfrom(void) { return recvfrom(g->a, byte, 1, 0, NULL, NULL); }
static long c_recvmsg(void) {
    struct msghdr m = {0};
    return recvmsg(g->a, &m, 0);
}
static long c_recvmmsg(void) {
    struct mmsghdr m = {0};
    return recvmmsg(g->a, &m, 1, 0, NULL);
}
static long c_send_b(void) { return send(g->b, byte, 1, 0); }
static long c_sendmsg_b(void) {
    struct iovec { void *p; size_t n; } v = {byte, 1};
    struct msghdr m = {.msg_iov = (void *)&v, .msg_iovlen = 1};
    return sendmsg(g->b, &m, 0);
}
static long c_accept(void) { return accept(g->a, NULL, NULL); }
static long c_accept4(void) { return accept4(g->a, NULL, NULL, SOCK_CLOEXEC); }
static long c_connect_unix(void) {
    struct sockaddr_un u = unix_name();
    return connect(g->b, (void *)&u, sizeof u);
}
static long c_sendfile(void) { return sendfile(g->b, g->c, NULL, 1); }
static long c_poll(void) { struct pollfd p = {g->a, POLLIN, 0}; return poll(&p, 1, -1); }
static long c_poll_timed(void) { struct pollfd p = {g->a, POLLIN, 0}; return poll(&p, 1, 1000000); }
static long c_ppoll(void) { struct pollfd p = {g->a, POLLIN, 0}; return ppoll(&p, 1, NULL, NULL); }
static long c_select(void) { fd_set s; FD_ZERO(&s); FD_SET(g->a, &s); return select(g->a + 1, &s, NULL, NULL, NULL); }
static long c_pselect(void) {
    fd_set s;
    struct timespec t = {1000, 0};
    FD_ZERO(&s);
    FD_SET(g->a, &s);
    return pselect(g->a + 1, &s, NULL, NULL, &t, NULL);
}
static long c_epoll_wait(void) { struct epoll_event e; return epoll_wait(g->c, &e, 1, -1); }
static long c_epoll_pwait2(void) {
    struct epoll_event e;
    struct timespec t = {1000, 0};
    return syscall(SYS_epoll_pwait2, g->c, &e, 1, &t, NULL, 8);
}
static long c_futex(void) { return syscall(SYS_futex, &g->word, FUTEX_WAIT, 0, NULL, NULL, 0); }
static long c_futex_timed(void) {
    struct timespec t = {1000, 0};
    return syscall(SYS_futex, &g->word, FUTEX_WAIT, 0, &t, NULL, 0);
}
static long c_futex_bitset(void) { return syscall(SYS_futex, &g->word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 1); }
static long c_futex_pi(void) { return syscall(SYS_futex, &g->word, FUTEX_LOCK_PI, 0, NULL, NULL, 0); }
static long c_futex_waitv(void) {
    struct { uint64_t val, addr; uint32_t flags, pad; } w = {0, (uint64_t)(uintptr_t)&g->word, 2, 0};
    return syscall(449, &w, 1, 0, NULL, 0);
}
static long c_nanosleep(void) { struct timespec t = {1000, 0}; return nanosleep(&t, NULL); }
static long c_clock_nanosleep(void) {
    struct timespec t = {1000, 0};
    int e = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
    errno = e;
    return e ? -1 : 0;
}
static long c_clock_nanosleep_abs(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1000;
    int e = clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL);
    errno = e;
    return e ? -1 : 0;
}
static pid_t forked(void) { // a child that ends when the pipe is closed
    pid_t pid = fork();
    if (!pid) {
        signal(SIGUSR1, SIG_IGN);
        close(g->b);
        _exit(read(g->a, byte, 1) == 1 ? 0 : 1);
    }
    return pid;
}
static pid_t grandchild;
static long c_wait4(void) { if (!grandchild) grandchild = forked(); return wait4(grandchild, NULL, 0, NULL); }
static long c_waitid(void) { siginfo_t si; if (!grandchild) grandchild = forked(); return waitid(P_PID, grandchild, &si, WEXITED); }
static long c_pause(void) { return pause(); }
static long c_sigsuspend(void) { sigset_t s; sigemptyset(&s); return sigsuspend(&s); }
static long c_sigtimedwait(void) {
    sigset_t s;
    struct timespec t = {1000, 0};
    sigemptyset(&s);
    sigaddset(&s, SIGUSR2);
    return syscall(SYS_rt_sigtimedwait, &s, NULL, &t, 8); // the C library's own goes on by itself
}
static long c_sigwaitinfo(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); return syscall(SYS_rt_sigtimedwait, &s, NULL, NULL, 8); }
static long c_flock(void) { static int fd = -1; if (fd < 0) fd = open(g->path, O_RDWR); return flock(fd, LOCK_EX); }
static long c_setlkw(void) { struct flock l = whole(F_WRLCK); return fcntl(g->a, F_SETLKW, &l); }
static long c_ofd_setlkw(void) {
    static int fd = -1;
    struct flock l = whole(F_WRLCK);
    if (fd < 0) fd = open(g->path, O_RDWR);
    return fcntl(fd, F_OFD_SETLKW, &l);
}
static long c_open_read(void) { return open(g->path, O_RDONLY); }
static long c_open_write(void) { return open(g->path, O_WRONLY); }

// ---- ends -----------------------------------------------------------------------------------------------------------
static void e_write_b(void) { CHECK(write(g->b, "\n", 1) == 1); }
static void e_send_b(void) { CHECK(send(g->b, "x", 1, 0) == 1); }
static void e_write_a(void) { CHECK(write(g->a, "\n", 1) == 1); }
static void e_write_8(void) { uint64_t v = 1; CHECK(write(g->a, &v, 8) == 8); }
static void e_read_8(void) { uint64_t v; CHECK(read(g->a, &v, 8) == 8); }
static void e_drain(void) { drain(g->a); }
static void e_settime(void) { struct itimerspec t = {.it_value.tv_nsec = 1}; CHECK(timerfd_settime(g->a, 0, &t, NULL) == 0); }
static void e_usr2(void) { kill(g->sleeper, SIGUSR2); }
static void e_connect_tcp(void) {
    struct sockaddr_in a;
    socklen_t n = sizeof a;
    getsockname(g->a, (void *)&a, &n);
    g->c = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(g->c, (void *)&a, n) == 0);
}
static void e_connect_unix(void) {
    struct sockaddr_un u = unix_name();
    g->c = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(g->c, (void *)&u, sizeof u) == 0);
}
static void e_accept(void) { CHECK(accept(g->a, NULL, NULL) >= 0); }
static void e_wake(void) { g->word = 1; syscall(SYS_futex, &g->word, FUTEX_WAKE, 1, NULL, NULL, 0); }
static void e_unlock_pi(void) { syscall(SYS_futex, &g->word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0); }
static void e_unlock(void) { flock(g->a, LOCK_UN); }
static void e_unlock_record(void) { struct flock l = whole(F_UNLCK); fcntl(g->a, F_SETLK, &l); }
static void e_open(void) { g->c = MUST(open(g->path, O_RDWR)); }

static void m_pi(void) { g->word = syscall(SYS_gettid); }

static const struct row ROWS[] = {
    {"read pipe", m_pipe, c_read, e_write_b, RESTARTS},
    {"readv pipe", m_pipe, c_readv, e_write_b, RESTARTS},
    {"write pipe", m_full_pipe, c_write_b, e_drain, RESTARTS},
    {"sendfile to a pipe", m_file_full_pipe, c_sendfile, e_drain, RESTARTS},
    {"read unix stream", m_stream, c_read, e_write_b, RESTARTS},
    {"write unix stream", m_full_stream, c_write_b, e_drain, RESTARTS},
    {"send unix stream", m_full_stream, c_send_b, e_drain, RESTARTS},
    {"recv unix stream", m_stream, c_recv, e_write_b, RESTARTS},
    {"recvmsg unix dgram", m_dgram, c_recvmsg, e_send_b, RESTARTS},
    {"send unix dgram", m_full_dgram, c_send_b, e_drain, RESTARTS},
    {"sendmsg unix dgram", m_full_dgram, c_sendmsg_b, e_drain, RESTARTS},
    {"recv unix seqpacket", m_seqpacket, c_recv, e_send_b, RESTARTS},
    {"recv with SO_RCVTIMEO", m_stream_timeout, c_recv, NULL, ALWAYS_EINTR},
    {"read with SO_RCVTIMEO", m_stream_timeout, c_read, NULL, ALWAYS_EINTR},
    {"recvfrom udp", m_udp, c_recvfrom, e_send_b, RESTARTS},
    {"recvmsg udp", m_udp, c_recvmsg, e_send_b, RESTARTS},
    {"recvmmsg udp", m_udp, c_recvmmsg, e_send_b, RESTARTS},
    {"read tcp", m_tcp, c_read, e_write_b, RESTARTS},
    {"recvmsg tcp", m_tcp, c_recv, e_write_b, RESTARTS},
    {"write tcp", m_full_tcp, c_write_b, e_drain, RESTARTS},
    {"sendmsg tcp", m_full_tcp, c_sendmsg_b, e_drain, RESTARTS},
    {"accept tcp", m_tcp_listener, c_accept, e_connect_tcp, RESTARTS},
    {"accept4 tcp", m_tcp_listener, c_accept4, e_connect_tcp, RESTARTS},
    {"accept unix", m_unix_listener, c_accept, e_connect_unix, RESTARTS},
    {"connect unix", m_full_unix_listener, c_connect_unix, e_accept, RESTARTS},
    {"read eventfd", m_eventfd, c_read, e_write_8, RESTARTS},
    {"write eventfd", m_full_eventfd, c_write_8, e_read_8, RESTARTS},
    {"read timerfd", m_timerfd, c_read, e_settime, RESTARTS},
    {"read signalfd", m_signalfd, c_read, e_usr2, RESTARTS},
    {"read inotify", m_inotify, c_read, e_write_b, RESTARTS},
    {"read tty", m_pty, c_read_b, e_write_a, RESTARTS},
    {"read pty master", m_pty, c_read, e_write_b, RESTARTS},
    {"write tty", m_full_pty, c_write_b, e_drain, RESTARTS},
    {"poll", m_pipe, c_poll, NULL, ALWAYS_EINTR},
    {"poll, timed", m_pipe, c_poll_timed, NULL, ALWAYS_EINTR},
    {"ppoll", m_pipe, c_ppoll, NULL, ALWAYS_EINTR},
    {"select", m_pipe, c_select, NULL, ALWAYS_EINTR},
    {"pselect", m_pipe, c_pselect, NULL, ALWAYS_EINTR},
    {"epoll_wait", m_epoll, c_epoll_wait, NULL, ALWAYS_EINTR},
    {"epoll_pwait2", m_epoll, c_epoll_pwait2, NULL, ALWAYS_EINTR},
    {"futex wait", m_nothing, c_futex, e_wake, RESTARTS},
    {"futex wait, timed", m_nothing, c_futex_timed, NULL, ALWAYS_EINTR},
    {"futex wait bitset", m_nothing, c_futex_bitset, e_wake, RESTARTS},
    {"futex lock pi", m_pi, c_futex_pi, e_unlock_pi, NEVER_EINTR},
    {"futex_waitv", m_nothing, c_futex_waitv, e_wake, RESTARTS},
    {"nanosleep", m_nothing, c_nanosleep, NULL, ALWAYS_EINTR},
    {"clock_nanosleep", m_nothing, c_clock_nanosleep, NULL, ALWAYS_EINTR},
    {"clock_nanosleep, absolute", m_nothing, c_clock_nanosleep_abs, NULL, ALWAYS_EINTR},
    {"wait4", m_pipe, c_wait4, e_write_b, RESTARTS},
    {"waitid", m_pipe, c_waitid, e_write_b, RESTARTS},
    {"pause", m_nothing, c_pause, NULL, ALWAYS_EINTR},
    {"sigsuspend", m_nothing, c_sigsuspend, NULL, ALWAYS_EINTR},
    {"sigtimedwait", m_nothing, c_sigtimedwait, NULL, ALWAYS_EINTR},
    {"sigwaitinfo", m_nothing, c_sigwaitinfo, NULL, ALWAYS_EINTR},
    {"flock", m_locked, c_flock, e_unlock, RESTARTS},
    {"F_SETLKW", m_record, c_setlkw, e_unlock_record, RESTARTS},
    {"F_OFD_SETLKW", m_record, c_ofd_setlkw, e_unlock_record, RESTARTS},
    {"open fifo to read", m_fifo, c_open_read, e_open, RESTARTS},
    {"open fifo to write", m_fifo, c_open_write, e_open, RESTARTS},
};

static char state_of(pid_t pid) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    char *p = strrchr(slurp(path), ')');
    return p ? p[2] : '?';
}

// Signals the sleeper, each time when it is seen asleep inside the call, until `enough` were handled; false if its call ended first.
static bool disturb(int enough) {
    while (g->hits < enough) {
        if (g->done) return false;
        if (!g->inside || state_of(g->sleeper) != 'S') {
            sched_yield();
            continue;
        }
        int before = g->hits;
        kill(g->sleeper, SIGUSR1);
        while (g->hits == before) sched_yield();
    }
    return true;
}

struct try { const struct row *r; int flags; };
static void attempt(void *arg) {
    struct try *t = arg;
    const struct row *r = t->r;
    bool restarts = r->after == NEVER_EINTR || (r->after == RESTARTS && t->flags & SA_RESTART);
    memset(g, 0, sizeof *g);
    snprintf(g->path, sizeof g->path, "/tmp/wakes.%d", getpid());
    r->make();
    int result[2];
    MUST(pipe(result));
    g->sleeper = MUST(fork());
    if (!g->sleeper) {
        struct sigaction sa = {.sa_handler = on_usr1, .sa_flags = t->flags};
        g->sleeper = getpid();
        sigaction(SIGUSR1, &sa, NULL);
        g->inside = 1;
        long n = r->call();
        int e = n == -1 ? errno : 0;
        g->done = 1;
        MUST(write(result[1], &e, sizeof e));
        _exit(0);
    }
    // What goes on is disturbed three times, and each time found asleep again.
    int status, e = -1;
    bool slept = disturb(restarts ? 3 : 1);
    if (restarts) {
        CHECK(slept, "%s, flags %x: ended after %d signals", r->name, t->flags, g->hits);
        while (slept && !g->done && state_of(g->sleeper) != 'S') sched_yield();
        if (slept) r->end();
    }
    waitpid(g->sleeper, &status, 0);
    close(result[1]);
    if (read(result[0], &e, sizeof e) != sizeof e) e = -1;
    if (restarts) CHECK(e == 0, "%s, flags %x: errno %d (%s)", r->name, t->flags, e, strerror(e));
    else CHECK(e == EINTR, "%s, flags %x: errno %d (%s), not EINTR", r->name, t->flags, e, strerror(e));
    unlink(g->path);
}

// Linux starts without it.
static void raise_loopback(void) {
    struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    ioctl(fd, SIOCSIFFLAGS, &r);
    close(fd);
}

static void rows(unsigned from, unsigned to) {
    raise_loopback();
    g = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int flags[] = {0, SA_RESTART};
    for (unsigned i = from; i < to && i < sizeof ROWS / sizeof *ROWS; i++)
        for (int f = 0; f < 2; f++) {
            struct try t = {&ROWS[i], flags[f]};
            int status;
            pid_t pid = MUST(fork());
            if (!pid) {
                t_failed = 0;
                alarm(10);
                attempt(&t);
                _exit(t_failed != 0);
            }
            while (waitpid(pid, &status, 0) == -1 && errno == EINTR) {}
            if (WIFSIGNALED(status)) {
                t_fail("%s, flags %x: hangs or dies (signal %d, %d handled)", ROWS[i].name, flags[f], WTERMSIG(status), g->hits);
                if (g->sleeper > 1) kill(g->sleeper, SIGKILL);
            } else if (status) {
                t_failed++;
            }
        }
}
TEST(a_signal_wakes_every_sleeper_1) { rows(0, 12); }
TEST(a_signal_wakes_every_sleeper_2) { rows(12, 24); }
TEST(a_signal_wakes_every_sleeper_3) { rows(24, 36); }
TEST(a_signal_wakes_every_sleeper_4) { rows(36, 48); }
TEST(a_signal_wakes_every_sleeper_5) { rows(48, 99); }

// What is left of a sleep is told where it is relative, and nowhere else.
TEST(what_is_left_is_told) {
    g = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct sigaction sa = {.sa_handler = on_usr1};
    sigaction(SIGUSR1, &sa, NULL);
    pid_t me = getpid(), pid = MUST(fork());
    if (!pid) {
        for (;;) {
            if (g->inside && state_of(me) == 'S') kill(me, SIGUSR1);
            nap_ms(5);
        }
    }
    g->inside = 1;
    struct timespec t = {1000, 0}, left = {-1, -1}, now;
    CHECK_ERR(nanosleep(&t, &left), EINTR);
    CHECK(left.tv_sec > 900 && left.tv_sec < 1000, "%ld left of 1000", (long)left.tv_sec);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, &left) == EINTR && left.tv_sec > 900 && left.tv_sec < 1000);
    clock_gettime(CLOCK_MONOTONIC, &now);
    now.tv_sec += 1000;
    left = (struct timespec){-1, -1};
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &now, &left) == EINTR && left.tv_sec == -1);
    t = (struct timespec){1000, 0};
    CHECK_ERR(syscall(SYS_ppoll, NULL, 0, &t, NULL, 8), EINTR);
    CHECK(t.tv_sec > 900 && t.tv_sec < 1000, "ppoll: %ld left of 1000", (long)t.tv_sec);
    t = (struct timespec){1000, 0};
    CHECK_ERR(syscall(SYS_pselect6, 0, NULL, NULL, NULL, &t, NULL), EINTR);
    CHECK(t.tv_sec > 900 && t.tv_sec < 1000, "pselect6: %ld left of 1000", (long)t.tv_sec);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

MAIN(T(a_signal_wakes_every_sleeper_1), T(a_signal_wakes_every_sleeper_2), T(a_signal_wakes_every_sleeper_3),
     T(a_signal_wakes_every_sleeper_4), T(a_signal_wakes_every_sleeper_5), T(what_is_left_is_told))
