//! A port of its own, asked over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod serving;
mod sockets;
mod tasks;
