//! Size classes and slabs.
//!
//! A request is rounded up to a size class ([`class_of`]); each class takes its objects from slabs, which are single
//! frames cut into equal objects. A slab's free objects are chained through their own first word; the frame's
//! [`PageInfo`] holds the rest: the chain's head and the number in use in the reference count's word, the links of the
//! class's list of slabs with room in its two owner words.
//!
//! The kernel puts per-CPU magazines before this, so a call here moves a batch. Slabs that become empty leave at once,
//! except for one a class, which stays so that a class at the edge does not bounce.
//!
//! What was not done: colouring (caches are physically indexed and large), slabs of several frames (the largest class is
//! half a frame; what is bigger comes from the buddy allocator).

#![allow(clippy::cast_ptr_alignment)] // objects are aligned to 16 at least

use crate::PAGE_SIZE;
use crate::frame::{FrameState, MemMap, PageInfo};
use core::sync::atomic::Ordering;

/// The object sizes.
pub const CLASS_SIZES: [usize; CLASSES] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1360, 2048];
/// How many classes there are.
pub const CLASSES: usize = 14;
/// The largest size that a class serves.
pub const MAX_CLASS_SIZE: usize = 2048;

/// Class by (size + 15) / 16, for sizes up to 1024; the larger two are compared.
const CLASS_TABLE: [u8; 65] = {
    let mut t = [0u8; 65];
    let mut i = 1;
    while i < 65 {
        let mut c = 0;
        while CLASS_SIZES[c] < i * 16 {
            c += 1;
        }
        t[i] = c as u8;
        i += 1;
    }
    t
};

/// The class that serves `size` bytes aligned to `align`; `None` if that is for the buddy allocator.
#[inline(always)]
pub fn class_of(size: usize, align: usize) -> Option<usize> {
    // A class's objects are aligned to the largest power of two that divides its size, 16 at least; rounding the size up
    // to a power of two gives any alignment.
    let size = if align > 16 { size.max(align).next_power_of_two() } else { size };
    if size <= 1024 {
        Some(CLASS_TABLE[size.div_ceil(16)] as usize)
    } else if size <= 1360 && align <= 16 {
        Some(12)
    } else if size <= MAX_CLASS_SIZE {
        Some(13)
    } else {
        None
    }
}

/// Where frames' bytes are.
///
/// # Safety
/// `frame_ptr` gives the address of `PAGE_SIZE` writable bytes for every frame that `alloc_frame` returned and
/// `free_frame` has not taken back, and `frame_of` is its inverse for every address inside.
pub unsafe trait SlabMem {
    /// The memory map that has the slabs' frames.
    fn map(&self) -> &MemMap;
    /// A new frame.
    fn alloc_frame(&self) -> Option<u32>;
    /// Gives it back.
    fn free_frame(&self, frame: u32);
    /// Its bytes.
    fn frame_ptr(&self, frame: u32) -> *mut u8;
    /// The frame that holds `ptr`.
    fn frame_of(&self, ptr: *mut u8) -> u32;
}

const NIL: u32 = u32::MAX;
/// In the reference count's word of a slab: free chain's head (object index + 1) in the high half, objects in use in the
/// low half.
const HEAD_SHIFT: u32 = 16;

/// The slabs of one class.
#[derive(Debug)]
pub struct SlabList {
    class: usize,
    /// First slab with room.
    head: u32,
    empty: u32,
    slabs: usize,
    in_use: usize,
}

impl SlabList {
    /// No slabs yet.
    pub const fn new(class: usize) -> Self {
        SlabList { class, head: NIL, empty: NIL, slabs: 0, in_use: 0 }
    }

    /// Frames held.
    pub fn slabs(&self) -> usize {
        self.slabs
    }

    /// Objects handed out.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Takes objects into `out` until it is full or memory is exhausted; how many.
    pub fn alloc_batch<M: SlabMem>(&mut self, mem: &M, out: &mut [*mut u8]) -> usize {
        let mut n = 0;
        while n < out.len() {
            if self.head == NIL && !self.grow(mem) {
                break;
            }
            let frame = self.head;
            let Some(info) = mem.map().get(frame) else { break };
            let base = mem.frame_ptr(frame);
            let word = info.refs().load(Ordering::Relaxed);
            let (mut chain, mut used) = (word >> HEAD_SHIFT, word & 0xffff);
            if self.empty == frame {
                self.empty = NIL;
            }
            while chain != 0 && n < out.len() {
                // SAFETY: the chain holds indices of this slab's objects that are free, so they are inside the frame and
                // nobody else uses them; their first word is the next index.
                unsafe {
                    let object = base.add((chain as usize - 1) * CLASS_SIZES[self.class]);
                    chain = object.cast::<u32>().read();
                    out[n] = object;
                }
                n += 1;
                used += 1;
                self.in_use += 1;
            }
            info.refs().store(chain << HEAD_SHIFT | used, Ordering::Relaxed);
            if chain == 0 {
                self.unlink(mem.map(), info);
            }
        }
        n
    }

    /// Gives objects back.
    ///
    /// # Safety
    /// Each came from [`SlabList::alloc_batch`] of this list, is given back once, and is not used any more.
    pub unsafe fn free_batch<M: SlabMem>(&mut self, mem: &M, objects: &[*mut u8]) {
        for &object in objects {
            let frame = mem.frame_of(object);
            let Some(info) = mem.map().get(frame) else { continue };
            debug_assert!(
                info.state() == FrameState::Slab && info.owner() as usize == self.class,
                "free of a foreign object"
            );
            let index = (object as usize - mem.frame_ptr(frame) as usize) / CLASS_SIZES[self.class];
            let word = info.refs().load(Ordering::Relaxed);
            let (chain, used) = (word >> HEAD_SHIFT, (word & 0xffff) - 1);
            // SAFETY: the object is free now by the caller's promise, and at least 16 bytes.
            unsafe { object.cast::<u32>().write(chain) };
            info.refs().store((index as u32 + 1) << HEAD_SHIFT | used, Ordering::Relaxed);
            self.in_use -= 1;
            if chain == 0 {
                self.link(mem.map(), frame, info);
            }
            if used == 0 {
                if self.empty == NIL {
                    self.empty = frame;
                } else {
                    self.unlink(mem.map(), info);
                    self.release(mem, frame);
                }
            }
        }
    }

    /// Gives the one empty slab that is kept back to the frame allocator.
    pub fn trim<M: SlabMem>(&mut self, mem: &M) {
        let frame = core::mem::replace(&mut self.empty, NIL);
        if frame != NIL
            && let Some(info) = mem.map().get(frame)
        {
            self.unlink(mem.map(), info);
            self.release(mem, frame);
        }
    }

    fn release<M: SlabMem>(&mut self, mem: &M, frame: u32) {
        self.slabs -= 1;
        mem.free_frame(frame);
    }

    fn grow<M: SlabMem>(&mut self, mem: &M) -> bool {
        let Some(frame) = mem.alloc_frame() else { return false };
        let Some(info) = mem.map().get(frame) else { return false };
        let size = CLASS_SIZES[self.class];
        let count = PAGE_SIZE / size;
        let base = mem.frame_ptr(frame);
        for i in 0..count {
            let next = if i + 1 < count { i as u32 + 2 } else { 0 };
            // SAFETY: the frame is ours alone and holds `count` objects.
            unsafe { base.add(i * size).cast::<u32>().write(next) };
        }
        info.set_use(FrameState::Slab, self.class as u16);
        info.refs().store(1 << HEAD_SHIFT, Ordering::Relaxed);
        self.slabs += 1;
        self.link(mem.map(), frame, info);
        true
    }

    fn link(&mut self, map: &MemMap, frame: u32, info: &PageInfo) {
        let (next, prev) = info.words();
        next.store(self.head, Ordering::Relaxed);
        prev.store(NIL, Ordering::Relaxed);
        if self.head != NIL
            && let Some(old) = map.get(self.head)
        {
            old.words().1.store(frame, Ordering::Relaxed);
        }
        self.head = frame;
    }

    fn unlink(&mut self, map: &MemMap, info: &PageInfo) {
        let (next, prev) = (info.words().0.load(Ordering::Relaxed), info.words().1.load(Ordering::Relaxed));
        if prev == NIL {
            self.head = next;
        } else if let Some(p) = map.get(prev) {
            p.words().0.store(next, Ordering::Relaxed);
        }
        if next != NIL
            && let Some(n) = map.get(next)
        {
            n.words().1.store(prev, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Buddy;
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::collections::HashSet;
    use std::vec::Vec;

    struct Mem {
        map: MemMap,
        buddy: RefCell<Buddy>,
        base: *mut u8,
    }

    impl Mem {
        fn new(frames: usize) -> Mem {
            let info: Vec<PageInfo> = (0..frames).map(|_| PageInfo::new()).collect();
            let mut map = MemMap::new();
            map.add_region(0, Box::leak(info.into_boxed_slice()));
            let mut buddy = Buddy::new();
            buddy.add_range(&map, 0..frames as u32);
            let layout = std::alloc::Layout::from_size_align(frames * PAGE_SIZE, PAGE_SIZE).unwrap();
            // SAFETY: a layout of non-zero size; leaked.
            let base = unsafe { std::alloc::alloc(layout) };
            Mem { map, buddy: RefCell::new(buddy), base }
        }
    }

    // SAFETY: frames are pages of one allocation.
    unsafe impl SlabMem for Mem {
        fn map(&self) -> &MemMap {
            &self.map
        }
        fn alloc_frame(&self) -> Option<u32> {
            self.buddy.borrow_mut().alloc(&self.map, 0)
        }
        fn free_frame(&self, frame: u32) {
            self.buddy.borrow_mut().free(&self.map, frame, 0);
        }
        fn frame_ptr(&self, frame: u32) -> *mut u8 {
            self.base.wrapping_add(frame as usize * PAGE_SIZE)
        }
        fn frame_of(&self, ptr: *mut u8) -> u32 {
            ((ptr as usize - self.base as usize) / PAGE_SIZE) as u32
        }
    }

    #[test]
    fn classes_fit_and_align() {
        for size in 0..=2048 {
            for align in [1, 8, 16, 32, 64, 512, 2048] {
                let c = class_of(size, align).unwrap();
                assert!(CLASS_SIZES[c] >= size, "{size} {align}");
                assert!(align <= 16 || CLASS_SIZES[c].is_multiple_of(align), "{size} {align}");
            }
        }
        assert_eq!(class_of(2049, 8), None);
        assert_eq!(class_of(64, 4096), None);
    }

    #[test]
    fn objects_are_distinct_and_all_frames_return() {
        for (class, &size) in CLASS_SIZES.iter().enumerate() {
            let mem = Mem::new(16);
            let mut list = SlabList::new(class);
            let mut got = Vec::new();
            let mut batch = [core::ptr::null_mut(); 7];
            loop {
                let n = list.alloc_batch(&mem, &mut batch);
                got.extend_from_slice(&batch[..n]);
                if n < batch.len() {
                    break;
                }
            }
            let per = PAGE_SIZE / size;
            assert_eq!(got.len(), 16 * per);
            let set: HashSet<usize> = got.iter().map(|&p| p as usize).collect();
            assert_eq!(set.len(), got.len());
            for &p in &got {
                // SAFETY: the object is ours and this big.
                unsafe { core::ptr::write_bytes(p, 0xa5, size) };
            }
            // every other one first, so that slabs are partly used
            for part in 0..2 {
                for (i, p) in got.iter().enumerate() {
                    if i % 2 == part {
                        // SAFETY: each object is given back once.
                        unsafe { list.free_batch(&mem, &[*p]) };
                    }
                }
            }
            assert_eq!(list.in_use(), 0);
            assert_eq!(list.slabs(), 1);
            list.trim(&mem);
            assert_eq!(mem.buddy.borrow().free_frames(), 16);
            // and it works again
            assert_eq!(list.alloc_batch(&mem, &mut batch), 7.min(16 * per));
        }
    }
}
