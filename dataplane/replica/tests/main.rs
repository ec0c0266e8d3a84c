//! The replica against models that share no code with it, on real files, and killed at any moment.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod apply;
mod crash;
mod differential;
mod files;
mod fixture;
mod keeper;
mod keys;
mod model;
mod names;
mod plans;
mod roundtrip;
