//! The Postgres databases and the connections taken from them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SecretKeyRef;

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Databases {
    /// The authoritative database.
    pub upstream: Upstream,
    /// Client view records.
    #[serde(default)]
    pub cvr: Database,
    /// The recent replication log.
    #[serde(default)]
    pub change: Database,
    /// The first copy of the tables.
    #[serde(default)]
    pub initial_sync: InitialSync,
    /// What is done when all pods together may take more connections than a server has.
    #[serde(default)]
    pub connection_budget: ConnectionBudget,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// URL of a direct connection, never of a transaction pooler: replication does not pass through one.
    pub url_secret_ref: SecretKeyRef,
    /// Most connections of one view-syncer, used only for CRUD mutations. Computed from what the server allows when not given,
    /// at most 20.
    #[schemars(range(min = 1, max = 10000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_conns: Option<i32>,
    /// Create the replication slot with failover (Postgres 17 and later).
    #[serde(default)]
    pub slot_failover: bool,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Database {
    /// URL of the database, which may be a pooler; by default the upstream database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// Most connections of one pod. When not given, what a pod uses: 2 for client view records, or 1 where more would not fit. The
    /// log takes 3 whatever is given.
    #[schemars(range(min = 1, max = 10000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_conns: Option<i32>,
    /// Hours after which an unused client group may be forgotten; 48 by default. Only for client view records.
    #[schemars(range(min = 1, max = 87600))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactivity_threshold_hours: Option<i32>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitialSync {
    /// Tables copied at the same time, each over a connection of its own.
    #[schemars(range(min = 1, max = 32))]
    pub table_copy_workers: i32,
}

impl Default for InitialSync {
    fn default() -> Self {
        InitialSync { table_copy_workers: 5 }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionBudget {
    /// Enforce holds back a rollout or a scale-up that would exceed a server's limit, Warn only reports it, Off does not count.
    pub mode: BudgetMode,
    /// Connections left to others on each server.
    #[schemars(range(min = 0, max = 100000))]
    pub reserve: i32,
    /// Connections the servers allow, where they cannot be asked, as behind a pooler.
    #[schemars(range(min = 1, max = 1000000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_override: Option<i32>,
}

impl Default for ConnectionBudget {
    fn default() -> Self {
        ConnectionBudget { mode: BudgetMode::Warn, reserve: 10, max_connections_override: None }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum BudgetMode {
    Enforce,
    #[default]
    Warn,
    Off,
}
