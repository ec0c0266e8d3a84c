//! ZeroCaches on a real node: the operator from its chart, the two images, a real Postgres, a real object store, an ingress proxy
//! with cookies, enforced NetworkPolicies, Prometheus, and the published client.
//!
//! ```sh
//! e2e/kube/cluster --images -- cargo test -p e2e --test kubernetes
//! ```
//!
//! Tests share the cluster, the operator, Postgres and the store; each has a namespace, a database and a ZeroCache of its own. What
//! a failed test leaves stays for `--keep` and the shell.

#[path = "../app.rs"]
#[allow(dead_code, reason = "written for tests of processes, which use all of it")]
mod app;
#[path = "../chaos"]
mod chaos {
    #[allow(dead_code, reason = "written for tests of processes, which use all of it")]
    pub mod random;
}
#[path = "../cluster/crowd.rs"]
#[allow(dead_code, reason = "written for tests of processes, which use all of it")]
mod crowd;
#[path = "../cluster/writer.rs"]
#[allow(dead_code, reason = "written for tests of processes, which use all of it")]
mod writer;

mod budget;
mod deletion;
mod examples;
mod faults;
mod first_row;
mod ground;
mod kubectl;
mod network;
mod operator_killed;
mod prometheus;
mod readme;
mod reset;
mod scale;
mod secrets;
mod site;
mod standby;
mod tls;
mod traefik;
mod upgrade;
