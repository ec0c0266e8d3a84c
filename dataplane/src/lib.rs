//! The parts of the server binary that can be tested without starting it: configuration, logging, metrics and the contents
//! of the admin page.
//!
//! Knows no replica, no query and no socket; the binary's composition root joins these with the crates of the data plane.

pub mod admin;
pub mod config;
pub mod logging;
pub mod metrics;
#[cfg(test)]
mod reference_page;
