//! A device's counters, as `/proc/diskstats` shows them.

use crate::request::Op;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which row of counters an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, of zeroes too.
    Write,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
}

impl From<Op> for Kind {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Kind::Read,
            Op::Write { .. } | Op::WriteZeroes => Kind::Write,
            Op::Discard => Kind::Discard,
            Op::Flush => Kind::Flush,
        }
    }
}

#[derive(Debug, Default)]
struct Row {
    requests: AtomicU64,
    merges: AtomicU64,
    sectors: AtomicU64,
    ns: AtomicU64,
}

/// Counters of one device. All only rise, but for the number in flight.
#[derive(Debug, Default)]
pub struct Stats {
    rows: [Row; 4],
    errors: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    busy_ns: AtomicU64,
    busy_since: AtomicU64,
    weighted_ns: AtomicU64,
}

/// What [`Stats`] held at one time: per [`Kind`] the requests completed, merges, sectors and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Requests completed, by [`Kind`].
    pub requests: [u64; 4],
    /// Requests that travelled as part of another.
    pub merges: [u64; 4],
    /// Sectors moved.
    pub sectors: [u64; 4],
    /// Time that requests took, added up, in nanoseconds.
    pub ns: [u64; 4],
    /// Requests that failed.
    pub errors: u64,
    /// Requests in flight now.
    pub in_flight: u64,
    /// The most that ever were.
    pub max_in_flight: u64,
    /// How long there was at least one, in nanoseconds.
    pub busy_ns: u64,
    /// The time of all requests added up, in nanoseconds.
    pub weighted_ns: u64,
}

impl Stats {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request has begun; returns the time, which [`Stats::end`] wants back.
    pub fn begin(&self) -> u64 {
        self.begin_many(1)
    }

    /// As [`Stats::begin`] for `n` at once.
    pub(crate) fn begin_many(&self, n: u64) -> u64 {
        let now = platform::monotonic_ns();
        let before = self.in_flight.fetch_add(n, Relaxed);
        if before == 0 {
            self.busy_since.store(now, Relaxed);
        }
        if before + n > self.max_in_flight.load(Relaxed) {
            self.max_in_flight.fetch_max(before + n, Relaxed);
        }
        now
    }

    /// A request that had begun will begin once more.
    pub(crate) fn cancel(&self) {
        self.cancel_many(1);
    }

    /// As [`Stats::cancel`] for `n` at once.
    pub(crate) fn cancel_many(&self, n: u64) {
        self.leave(n, platform::monotonic_ns());
    }

    fn leave(&self, n: u64, now: u64) {
        if self.in_flight.fetch_sub(n, Relaxed) == n {
            self.busy_ns.fetch_add(now.saturating_sub(self.busy_since.load(Relaxed)), Relaxed);
        }
    }

    /// Counts a request that another device carries out (a partition's).
    pub fn passed(&self, kind: Kind, sectors: u64) {
        self.rows[kind as usize].requests.fetch_add(1, Relaxed);
        self.rows[kind as usize].sectors.fetch_add(sectors, Relaxed);
    }

    /// A request that began at `began` has ended.
    pub fn end(&self, kind: Kind, sectors: u64, began: u64, ok: bool) {
        let now = platform::monotonic_ns();
        let row = &self.rows[kind as usize];
        let took = now.saturating_sub(began);
        row.requests.fetch_add(1, Relaxed);
        row.ns.fetch_add(took, Relaxed);
        self.weighted_ns.fetch_add(took, Relaxed);
        if ok {
            row.sectors.fetch_add(sectors, Relaxed);
        } else {
            self.errors.fetch_add(1, Relaxed);
        }
        self.leave(1, now);
    }

    /// A request was joined to another.
    pub fn merged(&self, kind: Kind) {
        self.rows[kind as usize].merges.fetch_add(1, Relaxed);
    }

    /// All counters.
    pub fn snapshot(&self) -> StatsSnapshot {
        let mut s = StatsSnapshot {
            errors: self.errors.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            busy_ns: self.busy_ns.load(Relaxed),
            weighted_ns: self.weighted_ns.load(Relaxed),
            ..StatsSnapshot::default()
        };
        for (i, row) in self.rows.iter().enumerate() {
            s.requests[i] = row.requests.load(Relaxed);
            s.merges[i] = row.merges.load(Relaxed);
            s.sectors[i] = row.sectors.load(Relaxed);
            s.ns[i] = row.ns.load(Relaxed);
        }
        s
    }
}
