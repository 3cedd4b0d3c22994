// splice, tee and vmsplice: bytes between pipes and everything else.
#include "t.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

static char data[200000] __attribute__((aligned(4096))), back[200000];
static int p[2], q[2];
static void *const BAD = (void *)16;
static int a_file(size_t bytes) {
    int f = MUST(open("/tmp", O_TMPFILE | O_RDWR, 0600));
    for (size_t i = 0; i < sizeof data; i++) data[i] = i * 7 + i / 251;
    CHECK(write(f, data, bytes) == (ssize_t)bytes);
    MUST(lseek(f, 0, SEEK_SET));
    return f;
}

TEST(file_to_pipe_to_file) {
    int f = a_file(150000), g = a_file(0);
    MUST(pipe(p));
    size_t done = 0;
    for (ssize_t n; (n = MUST(splice(f, NULL, p[1], NULL, 1 << 20, SPLICE_F_MOVE))) > 0;) {
        CHECK(n <= 65536);
        for (ssize_t left = n; left > 0;) left -= MUST(splice(p[0], NULL, g, NULL, left, SPLICE_F_MORE));
        done += n;
    }
    CHECK(done == 150000 && lseek(f, 0, SEEK_CUR) == 150000 && lseek(g, 0, SEEK_CUR) == 150000);
    CHECK(pread(g, back, sizeof back, 0) == 150000 && !memcmp(data, back, 150000));
    // With offsets, positions stay.
    loff_t from = 1000, to = 5;
    CHECK(splice(f, &from, p[1], NULL, 500, 0) == 500 && from == 1500);
    CHECK(splice(p[0], NULL, g, &to, 500, 0) == 500 && to == 505);
    CHECK(lseek(f, 0, SEEK_CUR) == 150000 && lseek(g, 0, SEEK_CUR) == 150000);
    CHECK(pread(g, back, 500, 5) == 500 && !memcmp(data + 1000, back, 500));
    from = 200000;
    CHECK(splice(f, &from, p[1], NULL, 500, 0) == 0 && from == 200000, "beyond the end");
    close(p[1]);
    CHECK(splice(p[0], NULL, g, NULL, 500, 0) == 0, "the writer is gone");
}

TEST(what_is_refused) {
    int f = a_file(100), d = MUST(open("/tmp", O_RDONLY)), w = MUST(open("/dev/null", O_WRONLY));
    loff_t off = 0;
    MUST(pipe(p)), MUST(pipe(q));
    CHECK_ERR(splice(f, NULL, f, NULL, 1, 0), EINVAL);
    CHECK_ERR(splice(p[0], &off, f, NULL, 1, 0), ESPIPE);
    CHECK_ERR(splice(f, NULL, p[1], &off, 1, 0), ESPIPE);
    CHECK_ERR(splice(f, BAD, p[1], NULL, 1, 0), EFAULT);
    CHECK_ERR(splice(f, NULL, p[1], NULL, 1, 16), EINVAL);
    CHECK_ERR(splice(p[0], NULL, p[1], NULL, 1, 0), EINVAL);
    CHECK_ERR(splice(f, NULL, p[0], NULL, 1, 0), EBADF);
    CHECK_ERR(splice(p[1], NULL, f, NULL, 1, 0), EBADF);
    CHECK_ERR(splice(w, NULL, p[1], NULL, 1, 0), EBADF);
    CHECK_ERR(splice(-1, NULL, p[1], NULL, 1, 0), EBADF);
    CHECK_ERR(splice(d, NULL, p[1], NULL, 1, 0), EINVAL);
    CHECK(splice(-1, NULL, -1, NULL, 0, 0) == 0);
    int end = MUST(open("/tmp", O_TMPFILE | O_RDWR | O_APPEND, 0600));
    CHECK(write(p[1], "x", 1) == 1);
    CHECK_ERR(splice(p[0], NULL, end, NULL, 1, 0), EINVAL);
    CHECK_ERR(tee(p[0], p[1], 1, 0), EINVAL);
    CHECK_ERR(tee(f, p[1], 1, 0), EINVAL);
    CHECK_ERR(tee(p[0], q[1], 1, 16), EINVAL);
    CHECK_ERR(tee(-1, q[1], 1, 0), EBADF);
    struct iovec v = {BAD, 10};
    CHECK_ERR(vmsplice(f, &(struct iovec){back, 1}, 1, 0), EBADF);
    CHECK_ERR(vmsplice(p[1], BAD, 1, 0), EFAULT);
    CHECK_ERR(vmsplice(p[1], &v, 1, 0), EFAULT);
    CHECK_ERR(vmsplice(p[1], &v, 1025, 0), EINVAL);
    CHECK_ERR(vmsplice(p[1], &v, 1, 16), EINVAL);
    CHECK(vmsplice(p[1], &(struct iovec){back, 0}, 1, 0) == 0);
    CHECK(splice(p[0], NULL, w, NULL, 10, 0) == 1, "into /dev/null");
}

TEST(without_waiting) {
    int f = a_file(150000);
    MUST(pipe(p)), MUST(pipe(q));
    CHECK_ERR(splice(p[0], NULL, f, NULL, 1, SPLICE_F_NONBLOCK), EAGAIN);
    CHECK_ERR(tee(p[0], q[1], 1, SPLICE_F_NONBLOCK), EAGAIN);
    CHECK_ERR(vmsplice(p[0], &(struct iovec){back, 1}, 1, SPLICE_F_NONBLOCK), EAGAIN);
    CHECK(splice(f, NULL, p[1], NULL, 65536, 0) == 65536);
    CHECK_ERR(splice(f, NULL, p[1], NULL, 1, SPLICE_F_NONBLOCK), EAGAIN);
    CHECK_ERR(vmsplice(p[1], &(struct iovec){data, 10}, 1, SPLICE_F_NONBLOCK), EAGAIN);
    fcntl(p[1], F_SETFL, O_NONBLOCK);
    CHECK_ERR(splice(f, NULL, p[1], NULL, 1, 0), EAGAIN);
    close(p[0]);
    signal(SIGPIPE, SIG_IGN);
    CHECK_ERR(splice(f, NULL, p[1], NULL, 1, 0), EPIPE);
    CHECK_ERR(vmsplice(p[1], &(struct iovec){data, 10}, 1, 0), EPIPE);
}

TEST(tee_copies) {
    MUST(pipe(p)), MUST(pipe(q));
    CHECK(write(p[1], "hello", 5) == 5);
    CHECK(tee(p[0], q[1], 100, 0) == 5);
    CHECK(read(q[0], back, 100) == 5 && !memcmp(back, "hello", 5));
    CHECK(splice(p[0], NULL, q[1], NULL, 2, 0) == 2);
    CHECK(tee(p[0], q[1], 1, 0) == 1);
    CHECK(read(q[0], back, 100) == 3 && !memcmp(back, "hel", 3));
    CHECK(read(p[0], back, 100) == 3 && !memcmp(back, "llo", 3));
    close(p[1]);
    CHECK(tee(p[0], q[1], 1, 0) == 0);
}

TEST(memory) {
    MUST(pipe(p));
    struct iovec v[3] = {{"one", 3}, {NULL, 0}, {"two", 3}};
    CHECK(vmsplice(p[1], v, 3, SPLICE_F_GIFT) == 6);
    char a[2], b[10];
    struct iovec r[2] = {{a, 2}, {b, 10}};
    CHECK(vmsplice(p[0], r, 2, 0) == 6 && !memcmp(a, "on", 2) && !memcmp(b, "etwo", 4));
    v[0] = (struct iovec){data, sizeof data};
    CHECK(vmsplice(p[1], v, 1, SPLICE_F_NONBLOCK) == 65536, "as much as fits");
}

static void *feeds(void *arg) {
    for (int i = 0; i < 150000;) {
        ssize_t n = write(q[1], data + i, 150000 - i < 777 ? 150000 - i : 777);
        if (n <= 0) break;
        i += n;
    }
    close(q[1]);
    return NULL;
}
#include <pthread.h>
TEST(sockets_and_threads) {
    int s[2];
    pthread_t t;
    close(a_file(0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    MUST(pipe(p)), MUST(pipe(q));
    pthread_create(&t, NULL, feeds, NULL);
    pid_t pid = MUST(fork());
    if (!pid) { // what comes from the pipe goes over the socket; what comes from the socket, into a pipe and to its reader
        close(s[0]), close(q[1]);
        while (MUST(splice(q[0], NULL, s[1], NULL, 5000, 0)) > 0) {}
        _exit(0);
    }
    close(s[1]), close(q[0]);
    size_t done = 0;
    for (ssize_t n; (n = MUST(splice(s[0], NULL, p[1], NULL, 3000, 0))) > 0;) {
        CHECK(read(p[0], back + done, n) == n);
        done += n;
    }
    CHECK(done == 150000 && !memcmp(back, data, done), "%zu", done);
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0));
    pthread_join(t, NULL);
}

// A splice that fails takes nothing from the pipe.
TEST(nothing_is_lost) {
    MUST(pipe(p));
    CHECK(write(p[1], "kept", 4) == 4);
    int f = a_file(100);
    loff_t end = 100;
    struct rlimit r = {100, 100};
    MUST(setrlimit(RLIMIT_FSIZE, &r));
    signal(SIGXFSZ, SIG_IGN);
    CHECK_ERR(splice(p[0], NULL, f, &end, 4, 0), EFBIG);
    CHECK(read(p[0], back, 10) == 4 && !memcmp(back, "kept", 4));
}

MAIN(T(file_to_pipe_to_file), T(what_is_refused), T(without_waiting), T(tee_copies), T(memory), T(sockets_and_threads), T(nothing_is_lost))
