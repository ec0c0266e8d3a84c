//! The gateway over real sockets: a client that speaks WebSocket, an API server that speaks HTTP, and the views' side of the
//! command channel played by the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod support;

mod auth;
mod crud;
mod drain;
mod handshake;
mod hostile;
mod http;
mod push;
mod socket;
mod strangers;
mod transform;
mod turns;
