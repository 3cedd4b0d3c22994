// Pseudo-terminals and the line discipline: what sshd, a shell and an editor need.
#include "t.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int master, slave;
static char name[64];
static void open_pty(void) {
    int unlock = 0, n = -1;
    master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    MUST(ioctl(master, TIOCSPTLCK, &unlock));
    MUST(ioctl(master, TIOCGPTN, &n));
    snprintf(name, sizeof name, "/dev/pts/%d", n);
    slave = MUST(open(name, O_RDWR | O_NOCTTY));
}
static char *got(int fd) { // what is there within a moment
    static char b[4096];
    struct pollfd p = {fd, POLLIN, 0};
    size_t n = 0;
    while (n < sizeof b - 1 && poll(&p, 1, n ? 50 : 500) == 1) {
        ssize_t r = read(fd, b + n, sizeof b - 1 - n);
        if (r <= 0) break;
        n += r;
    }
    b[n] = 0;
    return b;
}
static void type(const char *s) { MUST(write(master, s, strlen(s))); }
static struct termios mode(void) {
    struct termios t;
    MUST(tcgetattr(slave, &t));
    return t;
}

TEST(canonical) {
    open_pty();
    struct termios t = mode();
    CHECK((t.c_lflag & (ICANON | ECHO | ISIG)) == (ICANON | ECHO | ISIG) && t.c_cc[VINTR] == 3 && t.c_cc[VEOF] == 4);
    struct pollfd p = {slave, POLLIN, 0};
    type("half a line");
    CHECK(poll(&p, 1, 50) == 0, "a line that is not ended can be read");
    CHECK(!strcmp(got(master), "half a line"));
    type("\x7f\x7f\x7f\x7f" "LINE\n");
    char b[64] = "";
    CHECK(read(slave, b, 64) == 12 && !strcmp(b, "half a LINE\n"), "%s", b);
    got(master);
    type("erased\x15kept\nsecond\n");
    memset(b, 0, 64);
    CHECK(read(slave, b, 64) == 5 && !strcmp(b, "kept\n"), "%s", b);
    CHECK(read(slave, b, 3) == 3 && read(slave, b, 64) == 4, "a line in two reads");
    type("no newline\x04");
    CHECK(read(slave, b, 64) == 10);
    type("\x04");
    CHECK(read(slave, b, 64) == 0, "end of file");
    type("word one two\x17three\n");
    memset(b, 0, 64);
    CHECK(read(slave, b, 64) == 15 && !strcmp(b, "word one three\n"), "%s", b);
    type("lit\x16\x03x\n");
    memset(b, 0, 64);
    CHECK(read(slave, b, 64) == 6 && !strcmp(b, "lit\x03x\n"));
}

TEST(output) {
    open_pty();
    MUST(write(slave, "a\nb", 3));
    CHECK(!strcmp(got(master), "a\r\nb"));
    struct termios t = mode();
    t.c_oflag &= ~OPOST;
    MUST(tcsetattr(slave, TCSANOW, &t));
    MUST(write(slave, "a\nb", 3));
    CHECK(!strcmp(got(master), "a\nb"));
    t.c_lflag &= ~ECHO;
    MUST(tcsetattr(slave, TCSAFLUSH, &t));
    type("silent\n");
    CHECK(!strcmp(got(master), ""), "%s", got(master));
}

TEST(raw) {
    open_pty();
    struct termios t = mode();
    t.c_iflag &= ~(ICRNL | IXON);
    t.c_lflag &= ~(ICANON | ECHO | ISIG | IEXTEN);
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    MUST(tcsetattr(slave, TCSANOW, &t));
    char b[64] = "";
    type("\x03\r\x04x");
    CHECK(read(slave, b, 64) == 4 && !memcmp(b, "\x03\r\x04x", 4));
    t.c_cc[VMIN] = 0;
    t.c_cc[VTIME] = 2;
    MUST(tcsetattr(slave, TCSANOW, &t));
    uint64_t t0 = now_ns();
    CHECK(read(slave, b, 64) == 0 && now_ns() - t0 > 150000000);
    t.c_cc[VTIME] = 0;
    MUST(tcsetattr(slave, TCSANOW, &t));
    CHECK(read(slave, b, 64) == 0);
}

TEST(window_size) {
    open_pty();
    struct winsize w = {24, 80, 0, 0}, r;
    MUST(ioctl(master, TIOCSWINSZ, &w));
    MUST(ioctl(slave, TIOCGWINSZ, &r));
    CHECK(r.ws_row == 24 && r.ws_col == 80);
    int p[2];
    MUST(pipe(p));
    CHECK_ERR(ioctl(p[0], TIOCGWINSZ, &r), ENOTTY);
    CHECK_ERR(ioctl(slave, 0x5499, &r), ENOTTY);
    CHECK(isatty(slave) && isatty(master) && !isatty(p[0]));
}

static volatile int hits;
static void note(int sig) { hits = sig; }
static void session(void) {
    setsid();
    close(slave);
    slave = open(name, O_RDWR); // a session leader's first terminal
}
TEST(controlling_terminal) {
    open_pty();
    int up[2];
    MUST(pipe(up));
    pid_t pid = MUST(fork());
    if (!pid) {
        session();
        pid_t fg = -1;
        CHECK(ioctl(slave, TIOCGPGRP, &fg) == 0 && fg == getpid(), "foreground group %d", fg);
        CHECK(MUST(open("/dev/tty", O_RDWR)) > 0);
        pid_t sid = 0;
        MUST(ioctl(slave, TIOCGSID, &sid));
        CHECK(sid == getpid());
        for (int i = 0; i < 3; i++) {
            static const int sigs[] = {SIGINT, SIGQUIT, SIGTSTP};
            signal(sigs[i], note);
        }
        signal(SIGWINCH, note);
        for (int i = 0; i < 4; i++) {
            hits = 0;
            CHECK(write(up[1], "r", 1) == 1);
            while (!hits) nap_ms(2);
            char c = hits;
            CHECK(write(up[1], &c, 1) == 1);
        }
        // A background job that reads is stopped.
        pid_t bg = fork();
        if (bg == 0) {
            setpgid(0, 0);
            char c;
            CHECK(read(slave, &c, 1) == 1);
            _exit(0);
        }
        int status;
        waitpid(bg, &status, WUNTRACED);
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN, "status %x", status);
        signal(SIGTTOU, SIG_IGN);
        MUST(tcsetpgrp(slave, bg));
        kill(bg, SIGCONT);
        CHECK(write(up[1], "r", 1) == 1);
        waitpid(bg, &status, 0);
        CHECK(exited_with(status, 0), "in the foreground: status %x", status);
        MUST(tcsetpgrp(slave, getpid()));
        CHECK_ERR(tcsetpgrp(slave, 1), EPERM);
        CHECK_ERR(tcsetpgrp(slave, 999999), ESRCH);
        exit(t_failed != 0);
    }
    close(slave);
    char c = 0;
    static const char *keys[] = {"\x03", "\x1c", "\x1a"};
    static const int sigs[] = {SIGINT, SIGQUIT, SIGTSTP, SIGWINCH};
    for (int i = 0; i < 4; i++) {
        MUST(read(up[0], &c, 1));
        if (i < 3) type(keys[i]);
        else MUST(ioctl(master, TIOCSWINSZ, &(struct winsize){50, 100, 0, 0}));
        MUST(read(up[0], &c, 1));
        CHECK(c == sigs[i], "key %d gave signal %d", i, c);
    }
    MUST(read(up[0], &c, 1));
    type("x\n");
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
}

TEST(hangup) {
    open_pty();
    int up[2];
    MUST(pipe(up));
    pid_t pid = MUST(fork());
    if (!pid) {
        session();
        close(master);
        signal(SIGHUP, note);
        CHECK(write(up[1], "r", 1) == 1);
        while (!hits) nap_ms(2);
        char c;
        CHECK(hits == SIGHUP && read(slave, &c, 1) == 0);
        CHECK_ERR(write(slave, "x", 1), EIO);
        exit(t_failed != 0);
    }
    close(slave);
    char c;
    MUST(read(up[0], &c, 1));
    close(master);
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
    // The other way: the last slave closes.
    open_pty();
    close(slave);
    CHECK_ERR(read(master, &c, 1), EIO);
}

TEST(a_shell_on_a_pty) {
    open_pty();
    pid_t pid = MUST(fork());
    if (!pid) {
        session();
        dup2(slave, 0), dup2(slave, 1), dup2(slave, 2);
        execl("/bin/sh", "sh", "-i", (char *)NULL);
        _exit(1);
    }
    close(slave);
    nap_ms(500);
    type("stty -echo; echo $((40+2))\n");
    char all[8192] = "";
    for (int i = 0; i < 20 && !strstr(all, "42"); i++) strncat(all, got(master), sizeof all - strlen(all) - 1);
    CHECK(strstr(all, "42"), "%s", all);
    type("sleep 100\n");
    nap_ms(500);
    type("\x03");
    all[0] = 0;
    type("echo status=$?\n");
    for (int i = 0; i < 20 && !strstr(all, "status=130"); i++) strncat(all, got(master), sizeof all - strlen(all) - 1);
    CHECK(strstr(all, "status=130"), "%s", all);
    type("exit 3\n");
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 3), "status %x", status);
}

TEST(a_slave_belongs_to_its_opener) {
    pid_t pid = MUST(fork());
    if (!pid) { // not root, as a login over ssh or script(1) is not
        MUST(setgid(4242));
        MUST(setuid(4242));
        open_pty();
        struct stat st;
        CHECK(fstat(slave, &st) == 0 && st.st_uid == 4242 && st.st_gid == 5 && st.st_mode == (S_IFCHR | 0620));
        CHECK(chmod(name, 0600) == 0 && stat(name, &st) == 0 && st.st_mode == (S_IFCHR | 0600), "a change lasts");
        close(slave);
        CHECK((slave = open(name, O_RDWR | O_NOCTTY)) >= 0 && write(slave, "x", 1) == 1);
        CHECK_ERR(chown(name, 0, 5), EPERM);
        _exit(0);
    }
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
    open_pty(); // root's is nobody else's, until it is given away as login(1) does
    if (!(pid = MUST(fork()))) {
        MUST(setuid(4242));
        CHECK_ERR(open(name, O_RDWR | O_NOCTTY), EACCES);
        _exit(0);
    }
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
    MUST(chown(name, 4242, 5));
    if (!(pid = MUST(fork()))) {
        MUST(setuid(4242));
        CHECK(open(name, O_RDWR | O_NOCTTY) >= 0, "%s: %s", name, strerror(errno));
        _exit(0);
    }
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
}

TEST(many) {
    int m[32];
    for (int i = 0; i < 32; i++) {
        open_pty();
        m[i] = master;
        close(slave);
    }
    int n;
    MUST(ioctl(m[31], TIOCGPTN, &n));
    for (int i = 0; i < 32; i++) close(m[i]);
    CHECK(access(name, F_OK) == -1 && errno == ENOENT, "%s is still there", name);
}

MAIN(T(canonical), T(output), T(raw), T(window_size), T(controlling_terminal), T(hangup), T(a_shell_on_a_pty), T(a_slave_belongs_to_its_opener),
     T(many))
