// memcpy, memmove, memset, memcmp and bcmp, which the compiler calls. Those that come with the compiler go by bytes where
// source and destination are not aligned alike, and by single words elsewhere. These go by pairs of words at whatever
// alignment (normal memory, SCTLR_EL1.A clear), and let the last pairs overlap what was done before, so that no loop goes over
// single bytes. No FP registers: the kernel does not use them.
//
// Context: any, but not for device memory.
    .section .text.hot.memory, "ax"

// memmove(x0 to, x1 from, x2 length) -> x0. Whatever overlaps is loaded before it is stored over: up to 64 bytes all at
// once; beyond, the 32 bytes at the far end are loaded before the loop and stored after it. (Forwards, `to` is below `from`
// where they overlap, so a store goes over what was loaded already.)
    .global memcpy
    .global memmove
    .balign 1024                            // within a page, as in uaccess.S
memmove:
memcpy:
    add     x4, x1, x2                      // ends
    add     x5, x0, x2
    cmp     x2, #16
    b.lo    1f
    cmp     x2, #32
    b.hi    4f
    ldp     x6, x7, [x1]                    // 16 to 32
    ldp     x8, x9, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x5, #-16]
    ret
1:  tbz     x2, #3, 2f
    ldr     x6, [x1]                        // 8 to 15
    ldr     x7, [x4, #-8]
    str     x6, [x0]
    str     x7, [x5, #-8]
    ret
2:  tbz     x2, #2, 3f
    ldr     w6, [x1]                        // 4 to 7
    ldr     w7, [x4, #-4]
    str     w6, [x0]
    str     w7, [x5, #-4]
    ret
3:  cbz     x2, 7f
    lsr     x3, x2, #1
    ldrb    w6, [x1]                        // 1 to 3
    ldrb    w7, [x1, x3]
    ldrb    w8, [x4, #-1]
    strb    w6, [x0]
    strb    w7, [x0, x3]
    strb    w8, [x5, #-1]
7:  ret
4:  cmp     x2, #64
    b.hi    5f
    ldp     x6, x7, [x1]                    // 33 to 64
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x4, #-32]
    ldp     x12, x13, [x4, #-16]
    stp     x6, x7, [x0]
    stp     x8, x9, [x0, #16]
    stp     x10, x11, [x5, #-32]
    stp     x12, x13, [x5, #-16]
    ret
5:  sub     x3, x0, x1
    cmp     x3, x2
    sub     x2, x2, #32                     // what the loops have to do
    b.lo    20f                             // to lies inside from..end
    ldp     x14, x15, [x4, #-32]
    ldp     x16, x17, [x4, #-16]
    mov     x3, x0
    subs    x2, x2, #64
    b.lo    11f
10:
    .irp    o, 0, 16, 32, 48
    ldp     x6, x7, [x1, #\o]
    stp     x6, x7, [x3, #\o]
    .endr
    add     x1, x1, #64
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    10b
11: adds    x2, x2, #64                     // 0 to 63
    b.eq    13f
12: ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    add     x1, x1, #32
    stp     x6, x7, [x3]
    stp     x8, x9, [x3, #16]
    add     x3, x3, #32
    subs    x2, x2, #32
    b.hi    12b
13: stp     x14, x15, [x5, #-32]
    stp     x16, x17, [x5, #-16]
    ret
20: ldp     x14, x15, [x1]                  // the same from the end
    ldp     x16, x17, [x1, #16]
    subs    x2, x2, #64
    b.lo    22f
21: ldp     x6, x7, [x4, #-64]!
    ldp     x8, x9, [x4, #16]
    ldp     x10, x11, [x4, #32]
    ldp     x12, x13, [x4, #48]
    stp     x6, x7, [x5, #-64]!
    stp     x8, x9, [x5, #16]
    stp     x10, x11, [x5, #32]
    stp     x12, x13, [x5, #48]
    subs    x2, x2, #64
    b.hs    21b
22: adds    x2, x2, #64
    b.eq    24f
23: ldp     x6, x7, [x4, #-32]!
    ldp     x8, x9, [x4, #16]
    stp     x6, x7, [x5, #-32]!
    stp     x8, x9, [x5, #16]
    subs    x2, x2, #32
    b.hi    23b
24: stp     x14, x15, [x0]
    stp     x16, x17, [x0, #16]
    ret

// memory_copy_page(x0 to, x1 from): 4096 bytes
    .global memory_copy_page
    .balign 256
memory_copy_page:
    add     x2, x1, #1, lsl #12
1:
    .irp    o, 0, 16, 32, 48
    ldp     x6, x7, [x1, #\o]
    stp     x6, x7, [x0, #\o]
    .endr
    add     x0, x0, #64
    add     x1, x1, #64
    cmp     x1, x2
    b.ne    1b
    ret

// memset(x0 to, w1 value, x2 length) -> x0
    .global memset
    .balign 64
memset:
    and     x1, x1, #0xff
    orr     x1, x1, x1, lsl #8
    orr     x1, x1, x1, lsl #16
    orr     x1, x1, x1, lsl #32
    add     x5, x0, x2                      // end
    cmp     x2, #16
    b.lo    4f
    mov     x3, x0
    subs    x2, x2, #64
    b.lo    2f
1:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    1b
2:  adds    x2, x2, #48                     // what is left less 16
    b.le    3f
    stp     x1, x1, [x3], #16
    subs    x2, x2, #16
    b.le    3f
    stp     x1, x1, [x3], #16
    subs    x2, x2, #16
    b.le    3f
    stp     x1, x1, [x3], #16
3:  stp     x1, x1, [x5, #-16]
    ret
4:  tbz     x2, #3, 5f
    str     x1, [x0]                        // 8 to 15
    str     x1, [x5, #-8]
    ret
5:  tbz     x2, #2, 6f
    str     w1, [x0]                        // 4 to 7
    str     w1, [x5, #-4]
    ret
6:  cbz     x2, 7f
    strb    w1, [x0]                        // 1 to 3
    strb    w1, [x5, #-1]
    tbz     x2, #1, 7f
    strb    w1, [x0, #1]
7:  ret

// memcmp(x0, x1, x2 length) -> w0 below, equal to or above 0; bcmp likewise
    .global memcmp
    .global bcmp
    .balign 64
memcmp:
bcmp:
    subs    x2, x2, #8
    b.lo    3f
1:  ldr     x3, [x0], #8
    ldr     x4, [x1], #8
    cmp     x3, x4
    b.ne    2f
    subs    x2, x2, #8
    b.hs    1b
    cmn     x2, #8
    b.eq    5f
    add     x0, x0, x2                      // the last 8, which overlap: x2 is -7 to -1
    add     x1, x1, x2
    ldr     x3, [x0]
    ldr     x4, [x1]
    cmp     x3, x4
    b.eq    5f
2:  rev     x3, x3
    rev     x4, x4
    cmp     x3, x4
    cset    w0, ne
    cneg    w0, w0, lo
    ret
3:  adds    x2, x2, #8                      // 0 to 7
    b.eq    5f
4:  ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    subs    w3, w3, w4
    b.ne    6f
    subs    x2, x2, #1
    b.ne    4b
5:  mov     w0, #0
    ret
6:  mov     w0, w3
    ret
