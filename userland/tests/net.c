// n2: sockets over loopback: TCP to its ends (half-close, reset, backlog, keep-alive, a thousand at once), UDP, IPv6, raw ICMP,
// netlink, and unix sockets with descriptors and credentials.
#include "t.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_in lo4(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int port_of(int fd) {
    struct sockaddr_in6 a; // the port is at the same place for both families
    socklen_t len = sizeof a;
    MUST(getsockname(fd, (void *)&a, &len));
    return ntohs(a.sin6_port);
}

static int listener(int backlog) {
    int l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in a = lo4(0);
    MUST(bind(l, (void *)&a, sizeof a));
    MUST(listen(l, backlog));
    return l;
}

static int dial(int port) {
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in a = lo4(port);
    MUST(connect(c, (void *)&a, sizeof a));
    return c;
}

// A connection: its two ends.
static void pair(int out[2]) {
    int l = listener(5);
    out[0] = dial(port_of(l));
    out[1] = MUST(accept(l, NULL, NULL));
    close(l);
}

static void set(int fd, int level, int name, int value) { MUST(setsockopt(fd, level, name, &value, sizeof value)); }
static int get(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    MUST(getsockopt(fd, level, name, &value, &len));
    return value;
}

#define BULK (4 << 20)
static unsigned char bulk[2][65536];
static int bulk_fd[2];
static void *sender(void *arg) {
    int fd = bulk_fd[(long)arg];
    unsigned char *p = bulk[(long)arg];
    for (size_t at = 0; at < BULK; at += 65536) {
        for (size_t i = 0; i < 65536; i += 4096) p[i] = at >> 16;
        for (size_t done = 0; done < 65536;) {
            ssize_t n = write(fd, p + done, 65536 - done);
            if (n <= 0) return (void *)1;
            done += n;
        }
    }
    shutdown(fd, SHUT_WR);
    return NULL;
}

TEST(bytes_both_ways_at_once) {
    int s[2];
    pair(s);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) bulk_fd[i] = s[i], pthread_create(&t[i], NULL, sender, (void *)i);
    size_t got[2] = {0, 0};
    bool ended[2] = {false, false};
    static unsigned char b[100000];
    while (!ended[0] || !ended[1]) {
        struct pollfd p[2] = {{ended[0] ? -1 : s[0], POLLIN, 0}, {ended[1] ? -1 : s[1], POLLIN, 0}};
        MUST(poll(p, 2, -1));
        for (int i = 0; i < 2; i++) {
            if (!p[i].revents) continue;
            ssize_t n = MUST(read(s[i], b, sizeof b));
            for (ssize_t k = (4096 - got[i] % 4096) % 4096; k < n; k += 4096) {
                size_t at = got[i] + k;
                CHECK(b[k] == (unsigned char)(at >> 16), "at %zu: %d", at, b[k]);
            }
            got[i] += n;
            ended[i] = n == 0;
        }
    }
    CHECK(got[0] == BULK && got[1] == BULK, "%zu and %zu", got[0], got[1]);
    for (int i = 0; i < 2; i++) {
        void *r;
        pthread_join(t[i], &r);
        CHECK(r == NULL);
    }
}

TEST(half_closed_the_other_half_goes_on) {
    int s[2];
    char b[16];
    pair(s);
    MUST(write(s[0], "last", 4));
    MUST(shutdown(s[0], SHUT_WR));
    CHECK_ERR(send(s[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(read(s[1], b, 16) == 4 && read(s[1], b, 16) == 0);
    struct pollfd p = {s[1], POLLIN | POLLRDHUP, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLRDHUP), "%x", p.revents);
    for (int i = 0; i < 100; i++) {
        CHECK(write(s[1], "answer", 6) == 6);
        CHECK(recv(s[0], b, 6, MSG_WAITALL) == 6);
    }
    MUST(close(s[1]));
    CHECK(read(s[0], b, 16) == 0);
}

TEST(resets_are_told) {
    int s[2];
    char b[16];
    struct linger now = {1, 0};
    pair(s);
    MUST(setsockopt(s[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(s[1]);
    CHECK_ERR(read(s[0], b, 16), ECONNRESET);
    CHECK(read(s[0], b, 16) == 0);
    CHECK_ERR(send(s[0], "x", 1, MSG_NOSIGNAL), EPIPE);
    // Bytes that nobody read: RST as well.
    pair(s);
    MUST(write(s[0], "unread", 6));
    struct pollfd p = {s[1], POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    close(s[1]);
    p = (struct pollfd){s[0], POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1 && p.revents & POLLERR, "%x", p.revents);
    CHECK_ERR(read(s[0], b, 16), ECONNRESET);
    // Nobody listens.
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0)), l = listener(1);
    struct sockaddr_in a = lo4(port_of(l));
    close(l);
    CHECK_ERR(connect(c, (void *)&a, sizeof a), ECONNREFUSED);
}

TEST(sigpipe_unless_refused) {
    int s[2];
    pair(s);
    MUST(shutdown(s[0], SHUT_WR));
    pid_t pid = fork();
    if (pid == 0) {
        write(s[0], "x", 1);
        _exit(0);
    }
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(died_of(status, SIGPIPE), "%x", status);
}

TEST(backlog_holds_and_then_makes_wait) {
    int l = listener(2), c[12], port = port_of(l);
    struct sockaddr_in a = lo4(port);
    for (int i = 0; i < 12; i++) {
        c[i] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        int r = connect(c[i], (void *)&a, sizeof a);
        CHECK(r == 0 || errno == EINPROGRESS, "%s", strerror(errno));
    }
    struct pollfd p = {l, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    // Nobody is refused: who found it full tries again until there is room.
    for (int i = 0; i < 12; i++) {
        int s = MUST(accept(l, NULL, NULL));
        close(s);
    }
    for (int i = 0; i < 12; i++) {
        p = (struct pollfd){c[i], POLLIN, 0};
        CHECK(poll(&p, 1, 20000) == 1);
        CHECK(get(c[i], SOL_SOCKET, SO_ERROR) == 0);
        close(c[i]);
    }
}

TEST(connect_without_waiting_begins) {
    int l = listener(4), c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    struct sockaddr_in a = lo4(port_of(l));
    // Even through loopback, where it is done at once.
    CHECK_ERR(connect(c, (void *)&a, sizeof a), EINPROGRESS);
    struct pollfd p = {c, POLLOUT, 0};
    CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLOUT);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == 0);
    CHECK(connect(c, (void *)&a, sizeof a) == 0);
    CHECK_ERR(connect(c, (void *)&a, sizeof a), EISCONN);
    close(c);
    close(l);
    // Nobody listens there any more.
    c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    CHECK_ERR(connect(c, (void *)&a, sizeof a), EINPROGRESS);
    p = (struct pollfd){c, POLLOUT, 0};
    CHECK(poll(&p, 1, 5000) == 1 && (p.revents & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP), "%x", p.revents);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == 0);
    // That it failed is said once more; then it begins anew.
    CHECK_ERR(connect(c, (void *)&a, sizeof a), ECONNABORTED);
    CHECK_ERR(connect(c, (void *)&a, sizeof a), EINPROGRESS);
    CHECK(poll(&p, 1, 5000) == 1 && (p.revents & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP), "%x", p.revents);
    CHECK_ERR(connect(c, (void *)&a, sizeof a), ECONNREFUSED);
    l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    set(l, SOL_SOCKET, SO_REUSEADDR, 1);
    MUST(bind(l, (void *)&a, sizeof a));
    MUST(listen(l, 4));
    CHECK_ERR(connect(c, (void *)&a, sizeof a), EINPROGRESS);
    CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLOUT);
    CHECK(connect(c, (void *)&a, sizeof a) == 0);
    close(c);
    close(l);
}

TEST(blocking_calls_end) {
    int s[2];
    char b[4];
    pair(s);
    struct timeval tv = {0, 50000};
    MUST(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    CHECK_ERR(read(s[0], b, 4), EAGAIN);
    CHECK_ERR(recv(s[1], b, 4, MSG_DONTWAIT), EAGAIN);
    pid_t pid = fork();
    if (pid == 0) {
        nap_ms(100);
        shutdown(s[1], SHUT_RD);
        _exit(0);
    }
    CHECK(read(s[1], b, 4) == 0);
    MUST(waitpid(pid, NULL, 0));
    int l = listener(1);
    MUST(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    CHECK_ERR(accept(l, NULL, NULL), EAGAIN);
}

TEST(options_are_kept) {
    int s[2];
    pair(s);
    static const int on_off[][2] = {{SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_BROADCAST}, {IPPROTO_TCP, TCP_NODELAY}};
    for (unsigned i = 0; i < 4; i++) {
        CHECK(get(s[0], on_off[i][0], on_off[i][1]) == 0, "%d", on_off[i][1]);
        set(s[0], on_off[i][0], on_off[i][1], 1);
        CHECK(get(s[0], on_off[i][0], on_off[i][1]) != 0, "%d", on_off[i][1]);
    }
    CHECK(get(s[0], IPPROTO_TCP, TCP_KEEPIDLE) == 7200 && get(s[0], IPPROTO_TCP, TCP_KEEPINTVL) == 75);
    set(s[0], IPPROTO_TCP, TCP_KEEPIDLE, 5);
    set(s[0], IPPROTO_TCP, TCP_KEEPCNT, 3);
    set(s[0], IPPROTO_TCP, TCP_USER_TIMEOUT, 10000);
    CHECK(get(s[0], IPPROTO_TCP, TCP_KEEPIDLE) == 5 && get(s[0], IPPROTO_TCP, TCP_USER_TIMEOUT) == 10000);
    CHECK_ERR(setsockopt(s[0], IPPROTO_TCP, TCP_KEEPIDLE, &(int){0}, 4), EINVAL);
    CHECK(get(s[0], SOL_SOCKET, SO_TYPE) == SOCK_STREAM && get(s[0], SOL_SOCKET, SO_DOMAIN) == AF_INET);
    CHECK(get(s[0], SOL_SOCKET, SO_ACCEPTCONN) == 0);
    struct tcp_info info;
    socklen_t len = sizeof info;
    MUST(getsockopt(s[0], IPPROTO_TCP, TCP_INFO, &info, &len));
    CHECK(info.tcpi_state == 1, "state %d", info.tcpi_state);
}

TEST(peek_and_waitall) {
    int s[2];
    char b[16];
    pair(s);
    MUST(write(s[0], "abcdef", 6));
    CHECK(recv(s[1], b, 3, MSG_PEEK) == 3 && !memcmp(b, "abc", 3));
    CHECK(recv(s[1], b, 6, MSG_WAITALL) == 6 && !memcmp(b, "abcdef", 6));
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 5; i++) {
            nap_ms(20);
            MUST(write(s[0], "xy", 2));
        }
        _exit(0);
    }
    CHECK(recv(s[1], b, 10, MSG_WAITALL) == 10);
    MUST(waitpid(pid, NULL, 0));
}

#define MANY 1000
TEST(a_thousand_at_once) {
    struct rlimit all;
    getrlimit(RLIMIT_NOFILE, &all);
    all.rlim_cur = all.rlim_max;
    setrlimit(RLIMIT_NOFILE, &all);
    int l = listener(128), port = port_of(l);
    static int c[MANY], s[MANY];
    char b[64], want[64];
    for (int i = 0; i < MANY; i++) {
        c[i] = dial(port);
        s[i] = MUST(accept(l, NULL, NULL));
    }
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < MANY; i++) {
            snprintf(want, sizeof want, "%d to server, %d", i, round);
            MUST(write(c[i], want, sizeof want));
        }
        for (int i = 0; i < MANY; i++) {
            snprintf(want, sizeof want, "%d to server, %d", i, round);
            CHECK(recv(s[i], b, sizeof b, MSG_WAITALL) == sizeof b && !strcmp(b, want), "connection %d", i);
        }
    }
    for (int i = 0; i < MANY; i++) close(i & 1 ? c[i] : s[i]);
    for (int i = 0; i < MANY; i++) {
        CHECK(read(i & 1 ? s[i] : c[i], b, 1) == 0, "connection %d", i);
        close(i & 1 ? s[i] : c[i]);
    }
}

TEST(ports_are_shared_by_consent) {
    int l = listener(5), o = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in a = lo4(port_of(l));
    CHECK_ERR(bind(o, (void *)&a, sizeof a), EADDRINUSE);
    set(o, SOL_SOCKET, SO_REUSEPORT, 1);
    CHECK_ERR(bind(o, (void *)&a, sizeof a), EADDRINUSE);
    // Two that both agree get a share each.
    int two[2];
    a.sin_port = 0;
    for (int i = 0; i < 2; i++) {
        two[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        set(two[i], SOL_SOCKET, SO_REUSEPORT, 1);
        MUST(bind(two[i], (void *)&a, sizeof a));
        MUST(listen(two[i], 100));
        a.sin_port = htons(port_of(two[i]));
    }
    for (int i = 0; i < 64; i++) dial(ntohs(a.sin_port));
    int got[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        MUST(fcntl(two[i], F_SETFL, O_NONBLOCK));
        while (accept(two[i], NULL, NULL) >= 0) got[i]++;
    }
    CHECK(got[0] + got[1] == 64 && got[0] > 5 && got[1] > 5, "%d and %d", got[0], got[1]);
}

TEST(datagrams) {
    int a = MUST(socket(AF_INET, SOCK_DGRAM, 0)), b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in at = lo4(0), from;
    socklen_t len = sizeof from;
    char buf[2000];
    MUST(bind(a, (void *)&at, sizeof at));
    at.sin_port = htons(port_of(a));
    for (int n = 0; n < 3; n++) MUST(sendto(b, buf, 100 * n, 0, (void *)&at, sizeof at));
    for (int n = 0; n < 3; n++) CHECK(recvfrom(a, buf, sizeof buf, 0, (void *)&from, &len) == 100 * n);
    CHECK(from.sin_port == htons(port_of(b)) && from.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    MUST(sendto(b, buf, 1000, 0, (void *)&at, sizeof at));
    CHECK(recv(a, buf, 10, MSG_PEEK | MSG_TRUNC) == 1000);
    CHECK(recv(a, buf, 10, 0) == 10);
    CHECK_ERR(recv(a, buf, 10, MSG_DONTWAIT), EAGAIN);
    CHECK_ERR(send(b, buf, 10, 0), EDESTADDRREQ);
    static char big[70000];
    CHECK_ERR(sendto(b, big, sizeof big, 0, (void *)&at, sizeof at), EMSGSIZE);
    MUST(sendto(b, big, 60000, 0, (void *)&at, sizeof at));
    CHECK(recv(a, big, sizeof big, 0) == 60000);
    // A closed port is heard of by who is connected to it.
    close(a);
    MUST(connect(b, (void *)&at, sizeof at));
    MUST(send(b, "x", 1, 0));
    CHECK_ERR(recv(b, buf, 10, 0), ECONNREFUSED);
    struct sockaddr_in none = {.sin_family = AF_UNSPEC};
    MUST(connect(b, (void *)&none, sizeof none));
    CHECK_ERR(send(b, "x", 1, 0), EDESTADDRREQ);
}

TEST(many_messages_in_a_call) {
    int a = MUST(socket(AF_INET, SOCK_DGRAM, 0)), b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct sockaddr_in at = lo4(0);
    MUST(bind(a, (void *)&at, sizeof at));
    at.sin_port = htons(port_of(a));
    char text[8][8] = {"0", "1", "2", "3", "4", "5", "6", "7"}, in[8][8];
    struct iovec v[8];
    struct mmsghdr m[8];
    memset(m, 0, sizeof m);
    for (int i = 0; i < 8; i++) {
        v[i] = (struct iovec){text[i], 8};
        m[i].msg_hdr = (struct msghdr){.msg_name = &at, .msg_namelen = sizeof at, .msg_iov = &v[i], .msg_iovlen = 1};
    }
    CHECK(sendmmsg(b, m, 8, 0) == 8);
    memset(m, 0, sizeof m);
    for (int i = 0; i < 8; i++) {
        v[i] = (struct iovec){in[i], 8};
        m[i].msg_hdr = (struct msghdr){.msg_iov = &v[i], .msg_iovlen = 1};
    }
    CHECK(recvmmsg(a, m, 8, MSG_WAITFORONE, NULL) == 8);
    for (int i = 0; i < 8; i++) CHECK(m[i].msg_len == 8 && in[i][0] == '0' + i);
}

TEST(version_six) {
    int l = MUST(socket(AF_INET6, SOCK_STREAM, 0)), c = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT}, peer;
    socklen_t len = sizeof peer;
    MUST(bind(l, (void *)&a, sizeof a));
    MUST(listen(l, 5));
    int port = port_of(l);
    a.sin6_port = htons(port);
    a.sin6_addr = in6addr_loopback;
    MUST(connect(c, (void *)&a, sizeof a));
    int s = MUST(accept(l, (void *)&peer, &len));
    CHECK(len == sizeof peer && IN6_IS_ADDR_LOOPBACK(&peer.sin6_addr));
    // The same listener serves version 4, mapped.
    dial(port);
    len = sizeof peer;
    s = MUST(accept(l, (void *)&peer, &len));
    CHECK(IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr));
    close(s);
    int only = MUST(socket(AF_INET6, SOCK_STREAM, 0)), four = MUST(socket(AF_INET, SOCK_STREAM, 0));
    set(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    a = (struct sockaddr_in6){.sin6_family = AF_INET6};
    MUST(bind(only, (void *)&a, sizeof a));
    MUST(listen(only, 1));
    struct sockaddr_in v4 = lo4(port_of(only));
    CHECK_ERR(connect(four, (void *)&v4, sizeof v4), ECONNREFUSED);
}

TEST(echo_by_raw_socket) {
    int r = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    struct sockaddr_in a = lo4(0);
    struct icmphdr h = {.type = ICMP_ECHO, .un.echo = {htons(77), htons(1)}};
    uint32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += ((uint16_t *)&h)[i];
    h.checksum = ~((sum & 0xffff) + (sum >> 16));
    MUST(sendto(r, &h, sizeof h, 0, (void *)&a, sizeof a));
    unsigned char b[200];
    for (;;) {
        ssize_t n = MUST(recv(r, b, sizeof b, 0));
        struct icmphdr *got = (void *)(b + (b[0] & 15) * 4);
        CHECK(n == 28 && b[9] == IPPROTO_ICMP, "%zd", n);
        // A raw socket hears its own request too.
        if (got->type == ICMP_ECHOREPLY) {
            CHECK(got->un.echo.id == htons(77));
            break;
        }
    }
}

TEST(interfaces_are_listed) {
    struct ifaddrs *all;
    MUST(getifaddrs(&all));
    bool four = false, six = false;
    for (struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || strcmp(i->ifa_name, "lo")) continue;
        if (i->ifa_addr->sa_family == AF_INET)
            four = ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr == htonl(INADDR_LOOPBACK);
        if (i->ifa_addr->sa_family == AF_INET6) six = IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)i->ifa_addr)->sin6_addr);
        CHECK(i->ifa_flags & IFF_LOOPBACK && i->ifa_flags & IFF_UP, "%x", i->ifa_flags);
    }
    CHECK(four && six);
    CHECK(if_nametoindex("lo") == 1);
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(1, name) && !strcmp(name, "lo"));
}

static void send_fd(int to, int fd) {
    char data = 'f', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec v = {&data, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    MUST(sendmsg(to, &m, 0));
}

// Receives a byte with a control message; its type, with its data in *out.
static int recv_control(int from, int flags, void *out, size_t len) {
    char data, control[128];
    struct iovec v = {&data, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    MUST(recvmsg(from, &m, flags));
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (!c) return -1;
    memcpy(out, CMSG_DATA(c), len);
    return c->cmsg_type;
}

TEST(descriptors_travel) {
    int s[2], p[2], got = -1;
    char b[8];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    MUST(pipe(p));
    send_fd(s[0], p[0]);
    close(p[0]);
    MUST(write(p[1], "through", 7));
    CHECK(recv_control(s[1], MSG_CMSG_CLOEXEC, &got, sizeof got) == SCM_RIGHTS);
    CHECK(fcntl(got, F_GETFD) == FD_CLOEXEC);
    CHECK(read(got, b, 8) == 7 && !memcmp(b, "through", 7));
    // One that nobody received is closed with the socket.
    int q[2];
    MUST(pipe(q));
    send_fd(s[0], q[1]);
    close(q[1]);
    close(s[0]);
    close(s[1]);
    CHECK(read(q[0], b, 8) == 0);
}

TEST(credentials_are_known) {
    int s[2];
    struct ucred u = {0, 1, 1};
    socklen_t len = sizeof u;
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    MUST(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &u, &len));
    CHECK(u.pid == getpid() && u.uid == getuid() && u.gid == getgid());
    set(s[1], SOL_SOCKET, SO_PASSCRED, 1);
    pid_t pid = fork();
    if (pid == 0) {
        MUST(setresgid(77, 77, 77));
        MUST(setresuid(78, 78, 78));
        MUST(send(s[0], "c", 1, 0));
        _exit(0);
    }
    CHECK(recv_control(s[1], 0, &u, sizeof u) == SCM_CREDENTIALS);
    CHECK(u.pid == pid && u.uid == 78 && u.gid == 77, "%d %d %d", u.pid, u.uid, u.gid);
    MUST(waitpid(pid, NULL, 0));
}

TEST(unix_names) {
    struct sockaddr_un a = {.sun_family = AF_UNIX}, b = {.sun_family = AF_UNIX, .sun_path = "\0berth-net-test"};
    snprintf(a.sun_path, sizeof a.sun_path, "/tmp/net-%d", getpid());
    socklen_t alen = sizeof a, blen = offsetof(struct sockaddr_un, sun_path) + 15;
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un *at = i ? &b : &a;
        socklen_t len = i ? blen : alen;
        int l = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0)), c = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
        CHECK_ERR(connect(c, (void *)at, len), i ? ECONNREFUSED : ENOENT);
        MUST(bind(l, (void *)at, len));
        MUST(listen(l, 5));
        MUST(connect(c, (void *)at, len));
        int s = MUST(accept(l, NULL, NULL));
        char buf[10];
        MUST(write(c, "one", 3));
        MUST(write(c, "two!", 4));
        CHECK(read(s, buf, 10) == 3 && read(s, buf, 10) == 4);
        close(l), close(c), close(s);
    }
    CHECK(unlink(a.sun_path) == 0);
}

MAIN(T(bytes_both_ways_at_once), T(half_closed_the_other_half_goes_on), T(resets_are_told), T(sigpipe_unless_refused),
     T(backlog_holds_and_then_makes_wait), T(connect_without_waiting_begins), T(blocking_calls_end), T(options_are_kept), T(peek_and_waitall), T(a_thousand_at_once),
     T(ports_are_shared_by_consent), T(datagrams), T(many_messages_in_a_call), T(version_six), T(echo_by_raw_socket),
     T(interfaces_are_listed), T(descriptors_travel), T(credentials_are_known), T(unix_names))
