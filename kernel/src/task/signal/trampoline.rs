//! Where signal handlers return to when the program gave no restorer: a page of code that every program has mapped.

use crate::mm::{AddressSpace, Backing, MapRequest, Mappable, Place, Prot, VmFlags};
use abi::{Errno, Result};
use alloc::sync::Arc;
use platform::{PAGE_SIZE, Page, SharedBytes};
use sync::Once;

/// `mov x8, #139; svc #0`: unwinders know a signal frame by these two instructions.
const CODE: [u32; 2] = [0xd280_1168, 0xd400_0001];

struct Trampoline(Page);

static PAGE: Once<Arc<Trampoline>> = Once::new();

impl Mappable for Trampoline {
    fn page_for(&self, index: u64, _write: bool) -> Result<Page> {
        if index == 0 { Ok(self.0.clone()) } else { Err(Errno::ENXIO) }
    }

    fn len(&self) -> u64 {
        PAGE_SIZE as u64
    }
}

fn object() -> Result<Arc<Trampoline>> {
    if let Some(t) = PAGE.get() {
        return Ok(t.clone());
    }
    let page = Page::zeroed().ok_or(Errno::ENOMEM)?;
    let mut bytes = [0u8; 8];
    for (to, insn) in bytes.chunks_exact_mut(4).zip(CODE) {
        to.copy_from_slice(&insn.to_le_bytes());
    }
    page.bytes_mut(0, bytes.len()).copy_from(SharedBytes::from(&bytes[..]));
    let made = Arc::new(Trampoline(page));
    // Two first programs at once: the second's page goes with its program.
    Ok(PAGE.set(made.clone()).map_or_else(|own| own, Arc::clone))
}

/// Maps the page into a new program; its address. `ENOMEM`.
pub fn map(space: &AddressSpace) -> Result<u64> {
    let at = space.map(MapRequest {
        place: Place::Any(0),
        len: PAGE_SIZE,
        prot: Prot::READ | Prot::EXEC,
        flags: VmFlags::VDSO,
        backing: Backing::Object { object: object()?, offset: 0 },
        populate: false,
    })?;
    Ok(at as u64)
}
