//! The queue against a device of the tests' own, honest and not.

extern crate std;
use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::VecDeque;

#[repr(align(4096))]
struct Memory(#[expect(dead_code, reason = "reached by its address")] [u8; 16384]);

/// A device: reads chains, answers them when told.
struct Device {
    memory: NonNull<u8>,
    size: u16,
    seen: u16,
    used: u16,
    heads: VecDeque<u16>,
}

impl Device {
    fn read16(&self, at: usize) -> u16 {
        // SAFETY: inside the test's memory.
        unsafe { self.memory.as_ptr().add(at).cast::<u16>().read_volatile() }
    }
    fn write16(&self, at: usize, value: u16) {
        // SAFETY: inside the test's memory.
        unsafe { self.memory.as_ptr().add(at).cast::<u16>().write_volatile(value) }
    }
    fn take(&mut self) {
        let avail = Virtqueue::avail_offset(self.size);
        while self.seen != self.read16(avail + 2) {
            self.heads.push_back(self.read16(avail + 4 + 2 * (self.seen % self.size) as usize));
            self.seen = self.seen.wrapping_add(1);
        }
    }
    fn chain(&self, mut at: u16) -> usize {
        let mut n = 1;
        while self.read16(at as usize * 16 + 12) & NEXT != 0 {
            at = self.read16(at as usize * 16 + 14);
            n += 1;
        }
        n
    }
    fn answer(&mut self, id: u32, len: u32) {
        let used = Virtqueue::used_offset(self.size);
        let slot = used + 4 + 8 * (self.used % self.size) as usize;
        self.write16(slot, id as u16);
        self.write16(slot + 2, (id >> 16) as u16);
        self.write16(slot + 4, len as u16);
        self.used = self.used.wrapping_add(1);
        self.write16(used + 2, self.used);
    }
}

fn pair(size: u16, event_idx: bool) -> (Virtqueue, Device) {
    let memory = NonNull::from(Box::leak(Box::new(Memory([0; 16384])))).cast();
    assert!(Virtqueue::bytes(size) <= 16384);
    // SAFETY: leaked, zeroed, page-aligned memory of enough bytes.
    let queue = unsafe { Virtqueue::new(memory, size, event_idx) };
    (queue, Device { memory, size, seen: 0, used: 0, heads: VecDeque::new() })
}

fn add(queue: &mut Virtqueue, token: u16, n: usize) -> bool {
    // SAFETY: the test's device touches no buffers.
    unsafe { queue.add(token, (0..n).map(|i| Buffer { addr: i as u64, len: 1, writable: false })) }
}

#[test]
fn liars_are_found_out() {
    let lie = |id: u32, twice: bool| {
        let (mut queue, mut device) = pair(8, false);
        assert!(add(&mut queue, 1, 2) && add(&mut queue, 2, 2));
        assert!(queue.publish());
        device.answer(id, 0);
        if twice {
            device.answer(id, 0);
        }
        let first = queue.pop();
        if twice && first.is_ok() { queue.pop() } else { first }
    };
    assert_eq!(lie(0, false), Ok(Some(Used { token: 1, len: 0 })));
    assert_eq!(lie(1, false), Err(Broken), "the middle of a chain");
    assert_eq!(lie(4, false), Err(Broken), "a free descriptor");
    assert_eq!(lie(8, false), Err(Broken), "out of range");
    assert_eq!(lie(0x10000, false), Err(Broken), "out of range in the upper half");
    assert_eq!(lie(0, true), Err(Broken), "twice");
    let (queue, device) = pair(8, false);
    let mut queue = queue;
    device.write16(Virtqueue::used_offset(8) + 2, 5);
    assert_eq!(queue.pop(), Err(Broken), "answers without questions");
}

#[test]
fn kicks_are_asked_for_across_the_wrap() {
    let (mut queue, mut device) = pair(8, true);
    for round in 0..70_000u32 {
        // The device wants to be told at its current index: the next one must kick.
        device.write16(Virtqueue::used_offset(8) + 4 + 64, device.seen);
        assert!(add(&mut queue, 7, 1));
        assert!(queue.publish(), "round {round}");
        assert!(add(&mut queue, 8, 1));
        assert!(!queue.publish(), "round {round}");
        device.take();
        while let Some(head) = device.heads.pop_front() {
            device.answer(u32::from(head), 0);
        }
        assert!(queue.pop().unwrap().is_some() && queue.pop().unwrap().is_some());
        assert_eq!(queue.pop(), Ok(None));
        assert!(!queue.arm());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Chains come back with their tokens in whatever order the device likes, and no descriptor is lost.
    #[test]
    fn tokens_come_back(steps in proptest::collection::vec((any::<bool>(), 1usize..5, any::<usize>()), 1..200), event in any::<bool>()) {
        let (mut queue, mut device) = pair(16, event);
        let mut flight: Vec<(u16, usize)> = Vec::new();
        let mut token = 0;
        for (put, n, pick) in steps {
            if put {
                let room = queue.free() as usize >= n;
                prop_assert_eq!(add(&mut queue, token, n), room);
                if room {
                    flight.push((token, n));
                    token = (token + 1) % 1000;
                }
                let _ = queue.publish();
                device.take();
            } else if !device.heads.is_empty() {
                let head = device.heads.remove(pick % device.heads.len()).unwrap();
                let chain = device.chain(head);
                device.answer(u32::from(head), 3);
                let used = queue.pop().unwrap().unwrap();
                let at = flight.iter().position(|f| f.0 == used.token).unwrap();
                prop_assert_eq!(flight.remove(at).1, chain);
                prop_assert_eq!(used.len, 3);
            }
        }
        let held: usize = flight.iter().map(|f| f.1).sum();
        prop_assert_eq!(queue.free() as usize + held, 16);
    }

    /// Whatever the device writes anywhere: an error or an answer, never a panic.
    #[test]
    fn any_ring_is_survived(writes in proptest::collection::vec((0usize..8192, any::<u16>()), 0..100)) {
        let (mut queue, device) = pair(16, true);
        for (i, (at, value)) in writes.into_iter().enumerate() {
            device.write16(at / 2 * 2, value);
            device.write16(Virtqueue::used_offset(16) + (at % 140) / 2 * 2, value);
            add(&mut queue, i as u16, 1 + i % 3);
            let _ = queue.publish();
            if queue.pop().is_err() {
                break;
            }
            let _ = queue.arm();
        }
    }
}
