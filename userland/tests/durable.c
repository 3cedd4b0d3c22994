// d2: what reaches the medium when a call that promises so returns, and who hears of a write that failed.
//
// `durable put CALL FILE` replaces FILE's content, 3 pages that name the call, by way of CALL, and returns when the call
// has promised that it is on the medium; the host then looks at what the device was told to keep.
// `durable journal DIR` makes and syncs files until that fails, for a disk whose journal cannot be written.
// Without either it runs tests in /data, on a disk that fails writes of the first page of /data/victim.
#include "t.h"
#include <sys/uio.h>

#ifndef RWF_DSYNC
#define RWF_DSYNC 2
#endif
#define LEN (3 * PAGE)

static char content[LEN + 16]; // room for what the last snprintf ends with

static void put_all(int fd) { MUST(write(fd, content, LEN) == LEN ? 0 : -1); }

static int put(const char *call, const char *file) {
    char other[256], dir[256];
    t_program = "durable", t_name = call;
    for (size_t i = 0; i < LEN; i += 16) snprintf(content + i, 24, "%-10.10s%05zu\n", call, i / 16 % 100000);
    snprintf(other, sizeof other, "%s.new", file);
    snprintf(dir, sizeof dir, "%s", file);
    *strrchr(dir, '/') = 0;
    int flags = !strcmp(call, "osync") ? O_SYNC : !strcmp(call, "odsync") ? O_DSYNC : 0;
    bool rename_over = !strcmp(call, "rename");
    int fd = MUST(open(rename_over ? other : file, O_RDWR | O_CREAT | flags, 0644));
    struct iovec v = {content, LEN};
    if (!strcmp(call, "rwf_dsync")) {
        MUST(syscall(SYS_pwritev2, fd, &v, 1, 0L, 0L, RWF_DSYNC) == (long)LEN ? 0 : -1);
    } else if (!strcmp(call, "msync")) {
        MUST(ftruncate(fd, LEN));
        char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(p != MAP_FAILED);
        memcpy(p, content, LEN);
        MUST(msync(p, LEN, MS_SYNC));
    } else if (!strcmp(call, "append")) {
        // The size grows with each; each is as durable as the last.
        for (int i = 0; i < 3; i++) {
            MUST(write(fd, content + i * PAGE, PAGE) == (long)PAGE ? 0 : -1);
            MUST(fdatasync(fd));
        }
    } else if (!strcmp(call, "range")) {
        // Writing out is not a promise; the fdatasync behind it is, though nothing is dirty any more.
        put_all(fd);
        MUST(syscall(SYS_sync_file_range, fd, 0L, 0L, 7));
        MUST(fdatasync(fd));
    } else {
        put_all(fd);
    }
    if (!strcmp(call, "fsync") || rename_over) MUST(fsync(fd));
    if (!strcmp(call, "fdatasync")) MUST(fdatasync(fd));
    if (!strcmp(call, "syncfs")) MUST(syscall(SYS_syncfs, fd));
    if (!strcmp(call, "sync")) sync();
    if (rename_over) {
        MUST(rename(other, file));
        fd = MUST(open(dir, O_RDONLY | O_DIRECTORY));
        MUST(fsync(fd));
    }
    if (!strcmp(call, "nothing")) nap_ms(100);
    return t_failed != 0;
}

static int journal(const char *dir) {
    char name[256];
    int acknowledged = 0;
    t_program = "durable", t_name = "journal";
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof name, "%s/j%d", dir, i);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
        if (fd == -1) {
            CHECK(errno == EROFS || errno == EIO, "open: %s", strerror(errno));
            break;
        }
        errno = 0;
        if (fsync(fd) == -1) {
            CHECK(errno == EIO || errno == EROFS, "fsync: %s", strerror(errno));
            break;
        }
        acknowledged++;
        close(fd);
    }
    snprintf(name, sizeof name, "%s/after", dir);
    CHECK_ERR(open(name, O_RDWR | O_CREAT, 0644), EROFS);
    CHECK_ERR(mkdir(name, 0755), EROFS);
    struct stat st;
    snprintf(name, sizeof name, "%s/j0", dir);
    CHECK(stat(name, &st) == 0); // what is there can be read
    printf("acknowledged %d\n", acknowledged);
    return t_failed != 0;
}

#define VICTIM "/data/victim"

static int victim(int flags) { return MUST(open(VICTIM, O_RDWR | flags)); }
static void spoil(int fd) { MUST(pwrite(fd, "spoiled", 7, 5) == 7 ? 0 : -1); }

TEST(each_descriptor_hears_once) {
    int a = victim(0), b = victim(0), c = dup(a);
    spoil(a);
    CHECK_ERR(fsync(a), EIO);
    CHECK(fsync(a) == 0 && fsync(c) == 0); // one open file description
    CHECK_ERR(fdatasync(b), EIO);
    CHECK(fdatasync(b) == 0);
    // Who comes later, after somebody has heard, hears nothing.
    int d = victim(0);
    CHECK(fsync(d) == 0);
}

TEST(nobody_heard_so_the_next_does) {
    int a = victim(0);
    spoil(a);
    sync(); // tells nobody
    close(a);
    int b = victim(0);
    CHECK_ERR(fsync(b), EIO);
    CHECK(fsync(b) == 0);
}

TEST(synchronous_writes_say_so) {
    int a = victim(O_DSYNC), b = victim(O_SYNC), c = victim(0);
    CHECK_ERR(pwrite(a, "x", 1, 0), EIO);
    CHECK_ERR(pwrite(b, "x", 1, 0), EIO);
    CHECK_ERR(fsync(c), EIO);
    struct iovec v = {"x", 1};
    CHECK_ERR(syscall(SYS_pwritev2, c, &v, 1, 0L, 0L, RWF_DSYNC), EIO);
    // The first has not heard of what failed since its own write.
    CHECK_ERR(pwrite(a, "x", 1, 3 * PAGE), EIO);
    CHECK(pwrite(a, "x", 1, 3 * PAGE) == 1);
}

TEST(msync_says_so) {
    int a = victim(0);
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
    CHECK(p != MAP_FAILED);
    p[9] = 'm';
    CHECK_ERR(msync(p, PAGE, MS_SYNC), EIO);
    CHECK(msync(p, PAGE, MS_SYNC) == 0);
}

TEST(syncfs_hears_of_all_files) {
    int a = victim(0), root = MUST(open("/data", O_RDONLY | O_DIRECTORY)), b = MUST(open("/data", O_RDONLY | O_DIRECTORY));
    CHECK(syscall(SYS_syncfs, root) == 0 || errno == EIO); // what was before
    CHECK(syscall(SYS_syncfs, b) == 0 || errno == EIO);
    spoil(a);
    CHECK_ERR(syscall(SYS_syncfs, root), EIO);
    CHECK(syscall(SYS_syncfs, root) == 0);
    CHECK_ERR(syscall(SYS_syncfs, b), EIO);
    CHECK_ERR(fsync(a), EIO); // the file's own record is another
}

TEST(children_share_the_description) {
    int a = victim(0);
    spoil(a);
    pid_t pid = MUST(fork());
    if (pid == 0) _exit(fsync(a) == -1 && errno == EIO ? 0 : 1);
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
    CHECK(fsync(a) == 0);
}

TEST(others_are_not_disturbed) {
    int a = victim(0), other = MUST(open("/data/other", O_RDWR | O_CREAT, 0644));
    CHECK(fsync(other) == 0);
    spoil(a);
    CHECK(write(other, "fine", 4) == 4);
    CHECK(fsync(other) == 0);
    CHECK_ERR(fsync(a), EIO);
    CHECK(close(a) == 0);
}

TEST(the_page_stays_readable) {
    int a = victim(0);
    char buf[7];
    spoil(a);
    CHECK_ERR(fsync(a), EIO);
    CHECK(pread(a, buf, 7, 5) == 7 && !memcmp(buf, "spoiled", 7));
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "put")) return put(argv[2], argv[3]);
    if (argc == 3 && !strcmp(argv[1], "journal")) return journal(argv[2]);
    static const struct test tests[] = {
        T(each_descriptor_hears_once), T(nobody_heard_so_the_next_does), T(synchronous_writes_say_so),
        T(msync_says_so), T(syncfs_hears_of_all_files), T(children_share_the_description),
        T(others_are_not_disturbed), T(the_page_stays_readable),
    };
    return t_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
