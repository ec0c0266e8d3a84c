//! The crate against real Postgres servers, started by the test kit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod beside;
mod connect;
mod ddl;
mod evil;
mod identity;
mod keys;
mod large;
mod model;
mod random;
mod slots;
mod start;
mod takeover;
mod tls;
mod types;
mod watching;
