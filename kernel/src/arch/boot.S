// From reset to Rust: the arm64 Image header, the drop to EL1, the identity map, relocation, and the way in for
// secondary CPUs. Linux Documentation/arch/arm64/booting.rst gives the protocol: MMU off, x0 = device tree, at EL2 or
// EL1, interrupts masked, image at a 2 MiB boundary anywhere in RAM.
//
// MAIR: 0 device-nGnRE, 1 normal write-back, 2 normal non-cacheable. Must agree with arch/mmu.rs.

// Step from the table x1 through entry \idx to the next table (made if missing), which becomes x1.
    .macro  bl_table_level idx
    ldr     x3, [x1, \idx, lsl #3]
    cbnz    x3, 9f
    orr     x3, x23, #3
    str     x3, [x1, \idx, lsl #3]
    add     x23, x23, #4096
9:  and     x1, x3, #0x0000fffffffff000
    .endm

    .section .head.text, "ax"
    .global _start
_start:
    b       primary_entry
    .long   0
    .quad   0                               // text_offset: any 2 MiB boundary
    .quad   __image_size                    // image_size
    .quad   0xa                             // little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

primary_entry:
    mov     x21, x0                         // device tree, physical
    bl      enter_el1
    bl      check_cpu
    adrp    x20, __image_start              // image, physical

    // Clear and build the identity map: 2 MiB blocks over the image and the tree.
    adrp    x0, __idmap_start
    adrp    x1, __idmap_end
1:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    1b
    adrp    x22, __idmap_start              // the level 0 table; x23: next free table
    add     x23, x22, #4096
    adrp    x24, __image_end
    mov     x25, x20
2:  mov     x0, x25
    bl      map_block
    add     x25, x25, #0x200000
    cmp     x25, x24
    b.lo    2b
    mov     x0, x24                         // the block that holds the image's end
    bl      map_block
    mov     x0, x21
    bl      map_block
    add     x0, x21, #0x200000
    bl      map_block

    // Tables were written with the MMU off: drop stale cache lines over them.
    adrp    x0, __idmap_start
    adrp    x1, __idmap_end
3:  dc      ivac, x0
    add     x0, x0, #64
    cmp     x0, x1
    b.lo    3b
    dsb     sy

    mov     x0, x22
    mov     x1, x22                         // nothing lives in the high half yet
    bl      enable_mmu

    adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    adrp    x1, __bss_end
    add     x1, x1, :lo12:__bss_end
4:  cmp     x0, x1
    b.hs    5f
    stp     xzr, xzr, [x0], #16
    b       4b
5:
    // Rust's tables of pointers need relocating: first for where we run now, then for where we shall run.
    mov     x0, x20
    bl      relocate
    adrp    x0, {boot_stack}
    add     x0, x0, :lo12:{boot_stack}
    add     sp, x0, {boot_stack_size}
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x21
    mov     x1, x20
    bl      {early_main}                    // -> x0: virtual address of the image, x1: TTBR1
    mov     x25, x0
    msr     ttbr1_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    mov     x0, x25
    bl      relocate
    dsb     ish
    ic      iallu
    dsb     ish
    isb
    // Go high: addresses of the image move by x25 - x20.
    sub     x26, x25, x20
    adrp    x0, {boot_stack}
    add     x0, x0, :lo12:{boot_stack}
    add     x0, x0, {boot_stack_size}
    add     sp, x0, x26
    adr     x1, 6f
    add     x1, x1, x26
    br      x1
6:  mov     x0, x21
    mov     x1, x20
    bl      {kernel_main}
7:  wfi
    b       7b

// Map the 2 MiB block that holds x0, identically. Clobbers x0-x5; x22 level 0 table, x23 next free table.
map_block:
    mov     x1, x22
    ubfx    x2, x0, #39, #9
    bl_table_level x2
    ubfx    x2, x0, #30, #9
    bl_table_level x2
    ubfx    x2, x0, #21, #9
    and     x3, x0, #~0x1fffff
    mov     x4, #0x705                      // block, AttrIndx 1, inner shareable, AF
    orr     x3, x3, x4
    str     x3, [x1, x2, lsl #3]
    ret

// Apply R_AARCH64_RELATIVE relocations for an image that runs at x0. The addends are in the table, so it can be done
// again for another address. Works from wherever PC is.
relocate:
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
    adrp    x3, __image_start
1:  cmp     x1, x2
    b.hs    2f
    ldp     x4, x5, [x1], #16               // offset, info
    ldr     x6, [x1], #8                    // addend
    cmp     w5, #1027                       // R_AARCH64_RELATIVE
    b.ne    1b
    add     x6, x6, x0
    str     x6, [x3, x4]
    b       1b
2:  ret

// x0 = TTBR0, x1 = TTBR1. Clobbers x2, x3.
enable_mmu:
    tlbi    vmalle1
    dsb     nsh
    ldr     x2, =0x44ff04
    msr     mair_el1, x2
    // T0SZ = T1SZ = 16, 4 KiB granules, write-back inner-shareable walks, 16-bit ASIDs if there are such
    ldr     x2, =0x00000000b5103510
    mrs     x3, id_aa64mmfr0_el1
    ubfx    x4, x3, #4, #4
    cmp     x4, #2
    b.lo    1f
    orr     x2, x2, #(1 << 36)
1:  and     x3, x3, #0xf                    // physical address size, at most 48 bits
    cmp     x3, #5
    b.ls    2f
    mov     x3, #5
2:  bfi     x2, x3, #32, #3
    msr     tcr_el1, x2
    msr     ttbr0_el1, x0
    msr     ttbr1_el1, x1
    isb
    ldr     x2, ={sctlr}
    msr     sctlr_el1, x2
    isb
    ic      iallu
    dsb     nsh
    isb
    ret

// Stop with a clear line on CPUs older than Armv8.1: the kernel's atomics are LSE instructions. There is no console yet
// and no device tree read; QEMU's and most machines' firmware leave us no way to speak before, so the line goes out
// later, from Rust compiled without atomics - see early_main. Here: remember.
check_cpu:
    ret

enter_el1:
    mrs     x0, CurrentEL
    cmp     x0, #8
    b.eq    1f
    // SCTLR_EL1 is not defined on entry at EL1 beyond M and C being 0.
    ldr     x0, ={sctlr_off}
    msr     sctlr_el1, x0
    isb
    ret
1:  mov     x0, #(1 << 31)                  // HCR_EL2.RW: EL1 is AArch64
    msr     hcr_el2, x0
    mrs     x0, cnthctl_el2
    orr     x0, x0, #3                      // EL1 reaches the physical counter and timer
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr
    mov     x0, #0x33ff                     // CPTR_EL2: trap nothing
    msr     cptr_el2, x0
    msr     hstr_el2, xzr
    msr     mdcr_el2, xzr
    msr     vttbr_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    mrs     x0, id_aa64pfr0_el1
    ubfx    x0, x0, #24, #4
    cbz     x0, 2f
    mrs     x0, S3_4_C12_C9_5               // ICC_SRE_EL2: system registers for the GIC, here and at EL1
    mov     x1, #9
    orr     x0, x0, x1
    msr     S3_4_C12_C9_5, x0
    isb
    msr     S3_4_C12_C11_0, xzr             // ICH_HCR_EL2
2:  ldr     x0, ={sctlr_off}
    msr     sctlr_el1, x0
    mov     x0, #0x3c5                      // EL1h, all masked
    msr     spsr_el2, x0
    msr     elr_el2, x30
    eret

    .global secondary_entry
// A secondary CPU, by PSCI CPU_ON: x0 = context, the virtual address of its SecondaryArgs.
secondary_entry:
    mov     x21, x0
    bl      enter_el1
    adrp    x22, {secondary_ttbr1}
    ldr     x1, [x22, :lo12:{secondary_ttbr1}]
    adrp    x0, __idmap_start
    bl      enable_mmu
    ldr     x2, [x21, #8]                   // stack top
    ldr     x3, [x21, #0]                   // where to
    mov     sp, x2
    mov     x0, x21
    mov     x29, xzr
    mov     x30, xzr
    br      x3
    .ltorg
