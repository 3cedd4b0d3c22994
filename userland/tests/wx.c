// m3: no page is ever writable and executable. Berth refuses with EACCES what Linux allows; both must kill a jump into
// the stack or the heap. `wx dump` walks what the kernel says of the live page tables.
#include "t.h"

#define W (PROT_READ | PROT_WRITE)
#define X (PROT_READ | PROT_EXEC)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
static const uint32_t code_42[] = {0x52800540 /* mov w0, #42 */, 0xd65f03c0 /* ret */};

static void jump(void *p) { _exit(((int (*)(void))p)()); }

TEST(both_at_once_refused) {
    CHECK_ERR(mmap(NULL, PAGE, W | PROT_EXEC, ANON, -1, 0), EACCES);
    CHECK_ERR(mmap(NULL, PAGE, PROT_WRITE | PROT_EXEC, ANON, -1, 0), EACCES);
    CHECK_ERR(mmap(NULL, PAGE, W | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0), EACCES);
    int fd = MUST(open("/proc/self/exe", O_RDONLY));
    CHECK_ERR(mmap(NULL, PAGE, W | PROT_EXEC, MAP_PRIVATE, fd, 0), EACCES);
    char *p = (char *)MUST(mmap(NULL, 2 * PAGE, W, ANON, -1, 0));
    CHECK_ERR(mprotect(p, PAGE, W | PROT_EXEC), EACCES);
    p[0] = 1; // the refusal left it as it was
    char *x = (char *)MUST(mmap(NULL, PAGE, X, MAP_PRIVATE, fd, 0));
    CHECK_ERR(mprotect(x, PAGE, W | PROT_EXEC), EACCES);
}

TEST(write_then_execute_works) {
    char *p = (char *)MUST(mmap(NULL, PAGE, W, ANON, -1, 0));
    memcpy(p, code_42, sizeof code_42);
    MUST(mprotect(p, PAGE, X));
    __builtin___clear_cache(p, p + sizeof code_42);
    CHECK(exited_with(in_child(jump, p), 42));
    MUST(mprotect(p, PAGE, W));
    CHECK(died_of(in_child(jump, p), SIGSEGV), "after execute was taken away");
}

TEST(writable_shared_twice) {
    // One file, mapped writable here and executable there, is two mappings of one page: allowed, as on Linux, since no
    // mapping is both. What must hold is that each keeps to its own rights.
    char name[64];
    snprintf(name, sizeof name, "/tmp/wx.%d", getpid());
    int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0700));
    MUST(ftruncate(fd, PAGE));
    char *w = (char *)MUST(mmap(NULL, PAGE, W, MAP_SHARED, fd, 0));
    char *x = (char *)MUST(mmap(NULL, PAGE, X, MAP_SHARED, fd, 0));
    memcpy(w, code_42, sizeof code_42);
    __builtin___clear_cache(x, x + sizeof code_42);
    CHECK(exited_with(in_child(jump, x), 42));
    CHECK(died_of(in_child(jump, w), SIGSEGV));
    unlink(name);
}

static int in_data[2] = {0x52800540, (int)0xd65f03c0};
TEST(stack_heap_data_die) {
    uint32_t on_stack[2];
    memcpy(on_stack, code_42, sizeof code_42);
    __builtin___clear_cache((char *)on_stack, (char *)(on_stack + 2));
    uint32_t *heap = malloc(64), *big = malloc(1 << 20);
    memcpy(heap, code_42, sizeof code_42);
    memcpy(big, code_42, sizeof code_42);
    CHECK(died_of(in_child(jump, on_stack), SIGSEGV), "stack");
    CHECK(died_of(in_child(jump, heap), SIGSEGV), "heap");
    CHECK(died_of(in_child(jump, big), SIGSEGV), "mmap heap");
    CHECK(died_of(in_child(jump, in_data), SIGSEGV), "data");
    char *b = (char *)syscall(SYS_brk, 0), *e = (char *)syscall(SYS_brk, b + PAGE);
    if (e == b + PAGE) {
        memcpy(b, code_42, sizeof code_42);
        CHECK(died_of(in_child(jump, b), SIGSEGV), "brk");
    }
}

static void write_text(void *p) { *(volatile uint32_t *)p = 0; }
TEST(text_is_read_only) {
    CHECK(died_of(in_child(write_text, (void *)((uintptr_t)jump & ~3ul)), SIGSEGV));
    CHECK(died_of(in_child(write_text, (void *)code_42), SIGSEGV), "rodata");
}

static void jump_kernel(void *p) { jump(p); }
TEST(kernel_code_cannot_be_jumped_to) {
    uintptr_t at[] = {0xffff000040080000, 0xffff800000000000, 0xffffc00000000000, 0};
    for (int i = 0; i < 4; i++) CHECK(died_of(in_child(jump_kernel, (void *)at[i]), SIGSEGV), "%lx", at[i]);
}

// Berth walks its own live page tables, every leaf of kernel and user, and counts those that are both.
TEST(live_tables) {
    char *text = slurp("/proc/berth/pagetables");
    long kernel = -1, user = -1, leaves = -1;
    char *k = strstr(text, "kernel_wx "), *u = strstr(text, "user_wx "), *l = strstr(text, "leaves ");
    if (k) kernel = atol(k + 10);
    if (u) user = atol(u + 8);
    if (l) leaves = atol(l + 7);
    CHECK(kernel == 0 && user == 0 && leaves > 20, "%s", text);
}

static const struct test tests[] = {
    T(both_at_once_refused), T(write_then_execute_works), T(writable_shared_twice), T(stack_heap_data_die),
    T(text_is_read_only), T(kernel_code_cannot_be_jumped_to), T(live_tables),
};
int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "jit")) {
        // What a marked program may do: both rights at once, and use them.
        void *p = mmap(NULL, PAGE, W | PROT_EXEC, ANON, -1, 0);
        if (p == MAP_FAILED) {
            printf("jit: %s\n", strerror(errno));
            return 1;
        }
        memcpy(p, code_42, sizeof code_42);
        __builtin___clear_cache((char *)p, (char *)p + sizeof code_42);
        printf("jit: %d\n", ((int (*)(void))p)());
        return 0;
    }
    return t_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
