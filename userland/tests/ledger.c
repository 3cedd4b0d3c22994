// d4: work whose every step is acknowledged on the console once it is on the medium, and the check of what a cut left.
//
// `ledger work DIR N`: N processes, each of which replaces whole files and appends to a log. A line
// `ack F worker number number;` (replaced) or `ack L worker number number;` (appended) is printed when fsync has returned.
// `ledger check DIR` prints for each file found `F worker slot number` and for each log `L worker number`: the last whole
// entry; and a line that begins with BAD for everything that was never written so.
#include "t.h"
#include <dirent.h>

#define SLOTS 8
#define MOST 12000

struct head {
    uint32_t magic, worker, number, len;
};
#define MAGIC 0x4c454447

// The bytes of entry `number` of a worker; returns its length.
static size_t entry(char *out, uint32_t worker, uint32_t number) {
    uint32_t r = worker * 2654435761u + number * 40503u + 12345;
    for (int i = 0; i < 4; i++) r = r * 1664525 + 1013904223;
    struct head h = {MAGIC, worker, number, sizeof h + (number & 1 ? r % (MOST - 100) : r % 900)};
    memcpy(out, &h, sizeof h);
    for (size_t i = sizeof h; i < h.len; i++) {
        r = r * 1664525 + 1013904223;
        out[i] = (r >> 24) | 1; // never zero: what was not written must be seen
    }
    return h.len;
}

static void say(char kind, uint32_t worker, uint32_t number) {
    char line[64];
    int n = snprintf(line, sizeof line, "ack %c %u %u %u;\n", kind, worker, number, number);
    MUST(write(1, line, n));
}

static void work(const char *dir, uint32_t worker) {
    static char buf[MOST];
    char name[300], fresh[300];
    snprintf(name, sizeof name, "%s/log.%u", dir, worker);
    int log = MUST(open(name, O_RDWR | O_CREAT | O_APPEND, 0644));
    int d = MUST(open(dir, O_RDONLY | O_DIRECTORY));
    MUST(fsync(log));
    for (uint32_t n = 1; n < 100000; n++) {
        size_t len = entry(buf, worker, n);
        if (n & 1) {
            snprintf(name, sizeof name, "%s/file.%u.%u", dir, worker, n / 2 % SLOTS);
            snprintf(fresh, sizeof fresh, "%s/new.%u", dir, worker);
            int fd = MUST(open(fresh, O_RDWR | O_CREAT | O_TRUNC, 0644));
            MUST(write(fd, buf, len) == (long)len ? 0 : -1);
            MUST(fsync(fd));
            MUST(close(fd));
            MUST(rename(fresh, name));
            MUST(fsync(d));
            say('F', worker, n);
        } else {
            MUST(write(log, buf, len) == (long)len ? 0 : -1);
            MUST(fdatasync(log));
            say('L', worker, n);
        }
    }
}

static bool starts_like(const char *found, size_t have, const char *want, size_t len) {
    if (have > len) return false;
    for (size_t i = 0; i < have; i++)
        if (found[i] && found[i] != want[i]) return false;
    return true;
}

static void check_file(const char *name, const char *data, size_t have) {
    static char want[MOST];
    uint32_t worker, slot;
    struct head h;
    if (sscanf(name, "file.%u.%u", &worker, &slot) == 2) {
        memcpy(&h, data, sizeof h);
        if (have < sizeof h || h.magic != MAGIC || h.worker != worker || !(h.number & 1) || h.number / 2 % SLOTS != slot ||
            entry(want, worker, h.number) != have || memcmp(want, data, have))
            printf("BAD %s: %zu bytes, entry %u\n", name, have, have < sizeof h ? 0 : h.number);
        else
            printf("F %u %u %u\n", worker, slot, h.number);
    } else if (sscanf(name, "log.%u", &worker) == 1) {
        uint32_t last = 0;
        size_t at = 0, len;
        while ((len = entry(want, worker, last + 2)), at + len <= have && !memcmp(want, data + at, len)) at += len, last += 2;
        // Behind the last whole entry there may be a beginning of the next.
        if (!starts_like(data + at, have - at, want, len)) printf("BAD %s behind entry %u\n", name, last);
        printf("L %u %u\n", worker, last);
    }
}

static int check(const char *dir) {
    static char data[8 << 20];
    char name[600];
    DIR *d = opendir(dir);
    if (!d) return 1;
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(name, sizeof name, "%s/%s", dir, e->d_name);
        int fd = open(name, O_RDONLY);
        ssize_t n = read(fd, data, sizeof data);
        if (n >= 0) check_file(e->d_name, data, n);
        else if (errno != EISDIR) printf("BAD %s: %s\n", name, strerror(errno));
        close(fd);
    }
    printf("checked\n");
    return 0;
}

int main(int argc, char **argv) {
    t_program = "ledger", t_name = argc > 1 ? argv[1] : "";
    if (argc == 3 && !strcmp(argv[1], "check")) return check(argv[2]);
    if (argc != 4 || strcmp(argv[1], "work")) return 2;
    for (int i = 0; i < atoi(argv[3]); i++) {
        if (MUST(fork()) == 0) {
            work(argv[2], i);
            return 0;
        }
    }
    while (wait(NULL) > 0) {}
    return 0;
}
