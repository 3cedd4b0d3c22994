//! `TCP_CORK` and `MSG_MORE`: bytes that do not fill a segment are held back, outside smoltcp's ring, until more come, the
//! cork is pulled, the connection is closed, the ring could take no more, or 200 ms have passed (as Linux).

use super::inner::Inner;

const CEILING_NS: u64 = 200_000_000;

impl Inner {
    /// The most bytes that a segment carries now.
    fn segment_size(&self) -> usize {
        let header = if self.tuple.local.0.is_ipv4() { 40 } else { 60 };
        usize::from(self.seen.offered.mss.unwrap_or(536)).min(self.mtu.saturating_sub(header)).max(1)
    }

    /// Puts bytes into the ring, or with `hold` those that fill segments; how many were taken. None: not in this state.
    pub(super) fn put(&mut self, data: &[u8], hold: bool, now: u64) -> Option<usize> {
        if !hold && self.held.is_empty() {
            return self.socket().send_slice(data).ok();
        }
        let s = self.socket();
        let room = s.send_capacity() - s.send_queue();
        let taken = data.len().min(room.saturating_sub(self.held.len()));
        self.held.extend_from_slice(&data[..taken]);
        let all = self.held.len();
        let go = if hold && all < room { all - all % self.segment_size() } else { all };
        self.release(go);
        if go > 0 || self.held_since.is_none() {
            self.held_since = Some(now);
        }
        Some(taken)
    }

    /// Lets go of what was held too long; when to look again.
    pub(super) fn uncork_late(&mut self, now: u64) -> Option<u64> {
        let until = self.held_since.filter(|_| !self.held.is_empty())? + CEILING_NS;
        if now < until {
            return Some(until);
        }
        self.uncork();
        None
    }

    /// Lets go of all that is held.
    pub(super) fn uncork(&mut self) {
        self.release(self.held.len());
    }

    fn release(&mut self, count: usize) {
        let held = core::mem::take(&mut self.held);
        // It fits: room for it was left.
        let sent = self.socket().send_slice(&held[..count]).unwrap_or(count);
        self.held = held;
        self.held.drain(..sent);
        if self.held.is_empty() {
            self.held_since = None;
        }
    }
}
