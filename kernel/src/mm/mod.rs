//! Placeholder until the memory manager lands.
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Placeholder.
#[derive(Debug)]
pub struct AddressSpace;
impl AddressSpace {
    /// Placeholder.
    pub fn activate(&self) {}
    /// Placeholder.
    pub fn page_at(&self, _addr: u64) -> Option<platform::Page> {
        None
    }
}
/// Placeholder.
pub mod fault {
    use crate::arch::trap::{Access, FaultSignal, TrapFrame};
    /// Placeholder.
    pub fn user_fault(addr: u64, _access: Access, _frame: &mut TrapFrame) -> Result<(), FaultSignal> {
        Err(FaultSignal { signo: 11, code: 1, addr })
    }
}
struct Bump;
static NEXT: AtomicUsize = AtomicUsize::new(0);
static mut ARENA: [u8; 1 << 20] = [0; 1 << 20];
// SAFETY: placeholder.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        let n = NEXT.fetch_add(l.size() + 64, Ordering::Relaxed);
        let base = &raw mut ARENA as usize + n;
        ((base + l.align() - 1) & !(l.align() - 1)) as *mut u8
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
#[global_allocator]
static HEAP: Bump = Bump;

/// Placeholder.
pub fn init(_ram: &[core::ops::Range<u64>], _reserved: &[core::ops::Range<u64>]) {}
/// Placeholder.
pub fn ioremap(_pa: u64, _len: usize) -> Option<usize> {
    None
}
