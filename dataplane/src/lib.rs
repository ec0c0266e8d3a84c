//! The server binary's own parts: configuration, logging, metrics, the admin page, and the composition root that joins the
//! crates of the data plane.
//!
//! Wiring only: nothing here decides what a client sees.

mod address;
pub mod admin;
mod admin_port;
mod attempts;
mod change_log;
pub mod command;
pub mod config;
mod copy;
mod crud;
mod decommission;
#[cfg(test)]
mod errors_page;
mod feed;
mod folder;
mod follower;
pub mod logging;
mod manager;
mod memory;
pub mod metrics;
mod node;
mod opening;
mod options;
mod origin;
mod readiness;
#[cfg(test)]
mod reference_page;
mod replicate;
mod restoring;
pub mod root;
mod route;
mod serving;
mod standby;
mod status;
mod stop;
mod stream_tls;
pub mod supervision;
mod vigil;
