// Copies between kernel and user memory. User memory is touched only by the unprivileged loads and stores (LDTR, STTR),
// so the hardware applies EL0's permissions to every access, whatever address user space passed. Each such instruction
// has an entry in the exception table: a fault that mm cannot resolve continues at the fix-up.
//
// usize uaccess_from(dst, src_user, len), usize uaccess_to(dst_user, src, len), usize uaccess_clear(dst_user, len):
// return the number of bytes NOT copied.
    // The flags of the crate do not reach a module of assembly when it is compiled apart (thin LTO).
    .arch armv8.2-a+lse+pan+crc

    .macro  ex from, to
    .pushsection .ex_table, "a"
    .balign 4
    .long   (\from - .), (\to - .)
    .popsection
    .endm

    .section .text.hot.uaccess, "ax"
    .global uaccess_from
    .balign 16
uaccess_from:
    cmp     x2, #8
    b.lo    4f
    cmp     x2, #64
    b.lo    3f
1:  ldtr    x4, [x1]
11: ldtr    x5, [x1, #8]
12: ldtr    x6, [x1, #16]
13: ldtr    x7, [x1, #24]
14: ldtr    x8, [x1, #32]
15: ldtr    x9, [x1, #40]
16: ldtr    x10, [x1, #48]
17: ldtr    x11, [x1, #56]
    stp     x4, x5, [x0]
    stp     x6, x7, [x0, #16]
    stp     x8, x9, [x0, #32]
    stp     x10, x11, [x0, #48]
    add     x0, x0, #64
    add     x1, x1, #64
    sub     x2, x2, #64
    cmp     x2, #64
    b.hs    1b
    cmp     x2, #8
    b.lo    4f
3:  ldtr    x4, [x1]
    str     x4, [x0], #8
    add     x1, x1, #8
    sub     x2, x2, #8
    cmp     x2, #8
    b.hs    3b
4:  cbz     x2, 6f
5:  ldtrb   w4, [x1]
    strb    w4, [x0], #1
    add     x1, x1, #1
    subs    x2, x2, #1
    b.ne    5b
6:  mov     x0, x2
    ret
7:  // a fault in a wide part: go on by bytes to find the exact end
    b       5b
    ex      1b, 7b
    ex      11b, 7b
    ex      12b, 7b
    ex      13b, 7b
    ex      14b, 7b
    ex      15b, 7b
    ex      16b, 7b
    ex      17b, 7b
    ex      3b, 7b
    ex      5b, 6b

    .global uaccess_to
    .balign 16
uaccess_to:
    cmp     x2, #8
    b.lo    4f
    cmp     x2, #64
    b.lo    3f
1:  ldp     x4, x5, [x1]
    ldp     x6, x7, [x1, #16]
    ldp     x8, x9, [x1, #32]
    ldp     x10, x11, [x1, #48]
10: sttr    x4, [x0]
11: sttr    x5, [x0, #8]
12: sttr    x6, [x0, #16]
13: sttr    x7, [x0, #24]
14: sttr    x8, [x0, #32]
15: sttr    x9, [x0, #40]
16: sttr    x10, [x0, #48]
17: sttr    x11, [x0, #56]
    add     x0, x0, #64
    add     x1, x1, #64
    sub     x2, x2, #64
    cmp     x2, #64
    b.hs    1b
    cmp     x2, #8
    b.lo    4f
3:  ldr     x4, [x1]
30: sttr    x4, [x0]
    add     x0, x0, #8
    add     x1, x1, #8
    sub     x2, x2, #8
    cmp     x2, #8
    b.hs    3b
4:  cbz     x2, 6f
5:  ldrb    w4, [x1]
50: sttrb   w4, [x0]
    add     x0, x0, #1
    add     x1, x1, #1
    subs    x2, x2, #1
    b.ne    5b
6:  mov     x0, x2
    ret
7:  b       5b
    ex      10b, 7b
    ex      11b, 7b
    ex      12b, 7b
    ex      13b, 7b
    ex      14b, 7b
    ex      15b, 7b
    ex      16b, 7b
    ex      17b, 7b
    ex      30b, 7b
    ex      50b, 6b

    .global uaccess_clear
    .balign 16
uaccess_clear:
    cmp     x1, #8
    b.lo    4f
3:  sttr    xzr, [x0]
    add     x0, x0, #8
    sub     x1, x1, #8
    cmp     x1, #8
    b.hs    3b
4:  cbz     x1, 6f
5:  sttrb   wzr, [x0]
    add     x0, x0, #1
    subs    x1, x1, #1
    b.ne    5b
6:  mov     x0, x1
    ret
7:  b       5b
    ex      3b, 7b
    ex      5b, 6b

// isize uaccess_strncpy(dst, src_user, len): bytes copied without the NUL; len if there was none; -1 on a fault.
    .global uaccess_strncpy
    .balign 16
uaccess_strncpy:
    mov     x3, #0
    mov     x6, #0x0101010101010101
    // words while they hold no zero and the source is aligned (an aligned word never crosses a page)
1:  tst     x1, #7
    b.ne    5f
2:  sub     x7, x2, x3
    cmp     x7, #8
    b.lo    5f
3:  ldtr    x4, [x1]
    sub     x5, x4, x6
    bic     x5, x5, x4
    tst     x5, #0x8080808080808080
    b.ne    5f
    str     x4, [x0], #8
    add     x1, x1, #8
    add     x3, x3, #8
    b       2b
5:  cmp     x3, x2
    b.hs    6f
50: ldtrb   w4, [x1]
    strb    w4, [x0], #1
    cbz     w4, 6f
    add     x1, x1, #1
    add     x3, x3, #1
    b       1b
6:  mov     x0, x3
    ret
7:  mov     x0, #-1
    ret
    ex      3b, 5b
    ex      50b, 7b

// u64 uaccess_cas32(addr_user, old, new, *observed): 0 done (observed written), 1 fault. There are no unprivileged atomics,
// so PAN is lifted around the pair and the address has been checked to be below TASK_SIZE by the caller.
    .global uaccess_cas32
    .balign 16
uaccess_cas32:
    mov     w5, w1
    msr     pan, #0
1:  casal   w5, w2, [x0]
    msr     pan, #1
    str     w5, [x3]
    mov     x0, #0
    ret
2:  msr     pan, #1
    mov     x0, #1
    ret
    ex      1b, 2b

// u64 uaccess_load{8,32,64}(addr_user, *out) / uaccess_store{8,32,64}(addr_user, value): 0 done, 1 fault.
    .global uaccess_load8
uaccess_load8:
1:  ldtrb   w2, [x0]
    strb    w2, [x1]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
    .global uaccess_load32
uaccess_load32:
1:  ldtr    w2, [x0]
    str     w2, [x1]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
    .global uaccess_load64
uaccess_load64:
1:  ldtr    x2, [x0]
    str     x2, [x1]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
    .global uaccess_store8
uaccess_store8:
1:  sttrb   w1, [x0]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
    .global uaccess_store32
uaccess_store32:
1:  sttr    w1, [x0]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
    .global uaccess_store64
uaccess_store64:
1:  sttr    x1, [x0]
    mov     x0, #0
    ret
    ex      1b, uaccess_fault
uaccess_fault:
    mov     x0, #1
    ret
