//! Pauses between attempts.

use std::time::Duration;

/// Pauses that double up to a bound. Each is between a half and the whole of what it may be, so that those who failed together do
/// not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, next: min }
    }

    /// The pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        whole / 2 + whole.mul_f64(rand::random_range(0.0..=0.5))
    }

    /// An attempt succeeded: the next failure is a first one.
    pub fn succeeded(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_begin_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        for whole in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            let pause = backoff.pause();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.succeeded();
        assert!(backoff.pause() <= min);
    }
}
