//! What the data plane says of itself.

use k8s_openapi::jiff::Timestamp;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nodes {
    /// The pod that says so: the owner of the slot, if any says that it is.
    pub pod: String,
    /// The replication-manager owns the slot and receives changes. Unknown while it does not answer.
    pub streaming: Option<bool>,
    /// The first copy of the tables is under way.
    pub initial_sync: bool,
    /// A replica is being fetched from the backup.
    pub restoring: bool,
    /// Version of the replica that is served.
    pub replica_version: Option<String>,
    /// Between a commit upstream and its arrival in the replica.
    pub lag_seconds: Option<u64>,
    /// The slot is lost; replication cannot go on without a new sync.
    pub slot_lost: bool,
    /// Generation whose backup holds a whole snapshot.
    pub snapshot_of: Option<String>,
    pub last_backup_at: Option<Timestamp>,
    pub backup_fault: Option<BackupFault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupFault {
    AccessDenied(String),
    Failing(String),
}
