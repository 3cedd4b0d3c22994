//! What the kernel wants to know about the machine, as one plain value.
//!
//! **Idea.** The kernel is written against [`Platform`]; where the facts came from (today the device tree, later ACPI)
//! ends here. The value has fixed capacity, so it can be filled before there is a heap, and no lifetime, so the tree's
//! memory may be given away afterwards. It is about 6 KiB: where the stack is small, make one with
//! [`Platform::new`] and fill it in place with [`Platform::read_fdt`]. The command line is read by [`bootargs`].
//!
//! **What is an error, what a problem.** Without memory, a CPU, an interrupt controller or a timer no kernel can run:
//! these are [`PlatformError`]s. So is anything whose loss would be silent harm, such as a reserved range that finds no
//! place. The rest (a CPU too many, a console that is no PL011) is noted in [`Platform::problems`], for a message, and
//! left out.
//!
//! **One pass.** The tree is walked twice: once for the interrupt controller, whose handle and cells all interrupts need,
//! then once for everything else.

mod from_fdt;
mod regions;
mod types;

pub use from_fdt::bootargs;
pub use types::*;
