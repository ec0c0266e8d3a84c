//! The public port: WebSockets of clients, HTTP probes and metrics, and the calls of the application's API servers.
//!
//! Knows no SQLite, no Postgres, no query engine. It decides nothing about views: it accepts and authenticates sockets,
//! parses and orders what they say, answers pings, forwards pushes, turns named queries into ASTs, and writes frames.
//!
//! Invariants: what a socket says reaches the views in order; a token is checked before it displaces anyone; no queue here
//! grows without bound; tokens, cookies, passwords and API keys are never logged.

pub mod api;
pub mod auth;
mod control;
mod gate;
mod http;
pub mod metrics;
mod mutate;
pub mod options;
mod query;
mod registry;
mod room;
mod server;
mod socket;
mod upgrade;
mod writer;

pub use gate::Gate;
pub use options::{ApiOptions, AuthOptions, Limits, Options, Secret};
pub use server::{BuildError, Outcome, Server};
