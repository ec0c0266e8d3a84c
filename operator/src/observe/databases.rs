//! What the Postgres servers say.

use k8s_openapi::jiff::Timestamp;

/// One probe per database; several may be of the same server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Databases {
    pub upstream: Option<Probe>,
    pub cvr: Option<Probe>,
    pub change: Option<Probe>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// `host:port`, never with credentials.
    pub server: String,
    pub checked_at: Timestamp,
    /// Why the database cannot be used as it is.
    pub fault: Option<Fault>,
    /// Nothing where the server could not be asked, or a pooler stands before it.
    pub limits: Option<Limits>,
    /// The newest replica's slot is gone, or its log is.
    pub slot_lost: bool,
    /// Nothing where the server does not tell.
    pub identity: Option<Identity>,
}

/// What Postgres says of itself, by which a database is told from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's system identifier and the number of the database in it. A copy of the cluster's files has the same.
    pub database: String,
    /// When the server was started, in microseconds.
    pub started: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `max_connections` without the reserved ones, lowered by the limits of database and role.
    pub connections: i32,
    /// Held by others than this deployment.
    pub in_use: i32,
}

/// Why a database cannot be used, with what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    InvalidUrl(String),
    Unreachable(String),
    /// The server does not let this user in.
    LoginRefused(String),
    NoDatabase(String),
    Standby(String),
    WalLevel(String),
    VersionTooOld(String),
    NoReplicationRole(String),
    SlotsExhausted(String),
}

impl Fault {
    /// What was found.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Fault::InvalidUrl(text)
            | Fault::Unreachable(text)
            | Fault::LoginRefused(text)
            | Fault::NoDatabase(text)
            | Fault::Standby(text)
            | Fault::WalLevel(text)
            | Fault::VersionTooOld(text)
            | Fault::NoReplicationRole(text)
            | Fault::SlotsExhausted(text) => text,
        }
    }
}
