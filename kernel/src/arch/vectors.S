// Exception vectors, the system-call fast path, and the context switch.
//
// The frame (arch/trap.rs TrapFrame): x0-x30, sp, pc, pstate, orig_x0, syscallno = 288 bytes. TPIDR_EL1 holds the current
// thread; SP_EL0 stays the user's in kernel mode. A thread's kernel stack is empty while it runs in user mode but for the
// room of its frame, which SP_EL1 points to then: entry and return move no stack pointer.
//
// Writes of system registers are the dear part of an entry (on the emulator each ends a block of translated code, and
// on hardware most serialise), so entry writes none, and return writes only those of ELR, SPSR and SP_EL0 that a nested
// exception, a switch of threads or the call itself has changed.
//
// A plain system call saves what a function may change (X0 to X18, X29, X30) and leaves X19 to X28 to the functions that
// it calls, and SP_EL0 to the switch. It goes back with interrupts as they are: the way back (syscall_return) can be
// interrupted anywhere and is then done again from its start, since the interrupt may have left work to do and has changed
// ELR and SPSR. So that this is possible it changes nothing that it reads: not the frame, not SP, not X0, which holds the
// result. With work to do it completes the frame and goes the long way (ret_to_user), which masks interrupts.

    .macro  vector label
    .balign 128
    b       \label
    .endm

    .macro  save_x0_x17
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    .endm

    .macro  load_x0_x29
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    .endm

    // All but X30 and the stack pointer.
    .macro  save_frame
    save_x0_x17
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x22, elr_el1
    mrs     x23, spsr_el1
    stp     x22, x23, [sp, #256]
    .endm

    .macro  enter_from_user
    save_frame
    mrs     x21, sp_el0
    stp     x30, x21, [sp, #240]
    mov     x29, xzr                        // back-traces end here
    mov     x30, xzr
    .endm

    // What a system call left out of the frame.
    .macro  complete_frame
    mrs     x9, sp_el0
    stp     x19, x20, [sp, #152]
    stp     x21, x22, [sp, #168]
    stp     x23, x24, [sp, #184]
    stp     x25, x26, [sp, #200]
    stp     x27, x28, [sp, #216]
    str     x9, [sp, #248]
    .endm

    // One page with the system calls' way in and out: the emulator links blocks of code within a page.
    .section .vectors, "ax"
    .balign 4096
    .global exception_vectors
exception_vectors:
    vector  bad_sp0
    vector  bad_sp0
    vector  bad_sp0
    vector  bad_sp0
    vector  el1_sync
    vector  el1_irq
    vector  el1_bad
    vector  el1_serror
    vector  el0_sync
    vector  el0_irq
    vector  el0_bad
    vector  el0_serror
    vector  el0_32
    vector  el0_32
    vector  el0_32
    vector  el0_32

el0_sync:
    save_x0_x17
    str     x18, [sp, #144]
    stp     x29, x30, [sp, #232]
    mrs     x9, elr_el1
    mrs     x10, spsr_el1
    mrs     x11, esr_el1
    stp     x9, x10, [sp, #256]
    stp     x0, x8, [sp, #272]              // orig_x0 and the number, for restarts and tracers
    lsr     x12, x11, #26
    cmp     x12, #0x15                      // SVC from AArch64
    b.ne    el0_sync_other
    mrs     x13, tpidr_el1
    ldr     w14, [x13]                      // ThreadContext.flags
    mov     x29, xzr                        // back-traces end here
    mov     x30, xzr
    mov     x6, sp
    ldr     x16, [x13, #{context_cpu}]
    ldr     x17, [x16, #{percpu_syscalls}]
    tbnz    w14, #4, el0_traced             // TRACE
    add     x17, x17, #1
    str     x17, [x16, #{percpu_syscalls}]
    mov     x9, #{last_call}
    cmp     x8, x9
    csel    x8, x8, x9, lo
    adrp    x9, {entries}
    add     x9, x9, :lo12:{entries}
    add     x9, x9, x8, lsl #4
    ldp     x10, x11, [x9]                  // handler, mode
    cbnz    x11, 1f
    msr     daifclr, #2
    blr     x10

    // From here to syscall_return_end an interrupt starts it again.
syscall_return:
    mrs     x9, tpidr_el1
    ldr     w9, [x9]
    cbnz    w9, syscall_return_work
    ldp     x10, x11, [sp, #256]
    mrs     x12, elr_el1
    mrs     x13, spsr_el1
    cmp     x12, x10
    ccmp    x13, x11, #0, eq
    b.ne    3f
4:  ldp     x1, x2, [sp, #8]
    ldp     x3, x4, [sp, #24]
    ldp     x5, x6, [sp, #40]
    ldp     x7, x8, [sp, #56]
    ldp     x9, x10, [sp, #72]
    ldp     x11, x12, [sp, #88]
    ldp     x13, x14, [sp, #104]
    ldp     x15, x16, [sp, #120]
    ldp     x17, x18, [sp, #136]
    ldp     x29, x30, [sp, #232]
    eret
3:  cmp     x12, x10
    b.eq    5f
    msr     elr_el1, x10
    cmp     x13, x11
    b.eq    4b
5:  msr     spsr_el1, x11
    b       4b
syscall_return_end:

syscall_return_work:
    complete_frame
    str     x0, [sp]
    mov     x29, xzr
    mov     x30, xzr
    b       ret_to_user

1:  tbnz    x11, #0, 2f
    blr     x10                             // a short call
    b       syscall_return
2:  complete_frame
    msr     daifclr, #2
    blr     x10
    str     x0, [sp]
    b       ret_to_user

el0_traced:
    add     x17, x17, #1
    str     x17, [x16, #{percpu_syscalls}]
    complete_frame
    msr     daifclr, #2
    mov     x0, sp
    bl      {traced}
    b       ret_to_user

el0_sync_other:
    complete_frame
    mov     x3, #-1
    str     x3, [sp, #280]
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x11
    mrs     x1, far_el1
    mov     x2, sp
    bl      {el0_fault}                     // (esr, far, frame)
    b       ret_to_user

el0_irq:
    enter_from_user
    mov     x3, #-1
    str     x3, [sp, #280]
    mov     x0, sp
    bl      {irq}
    b       ret_to_user

el0_serror:
el0_bad:
el0_32:
    enter_from_user
    mov     x3, #-1
    str     x3, [sp, #280]
    mrs     x0, esr_el1
    mrs     x1, far_el1
    mov     x2, sp
    bl      {el0_bad}

    .global ret_to_user
ret_to_user:
    msr     daifset, #2
    mrs     x24, tpidr_el1
    ldr     w1, [x24]                       // ThreadContext.flags
    cbnz    w1, 2f
1:  ldp     x22, x23, [sp, #256]
    ldp     x30, x21, [sp, #240]
    mrs     x24, elr_el1
    mrs     x25, spsr_el1
    mrs     x26, sp_el0
    cmp     x24, x22
    ccmp    x25, x23, #0, eq
    ccmp    x26, x21, #0, eq
    b.ne    3f
4:  load_x0_x29
    eret
2:  mov     x0, sp
    bl      {exit_work}                     // interrupts masked on return, flags handled
    b       1b
3:  cmp     x26, x21
    b.eq    5f
    msr     sp_el0, x21
5:  cmp     x24, x22
    b.eq    6f
    msr     elr_el1, x22
6:  cmp     x25, x23
    b.eq    4b
    msr     spsr_el1, x23
    b       4b

// Where a new user thread starts: switch() "returns" here.
    .global thread_start_user
thread_start_user:
    bl      {finish_switch}
    msr     daifclr, #2
    b       ret_to_user

// Where a new kernel thread starts: x19 = function, x20 = argument.
    .global thread_start_kernel
thread_start_kernel:
    bl      {finish_switch}
    msr     daifclr, #2
    mov     x0, x20
    blr     x19
    bl      {kthread_exit}
    brk     #1

    .macro  enter_from_kernel
    sub     sp, sp, #288
    save_frame
    add     x21, sp, #288
    stp     x30, x21, [sp, #240]
    // a frame record, so that back-traces go on through the interrupt
    stp     x29, x22, [sp, #272]
    add     x29, sp, #272
    .endm

el1_sync:
    // A kernel stack overflow faults while pushing the frame: stacks are 16 KiB at odd multiples of 16 KiB
    // (mm/stack.rs), so bit 14 of a good stack pointer is set whatever its depth.
    sub     sp, sp, #288
    add     sp, sp, x0
    sub     x0, sp, x0
    tbz     x0, #14, 1f
    sub     x0, sp, x0
    sub     sp, sp, x0
    add     sp, sp, #288
    enter_from_kernel
    mrs     x0, esr_el1
    mrs     x1, far_el1
    mov     x2, sp
    bl      {el1_fault}
    b       ret_to_kernel
1:  // overflow (or the boot stack, which is placed by the same rule): speak from the per-CPU emergency stack
    msr     tpidrro_el0, x0
    mrs     x0, tpidr_el1
    ldr     x0, [x0, #{context_cpu}]
    ldr     x0, [x0, #{percpu_emergency}]
    mov     sp, x0
    mrs     x0, tpidrro_el0
    enter_from_kernel
    mrs     x0, esr_el1
    mrs     x1, far_el1
    mov     x2, sp
    bl      {stack_overflow}

el1_irq:
    enter_from_kernel
    mov     x0, sp
    bl      {irq_kernel}
    // On its way back to user mode? Then from the start.
    ldr     x0, [sp, #256]
    adr     x1, syscall_return
    adr     x2, syscall_return_end
    cmp     x0, x1
    b.lo    ret_to_kernel
    cmp     x0, x2
    b.hs    ret_to_kernel
    str     x1, [sp, #256]
ret_to_kernel:
    msr     daifset, #2
    ldp     x22, x23, [sp, #256]
    msr     elr_el1, x22
    msr     spsr_el1, x23
    load_x0_x29
    ldr     x30, [sp, #240]
    add     sp, sp, #288
    eret

el1_bad:
el1_serror:
bad_sp0:
    enter_from_kernel
    mrs     x0, esr_el1
    mrs     x1, far_el1
    mov     x2, sp
    bl      {el1_bad}

// switch_stacks(save_sp: *mut u64 (x0), load_sp: u64 (x1), next thread (x2))
    .global switch_stacks
switch_stacks:
    sub     sp, sp, #96
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    msr     tpidr_el1, x2
    ldp     x19, x20, [sp, #0]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    add     sp, sp, #96
    ret

// fp_save(state: *mut FpState), fp_load(state: *const FpState)
    .arch_extension fp
    .global fp_save
fp_save:
    .arch armv8-a+fp+simd
    stp     q0, q1, [x0, #0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpsr
    mrs     x2, fpcr
    add     x0, x0, #512
    stp     w1, w2, [x0]
    ret
    .global fp_load
fp_load:
    ldp     q0, q1, [x0, #0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    add     x0, x0, #512
    ldp     w1, w2, [x0]
    mrs     x3, fpsr
    mrs     x4, fpcr
    cmp     x3, x1
    b.eq    1f
    msr     fpsr, x1
1:  cmp     x4, x2
    b.eq    2f
    msr     fpcr, x2
2:  ret
    .arch armv8.2-a+lse+pan+crc
