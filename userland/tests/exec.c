// m4: how a program is started: its stack as Linux lays it out, scripts, and malformed ELF files.
#include "t.h"
#include <dirent.h>
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>

extern char **environ;
static const char *self = "/usr/lib/berth-tests/exec";

// Run a program and give its status; its output goes into out.
static int output_of(char *const argv[], char *const envp[], const char *path, char *out, size_t size) {
    int p[2], status = -1;
    MUST(pipe(p));
    pid_t pid = MUST(fork());
    if (!pid) {
        dup2(p[1], 1);
        dup2(p[1], 2);
        close(p[0]);
        close(p[1]);
        execve(path, argv, envp);
        dprintf(1, "errno %d", errno);
        _exit(126);
    }
    close(p[1]);
    size_t n = 0;
    ssize_t r;
    while (n < size - 1 && (r = read(p[0], out + n, size - 1 - n)) > 0) n += r;
    out[n] = 0;
    close(p[0]);
    waitpid(pid, &status, 0);
    return status;
}

static unsigned long aux(unsigned long type, bool *found) {
    char **p = environ;
    while (*p) p++;
    for (ElfW(auxv_t) *a = (void *)(p + 1); a->a_type != AT_NULL; a++)
        if (a->a_type == type) {
            *found = true;
            return a->a_un.a_val;
        }
    *found = false;
    return 0;
}

TEST(auxv) {
    bool found;
    static const struct { int type; const char *name; } need[] = {
        {AT_PHDR, "PHDR"}, {AT_PHENT, "PHENT"}, {AT_PHNUM, "PHNUM"}, {AT_PAGESZ, "PAGESZ"}, {AT_ENTRY, "ENTRY"},
        {AT_UID, "UID"}, {AT_EUID, "EUID"}, {AT_GID, "GID"}, {AT_EGID, "EGID"}, {AT_HWCAP, "HWCAP"}, {AT_CLKTCK, "CLKTCK"},
        {AT_SECURE, "SECURE"}, {AT_RANDOM, "RANDOM"}, {AT_EXECFN, "EXECFN"}, {AT_PLATFORM, "PLATFORM"},
        {AT_SYSINFO_EHDR, "SYSINFO_EHDR"}, {AT_BASE, "BASE"}, {AT_FLAGS, "FLAGS"},
    };
    for (size_t i = 0; i < sizeof need / sizeof *need; i++) {
        aux(need[i].type, &found);
        CHECK(found, "no AT_%s", need[i].name);
    }
    CHECK(aux(AT_PAGESZ, &found) == PAGE && aux(AT_CLKTCK, &found) == 100 && aux(AT_SECURE, &found) == 0);
    CHECK(aux(AT_UID, &found) == getuid() && aux(AT_EGID, &found) == getegid());
    CHECK(aux(AT_PHENT, &found) == sizeof(ElfW(Phdr)));
    CHECK(!strcmp((char *)aux(AT_PLATFORM, &found), "aarch64"));
    ElfW(Phdr) *ph = (void *)aux(AT_PHDR, &found);
    int loads = 0;
    for (unsigned i = 0; i < aux(AT_PHNUM, &found); i++) loads += ph[i].p_type == PT_LOAD;
    CHECK(loads >= 1);
    unsigned long hwcap = aux(AT_HWCAP, &found);
    CHECK((hwcap & 0x1ff) == 0x1ff, "HWCAP %lx: fp to atomics are what this CPU has", hwcap); // fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics
    ElfW(Ehdr) *vdso = (void *)aux(AT_SYSINFO_EHDR, &found);
    CHECK(!memcmp(vdso->e_ident, ELFMAG, 4) && vdso->e_machine == EM_AARCH64);
    unsigned char *random = (void *)aux(AT_RANDOM, &found);
    int nonzero = 0;
    for (int i = 0; i < 16; i++) nonzero += random[i] != 0;
    CHECK(nonzero > 4);
    CHECK(!strcmp((char *)aux(AT_EXECFN, &found), self) || strstr((char *)aux(AT_EXECFN, &found), "exec"), "%s", (char *)aux(AT_EXECFN, &found));
}

TEST(stack_layout) {
    // argc, argv[], NULL, envp[], NULL, auxv: in this order from the initial stack pointer, strings above.
    char *envp[] = {"A=1", "EMPTY=", "B=two words", NULL}, out[1024];
    char *dump[] = {"exec", "dump", "x", "", NULL};
    int status = output_of(dump, envp, self, out, sizeof out);
    CHECK(exited_with(status, 0), "status %x", status);
    CHECK(!strcmp(out, "4 [exec] [dump] [x] [] | [A=1] [EMPTY=] [B=two words] | ok\n"), "%s", out);
}

TEST(empty_argv_and_env) {
    char out[1024], *none[] = {NULL}, *dump[] = {"exec", "dump", NULL};
    int status = output_of(dump, none, self, out, sizeof out);
    CHECK(exited_with(status, 0) && !strcmp(out, "2 [exec] [dump] | | ok\n"), "%s", out);
    // Linux gives a program without arguments one empty one (since 5.18).
    status = output_of(none, none, "/usr/lib/berth-tests/hello", out, sizeof out);
    CHECK(exited_with(status, 0) && !strcmp(out, "hello from \n"), "%s", out);
}

TEST(arguments_too_big) {
    size_t n = 140000; // one string over 32 pages
    char *s = malloc(n + 1);
    memset(s, 'a', n);
    s[n] = 0;
    char *argv[] = {"hello", s, NULL}, *envp[] = {NULL}, out[64];
    output_of(argv, envp, "/usr/lib/berth-tests/hello", out, sizeof out);
    CHECK(!strcmp(out, "errno 7"), "one string of 140 000: %s", out);
    s[100000] = 0; // one of 100 000 is fine, and so are twenty
    char *many[100];
    for (int i = 0; i < 99; i++) many[i] = s;
    many[20] = NULL;
    static char big[3 << 20];
    int status = output_of(many, envp, "/usr/lib/berth-tests/hello", big, sizeof big);
    CHECK(exited_with(status, 0), "2 MB of arguments: %.40s", big);
    many[20] = s;
    many[99] = NULL;
    output_of(many, envp, "/usr/lib/berth-tests/hello", big, sizeof big);
    CHECK(!strcmp(big, "errno 7"), "10 MB of arguments: %.40s", big);
}

static void kinds(const char *path, const char *want) {
    char out[256], *argv[] = {(char *)path, "arg", NULL}, *envp[] = {NULL};
    int status = output_of(argv, envp, path, out, sizeof out);
    CHECK(exited_with(status, 0) && !strcmp(out, want), "%s: status %x, %s", path, status, out);
}
TEST(static_elf) { kinds("/usr/lib/berth-tests/hello", "hello from /usr/lib/berth-tests/hello arg\n"); }
TEST(static_pie) { kinds("/usr/lib/berth-tests/hello-pie", "hello from /usr/lib/berth-tests/hello-pie arg\n"); }
TEST(dynamic_pie) { kinds("/usr/lib/berth-tests/hello-dyn", "hello from /usr/lib/berth-tests/hello-dyn arg\n"); }
TEST(dynamic_nopie) { kinds("/usr/lib/berth-tests/hello-nopie", "hello from /usr/lib/berth-tests/hello-nopie arg\n"); }

static char dir[64];
static const char *put(const char *name, const void *data, size_t n, int mode) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
    int fd = MUST(open(path, O_WRONLY | O_CREAT | O_TRUNC, mode));
    MUST(write(fd, data, n));
    close(fd);
    chmod(path, mode);
    return path;
}
static void make_dir(void) {
    snprintf(dir, sizeof dir, "/tmp/exec.%d", getpid());
    mkdir(dir, 0755);
}
static void script(const char *text, const char *want) {
    const char *path = put("script", text, strlen(text), 0755);
    char out[1024], *argv[] = {"name", "a1", "a 2", NULL}, *envp[] = {"PATH=/bin", NULL}, expect[512];
    output_of(argv, envp, path, out, sizeof out);
    snprintf(expect, sizeof expect, want, path);
    CHECK(!strcmp(out, expect), "script %.40s...: %s, not %s", text, out, expect);
}
TEST(scripts) {
    make_dir();
    script("#!/bin/sh\necho \"$0 $# $1 $2\"\n", "%s 2 a1 a 2\n");
    script("#! /bin/sh -e \necho \"$-$2\"; false; echo not here\n", "ea 2\n");
    script("#!/bin/echo one two  \n", "one two %s a1 a 2\n");
    script("#!/bin/echo", "%s a1 a 2\n");
    script("#!\t /bin/echo x\n", "x %s a1 a 2\n");
    script("#!/no/such/interpreter\n", "errno 2");
    script("#!\n", "errno 8");
    script("#!   \n", "errno 8");
    script("no interpreter line\n", "errno 8");
    script("", "errno 8");
    char loop[256], *envp[] = {NULL}, out[256];
    snprintf(loop, sizeof loop, "#!%s/script\n", dir);
    put("script", loop, strlen(loop), 0755);
    char path[128];
    snprintf(path, sizeof path, "%s/script", dir);
    char *argv[] = {"s", NULL};
    output_of(argv, envp, path, out, sizeof out);
    CHECK(!strcmp(out, "errno 40"), "a script that interprets itself: %s", out); // ELOOP
    // A script run by a script is run by that one's interpreter.
    char inner[256];
    put("inner", "#!/bin/echo inner\n", 18, 0755);
    snprintf(inner, sizeof inner, "#!%s/inner outer\n", dir);
    put("script", inner, strlen(inner), 0755);
    output_of(argv, envp, path, out, sizeof out);
    char want[512];
    snprintf(want, sizeof want, "inner %s/inner outer %s\n", dir, path);
    CHECK(!strcmp(out, want), "%s", out);
}

TEST(refusals) {
    make_dir();
    char *argv[] = {"x", NULL}, *envp[] = {NULL};
    CHECK_ERR(execve("/no/such/file", argv, envp), ENOENT);
    CHECK_ERR(execve("/tmp", argv, envp), EACCES);
    CHECK_ERR(execve("/etc/passwd", argv, envp), EACCES);
    CHECK_ERR(execve("/etc/passwd/x", argv, envp), ENOTDIR);
    CHECK_ERR(execve("", argv, envp), ENOENT);
    CHECK_ERR(execve("/dev/null", argv, envp), EACCES);
    CHECK_ERR(syscall(SYS_execve, (char *)8, argv, envp), EFAULT);
    CHECK_ERR(syscall(SYS_execve, "/bin/sh", (char **)8, envp), EFAULT);
    CHECK_ERR(syscall(SYS_execve, "/bin/sh", argv, (char **)0xffff000000000000), EFAULT);
    char *bad[] = {"x", (char *)8, NULL};
    CHECK_ERR(syscall(SYS_execve, "/bin/sh", bad, envp), EFAULT);
    CHECK_ERR(syscall(SYS_execveat, -1, "", argv, envp, AT_EMPTY_PATH), EBADF);
    CHECK_ERR(syscall(SYS_execveat, AT_FDCWD, "/bin/sh", argv, envp, 0x40000), EINVAL);
    char long_path[5000];
    memset(long_path, '/', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = 0;
    CHECK_ERR(execve(long_path, argv, envp), ENAMETOOLONG);
}

TEST(execveat_and_cloexec) {
    int p[2];
    MUST(pipe(p));
    pid_t pid = MUST(fork());
    if (!pid) {
        int exe = open("/usr/lib/berth-tests/hello", O_RDONLY | O_CLOEXEC), kept = open("/dev/null", O_RDONLY);
        (void)kept;
        dup2(p[1], 1);
        char *argv[] = {"by-descriptor", NULL}, *envp[] = {NULL};
        syscall(SYS_execveat, exe, "", argv, envp, AT_EMPTY_PATH);
        _exit(126);
    }
    close(p[1]);
    char out[128] = "";
    MUST(read(p[0], out, sizeof out - 1));
    CHECK(!strcmp(out, "hello from by-descriptor\n"), "%s", out);
    int status;
    waitpid(pid, &status, 0);
    CHECK(exited_with(status, 0));
    int a = MUST(open("/dev/null", O_RDONLY)), b = MUST(open("/dev/null", O_RDONLY | O_CLOEXEC));
    char fds[64], text[256], *argv[] = {"exec", "fds", fds, NULL}, *envp[] = {NULL};
    snprintf(fds, sizeof fds, "%d,%d", a, b);
    output_of(argv, envp, self, text, sizeof text);
    CHECK(!strcmp(text, "open closed\n"), "%s", text);
}

static void caught(int sig) {}
TEST(exec_resets_signals) {
    signal(SIGUSR1, SIG_IGN);
    struct sigaction sa = {.sa_handler = caught};
    sigaction(SIGUSR2, &sa, NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    char text[256], *argv[] = {"exec", "signals", NULL}, *envp[] = {NULL};
    output_of(argv, envp, self, text, sizeof text);
    CHECK(!strcmp(text, "usr1 ignored usr2 default hup blocked\n"), "%s", text);
}

// ---- malformed ELF ------------------------------------------------------------------------------------------------
// Each entry breaks one thing of a good file. Linux answers ENOEXEC, EINVAL, ENOMEM or EIO, or lets it start and die of
// a signal; what no kernel may do is run it well, or fall over.
struct bad {
    const char *name;
    void (*change)(unsigned char *file, size_t *size);
};
#define EH ((Elf64_Ehdr *)f)
#define PH(i) ((Elf64_Phdr *)(f + EH->e_phoff))[i]
#define BAD(name) static void bad_##name(unsigned char *f, size_t *n)
static int first_load(unsigned char *f) {
    for (int i = 0; i < EH->e_phnum; i++)
        if (PH(i).p_type == PT_LOAD) return i;
    return 0;
}
BAD(magic) { f[1] = 'X'; }
BAD(empty) { *n = 0; }
BAD(one_byte) { *n = 1; }
BAD(four_bytes) { *n = 4; }
BAD(header_cut) { *n = 40; }
BAD(header_only) { *n = 64; }
BAD(phdrs_cut) { *n = 64 + 56 + 3; }
BAD(class32) { f[EI_CLASS] = ELFCLASS32; EH->e_machine = EM_ARM + 1; }
BAD(machine_x86) { EH->e_machine = EM_X86_64; }
BAD(machine_none) { EH->e_machine = 0; }
BAD(type_rel) { EH->e_type = ET_REL; }
BAD(type_core) { EH->e_type = ET_CORE; }
BAD(type_none) { EH->e_type = 0; }
BAD(phentsize_zero) { EH->e_phentsize = 0; }
BAD(phentsize_odd) { EH->e_phentsize = 55; }
BAD(phnum_zero) { EH->e_phnum = 0; }
BAD(phnum_max) { EH->e_phnum = 0xffff; }
BAD(phoff_far) { EH->e_phoff = 1ul << 40; }
BAD(phoff_wraps) { EH->e_phoff = ~0ul - 8; }
BAD(no_load) { for (int i = 0; i < EH->e_phnum; i++) if (PH(i).p_type == PT_LOAD) PH(i).p_type = PT_NOTE; }
BAD(filesz_over_memsz) { int i = first_load(f); PH(i).p_filesz = PH(i).p_memsz + 1; }
BAD(memsz_huge) { PH(first_load(f)).p_memsz = 1ul << 60; }
BAD(memsz_wraps) { PH(first_load(f)).p_memsz = ~0ul; }
BAD(vaddr_kernel) { PH(first_load(f)).p_vaddr = 0xffff000000000000; }
BAD(vaddr_top) { PH(first_load(f)).p_vaddr = 0xfffffffff000; }
BAD(vaddr_wraps) { PH(first_load(f)).p_vaddr = ~0ul & ~0xffful; }
BAD(vaddr_misaligned) { PH(first_load(f)).p_vaddr += 0x123; }
BAD(offset_misaligned) { PH(first_load(f)).p_offset += 0x10; }
BAD(offset_far) { PH(first_load(f)).p_offset = 1ul << 40; }
BAD(offset_wraps) { PH(first_load(f)).p_offset = ~0xffful; }
BAD(entry_kernel) { EH->e_entry = 0xffff000040080000; }
BAD(entry_unmapped) { EH->e_entry = 0x7ffffff000; }
BAD(entry_misaligned) { EH->e_entry |= 2; }
BAD(segment_no_rights) { PH(first_load(f)).p_flags = 0; }
BAD(interp_unterminated) { PH(1).p_type = PT_INTERP; PH(1).p_offset = 1; PH(1).p_filesz = 20; }
BAD(interp_zero) { PH(1).p_type = PT_INTERP; PH(1).p_filesz = 0; }
BAD(interp_huge) { PH(1).p_type = PT_INTERP; PH(1).p_filesz = 1ul << 32; }
BAD(interp_outside) { PH(1).p_type = PT_INTERP; PH(1).p_offset = 1ul << 50; PH(1).p_filesz = 20; }
BAD(all_ones_phdr) { memset(&PH(0), 0xff, sizeof(Elf64_Phdr)); PH(0).p_type = PT_LOAD; }
BAD(segment_below_mmap_min) { PH(first_load(f)).p_vaddr = 0; }
#undef BAD
#define B(x) {#x, bad_##x}
static const struct bad corpus[] = {
    B(magic), B(empty), B(one_byte), B(four_bytes), B(header_cut), B(header_only), B(phdrs_cut), B(class32), B(machine_x86), B(machine_none),
    B(type_rel), B(type_core), B(type_none), B(phentsize_zero), B(phentsize_odd), B(phnum_zero), B(phnum_max), B(phoff_far), B(phoff_wraps),
    B(no_load), B(filesz_over_memsz), B(memsz_huge), B(memsz_wraps), B(vaddr_kernel), B(vaddr_top), B(vaddr_wraps), B(vaddr_misaligned),
    B(offset_misaligned), B(offset_far), B(offset_wraps), B(entry_kernel), B(entry_unmapped), B(entry_misaligned), B(segment_no_rights),
    B(interp_unterminated), B(interp_zero), B(interp_huge), B(interp_outside), B(all_ones_phdr), B(segment_below_mmap_min),
};

static int try_file(const char *path, char *out, size_t size) {
    char *argv[] = {"hello", NULL}, *envp[] = {NULL};
    return output_of(argv, envp, path, out, size);
}
static void refused(const char *name, int status, const char *out) {
    int e = -1;
    if (exited_with(status, 126) && sscanf(out, "errno %d", &e) == 1) {
        bool fine = e == ENOEXEC || e == EINVAL || e == ENOMEM || e == EIO || e == EFAULT || e == ELIBBAD || e == ENOENT || e == EPERM;
        if (on_berth()) fine = e == ENOEXEC || e == EINVAL || e == ENOMEM;
        CHECK(fine, "%s: errno %d", name, e);
    } else {
        CHECK(WIFSIGNALED(status), "%s: status %x, %.40s", name, status, out);
    }
}
static size_t good_file(unsigned char *f, size_t max) {
    int fd = MUST(open("/usr/lib/berth-tests/hello", O_RDONLY));
    size_t n = 0;
    ssize_t r;
    while ((r = read(fd, f + n, max - n)) > 0) n += r;
    close(fd);
    return n;
}
TEST(malformed_elf) {
    static unsigned char good[1 << 20], f[1 << 20];
    char out[256];
    make_dir();
    size_t size = good_file(good, sizeof good);
    CHECK(exited_with(try_file(put("good", good, size, 0755), out, sizeof out), 0), "the unbroken one: %s", out);
    for (size_t i = 0; i < sizeof corpus / sizeof *corpus; i++) {
        size_t n = size;
        memcpy(f, good, size);
        corpus[i].change(f, &n);
        refused(corpus[i].name, try_file(put(corpus[i].name, f, n, 0755), out, sizeof out), out);
    }
    // Still alive and well.
    CHECK(exited_with(try_file(put("good", good, size, 0755), out, sizeof out), 0), "the unbroken one afterwards: %s", out);
}
// Files that a gate lays into /elf-corpus. A name may end in what must come of it: ".0" must run, ".any" may do anything
// to its own process; ".ENOEXEC" and ".EINVAL" hold on Berth (Linux notices some of it later and kills the process, and takes
// a few of them: see elf-image). Others must not run well.
TEST(corpus_directory) {
    DIR *d = opendir("/elf-corpus");
    if (!d) return;
    char path[512], out[256], want[16];
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/elf-corpus/%s", e->d_name);
        int status = try_file(path, out, sizeof out);
        const char *dot = strrchr(e->d_name, '.');
        if (dot && !strcmp(dot, ".any")) continue;
        if (dot && !strcmp(dot, ".0")) {
            CHECK(exited_with(status, 0), "%s: status %x, %.40s", e->d_name, status, out);
        } else if (!dot) {
            refused(e->d_name, status, out);
        } else if (on_berth()) {
            snprintf(want, sizeof want, "errno %d", !strcmp(dot, ".EINVAL") ? EINVAL : ENOEXEC);
            CHECK(exited_with(status, 126) && !strcmp(out, want), "%s: status %x, %.40s", e->d_name, status, out);
        }
    }
    closedir(d);
}
TEST(flipped_bits) {
    // One byte of the headers after another set to odd values: anything may happen to the program, nothing to the kernel.
    static unsigned char good[1 << 20], f[1 << 20];
    char out[256];
    make_dir();
    size_t size = good_file(good, sizeof good);
    unsigned x = 12345;
    for (int i = 0; i < 150; i++) {
        memcpy(f, good, size);
        for (int k = 0; k < 3; k++) {
            x = x * 1103515245 + 12345;
            f[4 + (x >> 8) % 300] = x >> 16;
        }
        const char *path = put("flip", f, size, 0755);
        pid_t pid = MUST(fork());
        if (!pid) {
            int null = open("/dev/null", O_RDWR);
            dup2(null, 0), dup2(null, 1), dup2(null, 2);
            alarm(5);
            execl(path, "flip", (char *)NULL);
            _exit(126);
        }
        waitpid(pid, NULL, 0);
    }
    CHECK(exited_with(try_file(put("good", good, size, 0755), out, sizeof out), 0));
}

static const struct test tests[] = {
    T(auxv), T(stack_layout), T(empty_argv_and_env), T(arguments_too_big), T(static_elf), T(static_pie), T(dynamic_pie),
    T(dynamic_nopie), T(scripts), T(refusals), T(execveat_and_cloexec), T(exec_resets_signals), T(malformed_elf), T(corpus_directory),
    T_FOR(flipped_bits, 180),
};

static int dump(int argc, char **argv) {
    printf("%d ", argc);
    for (int i = 0; i < argc; i++) printf("[%s] ", argv[i]);
    printf("|");
    for (char **e = environ; *e; e++) printf(" [%s]", *e);
    char **e = environ;
    bool order = argv[argc] == NULL && environ == argv + argc + 1 && ((long *)argv)[-1] == argc && ((uintptr_t)(argv - 1) & 15) == 0;
    while (*e) e++;
    ElfW(auxv_t) *a = (void *)(e + 1);
    int n = 0;
    while (a->a_type != AT_NULL && n++ < 64) a++;
    printf(" | %s\n", order && n > 10 && n < 64 ? "ok" : "bad order");
    return 0;
}
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "dump")) return dump(argc, argv);
    if (argc == 3 && !strcmp(argv[1], "fds")) {
        int a, b;
        sscanf(argv[2], "%d,%d", &a, &b);
        printf("%s %s\n", fcntl(a, F_GETFD) == -1 ? "closed" : "open", fcntl(b, F_GETFD) == -1 ? "closed" : "open");
        return 0;
    }
    if (argc == 2 && !strcmp(argv[1], "signals")) {
        struct sigaction a, b;
        sigset_t set;
        sigaction(SIGUSR1, NULL, &a);
        sigaction(SIGUSR2, NULL, &b);
        sigprocmask(SIG_BLOCK, NULL, &set);
        printf("usr1 %s usr2 %s hup %s\n", a.sa_handler == SIG_IGN ? "ignored" : "default",
               b.sa_handler == SIG_DFL ? "default" : "caught", sigismember(&set, SIGHUP) ? "blocked" : "free");
        return 0;
    }
    return t_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
