//! How many strangers come from one address.
//!
//! Behind a proxy all clients have the proxy's address, so this is no limit of clients: it only keeps one place from taking all the
//! room that there is for sockets whose credentials are still to be judged.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::attempts::network_of;

/// The count of each.
#[derive(Debug)]
pub struct Addresses {
    /// `None`: no limit.
    each_max: Option<usize>,
    guests: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    #[must_use]
    pub fn new(each_max: Option<usize>) -> Arc<Addresses> {
        Arc::new(Addresses { each_max, guests: Mutex::default() })
    }

    /// Counts a stranger from `address`, unless there are too many.
    #[must_use]
    pub fn admit(self: &Arc<Addresses>, address: IpAddr) -> Option<Guest> {
        let address = network_of(address);
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = guests.entry(address).or_default();
        if self.each_max.is_some_and(|max| *count >= max) {
            return None;
        }
        *count += 1;
        Some(Guest { addresses: Arc::clone(self), address })
    }
}

/// Counts as long as it lives.
#[derive(Debug)]
pub struct Guest {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.addresses.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = guests.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                guests.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_own_count() {
        let addresses = Addresses::new(Some(2));
        let admit = |text: &str| addresses.admit(text.parse().unwrap());
        let first = admit("10.0.0.1").unwrap();
        let _second = admit("::ffff:10.0.0.1").unwrap();
        assert!(admit("10.0.0.1").is_none());
        let _other = (admit("10.0.0.2").unwrap(), admit("10.0.0.2").unwrap());
        let _network = (admit("2001:db8::1").unwrap(), admit("2001:db8::ffff:1").unwrap());
        assert!(admit("2001:db8::2:3").is_none());
        assert!(admit("2001:db8:0:1::1").is_some());
        drop(first);
        assert!(admit("10.0.0.1").is_some());
        let without = Addresses::new(None);
        let all: Vec<_> = (0..1_000).filter_map(|_| without.admit("10.0.0.1".parse().unwrap())).collect();
        assert_eq!(all.len(), 1_000);
        drop(all);
        assert!(without.guests.lock().unwrap().is_empty());
    }
}
