// The vDSO: an ELF shared object of one page, written out by hand since it is smaller than the rules to build it would be.
// The page before it (read-only too) holds what the clocks need: counter at boot, nanoseconds per tick times 2^32, and
// the line of the wall clock (clock.rs): sequence count, base, since, slew, span, rate. Names and version are those that C libraries look for on AArch64 (vdso(7)).

    .pushsection .rodata.vdso, "a"
    .balign 4096
    .global vdso_start
vdso_start:
    // ELF header
    .byte   0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .hword  3, 183                          // ET_DYN, EM_AARCH64
    .word   1
    .quad   0
    .quad   .Lphdr - vdso_start
    .quad   0
    .word   0
    .hword  64, 56, 2, 64, 0, 0
.Lphdr:
    .word   1, 5                            // PT_LOAD, readable and executable
    .quad   0, 0, 0, vdso_end - vdso_start, vdso_end - vdso_start, 4096
    .word   2, 4                            // PT_DYNAMIC
    .quad   .Ldynamic - vdso_start, .Ldynamic - vdso_start, .Ldynamic - vdso_start
    .quad   .Ldynamic_end - .Ldynamic, .Ldynamic_end - .Ldynamic, 8
    .balign 8
.Ldynamic:
    .quad   4, .Lhash - vdso_start
    .quad   5, .Lstr - vdso_start
    .quad   6, .Lsym - vdso_start
    .quad   10, .Lstr_end - .Lstr
    .quad   11, 24
    .quad   14, .Ln_soname - .Lstr
    .quad   0x6ffffff0, .Lversym - vdso_start
    .quad   0x6ffffffc, .Lverdef - vdso_start
    .quad   0x6ffffffd, 2
    .quad   0, 0
.Ldynamic_end:

    .macro  function name, at, end
    .word   \name - .Lstr
    .byte   0x12, 0                         // STB_GLOBAL, STT_FUNC
    .hword  1
    .quad   \at - vdso_start, \end - \at
    .endm
.Lsym:
    .quad   0, 0, 0
    function .Ln_sigreturn, .Lsigreturn, .Lgettime
    function .Ln_gettime, .Lgettime, .Lgettimeofday
    function .Ln_gettimeofday, .Lgettimeofday, .Lgetres
    function .Ln_getres, .Lgetres, vdso_end
.Lhash:
    .word   1, 5, 1, 0, 2, 3, 4, 0          // one bucket: the chain of all
.Lversym:
    .hword  0, 2, 2, 2, 2
    .balign 4
.Lverdef:
    .hword  1, 1, 1, 1                      // the base: the object's name
    .word   0x0deebfa1, 20, 28
    .word   .Ln_soname - .Lstr, 0
    .hword  1, 0, 2, 1
    .word   0x075fcb89, 20, 0
    .word   .Ln_version - .Lstr, 0
.Lstr:
    .byte   0
.Ln_soname:         .asciz "linux-vdso.so.1"
.Ln_version:        .asciz "LINUX_2.6.39"
.Ln_sigreturn:      .asciz "__kernel_rt_sigreturn"
.Ln_gettime:        .asciz "__kernel_clock_gettime"
.Ln_gettimeofday:   .asciz "__kernel_gettimeofday"
.Ln_getres:         .asciz "__kernel_clock_getres"
.Lstr_end:

    // Nanoseconds since boot in x2; x9 becomes the data page. Clobbers x3-x6.
    .macro  monotonic
    adr     x9, vdso_start - 0x1000
    isb
    mrs     x2, cntvct_el0
    ldp     x3, x4, [x9]
    sub     x2, x2, x3
    umulh   x5, x2, x4
    mul     x6, x2, x4
    extr    x2, x5, x6, #32
    .endm

    // From nanoseconds since boot to the wall clock, in x2; x9 is the data page. Clobbers x3-x7, x10, x11.
    .macro  wall
77: ldr     x3, [x9, #16]
    tbnz    x3, #0, 77b
    dmb     ishld
    ldp     x4, x5, [x9, #24]               // base, since
    ldp     x6, x7, [x9, #40]               // slew, span
    ldr     x10, [x9, #56]                  // rate
    dmb     ishld
    ldr     x11, [x9, #16]
    cmp     x11, x3
    b.ne    77b
    subs    x5, x2, x5
    csel    x5, x5, xzr, hs
    cmp     x5, x7
    csel    x7, x5, x7, lo
    mul     x7, x7, x6
    add     x2, x2, x4
    add     x2, x2, x7, asr #32
    mul     x6, x5, x10
    smulh   x7, x5, x10
    extr    x7, x7, x6, #32
    add     x2, x2, x7
    .endm

    .balign 16
    nop                                     // unwinders look one instruction before the return address
    .global vdso_sigreturn
vdso_sigreturn:
.Lsigreturn:
    mov     x8, #139
    svc     #0

    .balign 16
.Lgettime:
    // REALTIME, MONOTONIC, MONOTONIC_RAW, their coarse forms, BOOTTIME: clocks 0, 1, 4 to 7
    cmp     w0, #7
    b.hi    2f
    mov     w3, #1
    lsl     w3, w3, w0
    mov     w4, #0xf3
    tst     w3, w4
    b.eq    2f
    monotonic
    mov     w4, #0x21                       // the realtime ones: 0 and 5
    lsr     w4, w4, w0
    tbz     w4, #0, 1f
    wall
1:  mov     x4, #0xca00                     // 10^9
    movk    x4, #0x3b9a, lsl #16
    udiv    x5, x2, x4
    msub    x6, x5, x4, x2
    stp     x5, x6, [x1]
    mov     w0, #0
    ret
2:  mov     x8, #113
    svc     #0
    ret

    .balign 16
.Lgettimeofday:
    cbz     x0, 1f
    monotonic
    wall
    mov     x4, #0xca00
    movk    x4, #0x3b9a, lsl #16
    udiv    x5, x2, x4
    msub    x6, x5, x4, x2
    mov     x4, #1000
    udiv    x6, x6, x4
    stp     x5, x6, [x0]
1:  cbz     x1, 2f
    str     xzr, [x1]                       // no time zone
2:  mov     w0, #0
    ret

    .balign 16
.Lgetres:
    mov     x8, #114
    svc     #0
    ret
    .global vdso_end
vdso_end:
    .popsection
