//! The operator from outside: the program, its plans against golden files, and its flows in a model of a cluster.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod deletion;
mod explore;
mod golden;
mod model;
mod outside;
mod program;
mod rules;
mod strangers;
