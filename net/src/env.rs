//! What the stack takes from outside: time, randomness, and somebody who calls back.

/// The stack's surroundings. Context of all calls: threads, possibly with spin locks held.
pub trait Env: Send + Sync {
    /// Nanoseconds on the clock that deadlines are in.
    fn now_ns(&self) -> u64;
    /// 64 unpredictable bits.
    fn random(&self) -> u64;
    /// The earliest deadline is now `deadline_ns`: [`crate::Stack::run_timers`] is to be called by then. Called with locks
    /// held (rank 575): it may wake a thread, nothing more.
    fn timer(&self, deadline_ns: u64);
}

/// The machine's clock and random numbers, and a function to call for timers.
#[derive(Debug)]
pub struct PlatformEnv(pub fn(u64));

impl Env for PlatformEnv {
    fn now_ns(&self) -> u64 {
        platform::monotonic_ns()
    }
    fn random(&self) -> u64 {
        platform::random_u64()
    }
    fn timer(&self, deadline_ns: u64) {
        (self.0)(deadline_ns);
    }
}
