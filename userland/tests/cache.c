// The page cache: one copy of a file's content, whoever reads, writes or maps it, before and after write-back and eviction.
// The directory to work in is T_DIR, else /data if it is a mount, else /tmp. Evicting needs root; without it, less is tried.
#include "t.h"
#include <sys/vfs.h>

#define PAGES 64
#define LEN (PAGES * PAGE)

static char path[256];

static int fresh(size_t len) {
    const char *dir = getenv("T_DIR");
    struct stat data, root;
    if (!dir) dir = stat("/data", &data) == 0 && stat("/", &root) == 0 && data.st_dev != root.st_dev ? "/data" : "/tmp";
    snprintf(path, sizeof path, "%s/cache.%d", dir, getpid());
    int fd = MUST(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
    MUST(ftruncate(fd, len));
    return fd;
}

static char *map(int fd, size_t len, int flags) {
    return (char *)MUST(mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0));
}

// Clean pages leave memory.
static void evict(void) {
    sync();
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd != -1) {
        if (write(fd, "1", 1) != 1) t_fail("drop_caches: %s", strerror(errno));
        close(fd);
    }
}

static bool holds(int fd, off_t at, size_t len, int value) {
    static char buf[PAGE];
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, buf, len - done < PAGE ? len - done : PAGE, at + done);
        if (n <= 0) return false;
        for (ssize_t i = 0; i < n; i++)
            if (buf[i] != (char)value) return false;
        done += n;
    }
    return true;
}

TEST(mapping_and_calls_agree) {
    int fd = fresh(LEN);
    char *m = map(fd, LEN, MAP_SHARED);
    MUST(pwrite(fd, "written", 7, PAGE - 3));
    CHECK(memcmp(m + PAGE - 3, "written", 7) == 0);
    memset(m + 5 * PAGE, 'm', PAGE);
    CHECK(holds(fd, 5 * PAGE, PAGE, 'm'));
    evict();
    CHECK(memcmp(m + PAGE - 3, "written", 7) == 0);
    CHECK(holds(fd, 5 * PAGE, PAGE, 'm'));
    unlink(path);
}

TEST(stores_after_write_back_are_written_too) {
    int fd = fresh(LEN);
    char *m = map(fd, LEN, MAP_SHARED);
    for (int round = 1; round < 9; round++) {
        memset(m, round, LEN);
        if (round % 2) MUST(fsync(fd));
        else MUST(msync(m, LEN, MS_SYNC));
        // The mapping stays; these stores come after the pages were clean.
        for (int p = 0; p < PAGES; p++) m[p * PAGE + 100] = round + 64;
        MUST(munmap(m, LEN));
        evict();
        m = map(fd, LEN, MAP_SHARED);
        for (int p = 0; p < PAGES; p++)
            CHECK(m[p * PAGE + 100] == round + 64 && m[p * PAGE + 101] == round, "round %d page %d: %d %d", round, p, m[p * PAGE + 100], m[p * PAGE + 101]);
    }
    unlink(path);
}

static void touch(void *p) { *(volatile char *)p = 1; }
TEST(behind_a_shorter_end_there_is_nothing) {
    int fd = fresh(4 * PAGE);
    char *m = map(fd, 4 * PAGE, MAP_SHARED);
    memset(m, 'x', 4 * PAGE);
    MUST(ftruncate(fd, PAGE + 10));
    CHECK(died_of(in_child(touch, m + 2 * PAGE), SIGBUS));
    CHECK(m[PAGE + 9] == 'x' && m[PAGE + 10] == 0);
    struct statfs fs;
    MUST(fstatfs(fd, &fs));
    if (fs.f_type != 0x01021994 /* tmpfs, where Linux itself does not clear this */) m[PAGE + 500] = 'g'; // behind the end, within its page
    MUST(ftruncate(fd, 4 * PAGE));
    CHECK(m[PAGE + 500] == 0, "what was stored behind the end came back");
    CHECK(m[3 * PAGE] == 0);
    evict();
    CHECK(holds(fd, PAGE + 10, 3 * PAGE - 10, 0));
    unlink(path);
}

TEST(private_copies_are_nobody_elses) {
    int fd = fresh(LEN);
    char *s = map(fd, LEN, MAP_SHARED), *p = map(fd, LEN, MAP_PRIVATE);
    memset(s, 's', LEN);
    for (int i = 0; i < PAGES; i += 2) p[i * PAGE] = 'p';
    MUST(fsync(fd));
    evict();
    for (int i = 0; i < PAGES; i++) {
        CHECK(p[i * PAGE] == (i % 2 ? 's' : 'p'), "page %d", i);
        CHECK(s[i * PAGE] == 's', "page %d", i);
    }
    unlink(path);
}

static int shared_fd;
static char *shared_map;
static void writer(void *arg) {
    long n = (long)arg;
    for (int round = 1; round < 40; round++)
        for (int p = n * 16; p < n * 16 + 16; p++) {
            shared_map[p * PAGE + 8] = round;
            char c = round;
            if (pwrite(shared_fd, &c, 1, p * PAGE + 9) != 1) _exit(1);
            if (shared_map[p * PAGE + 8] != round || shared_map[p * PAGE + 9] != round) _exit(2);
        }
    _exit(0);
}

TEST(writers_sync_and_eviction_at_once) {
    shared_fd = fresh(LEN);
    shared_map = map(shared_fd, LEN, MAP_SHARED);
    pid_t kids[4];
    for (long i = 0; i < 4; i++)
        if ((kids[i] = fork()) == 0) writer((void *)i);
    for (int left = 4, status; left;) {
        MUST(fsync(shared_fd));
        evict();
        while (left && waitpid(-1, &status, WNOHANG) > 0) {
            CHECK(exited_with(status, 0), "%x", status);
            left--;
        }
    }
    MUST(munmap(shared_map, LEN));
    evict();
    for (int p = 0; p < PAGES; p++) CHECK(holds(shared_fd, p * PAGE + 8, 2, 39), "page %d", p);
    unlink(path);
}

TEST(advice_is_taken) {
    int fd = fresh(0);
    static char buf[PAGE] = {1};
    for (int i = 0; i < PAGES; i++) MUST(write(fd, buf, PAGE));
    MUST(fsync(fd));
    CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
    CHECK(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED) == 0);
    CHECK(posix_fadvise(fd, 0, 0, 77) == EINVAL);
    MUST(readahead(fd, 0, LEN));
    MUST(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
    MUST(syncfs(fd));
    char *m = map(fd, LEN, MAP_SHARED);
    unsigned char in[PAGES];
    for (int tries = 0;; tries++) {
        MUST(mincore(m, LEN, in));
        int there = 0;
        for (int i = 0; i < PAGES; i++) there += in[i] & 1;
        if (there == PAGES) break;
        if (tries == 100) {
            t_fail("%d of %d pages in memory", there, PAGES);
            break;
        }
        nap_ms(20);
    }
    CHECK(holds(fd, 0, 1, 1));
    unlink(path);
}

// T_BIG says how many MiB; a gate gives more than the machine has.
TEST(a_mapping_larger_than_memory) {
    size_t len = (getenv("T_BIG") ? strtoul(getenv("T_BIG"), NULL, 10) : 4) << 20;
    int fd = fresh(len);
    char *m = map(fd, len, MAP_SHARED);
    for (uint64_t pass = 1; pass < 3; pass++) {
        for (size_t at = 0; at < len; at += PAGE) *(uint64_t *)(m + at + 64) = at * 31 + pass;
        for (size_t at = 0; at < len; at += PAGE) {
            uint64_t got = *(uint64_t *)(m + at + 64);
            if (got != at * 31 + pass) {
                t_fail("pass %d, offset %zx: %lx", (int)pass, at, (long)got);
                break;
            }
        }
    }
    MUST(munmap(m, len));
    MUST(fsync(fd));
    for (size_t at = 0; at < len; at += 97 * PAGE) {
        uint64_t got = 0;
        MUST(pread(fd, &got, 8, at + 64));
        CHECK(got == at * 31 + 2, "offset %zx: %lx", at, (long)got);
    }
    unlink(path);
}

MAIN(T(mapping_and_calls_agree), T(stores_after_write_back_are_written_too), T(behind_a_shorter_end_there_is_nothing),
     T(private_copies_are_nobody_elses), T(writers_sync_and_eviction_at_once), T(advice_is_taken),
     T_FOR(a_mapping_larger_than_memory, 280))
