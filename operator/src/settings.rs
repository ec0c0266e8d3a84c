//! How the operator was installed: its environment variables, read once.

use std::net::SocketAddr;

use clap::Args;
use clap::builder::BoolishValueParser;

use crate::observe::Installation;

/// Name of the operator where others must know it: the Lease, events, labels of its pods.
pub const OPERATOR: &str = "zerocache-operator";

#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Namespaces whose ZeroCache resources are reconciled, separated by commas; all when empty.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',', default_value = "")]
    pub watch_namespaces: Vec<String>,
    /// Reconcile only while holding the Lease, so that several operators can run.
    #[arg(long, env = "LEADER_ELECTION", default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub leader_election: bool,
    /// Namespace of the Lease; by default the operator's own.
    #[arg(long, env = "LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of the Lease: operators of one name stand by for each other.
    #[arg(long, env = "LEASE_NAME", default_value = OPERATOR)]
    pub lease_name: String,
    /// Namespace the operator runs in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// Name of the operator's pod: who holds the Lease, who reports events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:8080")]
    pub metrics_addr: SocketAddr,
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    #[arg(long, env = "LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Repository of the data plane's image, for resources that name none.
    #[arg(long, env = "DEFAULT_IMAGE", default_value = "zero-cache")]
    pub default_image: String,
    /// Tag of the data plane's image, for resources that name none.
    #[arg(long, env = "DEFAULT_TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub default_tag: String,
    /// DNS domain of the cluster.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Tell of faults outside the cluster by their class only, for clusters with tenants.
    #[arg(long, env = "COARSE_STATUS", default_value = "false", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub coarse_status: bool,
    /// Refuse fields that become parts of pods as they are written: `podTemplate`, and volumes of the node.
    #[arg(long, env = "REFUSE_RAW_POD_FIELDS", default_value = "false", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub refuse_raw_pod_fields: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Settings {
    #[must_use]
    pub fn installation(&self) -> Installation {
        Installation {
            namespace: self.pod_namespace.clone(),
            repository: self.default_image.clone(),
            tag: self.default_tag.clone(),
            cluster_domain: self.cluster_domain.clone(),
            is_coarse: self.coarse_status,
            refuses_raw_fields: self.refuse_raw_pod_fields,
        }
    }

    /// Namespaces to watch; nothing for all of them.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.watch_namespaces.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        names.sort();
        names.dedup();
        names
    }

    #[must_use]
    pub fn lease_namespace(&self) -> &str {
        self.lease_namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.pod_namespace)
    }
}
