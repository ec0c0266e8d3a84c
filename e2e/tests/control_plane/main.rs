//! The operator against a real API server and Kubernetes' own controllers, without nodes: what kubelets would say of pods is written
//! by the tests.
//!
//! ```sh
//! e2e/kube/cluster --control-plane-only -- cargo test -p e2e --test control_plane
//! ```
//!
//! Tests share the API server and Postgres; each has a namespace and an operator of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod account;
mod admission;
mod bad_input;
mod crowd;
mod cut_off;
mod election;
mod everything;
mod flows;
mod kind;
mod kubelet;
mod operator;
mod ownership;
mod proxy;
mod releases;
mod revoked;
mod right;
mod rights;
mod site;
mod strangers;
mod told;
mod unchanged;
