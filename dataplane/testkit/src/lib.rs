//! Real neighbours and independent judges for tests: a PostgreSQL starter, a scripted client of the sync protocol, an oracle
//! that recomputes query results from Postgres and says what a user may see of them, random permissions, a small API server, a pooler, a load balancer that can misbehave, a relay that spoils what Postgres sends, and the server
//! under test as a process.
//!
//! This crate knows nothing of the server's own code: it speaks to it only by sockets, files and signals, so the same tests run
//! against any server of the protocol, and a mistake in the server's types cannot hide itself in its judge.

mod account;
pub mod api;
pub mod client;
pub mod deployments;
pub mod evil;
pub mod http;
pub mod oracle;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rules;
pub mod s3;
pub mod slot;
pub mod tab;
pub mod tls;
mod watchdog;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

/// Finds `count` neighbouring loopback ports that nobody listens on and returns the first. They lie below the range from which
/// Linux takes ports for outgoing connections, so that a server can be restarted on its port. Somebody else may still take one
/// before it is used; starters retry with another. No port is given away twice.
pub fn free_ports(count: u16) -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..200 {
        let first = rand::random_range(20_000..32_000 - count);
        let is_free = |port| !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(is_free) {
            given.extend(first..first + count);
            return Ok(first);
        }
    }
    anyhow::bail!("found no {count} free neighbouring loopback ports in 200 tries")
}

/// The seed of a randomised test: `ZERO_SEED` replays one, otherwise a fresh one. Prints it, so that a failure can be replayed.
#[must_use]
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var("ZERO_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("{test}: ZERO_SEED={seed}");
    seed
}
