//! The public port: WebSockets of clients, HTTP probes and metrics, and the calls of the application's API servers.
//!
//! Knows no SQLite, no Postgres, no query engine. It decides nothing about views: it accepts and authenticates sockets,
//! parses and orders what they say, answers pings, forwards pushes, turns named queries into ASTs, and writes frames.
//!
//! Invariants: what a socket says reaches the views in order; a socket displaces nobody and nothing that it says reaches the
//! application before the views have let it in; every byte that arrives counts in one budget, of which those who are not let in yet
//! have a part of their own; no queue here grows without bound; tokens, cookies, passwords and API keys are never logged.

pub mod api;
pub mod auth;
mod budget;
mod control;
pub mod crud;
mod es512;
mod expiry;
mod gate;
mod held;
mod http;
mod keys;
mod meter;
pub mod metrics;
mod mutate;
pub mod options;
mod origins;
mod query;
mod registry;
mod room;
mod server;
mod sharing;
mod socket;
mod standing;
mod upgrade;
mod writer;

pub use api::{EndpointError, check_url};
pub use auth::{AuthError, check_jwk};
pub use gate::Gate;
pub use options::{ApiOptions, AuthOptions, Limits, Options, Secret};
pub use server::{BuildError, Outcome, Server};
