//! How long a service that has ended waits for its next start: twice as long with every early end, up to a bound. One that
//! ran for a while starts from the beginning, so that a rare crash costs next to nothing and a hopeless one no CPU.

use std::time::Duration;

/// The first delay.
pub const FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(30);
/// Who ran this long did not end early.
pub const SETTLED: Duration = Duration::from_secs(5);

/// The delays of one service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    early: u32,
}

impl Backoff {
    /// It ended after having run for `ran`: the delay before the next start.
    pub fn ended(&mut self, ran: Duration) -> Duration {
        if ran >= SETTLED {
            self.early = 0;
        }
        let delay = FIRST.saturating_mul(1u32.checked_shl(self.early).unwrap_or(u32::MAX)).min(LONGEST);
        self.early = self.early.saturating_add(1).min(16);
        delay
    }

    /// Forget what was: somebody started it by hand.
    pub fn reset(&mut self) {
        self.early = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound_and_start_again_after_a_good_run() {
        let mut b = Backoff::default();
        let ms: Vec<u128> = (0..12).map(|_| b.ended(Duration::ZERO).as_millis()).collect();
        assert_eq!(ms, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
        assert_eq!(b.ended(SETTLED), FIRST);
        assert_eq!(b.ended(Duration::ZERO), FIRST * 2);
    }
}
