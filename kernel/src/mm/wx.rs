//! The proof that nothing is writable and executable: a walk of live page tables.

use super::space::AddressSpace;
use super::vmap::kernel_table;
use core::ops::ControlFlow;
use mm_core::pte::Pte;

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Mappings (pages and blocks) seen.
    pub leaves: usize,
    /// Of these, executable ones.
    pub executable: usize,
    /// Writable and executable ones: must be 0.
    pub violations: usize,
    /// The first such address, as an offset in its half.
    pub first: usize,
    /// User mappings in the kernel's half or the reverse: must be 0.
    pub misplaced: usize,
}

impl Verdict {
    fn look(&mut self, va: usize, pte: Pte, kernel: bool) {
        self.leaves += 1;
        let exec = pte.kernel_exec() || pte.user_exec();
        self.executable += usize::from(exec);
        // In the kernel's half UXN does not matter while EL0 has no access, but Berth sets it; look at both alike.
        if exec && pte.is_writable() {
            if self.violations == 0 {
                self.first = va;
            }
            self.violations += 1;
        }
        self.misplaced += usize::from(pte.is_user() == kernel || (!kernel && pte.kernel_exec()));
    }
}

/// Walks the kernel's tables.
pub fn check_kernel() -> Verdict {
    let mut v = Verdict::default();
    let _ = kernel_table().walk(&mut |_, va, pte| {
        v.look(va, pte, true);
        ControlFlow::Continue(())
    });
    v
}

/// Walks a user space's tables. May sleep.
pub fn check_user(space: &AddressSpace) -> Verdict {
    let mut v = Verdict::default();
    let _map = space.map.write();
    let _ = space.table.walk(&mut |_, va, pte| {
        if !pte.is_user() && !pte.is_writable() && !pte.user_exec() && !pte.kernel_exec() {
            // PROT_NONE with its frame kept
            v.leaves += 1;
        } else {
            v.look(va, pte, false);
        }
        ControlFlow::Continue(())
    });
    v
}
