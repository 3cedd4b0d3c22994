//! Split virtqueues (virtio 1.2, section 2.7): the driver's side.
//!
//! The rings live in memory that the device writes whenever it likes, so nothing is read back from them but the two words
//! that the device owns (the used ring and `avail_event`), and what those say is checked: an id that is not in flight, or a
//! used index that runs ahead of what was made available, is [`Broken`], after which the queue must not be used
//! any more. Descriptors are built from a shadow that the device cannot reach.
//!
//! **Notifications.** With `VIRTIO_F_EVENT_IDX` both sides say at which index they want to be told. [`Virtqueue::publish`]
//! makes everything added since the last call visible at once and says whether the device wants a kick, by the standard's
//! comparison modulo 2^16 over the whole batch. [`Virtqueue::arm`] asks for an interrupt at the next used
//! buffer and says whether one came meanwhile, so that none is lost.
//!
//! **Layout.** One block of memory in the legacy layout (section 2.7.2), which modern devices take as well: descriptors, the
//! available ring behind them, the used ring on the next page.
//!
//! **Why not the queue of the crate `virtio-drivers`,** whose transports Berth uses: its `should_notify` compares without
//! wrap-around, so that with EVENT_IDX a kick is missed or superfluous for half of all indices; it takes buffers as Rust slices,
//! which pages that user space maps must never be; and it trusts the id in a used element far enough to panic.
//!
//! Not done: packed rings (no device of Berth's clouds offers only those) and resets of single queues.
#![no_std]
#![expect(clippy::cast_ptr_alignment, reason = "offsets into the page-aligned rings are multiples of the words' sizes")]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// log2 of the alignment of the used ring.
const PAGE: usize = 4096;
/// A descriptor's bytes.
pub const DESCRIPTOR: usize = 16;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of memory that the device reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address as the device sees it.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// The device writes it (else reads).
    pub writable: bool,
}

impl Buffer {
    /// The descriptor's 16 bytes, as they stand in an indirect table at index `at` of `count`.
    pub fn indirect(self, at: usize, count: usize) -> [u64; 2] {
        let more = at + 1 < count;
        let flags = if more { NEXT } else { 0 } | if self.writable { WRITE } else { 0 };
        descriptor(self.addr, self.len, flags, if more { at as u16 + 1 } else { 0 })
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u64; 2] {
    [addr.to_le(), (u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48).to_le()]
}

/// The device broke the rules: an answer to nothing, or more answers than questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A buffer chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`Virtqueue::add`] was given.
    pub token: u16,
    /// How many bytes the device says it wrote: to be checked by the caller.
    pub len: u32,
}

/// No chain starts at this descriptor.
const FREE: u32 = u32::MAX;

/// One queue. Not synchronised: its owner locks.
#[derive(Debug)]
pub struct Virtqueue {
    memory: NonNull<u8>,
    size: u16,
    event_idx: bool,
    free_head: u16,
    free: u16,
    /// What follows each descriptor, in the free list or in its chain.
    next: Vec<u16>,
    /// For the head of a chain in flight its token and length (token << 16 | descriptors), else [`FREE`].
    chains: Vec<u32>,
    avail_idx: u16,
    published: u16,
    last_used: u16,
}

// SAFETY: the memory belongs to this value alone (`new`'s contract), but for the device.
unsafe impl Send for Virtqueue {}

impl Virtqueue {
    /// How many bytes of memory a queue of `size` entries needs.
    pub const fn bytes(size: u16) -> usize {
        Self::used_offset(size) + 6 + 8 * size as usize
    }

    const fn avail_offset(size: u16) -> usize {
        DESCRIPTOR * size as usize
    }

    const fn used_offset(size: u16) -> usize {
        (Self::avail_offset(size) + 6 + 2 * size as usize).next_multiple_of(PAGE)
    }

    /// An empty queue of `size` entries (a power of two, at most 32768) in `memory`. `event_idx`: the feature was
    /// negotiated.
    ///
    /// # Safety
    /// `memory` is [`Virtqueue::bytes`] bytes of zeroes, aligned to a page, that nobody but the device uses until this value
    /// is dropped and the device was reset.
    pub unsafe fn new(memory: NonNull<u8>, size: u16, event_idx: bool) -> Self {
        assert!(size.is_power_of_two() && size <= 0x8000, "queue size");
        Virtqueue {
            memory,
            size,
            event_idx,
            free_head: 0,
            free: size,
            next: (1..=size).collect(),
            chains: vec![FREE; size as usize],
            avail_idx: 0,
            published: 0,
            last_used: 0,
        }
    }

    /// The three parts' offsets in the memory: descriptors, available ring (driver area), used ring (device area).
    pub fn offsets(&self) -> [usize; 3] {
        [0, Self::avail_offset(self.size), Self::used_offset(self.size)]
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// How many descriptors are free.
    pub fn free(&self) -> u16 {
        self.free
    }

    fn word16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: within the memory (every caller's offset is that of a ring's word), aligned, and shared with the device,
        // hence atomic.
        unsafe { &*self.memory.as_ptr().add(offset).cast::<AtomicU16>() }
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `word16`.
        unsafe { &*self.memory.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    fn write_descriptor(&self, at: u16, words: [u64; 2]) {
        for (i, word) in words.into_iter().enumerate() {
            let offset = DESCRIPTOR * at as usize + 8 * i;
            // SAFETY: as for `word16`; descriptors are 16 bytes each, aligned.
            unsafe { &*self.memory.as_ptr().add(offset).cast::<AtomicU64>() }.store(word, Ordering::Relaxed);
        }
    }

    /// Puts a chain of `buffers` (readable ones first) into the queue, to be seen by the device after
    /// [`Virtqueue::publish`]. False if there are not enough descriptors. `token` (below 65535) comes back with
    /// [`Virtqueue::pop`].
    ///
    /// # Safety
    /// The buffers are memory that the device may use until the token has come back or the device was reset.
    pub unsafe fn add(&mut self, token: u16, buffers: impl ExactSizeIterator<Item = Buffer>) -> bool {
        let count = buffers.len();
        if count == 0 || count > self.free as usize {
            return false;
        }
        let head = self.free_head;
        let mut at = head;
        for (i, buffer) in buffers.enumerate() {
            at = if i == 0 { head } else { self.next[at as usize] };
            let more = i + 1 < count;
            let flags = if more { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
            let next = if more { self.next[at as usize] } else { 0 };
            self.write_descriptor(at, descriptor(buffer.addr, buffer.len, flags, next));
        }
        self.chain_added(token, head, at, count as u16);
        true
    }

    /// As [`Virtqueue::add`] for a chain whose descriptors stand in a table of `len` bytes at `addr`
    /// (`VIRTIO_F_INDIRECT_DESC`).
    ///
    /// # Safety
    /// As for `add`, for the table and for what it names.
    pub unsafe fn add_indirect(&mut self, token: u16, addr: u64, len: u32) -> bool {
        if self.free == 0 {
            return false;
        }
        let head = self.free_head;
        self.write_descriptor(head, descriptor(addr, len, INDIRECT, 0));
        self.chain_added(token, head, head, 1);
        true
    }

    fn chain_added(&mut self, token: u16, head: u16, last: u16, count: u16) {
        self.free_head = self.next[last as usize];
        self.free -= count;
        self.chains[head as usize] = u32::from(token) << 16 | u32::from(count);
        let slot = self.avail_idx & (self.size - 1);
        self.word16(Self::avail_offset(self.size) + 4 + 2 * slot as usize).store(head.to_le(), Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows the device what was added. True if it wants to be told.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.avail_idx);
        if old == new {
            return false;
        }
        self.word16(Self::avail_offset(self.size) + 2).store(new.to_le(), Ordering::Release);
        self.published = new;
        // Our index must be visible before we look at what the device wants; it does the reverse.
        fence(Ordering::SeqCst);
        let used = Self::used_offset(self.size);
        if self.event_idx {
            let event = u16::from_le(self.word16(used + 4 + 8 * self.size as usize).load(Ordering::Relaxed));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(self.word16(used).load(Ordering::Relaxed)) & 1 == 0
        }
    }

    /// Whether the device has used something that was not popped yet.
    pub fn has_used(&self) -> bool {
        u16::from_le(self.word16(Self::used_offset(self.size) + 2).load(Ordering::Acquire)) != self.last_used
    }

    /// The next used chain; its descriptors are free again.
    pub fn pop(&mut self) -> Result<Option<Used>, Broken> {
        let used = Self::used_offset(self.size);
        let index = u16::from_le(self.word16(used + 2).load(Ordering::Acquire));
        let behind = index.wrapping_sub(self.last_used);
        if behind == 0 {
            return Ok(None);
        }
        if behind > self.published.wrapping_sub(self.last_used) || behind > self.size {
            return Err(Broken);
        }
        let slot = used + 4 + 8 * (self.last_used & (self.size - 1)) as usize;
        let id = u32::from_le(self.word32(slot).load(Ordering::Relaxed));
        let len = u32::from_le(self.word32(slot + 4).load(Ordering::Relaxed));
        let chain = self.chains.get_mut(id as usize).ok_or(Broken)?;
        let what = core::mem::replace(chain, FREE);
        if what == FREE {
            return Err(Broken);
        }
        let (token, count) = ((what >> 16) as u16, what as u16);
        let mut last = id as u16;
        for _ in 1..count {
            last = self.next[last as usize];
        }
        self.next[last as usize] = self.free_head;
        self.free_head = id as u16;
        self.free += count;
        self.last_used = self.last_used.wrapping_add(1);
        Ok(Some(Used { token, len }))
    }

    /// Asks for an interrupt at the next used chain. True if one has come already, which must then be popped (no
    /// interrupt will tell of it).
    #[must_use]
    pub fn arm(&mut self) -> bool {
        let avail = Self::avail_offset(self.size);
        if self.event_idx {
            self.word16(avail + 4 + 2 * self.size as usize).store(self.last_used.to_le(), Ordering::Relaxed);
        } else {
            self.word16(avail).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// The index of the next used element to take, if the device has written it already.
    pub fn waiting(&self) -> Option<u16> {
        self.has_used().then_some(self.last_used)
    }

    /// Asks for no interrupts until [`Virtqueue::arm`]; the device may send some all the same. (With EVENT_IDX nothing need
    /// be done: it sends one per `arm`.)
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.word16(Self::avail_offset(self.size)).store(1u16.to_le(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
