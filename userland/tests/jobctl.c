// Job control: what a shell, its terminal and the kernel do together (POSIX 11.1; the shell here is the test).
#include "t.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int master, tty, up[2], down[2];
static volatile int hits[65];
static void note(int sig) { hits[sig]++; }
static void catch(int sig) {
    struct sigaction sa = {.sa_handler = note};
    sigaction(sig, &sa, NULL);
}
// A child that leads a session on a new terminal and runs f; its end is the caller's to wait for.
static pid_t session(void (*f)(void)) {
    int unlock = 0, n;
    char name[32];
    master = MUST(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    MUST(ioctl(master, TIOCSPTLCK, &unlock));
    MUST(ioctl(master, TIOCGPTN, &n));
    snprintf(name, sizeof name, "/dev/pts/%d", n);
    MUST(pipe(up)), MUST(pipe(down));
    pid_t pid = MUST(fork());
    if (!pid) {
        t_failed = 0;
        MUST(setsid());
        tty = MUST(open(name, O_RDWR));
        close(master), close(up[0]), close(down[1]);
        f();
        exit(t_failed != 0);
    }
    close(up[1]), close(down[0]);
    return pid;
}
static void ends_well(pid_t pid) {
    int status;
    MUST(waitpid(pid, &status, 0));
    CHECK(exited_with(status, 0), "status %x", status);
}
static void say(char c) { MUST(write(up[1], &c, 1)); }
static char hear(void) { char c = 0; MUST(read(up[0], &c, 1)); return c; }
static void type(const char *s) { MUST(write(master, s, strlen(s))); }
static pid_t job(void (*f)(void)) {
    pid_t pid = MUST(fork());
    if (!pid) {
        setpgid(0, 0);
        f();
        _exit(t_failed != 0);
    }
    setpgid(pid, pid);
    return pid;
}
static void foreground(pid_t group) {
    sigset_t s, old;
    sigemptyset(&s), sigaddset(&s, SIGTTOU);
    sigprocmask(SIG_BLOCK, &s, &old);
    MUST(tcsetpgrp(tty, group));
    sigprocmask(SIG_SETMASK, &old, NULL);
}
static int stopped_by(pid_t pid) {
    int status;
    MUST(waitpid(pid, &status, WUNTRACED));
    return WIFSTOPPED(status) ? WSTOPSIG(status) : -1;
}

static void sleeper(void) { for (;;) pause(); }
static void reader(void) { char c; while (read(tty, &c, 1) != 1 && errno == EINTR) {} _exit(c == '\n' ? 5 : 6); }
static void keys(void) {
    pid_t pid = job(sleeper);
    foreground(pid);
    say('r'); // ^Z is typed
    CHECK(stopped_by(pid) == SIGTSTP);
    foreground(getpid());
    MUST(kill(-pid, SIGCONT)); // bg
    int status;
    CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
    foreground(pid); // fg
    say('r'); // ^C
    CHECK(waitpid(pid, &status, 0) == pid && died_of(status, SIGINT), "%x", status);
    foreground(getpid());
    pid = job(sleeper);
    foreground(pid);
    say('r'); // ^backslash
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGQUIT, "%x", status);
}
TEST(keys_go_to_the_foreground) {
    pid_t pid = session(keys);
    hear(), type("\x1a");
    hear(), type("\x03");
    hear(), type("\x1c");
    ends_well(pid);
}

static void writer(void) { _exit(write(tty, "x", 1) == 1 ? 7 : errno); }
static void setter(void) { struct termios t; _exit(tcgetattr(tty, &t) ? 99 : tcsetattr(tty, TCSANOW, &t) ? errno : 7); }
static void grabber(void) { _exit(tcsetpgrp(tty, getpgrp()) ? errno : 7); }
static void ignoring_reader(void) { char c; signal(SIGTTIN, SIG_IGN); _exit(read(tty, &c, 1) == -1 ? errno : 0); }
static void ignoring_grabber(void) { signal(SIGTTOU, SIG_IGN); grabber(); }
static int end_of(pid_t pid) { int status; MUST(waitpid(pid, &status, 0)); return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
static void background(void) {
    pid_t pid = job(reader);
    CHECK(stopped_by(pid) == SIGTTIN);
    foreground(pid);
    kill(-pid, SIGCONT);
    say('r');
    CHECK(end_of(pid) == 5);
    foreground(getpid());
    CHECK(end_of(job(writer)) == 7, "without TOSTOP");
    struct termios t;
    MUST(tcgetattr(tty, &t));
    t.c_lflag |= TOSTOP;
    MUST(tcsetattr(tty, TCSANOW, &t));
    pid = job(writer);
    CHECK(stopped_by(pid) == SIGTTOU, "with TOSTOP");
    kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    pid = job(setter);
    CHECK(stopped_by(pid) == SIGTTOU);
    foreground(pid);
    kill(pid, SIGCONT);
    CHECK(end_of(pid) == 7, "in the foreground");
    foreground(getpid());
    pid = job(grabber);
    CHECK(stopped_by(pid) == SIGTTOU);
    kill(pid, SIGKILL), waitpid(pid, NULL, 0);
    CHECK(end_of(job(ignoring_reader)) == EIO);
    CHECK(end_of(job(ignoring_grabber)) == 7);
    foreground(getpid());
}
TEST(the_background_is_stopped) {
    pid_t pid = session(background);
    hear(), type("\n");
    ends_well(pid);
}

static void rules(void) {
    CHECK(tcgetpgrp(tty) == getpid() && tcgetsid(tty) == getpid());
    CHECK_ERR(tcsetpgrp(tty, -1), EINVAL);
    CHECK_ERR(tcsetpgrp(tty, 999999), ESRCH);
    CHECK_ERR(tcsetpgrp(tty, getppid()), EPERM);
    CHECK_ERR(setpgid(0, getppid()), EPERM);
    CHECK_ERR(setsid(), EPERM);
    pid_t pid = MUST(fork());
    if (!pid) { // in another session it is nobody's terminal
        MUST(setsid());
        CHECK_ERR(open("/dev/tty", O_RDWR), ENXIO);
        pid_t g;
        CHECK_ERR(ioctl(tty, TIOCGPGRP, &g), ENOTTY);
        CHECK_ERR(ioctl(tty, TIOCSPGRP, &(pid_t){getpid()}), ENOTTY);
        CHECK_ERR(ioctl(tty, TIOCNOTTY), ENOTTY);
        CHECK_ERR(ioctl(tty, TIOCSCTTY, 0), EPERM);
        _exit(t_failed != 0);
    }
    ends_well(pid);
    pid = MUST(fork()); // it leaves its group alone: only who moves it says where it is
    if (!pid) sleeper();
    MUST(setpgid(pid, pid));
    CHECK_ERR(setpgid(pid, getppid()), EPERM);
    MUST(setpgid(pid, getpid()));
    CHECK(getpgid(pid) == getpid() && getsid(pid) == getpid());
    kill(pid, SIGKILL), waitpid(pid, NULL, 0);
}
TEST(who_may_set_what) { ends_well(session(rules)); }

// A group whose last tie to its session goes is told by SIGHUP and SIGCONT if one of it is stopped; orphans never stop for the tty.
static void orphan(void) {
    pid_t middle = MUST(fork());
    if (!middle) {
        pid_t pid = fork();
        if (!pid) {
            setpgid(0, 0);
            catch(SIGHUP), catch(SIGCONT);
            raise(SIGSTOP);
            while (!hits[SIGHUP] || !hits[SIGCONT]) nap_ms(1);
            char c;
            CHECK_ERR(read(tty, &c, 1), EIO);
            raise(SIGTSTP); // does not stop it
            say(t_failed ? 'f' : 'k');
            _exit(0);
        }
        int status;
        MUST(waitpid(pid, &status, WUNTRACED));
        _exit(WIFSTOPPED(status) ? 0 : 1);
    }
    ends_well(middle);
    char c;
    MUST(read(down[0], &c, 1));
}
TEST(orphaned_groups) {
    pid_t pid = session(orphan);
    CHECK(hear() == 'k');
    MUST(write(down[1], "x", 1));
    ends_well(pid);
}

// The leader's end takes the terminal away: the foreground gets SIGHUP, others lose the terminal.
static void fg_job(void) {
    catch(SIGHUP);
    say('r');
    while (!hits[SIGHUP]) nap_ms(1);
    CHECK(write(tty, "x", 1) == 1, "a pty is not hung up by that");
    CHECK_ERR(open("/dev/tty", O_RDWR), ENXIO);
    say(t_failed ? 'f' : 'k');
    _exit(0);
}
static void leader(void) {
    pid_t pid = job(fg_job);
    foreground(pid);
    char c;
    MUST(read(down[0], &c, 1));
}
TEST(the_leader_dies) {
    pid_t pid = session(leader);
    hear();
    MUST(write(down[1], "x", 1));
    ends_well(pid);
    CHECK(hear() == 'k');
}

static void gives_up(void) {
    catch(SIGHUP), catch(SIGCONT);
    MUST(ioctl(tty, TIOCNOTTY));
    while (!hits[SIGHUP] || !hits[SIGCONT]) nap_ms(1);
    CHECK_ERR(open("/dev/tty", O_RDWR), ENXIO);
    CHECK_ERR(tcgetpgrp(tty), ENOTTY);
    MUST(ioctl(tty, TIOCSCTTY, 0));
    CHECK(tcgetpgrp(tty) == getpid());
}
TEST(giving_the_terminal_up) { ends_well(session(gives_up)); }

MAIN(T(keys_go_to_the_foreground), T(the_background_is_stopped), T(who_may_set_what), T(orphaned_groups), T(the_leader_dies), T(giving_the_terminal_up))
