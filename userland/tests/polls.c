// m7: the table of what can be waited for: every kind of file, in every state, by every call.
//
// A row names a kind of file, how to get one, and what happens to it then; and what poll(2) says before and after: that is
// what Linux says (`polls show` prints the table anew). The other calls follow from it: select by the sets that it
// makes of the bits; epoll by levels (again and again), by edges (once for each wake-up), one-shot (once until it is asked
// for again), exclusive. And whoever sleeps in any of these calls is woken by what happens, if it brings a bit that was asked for.
#include "t.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <termios.h>

// The bits and their letters.
static const struct { short bit; char letter; } BITS[] = {
    {POLLIN, 'i'}, {POLLRDNORM, 'r'}, {POLLRDBAND, 'b'}, {POLLOUT, 'o'}, {POLLWRNORM, 'w'}, {POLLWRBAND, 'B'},
    {POLLPRI, 'p'}, {POLLERR, 'e'}, {POLLHUP, 'h'}, {POLLRDHUP, 'R'}, {POLLNVAL, 'n'},
};
#define COUNT(a) (int)(sizeof(a) / sizeof *(a))
#define ASK (POLLIN | POLLRDNORM | POLLRDBAND | POLLOUT | POLLWRNORM | POLLWRBAND | POLLPRI | POLLRDHUP)
#define TO_READ (POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR)
#define TO_WRITE (POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR)

static const char *letters(int mask) {
    static char text[4][16];
    static int turn;
    char *at = text[turn++ & 3], *start = at;
    for (int i = 0; i < COUNT(BITS); i++)
        if (mask & BITS[i].bit) *at++ = BITS[i].letter;
    if (at == start) *at++ = '-';
    *at = 0;
    return start;
}
static int bits(const char *text) {
    int mask = 0;
    for (; *text; text++)
        for (int i = 0; i < COUNT(BITS); i++)
            if (*text == BITS[i].letter) mask |= BITS[i].bit;
    return mask;
}

// The file that is polled, and what is at its other side.
static int fd, peer, third;
static char byte[65536];
static void fill(int f) {
    fcntl(f, F_SETFL, fcntl(f, F_GETFL) | O_NONBLOCK);
    while (write(f, byte, sizeof byte) > 0 || write(f, byte, 1) > 0) {}
}
static void drain(int f) {
    fcntl(f, F_SETFL, fcntl(f, F_GETFL) | O_NONBLOCK);
    while (read(f, byte, sizeof byte) > 0) {}
}
static void nothing(void) {}
static void put(void) { MUST(write(peer, "x", 1)); }
static void hang(void) { close(peer); }
static void put_hang(void) { put(), hang(); }
static void take(void) { MUST(read(fd, byte, sizeof byte)); }
static void empty_peer(void) { drain(peer); }

static void pipe_reader(void) { int p[2]; MUST(pipe(p)); fd = p[0], peer = p[1]; }
static void pipe_ready(void) { pipe_reader(), put(); }
static void pipe_writer(void) { int p[2]; MUST(pipe(p)); fd = p[1], peer = p[0]; }
static void pipe_full(void) { pipe_writer(), fill(fd); }
static void take_a_page(void) { MUST(read(peer, byte, PAGE)); }
static char path[64];
static void fifo_made(void) {
    snprintf(path, sizeof path, "/tmp/polls.%d", getpid());
    unlink(path);
    MUST(mkfifo(path, 0600));
}
static void fifo_alone(void) { fifo_made(); fd = MUST(open(path, O_RDONLY | O_NONBLOCK)); peer = -1; }
static void fifo_reader(void) { fifo_alone(); peer = MUST(open(path, O_WRONLY)); }
static void fifo_writer(void) { fifo_made(); peer = MUST(open(path, O_RDONLY | O_NONBLOCK)); fd = MUST(open(path, O_WRONLY)); }
static void fifo_both(void) { fifo_made(); peer = fd = MUST(open(path, O_RDWR)); }
static void fifo_gets_a_writer(void) { peer = MUST(open(path, O_WRONLY)); }
static void fifo_gets_a_writer_for_a_while(void) { fifo_gets_a_writer(), hang(); }

static void pair(int type) { int p[2]; MUST(socketpair(AF_UNIX, type, 0, p)); fd = p[0], peer = p[1]; }
static void stream_pair(void) { pair(SOCK_STREAM); }
static void dgram_pair(void) { pair(SOCK_DGRAM); }
static void seq_pair(void) { pair(SOCK_SEQPACKET); }
static void stream_full(void) { stream_pair(), fill(fd); }
static void dgram_full(void) { dgram_pair(); fcntl(fd, F_SETFL, O_NONBLOCK); while (write(fd, "x", 1) == 1) {} }
static void shut_peer(void) { MUST(shutdown(peer, SHUT_WR)); }
static void shut_peer_reads(void) { MUST(shutdown(peer, SHUT_RD)); }
static void shut_reads(void) { MUST(shutdown(fd, SHUT_RD)); }
static void shut_writes(void) { MUST(shutdown(fd, SHUT_WR)); }
static void shut_all(void) { MUST(shutdown(fd, SHUT_RDWR)); }
static void unread_hang(void) { MUST(write(fd, "x", 1)); hang(); }

static struct sockaddr_in here;
static socklen_t here_len = sizeof here;
static int bound(int type) {
    int s = MUST(socket(AF_INET, type, 0));
    here = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    MUST(bind(s, (void *)&here, sizeof here));
    MUST(getsockname(s, (void *)&here, &here_len));
    return s;
}
static int connected(int type) {
    int s = MUST(socket(AF_INET, type, 0));
    MUST(connect(s, (void *)&here, sizeof here));
    return s;
}
static void listener(void) { fd = bound(SOCK_STREAM); MUST(listen(fd, 5)); }
static void a_client(void) { peer = connected(SOCK_STREAM); }
static void tcp(void) {
    third = bound(SOCK_STREAM);
    MUST(listen(third, 5));
    fd = connected(SOCK_STREAM);
    peer = MUST(accept(third, NULL, NULL));
}
static void tcp_fresh(void) { fd = MUST(socket(AF_INET, SOCK_STREAM, 0)); }
static void tcp_refused(void) {
    close(bound(SOCK_STREAM));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    connect(fd, (void *)&here, sizeof here);
}
static void tcp_full(void) {
    tcp();
    for (int n = -1, now = 0; n != now; nap_ms(20)) { // until nothing moves any more
        n = now;
        fill(fd);
        ioctl(fd, TIOCOUTQ, &now);
    }
}
static void tcp_reset(void) {
    struct linger l = {1, 0};
    MUST(setsockopt(peer, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    hang();
}
static void shut_both_ways(void) { shut_writes(), shut_peer(); }
static void udp(void) { fd = bound(SOCK_DGRAM); peer = connected(SOCK_DGRAM); }
static void udp_nowhere(void) { close(bound(SOCK_DGRAM)); fd = connected(SOCK_DGRAM); }
static void put_mine(void) { MUST(write(fd, "x", 1)); }
static struct sockaddr_un name;
static void unix_listener(void) {
    name = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(name.sun_path + 1, 60, "polls.%d.%lx", getpid(), (long)now_ns());
    fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(fd, (void *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + n));
    MUST(listen(fd, 5));
    third = n;
}
static void unix_client(void) {
    peer = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(peer, (void *)&name, offsetof(struct sockaddr_un, sun_path) + 1 + third));
}
static void unix_fresh(void) { fd = MUST(socket(AF_UNIX, SOCK_STREAM, 0)); }

static void pty(int *master, int *slave, int more) {
    int unlock = 0, n;
    *master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    MUST(ioctl(*master, TIOCSPTLCK, &unlock));
    MUST(ioctl(*master, TIOCGPTN, &n));
    snprintf(path, sizeof path, "/dev/pts/%d", n);
    *slave = MUST(open(path, O_RDWR | more));
}
static void pty_master(void) { pty(&fd, &peer, O_NOCTTY); }
static void pty_slave(void) { pty(&peer, &fd, O_NOCTTY); }
static void pty_raw(void) {
    pty_slave();
    struct termios t;
    MUST(tcgetattr(fd, &t));
    t.c_lflag &= ~(ICANON | ECHO | ISIG);
    t.c_cc[VMIN] = 1, t.c_cc[VTIME] = 0;
    MUST(tcsetattr(fd, TCSANOW, &t));
}
static void pty_packets(void) { pty_master(); int on = 1; MUST(ioctl(fd, TIOCPKT, &on)); }
static void flush_peer(void) { MUST(tcflush(peer, TCIOFLUSH)); }
static void put_line(void) { MUST(write(peer, "x\n", 2)); }
static void put_line_hang(void) { put_line(), hang(); }
static void end_of_file(void) { MUST(write(peer, "\x04", 1)); }
static void terminal(void) {
    signal(SIGHUP, SIG_IGN);
    setsid();
    int old = open("/dev/tty", O_RDWR);
    if (old != -1) ioctl(old, TIOCNOTTY), close(old);
    pty(&peer, &third, 0);
    fd = MUST(open("/dev/tty", O_RDWR));
}

static void counter(void) { fd = MUST(eventfd(0, EFD_NONBLOCK)); }
static void counter_full(void) { counter(); MUST(eventfd_write(fd, 0xfffffffffffffffeull)); }
static void count(void) { MUST(eventfd_write(fd, 1)); }
static void count_to_the_end(void) { MUST(eventfd_write(fd, 0xfffffffffffffffeull)); }
static void semaphore(void) { fd = MUST(eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE)); }
static void timer(void) { fd = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)); }
static void expire(void) { struct itimerspec t = {{0, 0}, {0, 1000000}}; MUST(timerfd_settime(fd, 0, &t, NULL)); }
static void signals(void) {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &s, NULL));
    while (sigtimedwait(&s, NULL, &(struct timespec){0, 0}) > 0) {}
    fd = MUST(signalfd(-1, &s, SFD_NONBLOCK));
}
static void get_a_signal(void) { MUST(kill(getpid(), SIGUSR1)); }
static void changes(void) { fd = MUST(inotify_init1(IN_NONBLOCK)); MUST(inotify_add_watch(fd, "/tmp", IN_CREATE)); }
static void create(void) { snprintf(path, sizeof path, "/tmp/polls.%d", getpid()); close(MUST(open(path, O_CREAT | O_EXCL, 0600))); unlink(path); }
static void child(void) {
    int p[2];
    MUST(pipe(p));
    pid_t pid = MUST(fork());
    if (!pid) {
        close(p[1]);
        MUST(read(p[0], byte, 1));
        _exit(0);
    }
    fd = MUST(syscall(SYS_pidfd_open, pid, 0));
    peer = p[1], third = pid;
}
static void child_reaped(void) { put(); MUST(waitpid(third, NULL, 0)); }
static void mounts(void) { fd = MUST(open("/proc/self/mounts", O_RDONLY)); }
static void mount_one(void) {
    snprintf(path, sizeof path, "/tmp/polls.%d", getpid());
    mkdir(path, 0700);
    MUST(mount("none", path, "tmpfs", 0, NULL));
    MUST(umount(path));
    rmdir(path);
}
static void nested_add(void) { // what was opened is watched by an epoll, which is what is polled
    struct epoll_event e = {.events = EPOLLIN};
    int ep = MUST(epoll_create1(0));
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
    fd = ep;
}
static void nested(void) { pipe_reader(), nested_add(); }
static void nested_twice(void) { nested(), nested_add(); }
static void nested_socket(void) { stream_pair(), nested_add(); }
static void epoll_alone(void) { fd = MUST(epoll_create1(0)); }
static void a_file(void) { fd = MUST(open("/tmp", O_TMPFILE | O_RDWR, 0600)); }
static void a_directory(void) { fd = MUST(open("/tmp", O_RDONLY)); }
static void null_device(void) { fd = MUST(open("/dev/null", O_RDWR)); }
static void random_device(void) { fd = MUST(open("/dev/urandom", O_RDWR)); }
static void a_proc_file(void) { fd = MUST(open("/proc/self/stat", O_RDONLY)); }
static void no_file(void) { fd = MUST(open("/dev/null", O_RDWR)); close(fd); }
static void a_path(void) { fd = MUST(open("/tmp", O_PATH)); }

struct row {
    const char *kind, *what;
    void (*make)(void), (*happen)(void);
    const char *before, *after;
    int how;
};
enum { NO_EPOLL = 1, READ_ONCE = 2, MORE_WAKES = 4 };
static const struct row ROWS[] = {
#include "polls.h"
};

static const struct row *row;
static const char *call;
static int now(int events) {
    struct pollfd p = {fd, events, 0};
    MUST(poll(&p, 1, 0));
    return p.revents;
}
// What came of it may come over a network: it is waited for, within reason.
static int eventually(int want) {
    int got;
    for (int i = 0; (got = now(ASK)) != want && i < 1500; i++) nap_ms(2);
    return got;
}
static void set_up(void) {
    fd = peer = third = -1;
    row->make();
}
#define EXPECT(got, want)                                                                                   \
    do {                                                                                                    \
        int g_ = (got), w_ = (want);                                                                        \
        if (g_ != w_) t_report("", "%s, %s: %s: %s, not %s (line %d)", row->kind, row->what, call, letters(g_), letters(w_), __LINE__); \
    } while (0)

static int by_select(int f, struct timeval *limit) {
    fd_set r, w, x;
    FD_ZERO(&r); FD_ZERO(&w); FD_ZERO(&x);
    FD_SET(f, &r); FD_SET(f, &w); FD_SET(f, &x);
    int n = select(f + 1, &r, &w, &x, limit);
    int sets = (FD_ISSET(f, &r) ? 1 : 0) | (FD_ISSET(f, &w) ? 2 : 0) | (FD_ISSET(f, &x) ? 4 : 0);
    if (n != __builtin_popcount(sets)) t_report("", "%s, %s: select gave %d for sets %d", row->kind, row->what, n, sets);
    return sets;
}
static int sets_of(int mask) {
    if (mask & POLLNVAL) return 7;
    return (mask & TO_READ ? 1 : 0) | (mask & TO_WRITE ? 2 : 0) | (mask & POLLPRI ? 4 : 0);
}

static int wait_epoll(int ep, int ms) {
    struct epoll_event e;
    int n = epoll_wait(ep, &e, 1, ms);
    return n == 1 ? (int)e.events : n == 0 ? 0 : -1;
}
static int watch(int events) {
    struct epoll_event e = {.events = events};
    int ep = MUST(epoll_create1(0));
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
    return ep;
}

static void at_once(int before, int after) {
    call = "poll before";
    set_up();
    EXPECT(eventually(before), before);
    row->happen();
    call = "poll";
    if (row->how & READ_ONCE) EXPECT(now(ASK), after);
    else {
        EXPECT(eventually(after), after);
        call = "poll for each bit";
        for (int i = 0; i < COUNT(BITS); i++)
            if (BITS[i].bit & ASK) EXPECT(now(BITS[i].bit), after & (BITS[i].bit | POLLERR | POLLHUP | POLLNVAL));
    }
    call = "select";
    if (after & POLLNVAL && fcntl(fd, F_GETFD) == -1) {
        fd_set r;
        FD_ZERO(&r); FD_SET(fd, &r);
        CHECK_ERR(select(fd + 1, &r, NULL, NULL, NULL), EBADF);
    } else if (!(row->how & READ_ONCE)) {
        EXPECT(by_select(fd, &(struct timeval){0, 0}), sets_of(after));
    }
}

static void in_epoll(int before, int after) {
    call = "epoll";
    int ep = MUST(epoll_create1(0));
    set_up();
    if (row->how & NO_EPOLL) {
        struct epoll_event e = {.events = EPOLLIN};
        CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), after & POLLNVAL ? EBADF : EPERM);
        return;
    }
    ep = watch(ASK);
    EXPECT(wait_epoll(ep, 0), before);
    row->happen();
    if (row->how & READ_ONCE) {
        EXPECT(wait_epoll(ep, 0), after);
        return;
    }
    eventually(after);
    EXPECT(wait_epoll(ep, 0), after);
    EXPECT(wait_epoll(ep, 0), after);
    call = "epoll by edges";
    set_up();
    ep = watch(ASK | EPOLLET);
    EXPECT(wait_epoll(ep, 0), before);
    EXPECT(wait_epoll(ep, 0), 0);
    row->happen();
    eventually(after);
    if (after & ~before) EXPECT(wait_epoll(ep, 5000), after);
    if (!(row->how & MORE_WAKES)) {
        wait_epoll(ep, 0);
        EXPECT(wait_epoll(ep, 0), 0);
    }
    call = "epoll once";
    set_up();
    row->happen();
    eventually(after);
    ep = watch(ASK | EPOLLONESHOT);
    EXPECT(wait_epoll(ep, 0), after);
    EXPECT(wait_epoll(ep, 0), 0);
    struct epoll_event e = {.events = ASK | EPOLLONESHOT};
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
    EXPECT(wait_epoll(ep, 0), after);
    call = "epoll exclusive";
    ep = MUST(epoll_create1(0));
    e.events = EPOLLEXCLUSIVE | EPOLLIN | EPOLLRDHUP;
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), EINVAL);
    if (!strncmp(row->kind, "epoll", 5)) {
        e.events = EPOLLEXCLUSIVE | EPOLLIN;
        CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), EINVAL);
        return;
    }
    ep = watch(EPOLLEXCLUSIVE | EPOLLIN | EPOLLOUT);
    EXPECT(wait_epoll(ep, 0), after & (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP));
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e), EINVAL);
}

// Sleepers: what they wait for, by which call, and what they got.
static int sleeper_wants, sleeper_got, sleeper_file, sleeper_epoll;
static volatile pid_t sleeper;
static void *by_poll(void *arg) {
    struct pollfd p = {sleeper_file, sleeper_wants, 0};
    sleeper = gettid();
    if (poll(&p, 1, -1) == 1) sleeper_got = p.revents;
    return NULL;
}
static void *by_the_sets(void *arg) {
    fd_set s[3];
    for (int i = 0; i < 3; i++) FD_ZERO(&s[i]);
    int sets = sets_of(sleeper_wants);
    for (int i = 0; i < 3; i++)
        if (sets & 1 << i) FD_SET(sleeper_file, &s[i]);
    sleeper = gettid();
    if (select(sleeper_file + 1, &s[0], &s[1], &s[2], NULL) > 0) sleeper_got = sleeper_wants;
    return NULL;
}
static void *by_epoll(void *arg) {
    sleeper = gettid();
    sleeper_got = wait_epoll(sleeper_epoll, -1);
    return NULL;
}
static void until_it_sleeps(void) {
    char file[64];
    for (;;) {
        if (sleeper) {
            snprintf(file, sizeof file, "/proc/self/task/%d/stat", (int)sleeper);
            char *state = strrchr(slurp(file), ')');
            if (state && state[2] == 'S') return;
        }
        nap_ms(1);
    }
}
static void asleep_in(const char *what, void *(*wait)(void *), int fresh, int how) {
    pthread_t t;
    call = what;
    set_up();
    sleeper = 0, sleeper_got = 0, sleeper_wants = fresh, sleeper_file = fd;
    if (wait == by_epoll) {
        sleeper_epoll = watch((fresh & ~(how & EPOLLEXCLUSIVE ? EPOLLRDHUP | POLLPRI | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND : 0)) | how);
        if (how & EPOLLET) wait_epoll(sleeper_epoll, 0);
    }
    if (pthread_create(&t, NULL, wait, NULL)) exit(2);
    until_it_sleeps();
    row->happen();
    pthread_join(t, NULL);
    if (!(sleeper_got & fresh)) EXPECT(sleeper_got, fresh);
}
static void asleep(int before, int after) {
    // HUP and ERR cannot be left out of what is waited for: where they stand before, nobody sleeps.
    int fresh = after & ~before;
    if (!fresh || before & (POLLERR | POLLHUP)) return;
    asleep_in("asleep in poll", by_poll, fresh, 0);
    if (!(sets_of(before) & sets_of(fresh))) asleep_in("asleep in select", by_the_sets, fresh, 0);
    if (row->how & NO_EPOLL) return;
    asleep_in("asleep in epoll", by_epoll, fresh, 0);
    asleep_in("asleep in epoll by edges", by_epoll, fresh, EPOLLET);
    asleep_in("asleep in epoll once", by_epoll, fresh, EPOLLONESHOT);
    if (fresh & (POLLIN | POLLOUT | POLLERR | POLLHUP) && strncmp(row->kind, "epoll", 5))
        asleep_in("asleep in epoll, exclusive", by_epoll, fresh, EPOLLEXCLUSIVE);
}

static void each(void (*test)(int, int)) {
    signal(SIGPIPE, SIG_IGN);
    for (row = ROWS; row < ROWS + COUNT(ROWS); row++) {
        pid_t pid = MUST(fork());
        if (!pid) {
            alarm(15);
            t_failed = 0;
            test(bits(row->before), bits(row->after));
            exit(t_failed != 0);
        }
        int status;
        MUST(waitpid(pid, &status, 0));
        if (died_of(status, SIGALRM)) t_fail("%s, %s: not done within 15 s", row->kind, row->what);
        else if (!exited_with(status, 0)) t_fail("%s, %s: status %x", row->kind, row->what, status);
    }
}
TEST(at_once) { each(at_once); }
TEST(in_epoll) { each(in_epoll); }
TEST(asleep) { each(asleep); }

static int show(void) {
    signal(SIGPIPE, SIG_IGN);
    for (row = ROWS; row < ROWS + COUNT(ROWS); row++) {
        pid_t pid = fork();
        if (!pid) {
            set_up();
            int before = now(ASK);
            row->happen();
            nap_ms(100);
            printf("%s, %s: \"%s\", \"%s\"\n", row->kind, row->what, letters(before), letters(now(ASK)));
            exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    return 0;
}

int main(int argc, char **argv) {
    static const struct test tests[] = {T_FOR(at_once, 120), T_FOR(in_epoll, 120), T_FOR(asleep, 120)};
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &lo); // Linux has it down at first
    if (argc > 1 && !strcmp(argv[1], "show")) return show();
    return t_main(argc, argv, tests, COUNT(tests));
}
