// The two ends of a conversation over the network, for gates that have something at the other end:
//   netpeer echo PORT                     TCP and UDP echo on all addresses of both families, until killed; says "ready"
//   netpeer client HOST PORT CONNS BYTES  CONNS connections, all open at once; each sends BYTES, closes its half, and must
//                                         get the same back and then the end
//   netpeer udp HOST PORT COUNT           COUNT datagrams, one after the other, each sent again until its echo comes
//   netpeer refused HOST PORT             nobody is there: TCP and UDP must say ECONNREFUSED
//   netpeer unreachable HOST PORT         the host does not exist: TCP must say EHOSTUNREACH (UDP hears of it nowhere)
//   netpeer keepalive HOST PORT           connects, says "connected", and waits to be told that the other end is gone
// All but the first end with a verdict as the test programs do.
#include "t.h"
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define CHUNK 16384

struct conn {
    int fd;
    unsigned seed;
    size_t sent, got; // client: progress; server: got - sent are in buf
    bool ended;
    unsigned char *buf;
};

static void fill(unsigned char *p, size_t n, size_t at, unsigned seed) {
    for (size_t i = 0; i < n; i++) {
        uint64_t z = (at + i) / 8 * 0x9E3779B97F4A7C15ull + seed;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z ^= z >> 27;
        p[i] = z >> (at + i) % 8 * 8;
    }
}

static struct addrinfo *resolve(const char *host, const char *port, int type) {
    struct addrinfo hints = {.ai_socktype = type}, *found;
    int e = getaddrinfo(host, port, &hints, &found);
    if (e) {
        t_fail("%s: %s", host, gai_strerror(e));
        return NULL;
    }
    return found;
}

static void serve(struct conn *c, uint32_t events, int ep) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !c->ended && c->got == c->sent) {
        ssize_t n = read(c->fd, c->buf, CHUNK);
        if (n > 0) c->sent = 0, c->got = n;
        else if (n == 0) c->ended = true;
        else if (errno != EAGAIN) goto gone;
    }
    while (c->sent < c->got) {
        ssize_t n = write(c->fd, c->buf + c->sent, c->got - c->sent);
        if (n > 0) c->sent += n;
        else if (errno == EAGAIN) break;
        else goto gone;
    }
    if (c->ended && c->sent == c->got) goto gone;
    struct epoll_event ev = {.events = c->sent < c->got ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
    return;
gone:
    close(c->fd);
    free(c->buf);
    free(c);
}

static int echo(const char *port) {
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))};
    int l = MUST(socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0)), u = MUST(socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    int one = 1;
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    MUST(bind(l, (void *)&at, sizeof at));
    MUST(listen(l, 4096));
    MUST(bind(u, (void *)&at, sizeof at));
    int ep = MUST(epoll_create1(0));
    struct conn listener = {.fd = l}, datagrams = {.fd = u};
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &listener}, got[64];
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev));
    ev.data.ptr = &datagrams;
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, u, &ev));
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(ep, got, 64, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = got[i].data.ptr;
            if (c == &datagrams) {
                static unsigned char b[65536];
                struct sockaddr_in6 from;
                socklen_t len = sizeof from;
                ssize_t r = recvfrom(u, b, sizeof b, 0, (void *)&from, &len);
                if (r >= 0) sendto(u, b, r, 0, (void *)&from, len);
            } else if (c == &listener) {
                int fd;
                while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    c = calloc(1, sizeof *c);
                    c->fd = fd;
                    c->buf = malloc(CHUNK);
                    ev = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
                    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
                }
            } else {
                serve(c, got[i].events, ep);
            }
        }
    }
}

// One step of a client's connection; false when it is over.
static bool step(struct conn *c, size_t bytes) {
    static unsigned char b[CHUNK], want[CHUNK];
    while (c->sent < bytes) {
        size_t n = bytes - c->sent < CHUNK ? bytes - c->sent : CHUNK;
        fill(b, n, c->sent, c->seed);
        ssize_t w = write(c->fd, b, n);
        if (w < 0 && errno == EAGAIN) break;
        if (w < 0) return t_fail("connection %u: write after %zu bytes: %s", c->seed, c->sent, strerror(errno)), false;
        c->sent += w;
        if (c->sent == bytes) MUST(shutdown(c->fd, SHUT_WR));
    }
    for (;;) {
        ssize_t r = read(c->fd, b, CHUNK);
        if (r < 0 && errno == EAGAIN) return true;
        if (r < 0) return t_fail("connection %u: read after %zu bytes: %s", c->seed, c->got, strerror(errno)), false;
        if (r == 0) {
            c->ended = true;
            if (c->got != bytes) t_fail("connection %u: ended after %zu of %zu bytes", c->seed, c->got, bytes);
            return false;
        }
        fill(want, r, c->got, c->seed);
        if (memcmp(b, want, r)) return t_fail("connection %u: wrong bytes behind %zu", c->seed, c->got), false;
        c->got += r;
    }
}

static void client(const char *host, const char *port, int count, size_t bytes) {
    struct addrinfo *to = resolve(host, port, SOCK_STREAM);
    if (!to) return;
    struct conn *all = calloc(count, sizeof *all);
    int ep = MUST(epoll_create1(0)), open = 0;
    struct epoll_event ev, got[64];
    for (int i = 0; i < count; i++) {
        all[i].seed = i;
        all[i].fd = MUST(socket(to->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0));
        int r = connect(all[i].fd, to->ai_addr, to->ai_addrlen);
        if (r && errno != EINPROGRESS) t_fail("connect %d: %s", i, strerror(errno));
        ev = (struct epoll_event){.events = EPOLLOUT, .data.ptr = &all[i]};
        MUST(epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &ev));
    }
    // All of them are open before the first byte goes.
    while (open < count && !t_failed) {
        int n = epoll_wait(ep, got, 64, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = got[i].data.ptr;
            int e = 0;
            socklen_t len = sizeof e;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len);
            if (e) t_fail("connection %u: %s", c->seed, strerror(e));
            ev = (struct epoll_event){.events = 0, .data.ptr = c};
            epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
            open++;
        }
    }
    for (int i = 0; i < count; i++) {
        ev = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = &all[i]};
        epoll_ctl(ep, EPOLL_CTL_MOD, all[i].fd, &ev);
    }
    while (open > 0 && t_failed < 5) {
        int n = epoll_wait(ep, got, 64, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = got[i].data.ptr;
            if (c->fd < 0 || step(c, bytes)) continue;
            close(c->fd);
            c->fd = -1;
            open--;
        }
    }
}

static void udp(const char *host, const char *port, int count) {
    struct addrinfo *to = resolve(host, port, SOCK_DGRAM);
    if (!to) return;
    int fd = MUST(socket(to->ai_family, SOCK_DGRAM, 0));
    MUST(connect(fd, to->ai_addr, to->ai_addrlen));
    for (int i = 0; i < count; i++) {
        static unsigned char out[4000], in[4000];
        size_t len = 8 + i * 97 % 3900; // fragments among them
        fill(out, len, 0, i);
        bool echoed = false;
        for (int tries = 0; tries < 60 && !echoed; tries++) {
            if (send(fd, out, len, 0) != (ssize_t)len) return t_fail("send of %zu: %s", len, strerror(errno));
            struct pollfd p = {.fd = fd, .events = POLLIN};
            while (!echoed && poll(&p, 1, 500) == 1) {
                ssize_t n = recv(fd, in, sizeof in, 0);
                if (n < 0) return t_fail("recv: %s", strerror(errno));
                // Late echoes of earlier ones are left out.
                echoed = n == (ssize_t)len && !memcmp(in, out, len);
            }
        }
        if (!echoed) return t_fail("datagram %d of %zu bytes never came back", i, len);
    }
}

static void errors(const char *host, const char *port, int want) {
    struct addrinfo *to = resolve(host, port, SOCK_STREAM);
    if (!to) return;
    int fd = MUST(socket(to->ai_family, SOCK_STREAM, 0));
    CHECK_ERR(connect(fd, to->ai_addr, to->ai_addrlen), want);
    if (want == EHOSTUNREACH) return;
    int u = MUST(socket(to->ai_family, SOCK_DGRAM, 0));
    MUST(connect(u, to->ai_addr, to->ai_addrlen));
    MUST(send(u, "x", 1, 0));
    char b[8];
    errno = 0;
    ssize_t n = recv(u, b, sizeof b, 0); // the error comes by itself
    if (n != -1 || errno != want) t_fail("UDP: %zd, %s", n, strerror(errno));
}

static void too_late(int sig) {
    printf("FAIL netpeer.%s: not done in time\n0 passed, 1 failed\n", t_name);
    fflush(stdout);
    _exit(1);
}

// The peer falls silent; keep-alive must notice. "connected" tells whoever is to silence it.
static void keepalive(const char *host, const char *port) {
    struct addrinfo *to = resolve(host, port, SOCK_STREAM);
    if (!to) return;
    int fd = MUST(socket(to->ai_family, SOCK_STREAM, 0));
    MUST(connect(fd, to->ai_addr, to->ai_addrlen));
    static const int options[][3] = {{SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 1}, {IPPROTO_TCP, TCP_KEEPINTVL, 1}, {IPPROTO_TCP, TCP_KEEPCNT, 3}};
    for (int i = 0; i < 4; i++) MUST(setsockopt(fd, options[i][0], options[i][1], &options[i][2], sizeof(int)));
    char b[8] = "x";
    MUST(write(fd, b, 1));
    MUST(read(fd, b, 8));
    nap_ms(5000); // probed and answered: it must live
    MUST(write(fd, b, 1));
    if (read(fd, b, 8) != 1) return t_fail("an idle connection died: %s", strerror(errno));
    printf("connected\n");
    fflush(stdout);
    CHECK_ERR(read(fd, b, 8), ETIMEDOUT);
}

int main(int argc, char **argv) {
    struct rlimit all;
    getrlimit(RLIMIT_NOFILE, &all);
    all.rlim_cur = all.rlim_max;
    setrlimit(RLIMIT_NOFILE, &all);
    t_program = "netpeer";
    t_name = argc > 1 ? argv[1] : "?";
    signal(SIGPIPE, SIG_IGN);
    if (argc > 2 && !strcmp(t_name, "echo")) return echo(argv[2]);
    signal(SIGALRM, too_late);
    alarm(getenv("LIMIT") ? atoi(getenv("LIMIT")) : 300);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 5 && !strcmp(t_name, "client")) client(argv[2], argv[3], atoi(argv[4]), atol(argv[5]));
    else if (argc > 4 && !strcmp(t_name, "udp")) udp(argv[2], argv[3], atoi(argv[4]));
    else if (argc > 3 && !strcmp(t_name, "refused")) errors(argv[2], argv[3], ECONNREFUSED);
    else if (argc > 3 && !strcmp(t_name, "unreachable")) errors(argv[2], argv[3], EHOSTUNREACH);
    else if (argc > 3 && !strcmp(t_name, "keepalive")) keepalive(argv[2], argv[3]);
    else t_fail("see the source for how to call it");
    printf("%d passed, %d failed\n", t_failed == 0, t_failed != 0);
    return t_failed != 0;
}
