//! The operator: keeps the deployments that `ZeroCache` resources ask for.
//!
//! The straight path is observe, plan, apply, report, and `controller` walks it for one resource at a time. `observe` learns what
//! there is and puts together the picture that planning sees; `plan` is a pure function from a resource and that picture to the
//! objects that should exist, the status, the events and the few things that must be done once; `apply` writes what is not so
//! yet; `report` says how it stands. `run` puts the process together.
//!
//! Knows nothing of the data plane but its image, its environment variables, its ports and its probes; it links none of its
//! crates. `plan` knows no client, no clock and no randomness.
//!
//! Invariants: what is applied follows from what the status already says, so a flow that was cut off at any step goes on from
//! there. Planning twice over the same picture plans the same and changes no status. A view-syncer's template never changes
//! before a replication-manager of the same revision is ready.

pub mod apply;
pub mod controller;
pub mod error;
mod lease;
pub mod logging;
pub mod metrics;
pub mod observe;
pub mod plan;
pub mod report;
pub mod run;
mod server;
pub mod settings;
