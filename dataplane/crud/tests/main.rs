//! CRUD mutations against real Postgres servers, started by the test kit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod numbers;
mod refusals;
mod rules;
mod types;
mod world;
