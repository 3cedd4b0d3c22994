// The rows of `make bench` for files on a disk: fsbench DIR [ROW...]. Each prints `row value unit`; more is better.
//
// Work is fixed and done a few times over; the best counts, since disturbance only adds. What a row leaves in memory only is
// written within its time (fsync of the file or of the directory at the end), and the time starts with nothing dirty, so
// both kernels do the same for the same figure. Cold rows start with all caches dropped.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1l << 20)
#define BIG (256 * MIB)
#define CHUNK (128 << 10)

static char buffer[CHUNK] __attribute__((aligned(4096)));

static uint64_t now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}
static double seconds(uint64_t since) { return (now() - since) / 1e9; }
static void die(const char *what) {
    fprintf(stderr, "fsbench: %s: %s\n", what, strerror(errno));
    _exit(1);
}
static void drop_caches(void) {
    sync();
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd < 0 || write(fd, "3", 1) != 1) die("drop_caches");
    close(fd);
}
static int open_or_die(const char *name, int flags) {
    int fd = open(name, flags, 0644);
    if (fd < 0) die(name);
    return fd;
}
static void fsync_dir(const char *name) {
    int fd = open_or_die(name, O_RDONLY | O_DIRECTORY);
    if (fsync(fd)) die("fsync of a directory");
    close(fd);
}
static uint64_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 33;
}
// On a disturbed host a row takes long, and its rounds are fewer.
static double best_of(int rounds, double (*f)(void)) {
    double best = 0;
    uint64_t t0 = now();
    for (int i = 0; i < rounds && (i == 0 || seconds(t0) < 5); i++) {
        sync();
        double v = f();
        if (v > best) best = v;
    }
    return best;
}

// ---- one large file -----------------------------------------------------------------------------------------------
static double seq_write(void) {
    unlink("big");
    sync();
    uint64_t t0 = now();
    int fd = open_or_die("big", O_WRONLY | O_CREAT | O_TRUNC);
    for (long at = 0; at < BIG; at += CHUNK)
        if (write(fd, buffer, CHUNK) != CHUNK) die("write");
    if (fsync(fd)) die("fsync");
    close(fd);
    return BIG / 1e6 / seconds(t0);
}
static double read_all(void) {
    uint64_t t0 = now();
    int fd = open_or_die("big", O_RDONLY);
    long sum = 0;
    ssize_t n;
    while ((n = read(fd, buffer, CHUNK)) > 0) sum += n;
    if (sum != BIG) die("read");
    close(fd);
    return BIG / 1e6 / seconds(t0);
}
static double seq_read_cold(void) {
    drop_caches();
    return read_all();
}
static double random_read(void) {
    enum { N = 4000 };
    static uint64_t seed = 1;
    drop_caches();
    int fd = open_or_die("big", O_RDONLY);
    uint64_t t0 = now();
    for (int i = 0; i < N; i++)
        if (pread(fd, buffer, 4096, next_random(&seed) % (BIG / 4096) * 4096) != 4096) die("pread");
    double s = seconds(t0);
    close(fd);
    return N / s;
}
static double random_write(void) { // in place, with one fsync at the end
    enum { N = 8000 };
    static uint64_t seed = 2;
    drop_caches();
    int fd = open_or_die("big", O_WRONLY);
    uint64_t t0 = now();
    for (int i = 0; i < N; i++)
        if (pwrite(fd, buffer, 4096, next_random(&seed) % (BIG / 4096) * 4096) != 4096) die("pwrite");
    if (fsync(fd)) die("fsync");
    double s = seconds(t0);
    close(fd);
    return N / s;
}
static double map_write(void) { // the same through a mapping, with msync
    enum { N = 4000 };
    static uint64_t seed = 3;
    drop_caches();
    int fd = open_or_die("big", O_RDWR);
    char *p = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) die("mmap");
    read_all();
    uint64_t t0 = now();
    for (int i = 0; i < N; i++) p[next_random(&seed) % BIG] = i;
    if (msync(p, BIG, MS_SYNC)) die("msync");
    double s = seconds(t0);
    munmap(p, BIG);
    close(fd);
    return N / s;
}

// ---- fsync --------------------------------------------------------------------------------------------------------
static int appends;
static void *append_worker(void *arg) {
    char name[32];
    snprintf(name, sizeof name, "append-%ld", (long)arg);
    int fd = open_or_die(name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
    for (int i = 0; i < appends; i++)
        if (write(fd, buffer, 4096) != 4096 || fsync(fd)) die("append");
    close(fd);
    return NULL;
}
static double append(int threads, int each) {
    pthread_t t[8];
    appends = each;
    uint64_t t0 = now();
    for (long i = 0; i < threads; i++) pthread_create(&t[i], NULL, append_worker, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(t[i], NULL);
    return threads * each / seconds(t0);
}
static double append_1(void) { return append(1, 300); }
static double append_8(void) { return append(8, 75); }

// ---- names --------------------------------------------------------------------------------------------------------
enum { FILES = 10000 };
static double make_files(void) {
    char name[32];
    if (mkdir("names", 0755)) die("mkdir");
    uint64_t t0 = now();
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "names/file-%05d", i * 7919 % FILES);
        close(open_or_die(name, O_WRONLY | O_CREAT | O_EXCL));
    }
    fsync_dir("names");
    return FILES / seconds(t0);
}
static double remove_files(void) {
    char name[32];
    uint64_t t0 = now();
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "names/file-%05d", i * 7919 % FILES);
        if (unlink(name)) die("unlink");
    }
    fsync_dir("names");
    double s = seconds(t0);
    rmdir("names");
    return FILES / s;
}

// A tree like a source tree: 60 directories of 40 files, half of them below 4 KiB, some 26 MB together.
enum { DIRS = 60, EACH = 40 };
static void make_tree(void) {
    char name[64];
    uint64_t seed = 5;
    if (mkdir("tree", 0755)) return;
    for (int d = 0; d < DIRS; d++) {
        snprintf(name, sizeof name, d < 20 ? "tree/dir%02d" : "tree/dir%02d/sub%02d", d % 20, d);
        if (mkdir(name, 0755)) die("mkdir");
        for (int f = 0; f < EACH; f++) {
            char file[128];
            snprintf(file, sizeof file, "%s/file%03d.c", name, f);
            uint64_t r = next_random(&seed);
            long size = r & 1 ? (r >> 8) % 4096 : (r >> 8) % 40000;
            int fd = open_or_die(file, O_WRONLY | O_CREAT);
            if (write(fd, buffer, size) != size) die("tree");
            close(fd);
        }
    }
    sync();
}
static void run(char *const argv[]) {
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 1);
        execv("/bin/busybox", argv);
        _exit(1);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || status) die(argv[0]);
}
static double per_file(char *const argv[]) {
    uint64_t t0 = now();
    run(argv);
    return DIRS * EACH / seconds(t0);
}
static char *find_argv[] = {"find", "tree", "-type", "f", "-size", "+100", NULL};
static char *tar_argv[] = {"tar", "-c", "-f", "/dev/null", "tree", NULL};
static double find_warm(void) { return per_file(find_argv); }
static double tar_warm(void) { return per_file(tar_argv); }
static double find_cold(void) {
    run((char *[]){"true", NULL}); // busybox itself lies in memory
    drop_caches();
    return per_file(find_argv);
}
static double tar_cold(void) {
    drop_caches();
    return per_file(tar_argv);
}

// ---- sqlite -------------------------------------------------------------------------------------------------------
static void sql(sqlite3 *db, const char *text) {
    char *error = NULL;
    if (sqlite3_exec(db, text, NULL, NULL, &error) != SQLITE_OK) {
        fprintf(stderr, "fsbench: %s: %s\n", text, error ? error : "?");
        _exit(1);
    }
}
static sqlite3 *open_db(bool fresh, bool wal) {
    sqlite3 *db;
    if (fresh) {
        unlink("db");
        unlink("db-wal");
        unlink("db-shm");
        unlink("db-journal");
    }
    if (sqlite3_open("db", &db) != SQLITE_OK) die("sqlite3_open");
    sqlite3_busy_timeout(db, 60000);
    sql(db, wal ? "PRAGMA journal_mode=WAL" : "PRAGMA journal_mode=DELETE");
    sql(db, "PRAGMA synchronous=FULL");
    if (fresh) {
        sql(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT)");
        sync();
    }
    return db;
}
static sqlite3_stmt *prepare(sqlite3 *db, const char *text) {
    sqlite3_stmt *s;
    if (sqlite3_prepare_v2(db, text, -1, &s, NULL) != SQLITE_OK) die(sqlite3_errmsg(db));
    return s;
}
static void step(sqlite3 *db, sqlite3_stmt *s) {
    int r;
    while ((r = sqlite3_step(s)) == SQLITE_ROW) {}
    sqlite3_reset(s);
    if (r != SQLITE_DONE) die(sqlite3_errmsg(db));
}
static const char VALUE[] = "some hundred bytes of text that a row of a small table has: a bookmark, a title, a line of a log, a name";
static double inserts(bool wal, int n, bool one_transaction) {
    sqlite3 *db = open_db(true, wal);
    sqlite3_stmt *s = prepare(db, "INSERT INTO t(k, v) VALUES(?, ?)");
    uint64_t t0 = now();
    if (one_transaction) sql(db, "BEGIN");
    for (int i = 0; i < n; i++) {
        sqlite3_bind_int(s, 1, i * 7919 % 100003);
        sqlite3_bind_text(s, 2, VALUE, -1, SQLITE_STATIC);
        step(db, s);
    }
    if (one_transaction) sql(db, "COMMIT");
    double v = n / seconds(t0);
    sqlite3_finalize(s);
    sqlite3_close(db);
    return v;
}
static double sqlite_delete(void) { return inserts(false, 1000, false); }
static double sqlite_wal(void) { return inserts(true, 1000, false); }
static double sqlite_bulk(void) { return inserts(false, 100000, true); }

// Four processes on one database: of each's ten operations one inserts, one updates, eight look up.
static double sqlite_mixed(void) {
    enum { PROCESSES = 4, OPERATIONS = 300, ROWS = 5000 };
    sqlite3 *db = open_db(true, true);
    sql(db, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<5000) INSERT INTO t SELECT i, i*7, hex(randomblob(50)) FROM n");
    sqlite3_close(db);
    uint64_t t0 = now();
    for (int p = 0; p < PROCESSES; p++) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (pid) continue;
        db = open_db(false, true);
        sqlite3_stmt *look = prepare(db, "SELECT v FROM t WHERE id=?");
        sqlite3_stmt *update = prepare(db, "UPDATE t SET k=k+1 WHERE id=?");
        sqlite3_stmt *insert = prepare(db, "INSERT INTO t(k, v) VALUES(?, 'new')");
        uint64_t seed = p + 11;
        for (int i = 0; i < OPERATIONS; i++) {
            sqlite3_stmt *s = i % 10 == 3 ? insert : i % 10 == 7 ? update : look;
            sqlite3_bind_int(s, 1, 1 + next_random(&seed) % ROWS);
            step(db, s);
        }
        sqlite3_finalize(look);
        sqlite3_finalize(update);
        sqlite3_finalize(insert);
        sqlite3_close(db);
        _exit(0);
    }
    int status, bad = 0;
    while (wait(&status) > 0) bad |= status;
    if (bad) die("a process of the mixed load");
    return PROCESSES * OPERATIONS / seconds(t0);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name, *unit;
        int rounds;
        double (*f)(void);
    } rows[] = {
        {"fs-write-256M", "MB/s", 3, seq_write},
        {"fs-read-256M-cold", "MB/s", 5, seq_read_cold},
        {"fs-read-256M-warm", "MB/s", 12, read_all},
        {"fs-random-read-4k", "/s", 6, random_read},
        {"fs-random-write-4k", "/s", 3, random_write},
        {"fs-random-mmap-write", "/s", 3, map_write},
        {"fs-append+fsync-1", "/s", 4, append_1},
        {"fs-append+fsync-8", "/s", 4, append_8},
        {"fs-create", "/s", 0, NULL},
        {"fs-find-cold", "files/s", 3, find_cold},
        {"fs-find-warm", "files/s", 10, find_warm},
        {"fs-tar-cold", "files/s", 3, tar_cold},
        {"fs-tar-warm", "files/s", 10, tar_warm},
        {"sqlite-delete", "/s", 3, sqlite_delete},
        {"sqlite-wal", "/s", 3, sqlite_wal},
        {"sqlite-bulk", "/s", 5, sqlite_bulk},
        {"sqlite-mixed", "/s", 3, sqlite_mixed},
    };
    if (argc < 2 || chdir(argv[1])) die("usage: fsbench DIR [ROW...]");
    memset(buffer, 'x', sizeof buffer);
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool want = argc < 3;
        for (int a = 2; a < argc; a++) want |= strstr(rows[i].name, argv[a]) != NULL;
        if (!want) continue;
        uint64_t t0 = now();
        if (strstr(rows[i].name, "read") || strstr(rows[i].name, "random"))
            if (access("big", F_OK)) seq_write();
        if (strstr(rows[i].name, "find") || strstr(rows[i].name, "tar")) make_tree();
        if (strstr(rows[i].name, "append") || strstr(rows[i].name, "create")) unlink("big");
        if (rows[i].f) {
            printf("%s %.1f %s\n", rows[i].name, best_of(rows[i].rounds, rows[i].f), rows[i].unit);
        } else {
            double made = 0, removed = 0;
            for (int n = 0; n < 2; n++) {
                sync();
                double m = make_files(), r = remove_files();
                if (m > made) made = m;
                if (r > removed) removed = r;
            }
            printf("fs-create %.1f /s\nfs-delete %.1f /s\n", made, removed);
        }
        if (getenv("FSBENCH_TIMES")) printf("the row took %.1f s\n", seconds(t0));
        fflush(stdout);
    }
    puts("fsbench end");
    return 0;
}
