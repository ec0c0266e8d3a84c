//! The views against a real CVR database, a real replica file, an API server in this process, and scripted clients that
//! check every rule of pokes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod client;
mod cluster;
mod data;
mod door;
mod reference;
mod world;

mod faults;
mod indexes;
mod inherited;
mod isolation;
mod keys;
mod large;
mod mutations;
mod nodes;
mod ownership;
mod queries;
mod random;
mod records;
mod rules;
mod schema;
mod sessions;
mod sync;
