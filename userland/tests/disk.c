// d0: a disk as a block special file: sizes, reads and writes at any offset, flushes, discards, many threads at once.
// It overwrites /dev/vda, which must be at least 32 MiB.
#include "t.h"
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#define DISK "/dev/vda"
#define MIB (1 << 20)

static uint64_t size_of(int fd) {
    uint64_t bytes = 0;
    MUST(ioctl(fd, BLKGETSIZE64, &bytes));
    return bytes;
}

static void fill(unsigned char *p, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        p[i] = seed >> 24;
    }
}

TEST(sizes_agree) {
    struct stat st;
    MUST(stat(DISK, &st));
    CHECK(S_ISBLK(st.st_mode) && major(st.st_rdev) != 0, "mode %o", st.st_mode);
    int fd = MUST(open(DISK, O_RDONLY));
    uint64_t bytes = size_of(fd);
    unsigned long sectors = 0;
    int block = 0, read_only = -1;
    unsigned physical = 0;
    MUST(ioctl(fd, BLKGETSIZE, &sectors));
    MUST(ioctl(fd, BLKSSZGET, &block));
    MUST(ioctl(fd, BLKPBSZGET, &physical));
    MUST(ioctl(fd, BLKROGET, &read_only));
    CHECK(bytes == sectors * 512ul && bytes >= 32 * MIB, "%llu bytes", (unsigned long long)bytes);
    CHECK(block >= 512 && (block & (block - 1)) == 0 && physical >= (unsigned)block && read_only == 0);
    CHECK(lseek(fd, 0, SEEK_END) == (off_t)bytes);
    CHECK_ERR(ioctl(fd, 0x12fe, &block), ENOTTY);
    CHECK_ERR(write(fd, "x", 1), EBADF);
    char line[64], text[65536];
    strcpy(text, slurp("/proc/partitions"));
    snprintf(line, sizeof line, "%llu vda\n", (unsigned long long)bytes / 1024);
    CHECK(strstr(text, line), "%s", text);
}

TEST(any_offset_reads_back) {
    int fd = MUST(open(DISK, O_RDWR));
    static unsigned char out[300000], in[300000], around[2];
    static const struct { off_t at; size_t n; } steps[] = {{0, 512}, {4096, 65536}, {1, 1}, {511, 2}, {1000, 5000}, {MIB - 7, 300000}};
    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
        unsigned char edge[2] = {0xa5, 0x5a};
        off_t at = steps[i].at, end = at + steps[i].n;
        if (at) CHECK(pwrite(fd, edge, 1, at - 1) == 1);
        CHECK(pwrite(fd, edge + 1, 1, end) == 1);
        fill(out, steps[i].n, i + 1);
        CHECK(pwrite(fd, out, steps[i].n, at) == (ssize_t)steps[i].n);
        CHECK(pread(fd, in, steps[i].n, at) == (ssize_t)steps[i].n);
        CHECK(!memcmp(in, out, steps[i].n), "step %u", i);
        if (at) CHECK(pread(fd, around, 1, at - 1) == 1 && around[0] == 0xa5);
        CHECK(pread(fd, around + 1, 1, end) == 1 && around[1] == 0x5a);
    }
    CHECK(lseek(fd, 4096, SEEK_SET) == 4096);
    CHECK(read(fd, in, 3) == 3 && lseek(fd, 0, SEEK_CUR) == 4099);
    MUST(fsync(fd));
    MUST(fdatasync(fd));
}

TEST(the_end_is_an_end) {
    int fd = MUST(open(DISK, O_RDWR));
    uint64_t bytes = size_of(fd);
    char buf[8192] = {1};
    CHECK(pwrite(fd, buf, sizeof buf, bytes - 4096) == 4096);
    CHECK_ERR(pwrite(fd, buf, 512, bytes), ENOSPC);
    CHECK(pread(fd, buf, sizeof buf, bytes - 4096) == 4096);
    CHECK(pread(fd, buf, sizeof buf, bytes) == 0);
    CHECK(pread(fd, buf, sizeof buf, bytes + MIB) == 0);
}

TEST(bad_buffers_fault) {
    int fd = MUST(open(DISK, O_RDWR));
    CHECK_ERR(pread(fd, (void *)16, 4096, 0), EFAULT);
    CHECK_ERR(pwrite(fd, (void *)16, 4096, 0), EFAULT);
    // Half of the buffer is there.
    char *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 7, PAGE);
    munmap(p + PAGE, PAGE);
    ssize_t n = pwrite(fd, p, 2 * PAGE, 8 * MIB);
    CHECK(n == (ssize_t)PAGE || (n == -1 && errno == EFAULT), "%zd", n);
}

TEST(ranges_are_zeroed_and_discarded) {
    int fd = MUST(open(DISK, O_RDWR));
    static unsigned char data[MIB], back[MIB];
    memset(data, 0xee, sizeof data);
    CHECK(pwrite(fd, data, sizeof data, 2 * MIB) == MIB);
    MUST(fsync(fd));
    uint64_t range[2] = {2 * MIB + 4096, 8192};
    MUST(ioctl(fd, BLKZEROOUT, range));
    CHECK(pread(fd, back, sizeof back, 2 * MIB) == MIB);
    for (size_t i = 0; i < sizeof back; i++) {
        unsigned char want = i >= 4096 && i < 12288 ? 0 : 0xee;
        if (back[i] != want) {
            t_fail("byte %zu is %x", i, back[i]);
            break;
        }
    }
    uint64_t free_range[2] = {3 * MIB, MIB};
    if (ioctl(fd, BLKDISCARD, free_range) == -1) CHECK(errno == EOPNOTSUPP);
    uint64_t bad[2] = {1, 512};
    CHECK_ERR(ioctl(fd, BLKZEROOUT, bad), EINVAL);
    uint64_t beyond[2] = {size_of(fd), 4096};
    CHECK_ERR(ioctl(fd, BLKZEROOUT, beyond), EINVAL);
    int ro = MUST(open(DISK, O_RDONLY));
    CHECK_ERR(ioctl(ro, BLKZEROOUT, range), EBADF);
    MUST(ioctl(fd, BLKFLSBUF, 0));
}

enum { THREADS = 8, ROUNDS = 40 };

static void *hammer(void *arg) {
    long id = (long)arg;
    int fd = open(DISK, O_RDWR);
    unsigned char *out = malloc(65536), *in = malloc(65536);
    // Thread id owns the blocks of 64 KiB whose number is id modulo THREADS.
    for (int round = 0; round < ROUNDS && fd != -1; round++) {
        size_t n = 512u << (round * 7 + id) % 8;
        off_t at = 4 * MIB + (off_t)((round * 13 % 24) * THREADS + id) * 65536;
        fill(out, n, id * 1000 + round);
        if (pwrite(fd, out, n, at) != (ssize_t)n) t_fail("write %zu: %s", n, strerror(errno));
        if (round % 16 == 5 && fsync(fd) == -1) t_fail("fsync: %s", strerror(errno));
        if (pread(fd, in, n, at) != (ssize_t)n || memcmp(in, out, n)) t_fail("thread %ld round %d differs", id, round);
    }
    return fd == -1 ? (void *)1 : NULL;
}

TEST(threads_do_not_disturb_each_other) {
    pthread_t t[THREADS];
    for (long i = 0; i < THREADS; i++) MUST(-(pthread_create(&t[i], NULL, hammer, (void *)i) != 0));
    for (int i = 0; i < THREADS; i++) {
        void *r = NULL;
        pthread_join(t[i], &r);
        CHECK(r == NULL);
    }
    if (on_berth()) {
        char *depth = strstr(slurp("/proc/berth/disks"), "max_in_flight ");
        CHECK(depth && atoi(depth + 14) >= 3, "%s", depth ? depth : "no depth");
    }
}

static long stat_field(int n) {
    long field = -1;
    for (char *line = slurp("/proc/diskstats"); line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        char *p = strstr(line, " vda ");
        if (!p || p > line + 24) continue;
        p += 5;
        for (int i = 0; i < n; i++) strtol(p, &p, 10);
        return strtol(p, NULL, 10);
    }
    return field;
}

// What one way writes the other reads, and a close leaves nothing behind.
TEST(cached_and_direct_agree) {
    static unsigned char back[65536];
    unsigned char *buf = aligned_alloc(4096, 65536);
    int cached = MUST(open(DISK, O_RDWR)), direct = MUST(open(DISK, O_RDWR | O_DIRECT));
    for (int round = 0; round < 4; round++) {
        fill(buf, 65536, round * 2 + 1);
        CHECK(pwrite(cached, buf, 65536, 20 * MIB + 4096) == 65536);
        memset(back, 0, sizeof back);
        unsigned char *in = aligned_alloc(4096, 65536);
        CHECK(pread(direct, in, 65536, 20 * MIB + 4096) == 65536 && !memcmp(in, buf, 65536), "direct, round %d", round);
        fill(buf, 65536, round * 2 + 2);
        CHECK(pwrite(direct, buf, 65536, 20 * MIB + 4096) == 65536);
        CHECK(pread(cached, back, 65536, 20 * MIB + 4096) == 65536 && !memcmp(back, buf, 65536), "cached, round %d", round);
        free(in);
    }
    fill(buf, 65536, 77);
    CHECK(pwrite(cached, buf, 65536, 21 * MIB) == 65536);
    close(cached);
    close(direct);
    direct = MUST(open(DISK, O_RDONLY | O_DIRECT));
    CHECK(pread(direct, buf + 4096, 4096, 21 * MIB) == 4096);
    CHECK(!memcmp(buf, buf + 4096, 4096));
    int synced = MUST(open(DISK, O_RDWR | O_SYNC));
    CHECK(pwrite(synced, "durable", 7, 22 * MIB + 100) == 7);
    CHECK(pread(direct, buf, 4096, 22 * MIB) == 4096 && !memcmp(buf + 100, "durable", 7));
}

TEST(statistics_count) {
    int fd = MUST(open(DISK, O_RDWR | O_DIRECT));
    char *buf = aligned_alloc(4096, 65536);
    memset(buf, 3, 65536);
    long reads = stat_field(0), read_sectors = stat_field(2), write_sectors = stat_field(6), flushes = stat_field(15);
    CHECK(pwrite(fd, buf, 65536, 0) == 65536);
    MUST(fsync(fd));
    CHECK(pread(fd, buf, 65536, 0) == 65536);
    CHECK(stat_field(0) > reads && stat_field(2) - read_sectors >= 128 && stat_field(6) - write_sectors >= 128);
    CHECK(stat_field(15) > flushes, "%ld flushes before, %ld after", flushes, stat_field(15));
}

MAIN(T(sizes_agree), T(any_offset_reads_back), T(the_end_is_an_end), T(bad_buffers_fault),
     T(ranges_are_zeroed_and_discarded), T_FOR(threads_do_not_disturb_each_other, 120), T(cached_and_direct_agree), T(statistics_count))
