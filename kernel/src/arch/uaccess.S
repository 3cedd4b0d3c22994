// Copies between kernel and user memory. User memory is touched only by the unprivileged loads and stores (LDTR, STTR),
// so the hardware applies EL0's permissions to every access, whatever address user space passed. Each such instruction
// has an entry in the exception table, in the order of addresses: a fault that mm cannot resolve continues at the fix-up.
//
// The loops go by 64 bytes, a pair of words at a time. Longer ones are faster by a twentieth where all is in the first
// cache, and slower by a tenth where the source is not (docs/performance.md). None crosses a page, where the emulator ends
// a block and does not link it to the next.
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
    .balign 512
uaccess_from:
    cmp     x2, #64
    b.lo    2f
1:
    .irp    o, 0, 16, 32, 48
11: ldtr    x4, [x1, #\o]
12: ldtr    x5, [x1, #\o + 8]
    stp     x4, x5, [x0, #\o]
    ex      11b, 7f
    ex      12b, 7f
    .endr
    add     x0, x0, #64
    add     x1, x1, #64
    sub     x2, x2, #64
    cmp     x2, #64
    b.hs    1b
2:  cmp     x2, #32
    b.lo    3f
    .irp    o, 0, 16
11: ldtr    x4, [x1, #\o]
12: ldtr    x5, [x1, #\o + 8]
    stp     x4, x5, [x0, #\o]
    ex      11b, 7f
    ex      12b, 7f
    .endr
    add     x0, x0, #32
    add     x1, x1, #32
    sub     x2, x2, #32
    b       2b
3:  cmp     x2, #8
    b.lo    4f
30: ldtr    x4, [x1]
    str     x4, [x0], #8
    add     x1, x1, #8
    sub     x2, x2, #8
    b       3b
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
    ex      30b, 7b
    ex      5b, 6b

    .global uaccess_to
    .balign 512
uaccess_to:
    cmp     x2, #64
    b.lo    2f
1:
    .irp    o, 0, 16, 32, 48
    ldp     x4, x5, [x1, #\o]
11: sttr    x4, [x0, #\o]
12: sttr    x5, [x0, #\o + 8]
    ex      11b, 7f
    ex      12b, 7f
    .endr
    add     x0, x0, #64
    add     x1, x1, #64
    sub     x2, x2, #64
    cmp     x2, #64
    b.hs    1b
2:  cmp     x2, #32
    b.lo    3f
    .irp    o, 0, 16
    ldp     x4, x5, [x1, #\o]
11: sttr    x4, [x0, #\o]
12: sttr    x5, [x0, #\o + 8]
    ex      11b, 7f
    ex      12b, 7f
    .endr
    add     x0, x0, #32
    add     x1, x1, #32
    sub     x2, x2, #32
    b       2b
3:  cmp     x2, #8
    b.lo    4f
    ldr     x4, [x1]
30: sttr    x4, [x0]
    add     x0, x0, #8
    add     x1, x1, #8
    sub     x2, x2, #8
    b       3b
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
    ex      30b, 7b
    ex      50b, 6b

    .global uaccess_clear
    .balign 512
uaccess_clear:
1:  cmp     x1, #64
    b.lo    2f
    .irp    o, 0, 8, 16, 24, 32, 40, 48, 56
11: sttr    xzr, [x0, #\o]
    ex      11b, 7f
    .endr
    add     x0, x0, #64
    sub     x1, x1, #64
    b       1b
2:  cmp     x1, #8
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
