//! Guessing passwords takes time: each address has a few attempts at once, and then one every now and then.
//!
//! An address that has none left is refused without a look at what it shows, so that more guesses in parallel are not more guesses.
//! Others are not concerned, however many guess.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong passwords at once.
const BURST: f64 = 5.0;
/// For one more.
const REFILL: Duration = Duration::from_secs(2);
/// What is kept of so many addresses; all others are one.
const ADDRESSES_MAX: usize = 10_000;

/// For all that cannot be kept apart.
const OTHERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[derive(Debug, Default)]
pub(crate) struct Attempts {
    spent: Mutex<HashMap<IpAddr, Spent>>,
}

/// Attempts that do not count any longer are forgotten.
#[derive(Clone, Copy, Debug)]
struct Spent {
    attempts: f64,
    at: Instant,
}

impl Spent {
    fn by(self, now: Instant) -> f64 {
        (self.attempts - now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64()).max(0.0)
    }
}

impl Attempts {
    /// Whether an address may try a password.
    pub(crate) fn has_one(&self, address: IpAddr, now: Instant) -> bool {
        let spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = spent.get(&network_of(address)).or_else(|| spent.get(&OTHERS));
        known.is_none_or(|spent| spent.by(now) + 1.0 <= BURST)
    }

    /// Counts a wrong password.
    pub(crate) fn spend(&self, address: IpAddr, now: Instant) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network_of(address);
        let is_new = !spent.contains_key(&address);
        if is_new && spent.len() >= ADDRESSES_MAX {
            spent.retain(|_, spent| spent.by(now) > 0.0);
        }
        let address = if is_new && spent.len() >= ADDRESSES_MAX { OTHERS } else { address };
        let attempts = spent.get(&address).map_or(0.0, |spent| spent.by(now)) + 1.0;
        spent.insert(address, Spent { attempts: attempts.min(BURST), at: now });
    }
}

/// What counts as one place: who has an address of version 6 usually has a whole network of them.
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(attempts: &Attempts, from: IpAddr, at: Instant) -> bool {
        let may = attempts.has_one(from, at);
        if may {
            attempts.spend(from, at);
        }
        may
    }

    #[test]
    fn guesses_run_out_and_come_back_slowly() {
        let attempts = Attempts::default();
        let (guesser, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let start = Instant::now();
        let tries = |from, at| (0..100).filter(|_| guess(&attempts, from, at)).count();
        assert_eq!(tries(guesser, start), 5);
        assert_eq!(tries(other, start), 5, "each has its own");
        assert_eq!(tries(guesser, start + REFILL), 1);
        assert_eq!(tries(guesser, start + 3 * REFILL), 2);
        assert_eq!(tries(guesser, start + 1_000 * REFILL), 5, "no more than at first");
    }

    #[test]
    fn a_crowd_of_addresses_takes_no_memory_and_shares_what_is_left() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let guesses = (1..30_000).filter(|n| guess(&attempts, address(*n), now)).count();
        assert_eq!(guesses, ADDRESSES_MAX + 5);
        assert!(attempts.spent.lock().unwrap().len() <= ADDRESSES_MAX + 1);
        assert!(guess(&attempts, address(40_000), now + 5 * REFILL));
        assert!(attempts.spent.lock().unwrap().len() <= 2, "what does not count is forgotten");
    }

    #[test]
    fn networks() {
        let network = |text: &str| network_of(text.parse().unwrap()).to_string();
        assert_eq!(network("10.1.2.3"), "10.1.2.3");
        assert_eq!(network("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
