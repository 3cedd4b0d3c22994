// m3: pipes, named pipes, and waiting for several files at once: poll, select, epoll, event counters, timer files.
#include "t.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/timerfd.h>

static int revents(int fd, short events, int ms) {
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, ms) == -1 ? -1 : p.revents;
}
static void *volatile nowhere = (void *)16; // an address that no program has
static void on_signal(int sig) {}
static void catch_without_restart(int sig) {
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(sig, &sa, NULL);
}

TEST(pipe_moves_bytes_in_order) {
    int p[2];
    MUST(pipe(p));
    const size_t total = 8 << 20;
    pid_t pid = MUST(fork());
    if (pid == 0) {
        static uint32_t out[16381];
        uint32_t n = 0;
        for (size_t done = 0; done < total;) {
            size_t len = sizeof out < total - done ? sizeof out : total - done;
            for (size_t i = 0; i < len / 4; i++) out[i] = n++;
            for (size_t at = 0; at < len;) at += MUST(write(p[1], (char *)out + at, len - at));
            done += len;
        }
        _exit(0);
    }
    close(p[1]);
    static char in[70001];
    uint32_t want = 0, got = 0;
    size_t bytes = 0;
    bool same = true;
    for (ssize_t r; (r = read(p[0], in, 1 + bytes * 7919 % sizeof in)) > 0;)
        for (ssize_t i = 0; i < r; i++, bytes++) {
            got |= (uint32_t)(unsigned char)in[i] << bytes % 4 * 8;
            if (bytes % 4 == 3) {
                same &= got == want++;
                got = 0;
            }
        }
    CHECK(bytes == total && same, "%zu bytes", bytes);
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
}

TEST(pipe_holds_64k) {
    int p[2], n = 0, waiting = 0;
    MUST(pipe2(p, O_NONBLOCK));
    CHECK(MUST(fcntl(p[1], F_GETPIPE_SZ)) == 65536);
    while (write(p[1], "x", 1) == 1) n++;
    CHECK(errno == EAGAIN && n == 65536, "%d bytes", n);
    CHECK(ioctl(p[0], FIONREAD, &waiting) == 0 && waiting == 65536);
    CHECK(revents(p[1], POLLOUT, 0) == 0 && revents(p[0], POLLIN, 0) == POLLIN);
    static char buf[65536];
    CHECK(read(p[0], buf, 4096) == 4096);
    CHECK(revents(p[1], POLLOUT, 0) == POLLOUT);
    CHECK_ERR(fcntl(p[1], F_SETPIPE_SZ, 4096), EBUSY);
    CHECK(fcntl(p[1], F_SETPIPE_SZ, 100000) == 131072);
    n = 0;
    while (write(p[1], "y", 1) == 1) n++;
    CHECK(n == 131072 - 61440, "%d more", n);
    for (int i = 0; i < 61440; i++) CHECK(read(p[0], buf, 1) == 1 && buf[0] == 'x', "at %d", i);
    CHECK(read(p[0], buf, 65536) == 65536 && buf[0] == 'y' && buf[65535] == 'y');
}

TEST(pipe_ends) {
    int p[2];
    char c;
    MUST(pipe2(p, O_CLOEXEC));
    CHECK(fcntl(p[0], F_GETFD) == FD_CLOEXEC);
    CHECK_ERR(write(p[0], "x", 1), EBADF);
    CHECK_ERR(read(p[1], &c, 1), EBADF);
    CHECK_ERR(lseek(p[0], 0, SEEK_CUR), ESPIPE);
    CHECK_ERR(write(p[1], nowhere, 1), EFAULT);
    MUST(write(p[1], "a", 1));
    CHECK_ERR(read(p[0], nowhere, 1), EFAULT);
    close(p[1]);
    CHECK(revents(p[0], POLLIN, 0) == (POLLIN | POLLHUP));
    CHECK(read(p[0], &c, 1) == 1 && c == 'a');
    CHECK(revents(p[0], POLLIN, 0) == POLLHUP);
    CHECK(read(p[0], &c, 1) == 0);
    MUST(pipe(p));
    close(p[0]);
    CHECK((revents(p[1], POLLOUT, 0) & POLLERR) != 0);
    signal(SIGPIPE, SIG_IGN);
    CHECK_ERR(write(p[1], "x", 1), EPIPE);
    struct stat st;
    CHECK(fstat(p[1], &st) == 0 && S_ISFIFO(st.st_mode));
}
static void write_to(void *fd) { MUST(write(*(int *)fd, "x", 1)); }
TEST(sigpipe_kills) {
    int p[2];
    MUST(pipe(p));
    close(p[0]);
    CHECK(died_of(in_child(write_to, &p[1]), SIGPIPE));
}

#define WRITERS 4
#define ROUNDS 400
TEST(small_writes_are_atomic) {
    int p[2];
    MUST(pipe(p));
    for (int w = 0; w < WRITERS; w++)
        if (MUST(fork()) == 0) {
            char block[4096];
            memset(block, 'a' + w, sizeof block);
            for (int i = 0; i < ROUNDS; i++) MUST(write(p[1], block, sizeof block) == sizeof block ? 0 : -1);
            _exit(0);
        }
    close(p[1]);
    char block[4096];
    int blocks = 0, torn = 0;
    for (;;) {
        size_t n = 0;
        for (ssize_t r; n < sizeof block && (r = read(p[0], block + n, sizeof block - n)) > 0;) n += r;
        if (n == 0) break;
        for (size_t i = 1; i < n; i++) torn += block[i] != block[0];
        blocks++;
    }
    CHECK(blocks == WRITERS * ROUNDS && torn == 0, "%d blocks, %d torn", blocks, torn);
    while (wait(NULL) > 0) {}
}

TEST(blocked_calls_are_interrupted) {
    int p[2];
    char c;
    MUST(pipe(p));
    catch_without_restart(SIGUSR1);
    pid_t me = getpid(), pid = MUST(fork());
    if (pid == 0)
        for (;;) {
            nap_ms(20);
            kill(me, SIGUSR1);
        }
    CHECK_ERR(read(p[0], &c, 1), EINTR);
    CHECK_ERR(poll(&(struct pollfd){.fd = p[0], .events = POLLIN}, 1, -1), EINTR);
    int ep = MUST(epoll_create1(0));
    struct epoll_event e;
    CHECK_ERR(epoll_wait(ep, &e, 1, -1), EINTR);
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &sa, NULL);
    CHECK_ERR(poll(&(struct pollfd){.fd = p[0], .events = POLLIN}, 1, -1), EINTR);
    if (MUST(fork()) == 0) {
        nap_ms(200);
        MUST(write(p[1], "z", 1));
        _exit(0);
    }
    CHECK(read(p[0], &c, 1) == 1 && c == 'z'); // restarted meanwhile
    kill(pid, SIGKILL);
}

TEST(fifo_opens_meet) {
    char name[64], c;
    snprintf(name, sizeof name, "/tmp/fifo.%d", getpid());
    MUST(mkfifo(name, 0600));
    CHECK_ERR(open(name, O_WRONLY | O_NONBLOCK), ENXIO);
    int early = MUST(open(name, O_RDONLY | O_NONBLOCK));
    CHECK(read(early, &c, 1) == 0);
    CHECK(revents(early, POLLIN, 0) == 0, "no hang-up before a writer came");
    int w = MUST(open(name, O_WRONLY | O_NONBLOCK));
    CHECK_ERR(read(early, &c, 1), EAGAIN);
    MUST(write(w, "q", 1));
    close(w);
    CHECK(revents(early, POLLIN, 0) == (POLLIN | POLLHUP));
    close(early);
    pid_t pid = MUST(fork());
    if (pid == 0) {
        nap_ms(50);
        int fd = MUST(open(name, O_WRONLY));
        MUST(write(fd, "hello", 5));
        _exit(0);
    }
    int r = MUST(open(name, O_RDONLY)); // waits
    char text[16] = "";
    int n = 0;
    for (ssize_t k; (k = read(r, text + n, sizeof text - n)) > 0;) n += k;
    CHECK(n == 5 && !strcmp(text, "hello"), "%d bytes: %s", n, text);
    int both = MUST(open(name, O_RDWR));
    MUST(write(both, "s", 1));
    CHECK(read(both, &c, 1) == 1 && c == 's');
    unlink(name);
}

TEST(poll_waits_and_times_out) {
    int p[2];
    MUST(pipe(p));
    uint64_t t0 = now_ns();
    CHECK(revents(p[0], POLLIN, 50) == 0);
    CHECK(now_ns() - t0 >= 50000000ull);
    CHECK(revents(p[1] + 100, POLLIN, 0) == POLLNVAL);
    if (MUST(fork()) == 0) {
        nap_ms(30);
        MUST(write(p[1], "x", 1));
        _exit(0);
    }
    struct pollfd f[3] = {{.fd = -1, .events = POLLIN}, {.fd = p[0], .events = POLLIN}, {.fd = 1000, .events = POLLIN}};
    CHECK(poll(f, 2, -1) == 1 && f[0].revents == 0 && f[1].revents == POLLIN);
    CHECK(poll(f, 3, 0) == 2 && f[2].revents == POLLNVAL);
    CHECK_ERR(poll(nowhere, 1, 0), EFAULT);
    struct timespec bad = {0, 1000000000};
    CHECK_ERR(ppoll(f, 1, &bad, NULL), EINVAL);
}

TEST(ppoll_changes_the_mask) {
    catch_without_restart(SIGUSR1);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    raise(SIGUSR1);
    struct timespec second = {1, 0};
    CHECK_ERR(ppoll(NULL, 0, &second, &none), EINTR);
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1) == 1, "the mask is back");
    raise(SIGUSR1);
    struct timespec ms = {0, 1000000};
    CHECK(ppoll(NULL, 0, &ms, NULL) == 0);
    CHECK_ERR(pselect(0, NULL, NULL, NULL, &second, &none), EINTR);
}

TEST(select_rewrites_its_sets) {
    int p[2], q[2];
    MUST(pipe(p));
    MUST(pipe(q));
    MUST(write(p[1], "x", 1));
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(p[0], &r);
    FD_SET(q[0], &r);
    FD_SET(q[1], &w);
    CHECK(select(q[1] + 1, &r, &w, NULL, NULL) == 2);
    CHECK(FD_ISSET(p[0], &r) && !FD_ISSET(q[0], &r) && FD_ISSET(q[1], &w));
    FD_ZERO(&r);
    FD_SET(q[0], &r);
    struct timeval tv = {0, 30000};
    CHECK(select(q[0] + 1, &r, NULL, NULL, &tv) == 0 && !FD_ISSET(q[0], &r));
    MUST(dup2(q[0], 900)); // so that the table has room for it
    close(900);
    FD_SET(900, &r);
    CHECK_ERR(select(901, &r, NULL, NULL, &tv), EBADF);
    CHECK_ERR(select(-1, NULL, NULL, NULL, &tv), EINVAL);
}

TEST(eventfd_counts) {
    uint64_t v = 0;
    int e = MUST(eventfd(3, EFD_NONBLOCK)), s = MUST(eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK));
    CHECK(read(e, &v, 8) == 8 && v == 3);
    CHECK_ERR(read(e, &v, 8), EAGAIN);
    CHECK_ERR(read(e, &v, 4), EINVAL);
    v = UINT64_MAX;
    CHECK_ERR(write(e, &v, 8), EINVAL);
    v = UINT64_MAX - 1;
    CHECK(write(e, &v, 8) == 8);
    CHECK(revents(e, POLLIN | POLLOUT, 0) == POLLIN);
    v = 1;
    CHECK_ERR(write(e, &v, 8), EAGAIN);
    for (int i = 0; i < 2; i++) CHECK(read(s, &v, 8) == 8 && v == 1);
    CHECK_ERR(read(s, &v, 8), EAGAIN);
    int b = MUST(eventfd(0, 0));
    if (MUST(fork()) == 0) {
        nap_ms(20);
        v = 5;
        MUST(write(b, &v, 8));
        _exit(0);
    }
    CHECK(read(b, &v, 8) == 8 && v == 5);
}

TEST(epoll_levels_edges_oneshot) {
    int p[2];
    MUST(pipe(p));
    int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0x1234567890abcdef}, got[4];
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e), EEXIST);
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_MOD, p[1], &e), ENOENT);
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, ep, &e), EINVAL);
    CHECK_ERR(epoll_wait(ep, got, 0, 0), EINVAL);
    CHECK_ERR(epoll_wait(p[0], got, 1, 0), EINVAL);
    int file = MUST(open("/tmp", O_RDONLY | O_DIRECTORY));
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, file, &e), EPERM);
    CHECK(epoll_wait(ep, got, 4, 0) == 0);
    MUST(write(p[1], "xy", 2));
    for (int i = 0; i < 3; i++)
        CHECK(epoll_wait(ep, got, 4, 0) == 1 && got[0].events == EPOLLIN && got[0].data.u64 == e.data.u64);
    e.events = EPOLLIN | EPOLLET;
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &e));
    CHECK(epoll_wait(ep, got, 4, 0) == 1 && epoll_wait(ep, got, 4, 0) == 0);
    MUST(write(p[1], "z", 1));
    CHECK(epoll_wait(ep, got, 4, 0) == 1 && epoll_wait(ep, got, 4, 0) == 0);
    e.events = EPOLLIN | EPOLLONESHOT;
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &e));
    CHECK(epoll_wait(ep, got, 4, 0) == 1 && epoll_wait(ep, got, 4, 0) == 0);
    MUST(write(p[1], "z", 1));
    CHECK(epoll_wait(ep, got, 4, 0) == 0);
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &e));
    CHECK(epoll_wait(ep, got, 4, 0) == 1);
    MUST(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL));
    CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL), ENOENT);
}

TEST(epoll_forgets_closed_files) {
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN}, got[4];
    for (int i = 0; i < 1000; i++) {
        int p[2];
        MUST(pipe(p));
        e.data.u32 = i;
        MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
        MUST(write(p[1], "x", 1));
        CHECK(epoll_wait(ep, got, 4, 0) == 1 && got[0].data.u32 == (uint32_t)i);
        close(p[0]);
        close(p[1]);
        CHECK(epoll_wait(ep, got, 4, 0) == 0);
    }
}

TEST(epoll_nests) {
    int p[2], ep[7], many = 0;
    MUST(pipe(p));
    struct epoll_event e = {.events = EPOLLIN}, got;
    for (int i = 0; i < 3; i++) ep[i] = MUST(epoll_create1(0));
    MUST(epoll_ctl(ep[0], EPOLL_CTL_ADD, p[0], &e));
    MUST(epoll_ctl(ep[1], EPOLL_CTL_ADD, ep[0], &e));
    MUST(epoll_ctl(ep[2], EPOLL_CTL_ADD, ep[1], &e));
    CHECK_ERR(epoll_ctl(ep[0], EPOLL_CTL_ADD, ep[2], &e), ELOOP);
    CHECK(revents(ep[2], POLLIN, 0) == 0);
    if (MUST(fork()) == 0) {
        nap_ms(30);
        MUST(write(p[1], "x", 1));
        _exit(0);
    }
    CHECK(epoll_wait(ep[2], &got, 1, 5000) == 1);
    CHECK(revents(ep[1], POLLIN, 0) == POLLIN);
    char c;
    MUST(read(p[0], &c, 1));
    CHECK(epoll_wait(ep[2], &got, 1, 0) == 0);
    int below = ep[2];
    for (; many < 10; many++) {
        int top = MUST(epoll_create1(0));
        if (epoll_ctl(top, EPOLL_CTL_ADD, below, &e) == -1) break;
        below = top;
    }
    CHECK(many < 10, "nested without a limit");
}

static int shared_ep, served;
static void *serve(void *arg) {
    struct epoll_event got;
    while (epoll_wait(shared_ep, &got, 1, -1) == 1) {
        uint64_t v;
        if (read(got.data.fd, &v, 8) == 8) __atomic_add_fetch(&served, v, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&served, __ATOMIC_SEQ_CST) >= 20000) break;
    }
    return NULL;
}
TEST(epoll_serves_threads) {
    pthread_t t[4];
    int fds[8];
    uint64_t one = 1;
    shared_ep = MUST(epoll_create1(0));
    for (int i = 0; i < 8; i++) {
        fds[i] = MUST(eventfd(0, EFD_NONBLOCK));
        struct epoll_event e = {.events = EPOLLIN | (i % 2 ? EPOLLET : 0), .data.fd = fds[i]};
        MUST(epoll_ctl(shared_ep, EPOLL_CTL_ADD, fds[i], &e));
    }
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, serve, NULL);
    for (int i = 0; i < 20000; i++) MUST(write(fds[i % 8], &one, 8));
    while (__atomic_load_n(&served, __ATOMIC_SEQ_CST) < 20000) nap_ms(1); // the alarm bounds it
    int stop = MUST(eventfd(1, 0));
    struct epoll_event e = {.events = EPOLLIN, .data.fd = -1};
    MUST(epoll_ctl(shared_ep, EPOLL_CTL_ADD, stop, &e)); // level-triggered and never read: wakes all in turn
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    CHECK(served == 20000);
}

TEST(timerfd_expires) {
    int t = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    struct itimerspec s = {.it_value = {0, 20000000}, .it_interval = {0, 10000000}}, old;
    uint64_t v = 0;
    CHECK_ERR(read(t, &v, 8), EAGAIN);
    MUST(timerfd_settime(t, 0, &s, NULL));
    CHECK(revents(t, POLLIN, 0) == 0);
    CHECK(revents(t, POLLIN, 5000) == POLLIN);
    nap_ms(45);
    CHECK(read(t, &v, 8) == 8 && v >= 4, "%llu expiries", (unsigned long long)v);
    MUST(timerfd_gettime(t, &old));
    CHECK(old.it_interval.tv_nsec == 10000000 && old.it_value.tv_nsec <= 10000000);
    memset(&s, 0, sizeof s);
    MUST(timerfd_settime(t, 0, &s, &old));
    CHECK(old.it_interval.tv_nsec == 10000000);
    while (read(t, &v, 8) == 8) {}
    CHECK(revents(t, POLLIN, 40) == 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int r = MUST(timerfd_create(CLOCK_REALTIME, 0));
    s.it_value = now; // in the past by now
    MUST(timerfd_settime(r, TFD_TIMER_ABSTIME, &s, NULL));
    CHECK(read(r, &v, 8) == 8 && v == 1);
    s.it_value.tv_nsec = 1000000000;
    CHECK_ERR(timerfd_settime(r, 0, &s, NULL), EINVAL);
    CHECK_ERR(timerfd_create(99, 0), EINVAL);
}

MAIN(T(pipe_moves_bytes_in_order), T(pipe_holds_64k), T(pipe_ends), T(sigpipe_kills), T(small_writes_are_atomic),
     T(blocked_calls_are_interrupted), T(fifo_opens_meet), T(poll_waits_and_times_out), T(ppoll_changes_the_mask),
     T(select_rewrites_its_sets), T(eventfd_counts), T(epoll_levels_edges_oneshot), T(epoll_forgets_closed_files),
     T(epoll_nests), T(epoll_serves_threads), T(timerfd_expires))
