// Flags of files (chattr) and what they forbid, where a file lies (FIEMAP), and ranges of files: in T_DIR, on tmpfs and ext4.
#include "t.h"
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/stat.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

static char dir[64];
static bool on_ext4;
static void in_dir(void) {
    snprintf(dir, sizeof dir, "%s/attrs.%s.%d", getenv("T_DIR") ? getenv("T_DIR") : "/tmp", t_name, getpid());
    umask(022);
    MUST(mkdir(dir, 0755));
    MUST(chdir(dir));
    struct statfs s;
    MUST(statfs(".", &s));
    on_ext4 = s.f_type == EXT4_SUPER_MAGIC;
}
static int make(const char *name, const char *text) {
    int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
    MUST(write(fd, text, strlen(text)));
    return fd;
}
static int flags_of(int fd) {
    int flags = -1;
    return ioctl(fd, FS_IOC_GETFLAGS, &flags) ? -1 : flags;
}
static int set(int fd, int flags) { return ioctl(fd, FS_IOC_SETFLAGS, &flags); }
static int change(int fd, int on, int off) {
    int flags = flags_of(fd);
    return flags == -1 ? -1 : set(fd, (flags & ~off) | on);
}
// Old kernels have no flags on tmpfs.
static bool have_flags(int fd) { return flags_of(fd) != -1 || on_ext4 || on_berth(); }
static struct statx sx_of(const char *name) {
    struct statx x;
    memset(&x, 0, sizeof x);
    MUST(syscall(SYS_statx, AT_FDCWD, name, 0, STATX_BASIC_STATS, &x));
    return x;
}

TEST(immutable) {
    in_dir();
    int fd = make("f", "text");
    if (!have_flags(fd)) return;
    MUST(symlink("f", "l"));
    MUST(change(fd, FS_IMMUTABLE_FL, 0));
    CHECK(flags_of(fd) & FS_IMMUTABLE_FL);
    CHECK(sx_of("f").stx_attributes & STATX_ATTR_IMMUTABLE);
    CHECK(sx_of("f").stx_attributes_mask & STATX_ATTR_IMMUTABLE);
    CHECK_ERR(open("f", O_WRONLY), EPERM);
    CHECK_ERR(open("f", O_RDONLY | O_TRUNC), EPERM);
    CHECK_ERR(access("f", W_OK), EPERM);
    CHECK_ERR(unlink("f"), EPERM);
    CHECK_ERR(rename("f", "g"), EPERM);
    CHECK_ERR(link("f", "g"), EPERM);
    CHECK_ERR(chmod("f", 0600), EPERM);
    CHECK_ERR(chown("f", 1, 1), EPERM);
    CHECK_ERR(truncate("f", 0), EPERM);
    CHECK_ERR(utimensat(AT_FDCWD, "f", NULL, 0), EPERM);
    CHECK_ERR(setxattr("f", "trusted.x", "y", 1, 0), EPERM);
    CHECK_ERR(fallocate(fd, 0, 0, 100), EPERM);
    int other = make("other", "x");
    close(other);
    CHECK_ERR(rename("other", "f"), EPERM);
    if (on_ext4) {
        CHECK_ERR(write(fd, "x", 1), EPERM);
    }
    char b[8] = "";
    CHECK(pread(fd, b, 8, 0) == 4 && !memcmp(b, "text", 4));
    MUST(change(fd, 0, FS_IMMUTABLE_FL));
    MUST(unlink("f"));

    MUST(mkdir("d", 0755));
    close(make("d/in", "x"));
    int d = MUST(open("d", O_RDONLY | O_DIRECTORY));
    MUST(change(d, FS_IMMUTABLE_FL, 0));
    CHECK_ERR(open("d/new", O_CREAT | O_WRONLY, 0644), EPERM);
    CHECK_ERR(mkdir("d/new", 0755), EPERM);
    CHECK_ERR(unlink("d/in"), EPERM);
    CHECK_ERR(rmdir("d"), EPERM);
    close(MUST(open("d/in", O_WRONLY | O_TRUNC)));
    MUST(change(d, 0, FS_IMMUTABLE_FL));
    MUST(unlink("d/in"));
}

TEST(append_only) {
    in_dir();
    int fd = make("f", "text");
    if (!have_flags(fd)) return;
    MUST(change(fd, FS_APPEND_FL, 0));
    CHECK(sx_of("f").stx_attributes & STATX_ATTR_APPEND);
    CHECK_ERR(open("f", O_WRONLY), EPERM);
    CHECK_ERR(open("f", O_WRONLY | O_APPEND | O_TRUNC), EPERM);
    int app = MUST(open("f", O_RDWR | O_APPEND));
    MUST(write(app, "more", 4));
    CHECK_ERR(fcntl(app, F_SETFL, 0), EPERM);
    MUST(fcntl(app, F_SETFL, O_APPEND | O_NONBLOCK));
    CHECK_ERR(ftruncate(app, 0), EPERM);
    CHECK_ERR(truncate("f", 0), EPERM);
    CHECK_ERR(fallocate(app, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4), EPERM);
    CHECK_ERR((long)mmap(NULL, 4096, PROT_READ, MAP_SHARED, app, 0), EACCES);
    CHECK_ERR(chmod("f", 0600), EPERM);
    CHECK_ERR(unlink("f"), EPERM);
    CHECK_ERR(rename("f", "g"), EPERM);
    CHECK_ERR(link("f", "g"), EPERM);
    MUST(utimensat(AT_FDCWD, "f", NULL, 0));
    struct timespec at[2] = {{1, 0}, {1, 0}};
    CHECK_ERR(utimensat(AT_FDCWD, "f", at, 0), EPERM);
    CHECK(!strcmp(slurp("f"), "textmore"), "%s", slurp("f"));
    MUST(change(fd, 0, FS_APPEND_FL));
    MUST(unlink("f"));

    MUST(mkdir("d", 0755));
    int d = MUST(open("d", O_RDONLY | O_DIRECTORY));
    MUST(change(d, FS_APPEND_FL, 0));
    close(make("d/new", "x"));
    CHECK_ERR(unlink("d/new"), EPERM);
    CHECK_ERR(rename("d/new", "out"), EPERM);
    MUST(change(d, 0, FS_APPEND_FL));
    MUST(unlink("d/new"));
}

static void as_user(void *fd_) {
    int fd = (int)(intptr_t)fd_;
    MUST(setgid(1000));
    MUST(setuid(1000));
    int own = MUST(open("mine", O_RDONLY));
    CHECK_ERR(change(own, FS_IMMUTABLE_FL, 0), EPERM);
    CHECK_ERR(change(own, FS_APPEND_FL, 0), EPERM);
    MUST(change(own, FS_NODUMP_FL, 0));
    CHECK_ERR(change(fd, FS_NODUMP_FL, 0), EPERM);
}

TEST(who_may) {
    in_dir();
    int fd = make("f", "x");
    if (!have_flags(fd)) return;
    close(make("mine", "x"));
    MUST(chown("mine", 1000, 1000));
    CHECK(exited_with(in_child(as_user, (void *)(intptr_t)fd), 0));
    CHECK(sx_of("mine").stx_attributes & STATX_ATTR_NODUMP);
    CHECK_ERR(set(fd, 1 << 30 | 1 << 26), EOPNOTSUPP);
    CHECK_ERR(flags_of(MUST(open("/dev/null", O_RDONLY))), ENOTTY);
    int pipe_[2];
    MUST(pipe(pipe_));
    CHECK_ERR(flags_of(pipe_[0]), ENOTTY);
}

TEST(xflags) {
    in_dir();
    int fd = make("f", "x");
    if (!on_ext4) return;
    struct fsxattr x;
    MUST(ioctl(fd, FS_IOC_FSGETXATTR, &x));
    CHECK(x.fsx_xflags == 0 && x.fsx_projid == 0, "%x", (unsigned)x.fsx_xflags);
    x.fsx_xflags = FS_XFLAG_NODUMP | FS_XFLAG_NOATIME;
    MUST(ioctl(fd, FS_IOC_FSSETXATTR, &x));
    CHECK((flags_of(fd) & (FS_NODUMP_FL | FS_NOATIME_FL)) == (FS_NODUMP_FL | FS_NOATIME_FL), "%x", flags_of(fd));
}

TEST(inherited) {
    in_dir();
    if (!on_ext4) return;
    int d = MUST(open(".", O_RDONLY | O_DIRECTORY));
    MUST(change(d, FS_NODUMP_FL | FS_NOATIME_FL | FS_DIRSYNC_FL, 0));
    int fd = make("f", "x");
    int want = FS_NODUMP_FL | FS_NOATIME_FL;
    CHECK((flags_of(fd) & (want | FS_DIRSYNC_FL)) == want, "%x", flags_of(fd));
    CHECK(flags_of(fd) & FS_EXTENT_FL);
    MUST(mkdir("d", 0755));
    int inner = MUST(open("d", O_RDONLY | O_DIRECTORY));
    CHECK(flags_of(inner) & FS_DIRSYNC_FL, "%x", flags_of(inner));
    // Its access time stands still.
    struct timespec at[2] = {{1000, 0}, {2000, 0}};
    MUST(futimens(fd, at));
    char b[4];
    CHECK(pread(fd, b, 4, 0) == 1);
    CHECK(sx_of("f").stx_atime.tv_sec == 1000, "%lld", (long long)sx_of("f").stx_atime.tv_sec);
    MUST(change(fd, 0, FS_NOATIME_FL));
    CHECK(pread(fd, b, 4, 0) == 1);
    CHECK(sx_of("f").stx_atime.tv_sec > 1000);
}

struct map {
    struct fiemap m;
    struct fiemap_extent e[16];
};
static struct map map_of(int fd, uint64_t start, uint64_t len, int flags, int room) {
    struct map m;
    memset(&m, 0, sizeof m);
    m.m.fm_start = start;
    m.m.fm_length = len;
    m.m.fm_flags = flags;
    m.m.fm_extent_count = room;
    MUST(ioctl(fd, FS_IOC_FIEMAP, &m));
    return m;
}

TEST(fiemap) {
    in_dir();
    int fd = make("f", "");
    struct map m;
    memset(&m, 0, sizeof m);
    m.m.fm_length = 1 << 20;
    if (!on_ext4) {
        CHECK_ERR(ioctl(fd, FS_IOC_FIEMAP, &m), EOPNOTSUPP);
        return;
    }
    m.m.fm_flags = 0x4000;
    CHECK_ERR(ioctl(fd, FS_IOC_FIEMAP, &m), EBADR);
    CHECK(m.m.fm_flags == 0x4000);
    m.m.fm_flags = 0;
    m.m.fm_length = 0;
    CHECK_ERR(ioctl(fd, FS_IOC_FIEMAP, &m), EINVAL);
    m = map_of(fd, 0, UINT64_MAX, 0, 16);
    CHECK(m.m.fm_mapped_extents == 0);
    char page[4096];
    memset(page, 'x', sizeof page);
    for (int i = 0; i < 4; i++) MUST(pwrite(fd, page, sizeof page, i * 65536));
    MUST(fallocate(fd, 0, 4 * 65536, 65536));
    m = map_of(fd, 0, UINT64_MAX, FIEMAP_FLAG_SYNC, 0);
    CHECK(m.m.fm_mapped_extents == 5, "%u", m.m.fm_mapped_extents);
    m = map_of(fd, 0, UINT64_MAX, FIEMAP_FLAG_SYNC, 16);
    CHECK(m.m.fm_mapped_extents == 5, "%u", m.m.fm_mapped_extents);
    for (unsigned i = 0; i < 5; i++) {
        struct fiemap_extent *e = &m.e[i];
        CHECK(e->fe_logical == i * 65536 && e->fe_physical != 0 && e->fe_physical % 1024 == 0, "%u", i);
        CHECK(e->fe_length == (i < 4 ? 4096 : 65536), "%u: %llu", i, (unsigned long long)e->fe_length);
        CHECK(e->fe_flags == (i < 4 ? 0 : FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_UNWRITTEN), "%u: %x", i, e->fe_flags);
    }
    m = map_of(fd, 65536, 131072, 0, 16);
    CHECK(m.m.fm_mapped_extents == 2 && m.e[0].fe_logical == 65536 && m.e[1].fe_logical == 131072);
    m = map_of(fd, 0, UINT64_MAX, 0, 3);
    CHECK(m.m.fm_mapped_extents == 3 && !(m.e[2].fe_flags & FIEMAP_EXTENT_LAST));
    int d = MUST(open(".", O_RDONLY | O_DIRECTORY));
    m = map_of(d, 0, UINT64_MAX, 0, 16);
    CHECK(m.m.fm_mapped_extents == 1 && m.e[0].fe_flags == FIEMAP_EXTENT_LAST, "%x", m.e[0].fe_flags);
    int block = 0;
    MUST(ioctl(fd, FIGETBSZ, &block));
    CHECK(block == 1024 || block == 4096, "%d", block);
}

TEST(ranges) {
    in_dir();
    int fd = make("f", "");
    static char text[7 * 4096], in[9 * 4096];
    for (int i = 0; i < 7; i++) memset(text + i * 4096, 'a' + i, 4096);
    MUST(write(fd, text, sizeof text - 10));
    if (!on_ext4) {
        CHECK_ERR(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP);
        return;
    }
    CHECK_ERR(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 100, 4096), EINVAL);
    CHECK_ERR(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 6 * 4096), EINVAL);
    CHECK_ERR(fallocate(fd, FALLOC_FL_INSERT_RANGE, 7 * 4096, 4096), EINVAL);
    MUST(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 2 * 4096));
    CHECK(sx_of("f").stx_size == 5 * 4096 - 10);
    CHECK(pread(fd, in, sizeof in, 0) == 5 * 4096 - 10);
    for (int i = 0; i < 5; i++) CHECK(in[i * 4096] == "adefg"[i] && in[i * 4096 + 4000] == "adefg"[i], "%d: %c", i, in[i * 4096]);
    MUST(fallocate(fd, FALLOC_FL_INSERT_RANGE, 2 * 4096, 4096));
    CHECK(pread(fd, in, sizeof in, 0) == 6 * 4096 - 10);
    for (int i = 0; i < 6; i++) CHECK(in[i * 4096] == "ad\0efg"[i], "%d: %c", i, in[i * 4096]);
    MUST(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 4000, 200));
    MUST(fallocate(fd, FALLOC_FL_ZERO_RANGE, 6 * 4096 - 20, 4096));
    CHECK(sx_of("f").stx_size == 7 * 4096 - 20);
    CHECK(pread(fd, in, sizeof in, 0) == 7 * 4096 - 20);
    CHECK(in[3999] == 'a' && in[4000] == 0 && in[4199] == 0 && in[4200] == 'd');
    CHECK(in[6 * 4096 - 21] == 'g' && in[6 * 4096 - 20] == 0 && in[7 * 4096 - 21] == 0);
}

MAIN(T(ranges), T(immutable), T(append_only), T(who_may), T(xflags), T(inherited), T(fiemap))
