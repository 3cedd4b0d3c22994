//! How far to read ahead: pure policy, pages in and windows out.
//!
//! A stream is a reader that goes forward. A miss at a stream's next page, or at the file's start, is sequential and gets a
//! window; anything else is random and gets what was asked for. A window grows fourfold while small, then twofold, up to
//! the maximum; when the reader reaches the page that starts a window's second part, the next one is started. A miss within
//! a window that had been read means that memory was too short to keep it: the stream's maximum is halved, and grows back
//! by doubling with each window that held.

/// Sizes in pages.
pub(crate) const MAX_WINDOW: u64 = 128;
const MIN_WINDOW: u64 = 4;
const STREAMS: usize = 4;

/// One reader's track.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The window that was read last: its first page and length; none if the length is 0.
    start: u64,
    size: u64,
    /// The page that the reader wants next.
    next: u64,
    /// The longest window at present.
    max: u64,
    /// When it was last used.
    stamp: u64,
}

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) start: u64,
    pub(crate) count: u64,
    /// The page whose use starts the next window, if any.
    pub(crate) mark: Option<u64>,
}

/// How a file is read, as the program says (`posix_fadvise`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Normal,
    Sequential,
    Random,
}

/// The streams of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    tracks: [Stream; STREAMS],
    clock: u64,
    pub(crate) mode: Mode,
}

impl Streams {
    fn limit(&self) -> u64 {
        if self.mode == Mode::Sequential { 2 * MAX_WINDOW } else { MAX_WINDOW }
    }

    fn find(&mut self, pick: impl Fn(&Stream) -> bool) -> Option<&mut Stream> {
        self.clock += 1;
        let clock = self.clock;
        let s = self.tracks.iter_mut().find(|s| s.stamp != 0 && pick(s))?;
        s.stamp = clock;
        Some(s)
    }

    fn start_stream(&mut self, plan: Plan, next: u64) {
        let limit = self.limit();
        self.clock += 1;
        let clock = self.clock;
        if let Some(s) = self.tracks.iter_mut().min_by_key(|s| s.stamp) {
            *s = Stream { start: plan.start, size: plan.count, next, max: limit, stamp: clock };
        }
    }

    /// Page `index` is not in the cache; the caller wants `wanted` pages from there. With `mapped`, the need is a page fault.
    pub(crate) fn miss(&mut self, index: u64, wanted: u64, mapped: bool) -> Plan {
        let limit = self.limit();
        let wanted = wanted.clamp(1, limit);
        if self.mode == Mode::Random {
            return Plan { start: index, count: wanted, mark: None };
        }
        if let Some(s) = self.find(|s| s.size > 0 && (s.start..s.start + s.size).contains(&index) && index >= s.next) {
            // It had been read ahead and is gone again.
            s.max = (s.max / 2).max(MIN_WINDOW);
            let count = (s.start + s.size - index).min(s.max).max(wanted);
            (s.start, s.size, s.next) = (index, count, index + wanted);
            return Plan { start: index, count, mark: None };
        }
        if let Some(s) = self.find(|s| index == s.next || index + 1 == s.next) {
            let count = if s.size == 0 { initial(wanted, s.max) } else { grown(s.size, s.max) }.max(wanted);
            s.max = (s.max * 2).min(limit);
            (s.start, s.size, s.next) = (index, count, index + wanted);
            return Plan { start: index, count, mark: mark_of(index, count, wanted) };
        }
        if index == 0 {
            let count = initial(wanted, limit);
            let plan = Plan { start: 0, count, mark: mark_of(0, count, wanted) };
            self.start_stream(plan, wanted);
            return plan;
        }
        let plan = if mapped {
            // Around the fault: programs' code is not read in order.
            Plan { start: index & !15, count: 16, mark: None }
        } else {
            Plan { start: index, count: wanted, mark: None }
        };
        self.start_stream(Plan { start: index, count: 0, mark: None }, plan.start + plan.count);
        plan
    }

    /// The reader came to the mark at `index`: the next window.
    pub(crate) fn ahead(&mut self, index: u64) -> Option<Plan> {
        let limit = self.limit();
        let s = self.find(|s| s.size > 0 && (s.start..s.start + s.size).contains(&index))?;
        let start = s.start + s.size;
        let count = grown(s.size, s.max);
        s.max = (s.max * 2).min(limit);
        (s.start, s.size, s.next) = (start, count, index + 1);
        Some(Plan { start, count, mark: Some(start) })
    }
}

fn initial(wanted: u64, max: u64) -> u64 {
    (wanted.next_power_of_two() * 4).max(MIN_WINDOW).min(max)
}

fn grown(size: u64, max: u64) -> u64 {
    if size < max / 16 { 4 * size } else { 2 * size }.clamp(MIN_WINDOW, max)
}

/// The mark stands where what was asked for ends, so that the next window starts while this one is copied.
fn mark_of(start: u64, count: u64, wanted: u64) -> Option<u64> {
    (count > wanted).then_some(start + wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_growing_windows() {
        let mut s = Streams::default();
        let first = s.miss(0, 1, false);
        assert_eq!(first, Plan { start: 0, count: 4, mark: Some(1) });
        let mut sizes = alloc::vec![];
        let mut mark = 1;
        for _ in 0..8 {
            let Some(p) = s.ahead(mark) else { panic!("the stream is lost") };
            sizes.push(p.count);
            mark = p.mark.unwrap_or(0);
        }
        assert_eq!(sizes, [16, 32, 64, 128, 128, 128, 128, 128]);
    }

    #[test]
    fn random_reads_get_what_they_ask() {
        let mut s = Streams::default();
        for i in [1000, 17, 500, 90, 7000] {
            assert_eq!(s.miss(i, 2, false), Plan { start: i, count: 2, mark: None });
        }
    }

    #[test]
    fn windows_shrink_when_pages_go_unread_and_grow_again() {
        let mut s = Streams::default();
        s.miss(0, 1, false);
        let mut last = Plan { start: 0, count: 0, mark: Some(1) };
        for _ in 0..6 {
            last = s.ahead(last.mark.unwrap_or(0)).unwrap_or(last);
        }
        assert_eq!(last.count, MAX_WINDOW);
        let again = s.miss(last.start + 10, 1, false);
        assert_eq!(again.count, MAX_WINDOW / 2);
        let again = s.miss(last.start + 20, 1, false);
        assert!(again.count <= MAX_WINDOW / 4);
    }

    #[test]
    fn two_readers_of_one_file_do_not_disturb_each_other() {
        let mut s = Streams::default();
        s.miss(0, 1, false);
        s.miss(1000, 1, false);
        assert!(s.miss(1001, 1, false).count > 1);
        assert!(s.ahead(1).is_some_and(|p| p.start == 4));
    }
}
