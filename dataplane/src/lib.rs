//! The server binary's own parts: configuration, logging, metrics, the admin page, and the composition root that joins the
//! crates of the data plane.
//!
//! Wiring only: nothing here decides what a client sees.

pub mod admin;
mod change_log;
pub mod config;
mod copy;
pub mod logging;
pub mod metrics;
mod options;
#[cfg(test)]
mod reference_page;
mod replicate;
pub mod root;
