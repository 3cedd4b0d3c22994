// The file surface as POSIX has it (on tmpfs, or wherever T_DIR says), descriptors, pipes and polling, and what programs look for in /proc and /dev.
#include "t.h"
#include <dirent.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <termios.h>

static char dir[64];
// Where the files are made: T_DIR, so that one suite judges every file system.
static const char *base(void) { return getenv("T_DIR") ? getenv("T_DIR") : "/tmp"; }
static void in_dir(void) {
    snprintf(dir, sizeof dir, "%s/fs.%s.%d", base(), t_name, getpid());
    umask(022);
    MUST(mkdir(dir, 0755));
    MUST(chdir(dir));
}
static int make(const char *name, const char *text) {
    int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
    MUST(write(fd, text, strlen(text)));
    return fd;
}
static struct stat st_of(const char *name) {
    struct stat st;
    memset(&st, 0, sizeof st);
    if (lstat(name, &st)) st.st_ino = 0;
    return st;
}
static bool holds(const char *name, const char *text) { return !strcmp(slurp(name), text); }

TEST(open_flags) {
    in_dir();
    close(make("f", "hello"));
    CHECK_ERR(open("f", O_CREAT | O_EXCL | O_RDWR, 0644), EEXIST);
    CHECK_ERR(open("none", O_RDONLY), ENOENT);
    CHECK_ERR(open("f/x", O_RDONLY), ENOTDIR);
    CHECK_ERR(open("f", O_RDONLY | O_DIRECTORY), ENOTDIR);
    CHECK_ERR(open(".", O_WRONLY), EISDIR);
    CHECK_ERR(open(".", O_RDWR | O_CREAT, 0644), EISDIR);
    MUST(symlink("f", "l"));
    CHECK_ERR(open("l", O_RDONLY | O_NOFOLLOW), ELOOP);
    int fd = MUST(open("l", O_PATH | O_NOFOLLOW));
    char b[16] = "";
    CHECK_ERR(read(fd, b, 1), EBADF);
    CHECK(readlinkat(fd, "", b, 16) == 1 && b[0] == 'f');
    fd = MUST(open("f", O_WRONLY | O_APPEND));
    MUST(lseek(fd, 0, SEEK_SET));
    MUST(write(fd, " world", 6));
    CHECK(holds("f", "hello world"), "%s", slurp("f"));
    CHECK_ERR(read(fd, b, 1), EBADF);
    fd = MUST(open("f", O_RDONLY));
    CHECK_ERR(write(fd, "x", 1), EBADF);
    CHECK_ERR(ftruncate(fd, 0), EINVAL);
    fd = MUST(open("f", O_RDWR | O_TRUNC));
    CHECK(st_of("f").st_size == 0);
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    MUST(fcntl(fd, F_SETFL, O_APPEND));
    CHECK(fcntl(fd, F_GETFL) & O_APPEND);
    int t = open(".", O_TMPFILE | O_RDWR, 0600);
    if (t >= 0) {
        MUST(write(t, "secret", 6));
        struct stat st;
        MUST(fstat(t, &st));
        CHECK(st.st_nlink == 0);
    }
    umask(077);
    close(MUST(open("masked", O_CREAT | O_RDWR, 0666)));
    CHECK((st_of("masked").st_mode & 07777) == 0600);
}

TEST(read_write_seek) {
    in_dir();
    int fd = make("f", "0123456789");
    char b[32] = "";
    CHECK(pread(fd, b, 4, 3) == 4 && !memcmp(b, "3456", 4));
    CHECK(lseek(fd, 0, SEEK_CUR) == 10, "pread moved the offset");
    CHECK(read(fd, b, 4) == 0, "read at the end");
    CHECK(lseek(fd, -3, SEEK_END) == 7 && read(fd, b, 10) == 3);
    CHECK(lseek(fd, 100000, SEEK_SET) == 100000);
    MUST(write(fd, "end", 3));
    struct stat st = st_of("f");
    CHECK(st.st_size == 100003 && st.st_blocks < 100000 / 512, "size %ld blocks %ld", (long)st.st_size, (long)st.st_blocks);
    CHECK(pread(fd, b, 8, 50000) == 8 && !memcmp(b, "\0\0\0\0\0\0\0\0", 8));
    // Holes are as fine as blocks at best (Linux' ext4 with small ones), as coarse as pages at worst.
    long hole = lseek(fd, 0, SEEK_HOLE), data = lseek(fd, 5000, SEEK_DATA);
    CHECK(lseek(fd, 0, SEEK_DATA) == 0 && hole >= 1024 && hole <= 4096 && hole % 1024 == 0, "%ld", hole);
    CHECK(data >= 98304 && data < 100000 && data % 1024 == 0, "%ld", data);
    CHECK_ERR(lseek(fd, 200000, SEEK_DATA), ENXIO);
    MUST(ftruncate(fd, 5));
    MUST(ftruncate(fd, 10));
    CHECK(pread(fd, b, 32, 0) == 10 && !memcmp(b, "01234\0\0\0\0\0", 10));
    struct iovec v[3] = {{"ab", 2}, {"", 0}, {"cdef", 4}};
    CHECK(pwritev(fd, v, 3, 2) == 6 && pread(fd, b, 10, 0) == 10 && !memcmp(b, "01abcdef\0\0", 10));
    struct rlimit r = {50, 50};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &r);
    CHECK(pwrite(fd, b, 32, 40) == 10);
    CHECK_ERR(pwrite(fd, b, 32, 50), EFBIG);
    CHECK(fallocate(fd, 0, 0, 20) == 0 || errno == EOPNOTSUPP);
}

TEST(names_and_links) {
    in_dir();
    close(make("a", "A"));
    MUST(link("a", "b"));
    CHECK(st_of("a").st_nlink == 2 && st_of("a").st_ino == st_of("b").st_ino);
    CHECK_ERR(link("a", "b"), EEXIST);
    CHECK_ERR(link(".", "d"), EPERM);
    int fd = MUST(open("a", O_RDONLY));
    MUST(unlink("a"));
    MUST(unlink("b"));
    char c = 0;
    CHECK(read(fd, &c, 1) == 1 && c == 'A', "an open file outlives its names");
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK(st.st_nlink == 0);
    CHECK_ERR(unlink("a"), ENOENT);
    MUST(mkdir("d", 0755));
    CHECK_ERR(unlink("d"), EISDIR);
    CHECK_ERR(mkdir("d", 0755), EEXIST);
    CHECK(st_of("d").st_nlink == 2);
    MUST(mkdir("d/e", 0755));
    CHECK(st_of("d").st_nlink == 3);
    CHECK_ERR(rmdir("d"), ENOTEMPTY);
    MUST(rmdir("d/e"));
    CHECK_ERR(rmdir("d/."), EINVAL);
    CHECK_ERR(rmdir("d/.."), ENOTEMPTY);
    MUST(rmdir("d/"));
    close(make("f", "F"));
    CHECK_ERR(rmdir("f"), ENOTDIR);
    CHECK_ERR(open("f/", O_RDONLY), ENOTDIR);
    CHECK_ERR(mkdir("none/d", 0755), ENOENT);
    MUST(symlink("loop2", "loop1"));
    MUST(symlink("loop1", "loop2"));
    CHECK_ERR(open("loop1", O_RDONLY), ELOOP);
    MUST(symlink("missing", "dangling"));
    CHECK_ERR(open("dangling", O_RDONLY), ENOENT);
    close(MUST(open("dangling", O_CREAT | O_WRONLY, 0600)));
    CHECK(st_of("missing").st_ino != 0, "creation through a dangling link");
    MUST(symlink("..", "up"));
    char here[256], there[256];
    MUST(chdir("up"));
    CHECK(getcwd(there, sizeof there) && !strcmp(there, base()), "%s", there);
    MUST(chdir(dir));
    CHECK(getcwd(here, sizeof here) && !strcmp(here, dir), "%s", here);
    CHECK(readlink("up", here, sizeof here) == 2);
    CHECK(readlink("up", here, 1) == 1, "a short buffer truncates");
    MUST(mkdir("gone", 0755));
    MUST(chdir("gone"));
    MUST(rmdir("../gone"));
    CHECK_ERR(open("x", O_CREAT | O_WRONLY, 0600), ENOENT);
    CHECK_ERR(syscall(SYS_getcwd, here, sizeof here), ENOENT);
}

TEST(renames) {
    in_dir();
    close(make("a", "A"));
    close(make("b", "B"));
    MUST(rename("a", "b"));
    CHECK(holds("b", "A") && !st_of("a").st_ino);
    MUST(rename("b", "b"));
    MUST(mkdir("d", 0755));
    MUST(mkdir("d/sub", 0755));
    CHECK_ERR(rename("d", "d/sub/x"), EINVAL);
    CHECK_ERR(rename("b", "d"), EISDIR);
    CHECK_ERR(rename("d", "b"), ENOTDIR);
    MUST(mkdir("e", 0755));
    CHECK_ERR(rename("e", "d"), ENOTEMPTY);
    MUST(rename("d", "e"));
    CHECK(st_of("e/sub").st_ino && !st_of("d").st_ino);
    MUST(rename("e/sub", "sub"));
    CHECK(st_of("e").st_nlink == 2 && st_of("sub/..").st_ino == st_of(".").st_ino);
    close(make("x", "X"));
    close(make("y", "Y"));
    CHECK_ERR(syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 1 /* NOREPLACE */), EEXIST);
    MUST(syscall(SYS_renameat2, AT_FDCWD, "x", AT_FDCWD, "y", 2 /* EXCHANGE */));
    CHECK(holds("x", "Y") && holds("y", "X"));
    MUST(link("x", "hard"));
    MUST(rename("x", "hard")); // same file: nothing happens
    CHECK(st_of("x").st_ino && st_of("hard").st_ino);
    CHECK_ERR(rename("none", "x"), ENOENT);
    CHECK_ERR(rename("x", "/proc/x"), EXDEV);
}

TEST(directories) {
    in_dir();
    char name[32], seen[500] = {0};
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "file%d", i);
        close(MUST(open(name, O_CREAT | O_WRONLY, 0600)));
    }
    DIR *d = opendir(".");
    int dots = 0, removed = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') { dots++; CHECK(e->d_type == DT_DIR); continue; }
        int i = atoi(e->d_name + 4);
        CHECK(!seen[i]++, "%s twice", e->d_name);
        CHECK(e->d_type == DT_REG && e->d_ino == st_of(e->d_name).st_ino);
        if (i % 2 == 0) { // removal while reading loses and repeats nothing
            MUST(unlink(e->d_name));
            removed++;
        }
    }
    int count = 0;
    for (int i = 0; i < 500; i++) count += seen[i];
    CHECK(dots == 2 && count == 500 && removed == 250, "%d dots, %d names", dots, count);
    rewinddir(d);
    count = 0;
    while (readdir(d)) count++;
    CHECK(count == 252, "%d after rewind", count);
    closedir(d);
    struct statfs fs;
    MUST(statfs(".", &fs));
    bool tmpfs = fs.f_type == 0x01021994 && fs.f_bsize == 4096, ext4 = fs.f_type == 0xef53 && fs.f_bsize >= 1024;
    CHECK((tmpfs || ext4) && fs.f_namelen == 255);
}

TEST(permissions) {
    in_dir();
    close(make("secret", "s"));
    MUST(chmod("secret", 0600));
    MUST(mkdir("closed", 0700));
    close(make("closed/in", "x"));
    MUST(mkdir("sticky", 01777));
    MUST(chmod("sticky", 01777));
    close(make("sticky/roots", "x"));
    MUST(chmod(".", 0755));
    pid_t pid = MUST(fork());
    if (!pid) {
        MUST(syscall(SYS_setgroups, 0, NULL));
        MUST(setgid(1000));
        MUST(setuid(1000));
        CHECK_ERR(open("secret", O_RDONLY), EACCES);
        CHECK_ERR(open("closed/in", O_RDONLY), EACCES);
        CHECK_ERR(open("new", O_CREAT | O_WRONLY, 0600), EACCES);
        CHECK_ERR(unlink("secret"), EACCES);
        CHECK_ERR(chmod("secret", 0666), EPERM);
        CHECK_ERR(chown("secret", 1000, 1000), EPERM);
        CHECK_ERR(unlink("sticky/roots"), EPERM);
        CHECK_ERR(setuid(0), EPERM);
        CHECK_ERR(kill(1, SIGTERM), EPERM);
        CHECK_ERR(chroot("/"), EPERM);
        CHECK_ERR(access("secret", R_OK), EACCES);
        close(MUST(open("sticky/mine", O_CREAT | O_RDWR, 0644)));
        struct stat st = st_of("sticky/mine");
        CHECK(st.st_uid == 1000 && st.st_gid == 1000);
        MUST(chmod("sticky/mine", 04755));
        MUST(unlink("sticky/mine"));
        CHECK_ERR(chdir("closed"), EACCES);
        exit(t_failed != 0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
    MUST(chown("secret", 5, 6));
    CHECK(st_of("secret").st_uid == 5 && st_of("secret").st_gid == 6);
    MUST(chmod("secret", 06755));
    MUST(chown("secret", 7, -1));
    CHECK((st_of("secret").st_mode & 07777) == 0755 && st_of("secret").st_gid == 6, "chown leaves mode %o", st_of("secret").st_mode);
}

TEST(times) {
    in_dir();
    int fd = make("f", "x");
    struct stat a = st_of("f"), b;
    nap_ms(30);
    MUST(write(fd, "y", 1));
    b = st_of("f");
    CHECK(b.st_mtim.tv_sec > a.st_mtim.tv_sec || b.st_mtim.tv_nsec > a.st_mtim.tv_nsec, "mtime stands still");
    struct timespec ts[2] = {{1000, 5}, {2000, 123456789}};
    MUST(utimensat(AT_FDCWD, "f", ts, 0));
    b = st_of("f");
    CHECK(b.st_atim.tv_sec == 1000 && b.st_mtim.tv_sec == 2000 && b.st_mtim.tv_nsec == 123456789);
    ts[0].tv_nsec = UTIME_OMIT;
    ts[1].tv_nsec = UTIME_NOW;
    MUST(futimens(fd, ts));
    b = st_of("f");
    CHECK(b.st_atim.tv_sec == 1000 && b.st_mtim.tv_sec > 100000);
    struct stat d0 = st_of(".");
    nap_ms(30);
    close(make("g", ""));
    struct stat d1 = st_of(".");
    CHECK(d1.st_mtim.tv_sec > d0.st_mtim.tv_sec || d1.st_mtim.tv_nsec > d0.st_mtim.tv_nsec, "the directory's mtime stands still");
}

TEST(descriptors) {
    int a = MUST(open("/dev/null", O_RDWR)), b = MUST(dup(a));
    CHECK(b == a + 1);
    MUST(close(a));
    CHECK(MUST(open("/dev/zero", O_RDONLY)) == a, "the lowest free number");
    CHECK(MUST(fcntl(a, F_DUPFD, 100)) == 100);
    int c = MUST(fcntl(a, F_DUPFD_CLOEXEC, 100));
    CHECK(c == 101 && fcntl(c, F_GETFD) == FD_CLOEXEC && fcntl(100, F_GETFD) == 0);
    CHECK(dup2(a, a) == a && dup2(a, 200) == 200);
    struct rlimit r = {64, 64};
    MUST(setrlimit(RLIMIT_NOFILE, &r));
    int n = 0, fd;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0 && n < 100) n++;
    CHECK(fd == -1 && errno == EMFILE && n > 30 && n < 64, "%d opened, errno %d", n, errno);
    int p[2];
    CHECK_ERR(pipe(p), EMFILE);
    CHECK_ERR(dup(0), EMFILE);
    CHECK_ERR(fcntl(0, F_DUPFD, 64), EINVAL);
    char link[64], path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", a);
    CHECK(readlink(path, link, sizeof link) == 9 && !memcmp(link, "/dev/zero", 9));
}

TEST(pipes) {
    int p[2];
    char b[70000];
    memset(b, 'p', sizeof b);
    MUST(pipe2(p, O_NONBLOCK | O_CLOEXEC));
    CHECK_ERR(read(p[0], b, 1), EAGAIN);
    long n = 0, r;
    while ((r = write(p[1], b, 1000)) > 0) n += r;
    CHECK(errno == EAGAIN && n >= 60000 && n <= 65536, "%ld fit", n);
    int avail = 0;
    MUST(ioctl(p[0], FIONREAD, &avail));
    CHECK(avail == n);
    struct pollfd pf[2] = {{p[0], POLLIN, 0}, {p[1], POLLOUT, 0}};
    CHECK(poll(pf, 2, 0) == 1 && pf[0].revents == POLLIN && pf[1].revents == 0);
    long got = 0;
    while ((r = read(p[0], b, sizeof b)) > 0) got += r;
    CHECK(got == n);
    CHECK(poll(pf, 2, 0) == 1 && pf[1].revents == POLLOUT);
    close(p[1]);
    CHECK(read(p[0], b, 1) == 0);
    CHECK(poll(pf, 1, 0) == 1 && (pf[0].revents & POLLHUP));
    MUST(pipe(p));
    close(p[0]);
    signal(SIGPIPE, SIG_IGN);
    CHECK_ERR(write(p[1], b, 1), EPIPE);
    pid_t pid = MUST(fork());
    if (!pid) {
        signal(SIGPIPE, SIG_DFL);
        CHECK(write(p[1], b, 1) == 1);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(died_of(status, SIGPIPE));
    // Writes of up to PIPE_BUF from many writers never mix.
    MUST(pipe(p));
    for (int i = 0; i < 4; i++)
        if (MUST(fork()) == 0) {
            char m[512];
            memset(m, 'a' + i, sizeof m);
            for (int k = 0; k < 200; k++)
                if (write(p[1], m, sizeof m) != sizeof m) _exit(1);
            _exit(0);
        }
    close(p[1]);
    int messages = 0, mixed = 0;
    for (;;) {
        size_t have = 0;
        while (have < 512 && (r = read(p[0], b + have, 512 - have)) > 0) have += r;
        if (have < 512) break;
        messages++;
        for (int i = 1; i < 512; i++) mixed += b[i] != b[0];
    }
    CHECK(messages == 800 && mixed == 0, "%d messages, %d bytes mixed", messages, mixed);
    in_dir();
    MUST(mkfifo("fifo", 0600));
    CHECK_ERR(open("fifo", O_WRONLY | O_NONBLOCK), ENXIO);
    pid = MUST(fork());
    if (!pid) {
        int fd = MUST(open("fifo", O_WRONLY));
        MUST(write(fd, "through", 7));
        _exit(0);
    }
    int fd = MUST(open("fifo", O_RDONLY));
    CHECK(read(fd, b, 100) == 7 && read(fd, b, 100) == 0);
    while (wait(NULL) > 0) {}
}

TEST(polling) {
    int p[2];
    MUST(pipe(p));
    struct pollfd pf[3] = {{p[0], POLLIN, 0}, {-1, POLLIN, 0}, {99, POLLIN, 0}};
    CHECK(poll(pf, 3, 0) == 1 && pf[2].revents == POLLNVAL && pf[1].revents == 0);
    uint64_t t0 = now_ns();
    CHECK(poll(pf, 1, 100) == 0 && now_ns() - t0 >= 100000000);
    pid_t pid = MUST(fork());
    if (!pid) {
        nap_ms(100);
        CHECK(write(p[1], "x", 1) == 1);
        _exit(0);
    }
    CHECK(poll(pf, 1, 10000) == 1 && pf[0].revents == POLLIN);
    waitpid(pid, NULL, 0);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(p[0], &set);
    struct timeval tv = {5, 0};
    CHECK(select(p[0] + 1, &set, NULL, NULL, &tv) == 1 && FD_ISSET(p[0], &set));
    int reg = MUST(open("/etc/passwd", O_RDONLY));
    pf[0] = (struct pollfd){reg, POLLIN | POLLOUT, 0};
    CHECK(poll(pf, 1, 0) == 1 && pf[0].revents == (POLLIN | POLLOUT));
}

TEST(devices) {
    static const struct { const char *name; int major, minor; } want[] = {
        {"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
        {"/dev/console", 5, 1}, {"/dev/ptmx", 5, 2},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct stat st;
        memset(&st, 0, sizeof st);
        CHECK(stat(want[i].name, &st) == 0 && S_ISCHR(st.st_mode) && (int)major(st.st_rdev) == want[i].major && (int)minor(st.st_rdev) == want[i].minor,
              "%s: mode %o, %d:%d", want[i].name, st.st_mode, (int)major(st.st_rdev), (int)minor(st.st_rdev));
    }
    char b[64], c[64];
    int fd = MUST(open("/dev/null", O_RDWR));
    CHECK(read(fd, b, 64) == 0 && write(fd, b, 64) == 64);
    fd = MUST(open("/dev/zero", O_RDWR));
    memset(b, 1, 64);
    CHECK(read(fd, b, 64) == 64 && !b[0] && !b[63]);
    char *z = (char *)MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    CHECK(z[5] == 0 && (z[5] = 1));
    fd = MUST(open("/dev/full", O_RDWR));
    CHECK(lseek(fd, 4096, SEEK_SET) == 0 && lseek(fd, -1, SEEK_END) == 0 && lseek(fd, INT64_MIN, SEEK_CUR) == 0, "no positions");
    CHECK_ERR(write(fd, b, 1), ENOSPC);
    fd = MUST(open("/dev/urandom", O_RDONLY));
    CHECK(read(fd, b, 64) == 64 && read(fd, c, 64) == 64 && memcmp(b, c, 64));
    CHECK(syscall(SYS_getrandom, b, 64, 0) == 64 && memcmp(b, c, 64));
    in_dir();
    MUST(mknod("mynull", S_IFCHR | 0666, makedev(1, 3)));
    fd = MUST(open("mynull", O_RDWR));
    CHECK(write(fd, b, 10) == 10);
    MUST(mknod("none", S_IFCHR | 0666, makedev(200, 200)));
    CHECK_ERR(open("none", O_RDONLY), ENXIO);
}

TEST(proc) {
    CHECK(atoi(strchr(slurp("/proc/self/stat"), ' ') ? slurp("/proc/self/stat") : "0") == getpid());
    CHECK(strstr(slurp("/proc/self/status"), "Name:\tfs\n") && number_in("/proc/self/status", "PPid") == getppid());
    CHECK(number_in("/proc/self/status", "VmRSS") > 0 && number_in("/proc/self/status", "Threads") == 1);
    char *c = slurp("/proc/self/cmdline");
    CHECK(strstr(c, "fs"), "%s", c);
    long total = number_in("/proc/meminfo", "MemTotal"), free = number_in("/proc/meminfo", "MemFree"), avail = number_in("/proc/meminfo", "MemAvailable");
    CHECK(total > 10000 && free > 0 && free < total && avail > 0 && avail <= total, "%ld %ld %ld", total, free, avail);
    double up = atof(slurp("/proc/uptime"));
    nap_ms(50);
    CHECK(atof(slurp("/proc/uptime")) > up && up > 0);
    CHECK(strstr(slurp("/proc/stat"), "cpu0 ") && strstr(slurp("/proc/stat"), "\nbtime ") && strstr(slurp("/proc/stat"), "\nctxt "));
    CHECK(strstr(slurp("/proc/mounts"), " /proc proc "));
    CHECK(strlen(slurp("/proc/version")) > 10 && strchr(slurp("/proc/loadavg"), '/'));
    CHECK(strstr(slurp("/proc/filesystems"), "tmpfs"));
    char link[256] = "";
    CHECK(readlink("/proc/self/exe", link, 255) > 0 && strstr(link, "/fs"), "%s", link);
    MUST(chdir("/tmp"));
    memset(link, 0, sizeof link);
    CHECK(readlink("/proc/self/cwd", link, 255) == 4 && !strcmp(link, "/tmp"));
    CHECK_ERR(open("/proc/999999", O_RDONLY), ENOENT);
    CHECK_ERR(open("/proc/self/none", O_RDONLY | O_CREAT, 0600), ENOENT);
    CHECK_ERR(unlink("/proc/self/stat"), EPERM);
}

TEST(mounts) {
    in_dir();
    MUST(mkdir("m", 0755));
    extern int mount(const char *, const char *, const char *, unsigned long, const void *);
    extern int umount2(const char *, int);
    MUST(mount("tmpfs", "m", "tmpfs", 0, "size=64k,mode=700"));
    CHECK((st_of("m").st_mode & 07777) == 0700 && st_of("m").st_dev != st_of(".").st_dev);
    int fd = make("m/f", "x");
    static char b[4096];
    long n = 0, r;
    while ((r = write(fd, b, sizeof b)) > 0) n += r;
    CHECK(r == -1 && errno == ENOSPC && n > 40000 && n <= 65536, "%ld written, errno %d", n, errno);
    MUST(ftruncate(fd, 0));
    CHECK(pwrite(fd, b, 4096, 0) == 4096, "room again");
    CHECK_ERR(umount2("m", 0), EBUSY);
    CHECK_ERR(rename("m/f", "f"), EXDEV);
    CHECK_ERR(rmdir("m"), EBUSY);
    CHECK_ERR(link("m/f", "f"), EXDEV);
    close(fd);
    char text[96];
    snprintf(text, sizeof text, " %s/m tmpfs ", dir);
    CHECK(strstr(slurp("/proc/self/mounts"), text));
    MUST(umount2("m", 0));
    CHECK_ERR(umount2("m", 0), EINVAL);
    CHECK_ERR(mount("x", "m", "nosuchfs", 0, NULL), ENODEV);
    CHECK_ERR(open("m/f", O_RDONLY), ENOENT);
    MUST(mount("tmpfs", "m", "tmpfs", 1 /* MS_RDONLY */, NULL));
    CHECK_ERR(open("m/f", O_CREAT | O_WRONLY, 0600), EROFS);
    MUST(umount2("m", 2 /* MNT_DETACH */));
}

TEST(locks) {
    in_dir();
    int fd = make("f", "0123456789");
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    MUST(fcntl(fd, F_SETLK, &l));
    pid_t pid = MUST(fork());
    if (!pid) {
        struct flock m = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 3};
        errno = 0;
        CHECK(fcntl(fd, F_SETLK, &m) == -1 && (errno == EAGAIN || errno == EACCES));
        CHECK(fcntl(fd, F_GETLK, &m) == 0 && m.l_type == F_WRLCK && m.l_pid == getppid() && m.l_start == 2 && m.l_len == 3);
        m = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 0};
        MUST(fcntl(fd, F_SETLK, &m));
        exit(t_failed != 0);
    }
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
}

static int lock_wait(int fd, int type, off_t start) {
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 1};
    return fcntl(fd, F_SETLKW, &l);
}

// Of processes that would wait for each other in a circle, one gets EDEADLK, and the others go on.
TEST(locks_find_deadlocks) {
    int ready[2], go[2], fd = MUST(open("deadlock", O_RDWR | O_CREAT, 0644));
    MUST(pipe(ready));
    MUST(pipe(go));
    pid_t kids[3];
    for (int i = 0; i < 3; i++) {
        if ((kids[i] = MUST(fork())) == 0) {
            char c;
            if (lock_wait(fd, F_WRLCK, i) || write(ready[1], "x", 1) != 1 || read(go[0], &c, 1) != 1) _exit(9);
            int r = lock_wait(fd, F_WRLCK, (i + 1) % 3);
            _exit(r == 0 ? 0 : errno == EDEADLK ? 1 : 8);
        }
    }
    char c;
    for (int i = 0; i < 3; i++) CHECK(read(ready[0], &c, 1) == 1);
    CHECK(write(go[1], "xxx", 3) == 3);
    int refused = 0, had = 0;
    for (int i = 0; i < 3; i++) {
        int status;
        MUST(waitpid(kids[i], &status, 0));
        refused += exited_with(status, 1);
        had += exited_with(status, 0);
    }
    CHECK(refused == 1 && had == 2, "%d refused, %d had theirs", refused, had);
    // Waiting for one who does not wait is no deadlock; nor is a lock that is one's own already.
    CHECK(lock_wait(fd, F_WRLCK, 0) == 0 && lock_wait(fd, F_RDLCK, 0) == 0 && lock_wait(fd, F_WRLCK, 0) == 0);
}

static int locked_by_others(int fd) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    MUST(fcntl(fd, F_GETLK, &l));
    return l.l_type != F_UNLCK;
}

// A process's locks go when it goes, whatever it did to its descriptor table meanwhile and whoever looks at it.
TEST(locks_go_with_their_process) {
    in_dir();
    int fd = make("f", "0123456789"), up[2], down[2];
    MUST(pipe(up));
    MUST(pipe(down));
    for (int how = 0; how < 3; how++) {
        pid_t pid = MUST(fork());
        if (!pid) {
            char c;
            if (lock_wait(fd, F_WRLCK, 0)) _exit(1);
            if (how == 1 && unshare(CLONE_FILES)) _exit(2);
            if (how == 2 && syscall(SYS_close_range, 900, 999, 2 /* CLOSE_RANGE_UNSHARE */)) _exit(3);
            if (write(up[1], "x", 1) != 1 || read(down[0], &c, 1) != 1) _exit(4);
            _exit(0);
        }
        char c, name[64];
        CHECK(read(up[0], &c, 1) == 1 && locked_by_others(fd), "%d", how);
        // Who holds its directory of descriptors open keeps nothing of it.
        snprintf(name, sizeof name, "/proc/%d/fd/%d", pid, fd);
        int look = MUST(open(name, O_PATH | O_NOFOLLOW));
        CHECK(write(down[1], "x", 1) == 1);
        int status;
        MUST(waitpid(pid, &status, 0));
        CHECK(exited_with(status, 0) && !locked_by_others(fd), "%d: %x", how, status);
        close(look);
    }
}

// A name of a descriptor in the table that it stands in keeps neither.
TEST(a_table_that_names_itself_is_closed) {
    int p[2];
    MUST(pipe(p));
    pid_t pid = MUST(fork());
    if (!pid) {
        char name[64];
        snprintf(name, sizeof name, "/proc/self/fd/%d", p[1]);
        _exit(open(name, O_PATH | O_NOFOLLOW) < 0);
    }
    close(p[1]);
    struct pollfd w = {p[0], POLLIN, 0};
    CHECK(poll(&w, 1, 10000) == 1 && w.revents == POLLHUP, "%x", w.revents);
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0));
}

static int waiting_fd;
static int waits_for_lock(void *unused) {
    (void)unused;
    return lock_wait(waiting_fd, F_WRLCK, 0) ? errno : 0;
}

// A lock that is granted when its descriptor is closed already is given back.
TEST(a_lock_does_not_outlive_its_descriptor) {
    in_dir();
    int fd = make("f", "0123456789"), up[2], down[2];
    MUST(pipe(up));
    MUST(pipe(down));
    pid_t holder = MUST(fork());
    if (!holder) {
        char c;
        if (lock_wait(fd, F_WRLCK, 0) || write(up[1], "x", 1) != 1 || read(down[0], &c, 1) != 1) _exit(1);
        _exit(0);
    }
    char c;
    CHECK(read(up[0], &c, 1) == 1);
    waiting_fd = MUST(open("f", O_RDWR));
    // It shares the descriptors, and is waited for like a process.
    static char stack[65536] __attribute__((aligned(16)));
    pid_t waiter = MUST(clone(waits_for_lock, stack + sizeof stack, CLONE_VM | CLONE_FILES | SIGCHLD, NULL));
    nap_ms(200);
    MUST(close(waiting_fd));
    CHECK(write(down[1], "x", 1) == 1);
    int status;
    MUST(waitpid(waiter, &status, 0));
    CHECK(exited_with(status, EBADF), "%x", status);
    MUST(waitpid(holder, &status, 0));
    pid_t other = MUST(fork());
    if (!other) _exit(locked_by_others(fd));
    MUST(waitpid(other, &status, 0));
    CHECK(exited_with(status, 0));
}

// What others may not read stays what it was when its opener was allowed.
TEST(descriptor_information_is_read_twice) {
    char text[200] = "";
    int fd = MUST(open("/proc/self/fdinfo/0", O_RDONLY));
    CHECK(read(fd, text, sizeof text - 1) > 0 && strstr(text, "flags:"));
    MUST(lseek(fd, 0, SEEK_SET));
    CHECK(read(fd, text, sizeof text - 1) > 0 && strstr(text, "flags:"));
}

MAIN(T(open_flags), T(read_write_seek), T(names_and_links), T(renames), T(directories), T(permissions), T(times), T(descriptors), T(pipes),
     T(polling), T(devices), T(proc), T(mounts), T(locks), T(locks_find_deadlocks), T(locks_go_with_their_process), T(a_table_that_names_itself_is_closed),
     T(a_lock_does_not_outlive_its_descriptor), T(descriptor_information_is_read_twice))
