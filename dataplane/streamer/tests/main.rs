//! The change stream end to end: a real log in a real Postgres, real sockets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod alive;
mod harness;
mod hostile;
mod http;
mod random;
mod refusals;
mod snapshots;
mod stream;
mod tls;
mod wire;
