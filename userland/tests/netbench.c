// The network's rows of `make bench`, as far as the machine measures them by itself: netbench [ROW...].
//   netbench serve     for those that the host measures: port 9 takes and throws away, 19 sends without end, UDP 7 echoes
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const int one = 1;
static char big[256 << 10];

static int listener(int type, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, type, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&a, sizeof a)) die("bind");
    if (type == SOCK_STREAM && listen(fd, 512)) die("listen");
    return fd;
}
static int to_loopback(int type, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, type, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (void *)&a, sizeof a)) die("connect");
    if (type == SOCK_STREAM) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

// ---- loopback -----------------------------------------------------------------------------------------------------
static int end_fd;
static void do_echo(long n) {
    char c = 1;
    while (n--)
        if (send(end_fd, &c, 1, 0) != 1 || recv(end_fd, &c, 1, 0) != 1) die("echo");
}
// A round trip of one byte to another process on CPU `other`.
static double round_trip(int type, int other) {
    int l = listener(type, 7001);
    pid_t pid = fork();
    if (pid == 0) {
        pin(other);
        char c;
        int fd = l;
        if (type == SOCK_STREAM) {
            fd = accept(l, NULL, NULL);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            while (recv(fd, &c, 1, 0) == 1) send(fd, &c, 1, 0);
            _exit(0);
        }
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        while (recvfrom(fd, &c, 1, 0, (void *)&from, &len) == 1 && c) sendto(fd, &c, 1, 0, (void *)&from, len);
        _exit(0);
    }
    pin(0);
    end_fd = to_loopback(type, 7001);
    double ns = per_round(do_echo, 1 << 20);
    if (type == SOCK_DGRAM) send(end_fd, "", 1, 0);
    close(end_fd);
    close(l);
    waitpid(pid, NULL, 0);
    pin(-1);
    return ns;
}
// Megabytes a second through one connection, `size` at a time.
static double bandwidth(size_t size) {
    int l = listener(SOCK_STREAM, 7002);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = accept(l, NULL, NULL);
        while (recv(fd, big, sizeof big, 0) > 0) {}
        _exit(0);
    }
    int fd = to_loopback(SOCK_STREAM, 7002);
    double best = 0;
    for (int batch = 0; batch < 8; batch++) {
        uint64_t t0 = now(), t;
        size_t sent = 0;
        do {
            for (int i = 0; i < 16; i++) {
                ssize_t w = send(fd, big, size, 0);
                if (w <= 0) die("send");
                sent += w;
            }
        } while ((t = now() - t0) < 60000000);
        if (sent * 1e3 / t > best) best = sent * 1e3 / t;
    }
    close(fd);
    close(l);
    waitpid(pid, NULL, 0);
    return best;
}
static int listen_fd;
static void do_connect(long n) {
    while (n--) {
        int c = to_loopback(SOCK_STREAM, 7003), s = accept(listen_fd, NULL, NULL);
        if (s < 0) die("accept");
        // By reset: thousands of records of closed connections would be measured else.
        struct linger now_ = {1, 0};
        setsockopt(c, SOL_SOCKET, SO_LINGER, &now_, sizeof now_);
        close(c);
        close(s);
    }
}
static double connecting(void) {
    listen_fd = listener(SOCK_STREAM, 7003);
    double ns = per_round(do_connect, 4096);
    close(listen_fd);
    return ns;
}

// ---- packets, with few and many connections open ------------------------------------------------------------------------------
static int udp_in, udp_out, tcp_a, tcp_b;
static void do_datagrams(long n) { // sent and received, a packet a round
    char b[64] = {0};
    while (n > 0) {
        for (int i = 0; i < 16; i++)
            if (send(udp_out, b, sizeof b, 0) != sizeof b) die("send");
        for (int i = 0; i < 16; i++)
            if (recv(udp_in, b, sizeof b, 0) != sizeof b) die("recv");
        n -= 16;
    }
}
static void do_segments(long n) { // there and back, two packets a round
    char c = 1;
    while (n--)
        if (send(tcp_a, &c, 1, 0) != 1 || recv(tcp_b, &c, 1, 0) != 1 || send(tcp_b, &c, 1, 0) != 1 || recv(tcp_a, &c, 1, 0) != 1)
            die("segments");
}
static void pair(int l, int port, int *a, int *b) {
    *a = to_loopback(SOCK_STREAM, port);
    *b = accept(l, NULL, NULL);
    if (*b < 0) die("accept");
    setsockopt(*b, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}
#define OPEN 10000
static void packets(void) {
    if (!wanted("udp-loopback-1open") && !wanted("tcp-segments-1open") && !wanted("udp-loopback-10000open") &&
        !wanted("tcp-segments-10000open"))
        return;
    struct rlimit all = {OPEN + 100, OPEN + 100};
    if (setrlimit(RLIMIT_NOFILE, &all)) die("setrlimit");
    pin(0);
    udp_in = listener(SOCK_DGRAM, 7004);
    udp_out = to_loopback(SOCK_DGRAM, 7004);
    int l = listener(SOCK_STREAM, 7005), a, b;
    pair(l, 7005, &tcp_a, &tcp_b);
    ROW("udp-loopback-1open", "/s", 1e9 / per_round(do_datagrams, 1 << 20));
    ROW("tcp-segments-1open", "/s", 2e9 / per_round(do_segments, 1 << 20));
    for (int i = 1; i < OPEN / 2; i++) pair(l, 7005, &a, &b);
    ROW("udp-loopback-10000open", "/s", 1e9 / per_round(do_datagrams, 1 << 20));
    ROW("tcp-segments-10000open", "/s", 2e9 / per_round(do_segments, 1 << 20));
    for (int fd = 3; fd < OPEN + 100; fd++) close(fd);
    pin(-1);
}

// ---- for the host -------------------------------------------------------------------------------------------------
static int serve(void) {
    int sink = listener(SOCK_STREAM, 9), source = listener(SOCK_STREAM, 19), echo = listener(SOCK_DGRAM, 7);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    puts("netbench serves");
    fflush(stdout);
    for (;;) {
        struct pollfd p[3] = {{sink, POLLIN, 0}, {source, POLLIN, 0}, {echo, POLLIN, 0}};
        poll(p, 3, -1);
        for (int i = 0; i < 2; i++) {
            if (!p[i].revents) continue;
            int fd = accept(p[i].fd, NULL, NULL);
            if (fork() == 0) {
                if (i == 0) while (recv(fd, big, sizeof big, 0) > 0) {}
                else while (send(fd, big, 64 << 10, 0) > 0) {}
                _exit(0);
            }
            close(fd);
        }
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        for (ssize_t n; (n = recvfrom(echo, big, 2048, MSG_DONTWAIT, (void *)&from, &len)) >= 0; len = sizeof from)
            sendto(echo, big, n, MSG_DONTWAIT, (void *)&from, len);
    }
}

int main(int argc, char **argv) {
    argc_ = argc;
    argv_ = argv;
    if (argc == 2 && !strcmp(argv[1], "serve")) return serve();
    cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (cpus < 1) cpus = 1;
    ROW("tcp-loopback-1cpu", "ns", round_trip(SOCK_STREAM, 0));
    ROW("udp-loopback-1cpu", "ns", round_trip(SOCK_DGRAM, 0));
    if (cpus > 1) ROW("tcp-loopback-2cpu", "ns", round_trip(SOCK_STREAM, 1));
    ROW("tcp-loopback-64k", "MB/s", bandwidth(64 << 10));
    ROW("tcp-loopback-1k", "MB/s", bandwidth(1 << 10));
    ROW("tcp-connect+close", "ns", connecting());
    packets();
    puts("netbench end");
    return 0;
}
