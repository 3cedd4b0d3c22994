// Signals as an interactive shell needs them: handlers with siginfo, masks, restart and EINTR, alternate stacks, process
// groups, stop and continue, wait in its forms, timers.
#include "t.h"
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <ucontext.h>

static volatile sig_atomic_t hits, last_sig;
static siginfo_t last_info;
static void note(int sig, siginfo_t *si, void *ctx) {
    hits++;
    last_sig = sig;
    if (si) last_info = *si;
}
static void handle(int sig, int flags) {
    struct sigaction sa = {.sa_sigaction = note, .sa_flags = SA_SIGINFO | flags};
    MUST(sigaction(sig, &sa, NULL));
}

TEST(siginfo_of_kill) {
    handle(SIGUSR1, 0);
    pid_t pid = MUST(fork());
    if (!pid) {
        kill(getppid(), SIGUSR1);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    CHECK(hits == 1 && last_info.si_signo == SIGUSR1 && last_info.si_code == SI_USER && last_info.si_pid == pid && last_info.si_uid == getuid(),
          "hits %d code %d pid %d", hits, last_info.si_code, last_info.si_pid);
    union sigval v = {.sival_int = 77};
    handle(SIGRTMIN, 0);
    MUST(sigqueue(getpid(), SIGRTMIN, v));
    CHECK(last_sig == SIGRTMIN && last_info.si_code == SI_QUEUE && last_info.si_value.sival_int == 77);
    raise(SIGUSR1);
    CHECK(last_info.si_code == SI_TKILL, "code %d", last_info.si_code);
}

TEST(masks_and_pending) {
    sigset_t set, old, pending;
    handle(SIGUSR1, 0);
    handle(SIGRTMIN + 1, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGKILL); // cannot be blocked: ignored
    MUST(sigprocmask(SIG_BLOCK, &set, &old));
    for (int i = 0; i < 3; i++) {
        raise(SIGUSR1);
        raise(SIGRTMIN + 1);
    }
    CHECK(hits == 0);
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 1) && !sigismember(&pending, SIGHUP));
    MUST(sigprocmask(SIG_SETMASK, &old, NULL));
    CHECK(hits == 4, "one ordinary and three queued signals make %d", hits);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    raise(SIGUSR1);
    signal(SIGUSR1, SIG_IGN); // discards what is pending
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGUSR1));
    CHECK_ERR(syscall(SYS_rt_sigaction, SIGKILL, &(long[4]){0}, NULL, 8), EINVAL);
    CHECK_ERR(syscall(SYS_rt_sigaction, 65, NULL, NULL, 8), EINVAL);
    CHECK_ERR(syscall(SYS_rt_sigprocmask, 9, &set, NULL, 8), EINVAL);
    CHECK_ERR(syscall(SYS_rt_sigprocmask, 0, &set, NULL, 4), EINVAL);
}

static volatile int depth, deepest, again;
static void nest(int sig) {
    depth++;
    if (depth > deepest) deepest = depth;
    if (again) {
        again = 0;
        raise(sig);
    }
    depth--;
    hits++;
}
TEST(masked_while_handled) {
    struct sigaction sa = {.sa_handler = nest};
    sigaction(SIGUSR1, &sa, NULL);
    again = 1;
    raise(SIGUSR1);
    CHECK(hits == 2 && deepest == 1, "hits %d, deepest %d", hits, deepest);
    sa.sa_flags = SA_NODEFER;
    sigaction(SIGUSR1, &sa, NULL);
    deepest = 0;
    again = 1;
    raise(SIGUSR1);
    CHECK(deepest == 2, "SA_NODEFER: deepest %d", deepest);
    sa.sa_flags = SA_RESETHAND;
    sigaction(SIGUSR2, &sa, NULL);
    raise(SIGUSR2);
    struct sigaction now;
    sigaction(SIGUSR2, NULL, &now);
    CHECK(now.sa_handler == SIG_DFL);
}

static void from_child(int ms, int sig) {
    pid_t me = getpid();
    if (MUST(fork()) == 0) {
        nap_ms(ms);
        kill(me, sig);
        _exit(0);
    }
}
TEST(restart_and_eintr) {
    int p[2];
    char c;
    MUST(pipe(p));
    handle(SIGUSR1, 0);
    from_child(100, SIGUSR1);
    CHECK_ERR(read(p[0], &c, 1), EINTR);
    CHECK(hits == 1);
    handle(SIGUSR1, SA_RESTART);
    pid_t me = getpid();
    if (MUST(fork()) == 0) {
        nap_ms(100);
        kill(me, SIGUSR1);
        nap_ms(100);
        CHECK(write(p[1], "x", 1) == 1);
        _exit(0);
    }
    CHECK(read(p[0], &c, 1) == 1 && c == 'x', "a restarted read: errno %d", errno);
    CHECK(hits == 2);
    // nanosleep tells what is left and is never restarted by SA_RESTART for a handler.
    from_child(100, SIGUSR1);
    struct timespec ts = {5, 0}, left = {0, 0};
    CHECK_ERR(nanosleep(&ts, &left), EINTR);
    CHECK(left.tv_sec == 4, "%ld s left of 5", (long)left.tv_sec);
    CHECK_ERR((from_child(100, SIGUSR1), pause()), EINTR);
    sigset_t none;
    sigemptyset(&none);
    CHECK_ERR((from_child(100, SIGUSR1), sigsuspend(&none)), EINTR);
    // A stop and a continuation interrupt no sleep.
    pid_t sleeper = MUST(fork());
    if (!sleeper) {
        struct timespec t = {0, 600000000};
        _exit(nanosleep(&t, NULL) == 0 ? 0 : 1);
    }
    nap_ms(100);
    kill(sleeper, SIGSTOP);
    nap_ms(100);
    kill(sleeper, SIGCONT);
    int status;
    waitpid(sleeper, &status, 0);
    CHECK(exited_with(status, 0), "status %x", status);
    while (wait(NULL) > 0) {}
}

// A handler may change the context that it returns to.
static void skip(int sig, siginfo_t *si, void *ctx) {
    ucontext_t *u = ctx;
    u->uc_mcontext.pc += 4;
    u->uc_mcontext.regs[3] = 0x1234;
    hits++;
}
TEST(context_is_restored) {
    struct sigaction sa = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &sa, NULL);
    uint64_t flags, kept;
    double d;
    register uint64_t r3 __asm__("x3") = 1;
    __asm__ volatile("ldr x19, =0xabcdef\n fmov d15, #1.5\n cmp xzr, xzr\n .word 0\n mov %1, x19\n cset %0, eq\n fmov %d2, d15\n"
                     : "=&r"(flags), "=&r"(kept), "=&w"(d), "+r"(r3) : : "x19", "d15", "cc", "memory");
    CHECK(hits == 1 && r3 == 0x1234, "hits %d, x3 %lx", hits, (unsigned long)r3);
    CHECK(flags == 1 && kept == 0xabcdef && d == 1.5, "flags %lu, x19 %lx, d %f", (unsigned long)flags, (unsigned long)kept, d);
}

static char alt[65536];
static volatile uintptr_t handler_sp;
static void where(int sig) { int x; handler_sp = (uintptr_t)&x; hits++; }
static jmp_buf jump;
static void leave(int sig) { handler_sp = (uintptr_t)__builtin_frame_address(0); longjmp(jump, 1); }
static int overflow(int n) { volatile char b[1024]; b[0] = n; return n == -1 ? 0 : overflow(n + 1) + b[0]; }
TEST(alternate_stack) {
    stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt}, old;
    MUST(sigaltstack(&ss, NULL));
    struct sigaction sa = {.sa_handler = where, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &sa, NULL);
    raise(SIGUSR1);
    CHECK(handler_sp > (uintptr_t)alt && handler_sp < (uintptr_t)alt + sizeof alt);
    MUST(sigaltstack(NULL, &old));
    CHECK(old.ss_sp == alt && old.ss_flags == 0);
    // The one use that everyone has for it: a stack overflow is survived.
    sa.sa_handler = leave;
    sa.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &sa, NULL);
    if (!setjmp(jump)) overflow(0);
    CHECK(handler_sp > (uintptr_t)alt && handler_sp < (uintptr_t)alt + sizeof alt);
    ss.ss_size = 100;
    CHECK_ERR(sigaltstack(&ss, NULL), ENOMEM);
    ss.ss_flags = 77;
    ss.ss_size = sizeof alt;
    CHECK_ERR(sigaltstack(&ss, NULL), EINVAL);
}

static void smash(int sig) { _exit(9); }
static void no_stack(void *arg) {
    // A handler that cannot be given a frame: the process dies of SIGSEGV.
    struct sigaction sa = {.sa_handler = smash};
    sigaction(SIGUSR1, &sa, NULL);
    register long x0 __asm__("x0") = getpid();
    register long x1 __asm__("x1") = SIGUSR1;
    register long x8 __asm__("x8") = SYS_kill;
    __asm__ volatile("mov sp, %3\n svc #0" : "+r"(x0) : "r"(x1), "r"(x8), "r"(0x1000ul) : "memory");
    _exit(8);
}
TEST(no_room_for_a_frame) { CHECK(died_of(in_child(no_stack, NULL), SIGSEGV)); }

static void bad_return(void *arg) {
    // A made-up frame: every word wrong.
    static char junk[8192];
    memset(junk, 0xff, sizeof junk);
    register long x8 __asm__("x8") = SYS_rt_sigreturn;
    __asm__ volatile("mov sp, %0\n svc #0" : : "r"((uintptr_t)(junk + 1024) & ~15ul), "r"(x8) : "memory");
    _exit(8);
}
static void to_kernel_mode(void *arg) {
    // A frame that asks for EL1: refused or stripped, never obeyed.
    static char frame[16384] __attribute__((aligned(16)));
    memset(frame, 0, sizeof frame);
    ucontext_t *u = (void *)(frame + 128);
    u->uc_mcontext.pc = (uintptr_t)smash;
    u->uc_mcontext.sp = (uintptr_t)(frame + 12000) & ~15ul;
    u->uc_mcontext.pstate = 0x5; // EL1h
    register long x8 __asm__("x8") = SYS_rt_sigreturn;
    __asm__ volatile("mov sp, %0\n svc #0" : : "r"((uintptr_t)frame), "r"(x8) : "memory");
    _exit(8);
}
TEST(forged_frames) {
    CHECK(died_of(in_child(bad_return, NULL), SIGSEGV));
    int s = in_child(to_kernel_mode, NULL);
    CHECK(died_of(s, SIGSEGV) || exited_with(s, 9), "status %x", s);
}

TEST(groups) {
    pid_t kids[3];
    for (int i = 0; i < 3; i++) {
        kids[i] = MUST(fork());
        if (!kids[i]) {
            setpgid(0, i ? kids[0] : 0);
            for (;;) pause();
        }
        setpgid(kids[i], kids[0]);
    }
    CHECK(getpgid(kids[2]) == kids[0]);
    nap_ms(50);
    MUST(kill(-kids[0], SIGTERM));
    for (int i = 0; i < 3; i++) {
        int status;
        CHECK(waitpid(-kids[0], &status, 0) > 0 && died_of(status, SIGTERM));
    }
    CHECK_ERR(kill(-kids[0], 0), ESRCH);
    CHECK_ERR(kill(999999, 0), ESRCH);
    CHECK_ERR(kill(getpid(), 65), EINVAL);
    CHECK_ERR(setpgid(0, 999999), EPERM);
    CHECK_ERR(setpgid(1, 1), ESRCH);
    CHECK_ERR(syscall(SYS_tgkill, getpid(), 999999, SIGUSR1), ESRCH);
    pid_t s = MUST(fork());
    if (!s) {
        CHECK(setsid() == getpid() && getsid(0) == getpid() && getpgrp() == getpid());
        CHECK_ERR(setsid(), EPERM);
        _exit(t_failed != 0);
    }
    int status;
    waitpid(s, &status, 0);
    CHECK(exited_with(status, 0));
}

TEST(wait_forms) {
    int status;
    siginfo_t si;
    int go[2];
    CHECK_ERR(wait(NULL), ECHILD);
    MUST(pipe(go));
    pid_t pid = MUST(fork());
    if (!pid) {
        char c;
        close(go[1]);
        raise(SIGSTOP);
        _exit(read(go[0], &c, 1) == 0 ? 7 : 8); // only then: who has ended is not reported as continued
    }
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    kill(pid, SIGCONT);
    CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
    close(go[1]);
    memset(&si, 0, sizeof si);
    MUST(waitid(P_PID, pid, &si, WEXITED | WNOWAIT));
    CHECK(si.si_pid == pid && si.si_code == CLD_EXITED && si.si_status == 7 && si.si_signo == SIGCHLD);
    CHECK(waitpid(pid, &status, 0) == pid && exited_with(status, 7));
    CHECK_ERR(waitpid(pid, &status, 0), ECHILD);
    CHECK_ERR(waitid(P_PID, 0, &si, 0), EINVAL);
    CHECK_ERR(waitpid(-1, &status, 0x1000), EINVAL);
    // SIGCHLD with the child's story, and children that leave nothing behind.
    handle(SIGCHLD, 0);
    hits = 0;
    pid = MUST(fork());
    if (!pid) {
        raise(SIGKILL);
    }
    while (!hits) nap_ms(1);
    CHECK(last_info.si_code == CLD_KILLED && last_info.si_status == SIGKILL && last_info.si_pid == pid);
    CHECK(waitpid(pid, &status, 0) == pid && died_of(status, SIGKILL));
    signal(SIGCHLD, SIG_IGN);
    pid = MUST(fork());
    if (!pid) _exit(0);
    CHECK_ERR(waitpid(pid, &status, 0), ECHILD);
    signal(SIGCHLD, SIG_DFL);
    // An orphan becomes init's child (or a subreaper's).
    int p[2];
    MUST(pipe(p));
    pid = MUST(fork());
    if (!pid) {
        if (fork() == 0) {
            while (getppid() == getpgrp()) {}
            nap_ms(50);
            int parent = getppid();
            CHECK(write(p[1], &parent, sizeof parent) == sizeof parent);
            _exit(0);
        }
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    int parent = 0;
    MUST(read(p[0], &parent, sizeof parent));
    CHECK(parent == 1, "an orphan's parent is %d", parent);
    struct rusage ru;
    pid = MUST(fork());
    if (!pid) {
        for (volatile int i = 0; i < 3000000; i++) {}
        _exit(0);
    }
    CHECK(wait4(pid, &status, 0, &ru) == pid);
}

TEST(timers) {
    handle(SIGALRM, 0);
    struct itimerval it = {{0, 20000}, {0, 20000}};
    MUST(setitimer(ITIMER_REAL, &it, NULL));
    while (hits < 5) pause();
    struct itimerval off = {{0, 0}, {0, 0}}, was;
    MUST(setitimer(ITIMER_REAL, &off, &was));
    CHECK(was.it_interval.tv_usec == 20000);
    hits = 0;
    alarm(1);
    pause();
    CHECK(hits == 1);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct timespec ts = {0, 50000000};
    siginfo_t si;
    CHECK_ERR(sigtimedwait(&set, &si, &ts), EAGAIN);
    from_child(50, SIGUSR1);
    ts.tv_sec = 10;
    CHECK(sigtimedwait(&set, &si, &ts) == SIGUSR1 && si.si_code == SI_USER);
    timer_t timer;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    struct itimerspec its = {{0, 0}, {0, 10000000}};
    MUST(timer_create(CLOCK_MONOTONIC, &ev, &timer));
    MUST(timer_settime(timer, 0, &its, NULL));
    CHECK(sigtimedwait(&set, &si, &ts) == SIGUSR1 && si.si_code == SI_TIMER && si.si_value.sival_int == 5);
    MUST(timer_delete(timer));
    alarm(0);
}

static void fpe(void *p) { raise(SIGFPE); }
static void trap(void *p) { __asm__ volatile("brk #1"); }
static void ill(void *p) { __asm__ volatile(".word 0"); }
static void misjump(void *p) { ((void (*)(void))((uintptr_t)ill + 2))(); }
TEST(deaths) {
    CHECK(died_of(in_child(fpe, NULL), SIGFPE));
    CHECK(died_of(in_child(trap, NULL), SIGTRAP));
    CHECK(died_of(in_child(ill, NULL), SIGILL));
    CHECK(died_of(in_child(misjump, NULL), SIGBUS), "a misaligned pc");
}

MAIN(T(siginfo_of_kill), T(masks_and_pending), T(masked_while_handled), T(restart_and_eintr), T(context_is_restored), T(alternate_stack),
     T(no_room_for_a_frame), T(forged_frames), T(groups), T(wait_forms), T(timers), T(deaths))
