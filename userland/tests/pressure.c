// Far too much at once for the machine's memory: files larger than it, mappings of them, tmpfs, private memory, and programs
// started over and over. All of it gets done, with the right content, and nobody is killed who need not be. Sizes follow
// MemTotal (up to 256 MiB). The directory for files is T_DIR, else /data, which must be on a disk; T_ROUNDS says how often.
#include "t.h"

#define ROUNDS (getenv("T_ROUNDS") ? atoi(getenv("T_ROUNDS")) : 1)
static size_t memory; // bytes
static const char *dir;

static void setup(void) {
    memory = number_in("/proc/meminfo", "MemTotal") << 10;
    if (memory > 256 << 20) memory = 256 << 20;
    dir = getenv("T_DIR") ? getenv("T_DIR") : "/data";
}

static int file(const char *where, char *path, size_t size, int n) {
    snprintf(path, size, "%s/pressure.%d.%d", where, getpid(), n);
    return (int)MUST(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
}

// What page `index` of object `seed` holds in round `round`: cheap, and different everywhere.
static void fill(uint64_t *page, uint64_t seed, uint64_t index, uint64_t round) {
    for (uint64_t i = 0; i < PAGE / 8; i++) page[i] = (seed << 48 | round << 40 | index << 9) + i;
}

static bool holds(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t round, const char *what) {
    for (uint64_t i = 0; i < PAGE / 8; i++) {
        uint64_t want = (seed << 48 | round << 40 | index << 9) + i;
        if (page[i] == want) continue;
        t_fail("%s %d, page %ld, word %ld: %lx, not %lx", what, (int)seed, (long)index, (long)i, (long)page[i], (long)want);
        return false;
    }
    return true;
}

static void written(const char *where, size_t bytes, int seed, bool sync) {
    static uint64_t b[16 * PAGE / 8];
    char path[256];
    uint64_t pages = bytes / sizeof b * 16;
    for (int round = 0; round < ROUNDS; round++) {
        int fd = file(where, path, sizeof path, seed);
        for (uint64_t p = 0; p < pages; p += 16) {
            for (int i = 0; i < 16; i++) fill(b + i * PAGE / 8, seed, p + i, round);
            MUST(write(fd, b, sizeof b));
        }
        if (sync) MUST(fsync(fd));
        MUST(lseek(fd, 0, SEEK_SET));
        for (uint64_t p = 0; p < pages; p += 16) {
            CHECK(read(fd, b, sizeof b) == (ssize_t)sizeof b);
            for (int i = 0; i < 16; i++)
                if (!holds(b + i * PAGE / 8, seed, p + i, round, "file")) exit(1);
        }
        close(fd);
        unlink(path);
    }
}

static void large_file(int seed) { written(dir, memory + memory / 4, seed, true); }
static void small_file(int seed) { written(dir, memory / 3, seed, false); }
static void tmpfs_file(int seed) {
    for (int i = 0; i < 4; i++) written("/tmp", memory / 6, seed, false);
}

static void mapped_file(int seed) {
    char path[256];
    uint64_t chunks = memory * 3 / 4 / PAGE / 32, pages = chunks * 32;
    for (int round = 0; round < ROUNDS; round++) {
        int fd = file(dir, path, sizeof path, seed);
        MUST(ftruncate(fd, pages * PAGE));
        uint64_t *m = (uint64_t *)MUST(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
        // Not one after the other: the step is a prime, which does not divide the count.
        uint64_t step = chunks % 61 ? 61 : 67;
        for (uint64_t i = 0, c = 0; i < chunks; i++, c = (c + step) % chunks)
            for (uint64_t p = c * 32; p < c * 32 + 32; p++) fill(m + p * PAGE / 8, seed, p, round);
        for (uint64_t p = 0; p < pages; p++)
            if (!holds(m + p * PAGE / 8, seed, p, round, "mapping")) exit(1);
        MUST(munmap(m, pages * PAGE));
        close(fd);
        unlink(path);
    }
}

static void private_memory(int seed) {
    uint64_t pages = memory / 10 / PAGE;
    uint64_t *m = (uint64_t *)MUST(mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (int round = 0; round < 8 * ROUNDS; round++) {
        for (uint64_t p = 0; p < pages; p++) fill(m + p * PAGE / 8, seed, p, round);
        // A child has copies of its own.
        pid_t pid = MUST(fork());
        if (!pid) {
            for (uint64_t p = 0; p < pages; p += 3) fill(m + p * PAGE / 8, seed + 1, p, round);
            _exit(0);
        }
        int status;
        MUST(waitpid(pid, &status, 0));
        CHECK(exited_with(status, 0), "the copier ended with %x", status);
        for (uint64_t p = 0; p < pages; p++)
            if (!holds(m + p * PAGE / 8, seed, p, round, "private memory")) exit(1);
    }
}

static void programs(int seed) {
    for (int i = 0; i < 60 * ROUNDS; i++) {
        pid_t pid = fork();
        if (pid == -1) {
            t_fail("fork %d: %s", i, strerror(errno));
            return;
        }
        if (!pid) {
            execl("/bin/sh", "sh", "-c", "echo $((6 * 7)) | while read n; do exit $n; done", NULL);
            _exit(errno);
        }
        int status;
        MUST(waitpid(pid, &status, 0));
        CHECK(exited_with(status, 42), "program %d ended with %x", i, status);
    }
}

static struct job {
    const char *name;
    void (*run)(int);
    pid_t pid;
} jobs[] = {{"large file", large_file, 0},     {"small file", small_file, 0}, {"mapped file", mapped_file, 0},
            {"mapped file", mapped_file, 0},   {"tmpfs file", tmpfs_file, 0}, {"private memory", private_memory, 0},
            {"programs", programs, 0},         {"programs", programs, 0}};
#define JOBS (int)(sizeof jobs / sizeof *jobs)

static void start_jobs(void) {
    for (int i = 0; i < JOBS; i++) {
        jobs[i].pid = (pid_t)MUST(fork());
        if (jobs[i].pid) continue;
        t_failed = 0;
        jobs[i].run(2 * i + 1);
        exit(t_failed != 0);
    }
}

static void await_jobs(void) {
    for (int i = 0; i < JOBS; i++) {
        int status = -1;
        while (waitpid(jobs[i].pid, &status, 0) == -1 && errno == EINTR) {}
        CHECK(exited_with(status, 0), "%s: status %x", jobs[i].name, status);
    }
}

static long free_memory(void) {
    sync();
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd != -1) {
        if (write(fd, "3", 1) != 1) t_fail("drop_caches: %s", strerror(errno));
        close(fd);
    }
    return number_in("/proc/meminfo", "MemFree");
}

TEST(all_at_once) {
    setup();
    long before = free_memory();
    start_jobs();
    await_jobs();
    long after = free_memory(), lost = before - after;
    // The end of a process gives its memory back a moment after its parent knows of it.
    for (int i = 0; i < 50 && lost > 2048; i++, lost = before - after) {
        nap_ms(100);
        after = free_memory();
    }
    CHECK(lost <= 2048, "%ld KiB free before, %ld after", before, after);
}

// Memory that cannot be given back runs out: who took it ends, and nobody else.
TEST(the_hog_is_chosen) {
    setup();
    static int only[] = {1, 2, 6};
    for (int i = 0; i < 3; i++) {
        struct job *j = &jobs[only[i]];
        j->pid = (pid_t)MUST(fork());
        if (j->pid) continue;
        t_failed = 0;
        j->run(2 * only[i] + 1);
        exit(t_failed != 0);
    }
    pid_t hog = MUST(fork());
    if (!hog) {
        for (size_t had = 0; had < memory * 2; had += 1 << 20) {
            char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (m == MAP_FAILED) _exit(7);
            for (size_t at = 0; at < 1 << 20; at += PAGE) m[at] = 1;
        }
        _exit(9);
    }
    int status;
    MUST(waitpid(hog, &status, 0));
    CHECK(died_of(status, SIGKILL), "the hog: %x", status);
    for (int i = 0; i < 3; i++) {
        MUST(waitpid(jobs[only[i]].pid, &status, 0));
        CHECK(exited_with(status, 0), "%s: status %x", jobs[only[i]].name, status);
    }
}

// Names, inodes and metadata of a disk are counted as what can be given back, and given back to who needs memory.
#define NAMES 3000
TEST(names_give_way) {
    setup();
    char path[256], top[200];
    snprintf(top, sizeof top, "%s/pressure.names.%d", dir, getpid());
    free_memory();
    long before = number_in("/proc/meminfo", "SReclaimable");
    MUST(mkdir(top, 0700));
    for (int i = 0; i < NAMES; i++) {
        snprintf(path, sizeof path, "%s/a-name-that-is-not-short-%d", top, i);
        close((int)MUST(open(path, O_RDWR | O_CREAT, 0600)));
    }
    sync();
    long full = number_in("/proc/meminfo", "SReclaimable"), left = full;
    CHECK(full - before > NAMES / 3, "SReclaimable: %ld KiB before, %ld with %d names", before, full, NAMES);
    pid_t pid = MUST(fork());
    if (!pid) {
        // Memory runs out sooner or later; names go before anybody is killed.
        for (size_t had = 0; had < memory && left > full - (full - before) / 4; had += 64 * PAGE) {
            char *m = (char *)MUST(mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            for (size_t at = 0; at < 64 * PAGE; at += PAGE) m[at] = 1;
            left = number_in("/proc/meminfo", "SReclaimable");
        }
        exit(0);
    }
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "who took memory until names were given back: %x", status);
    // All still there.
    for (int i = 0; i < NAMES; i++) {
        snprintf(path, sizeof path, "%s/a-name-that-is-not-short-%d", top, i);
        MUST(unlink(path));
    }
    MUST(rmdir(top));
}

MAIN(T_FOR(all_at_once, 240), T_FOR(the_hog_is_chosen, 120), T_FOR(names_give_way, 120))
