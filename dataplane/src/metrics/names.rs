//! Names and help texts of the metrics made here. Units are last and are base units; counters end in `_total`.

/// A metric as it is scraped.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub name: &'static str,
    pub help: &'static str,
}

const fn name(name: &'static str, help: &'static str) -> Name {
    Name { name, help }
}

pub const BUILD_INFO: Name = name("zero_build_info", "Always 1; the labels say what is running");

pub const FAILED_LOGINS: Name =
    name("zero_admin_failed_logins_total", "Wrong admin passwords, those not looked at included");

pub const REPLICA_VERSION_LAG: Name = name(
    "zero_replica_version_lag_bytes",
    "Bytes of Postgres's log between the newest transaction received and the newest one in the replica",
);
pub const TRANSACTIONS: Name =
    name("zero_replicated_transactions_total", "Upstream transactions applied to the replica");
pub const CHANGES: Name = name("zero_replicated_changes_total", "Row changes applied to the replica");
pub const APPLY: Name = name("zero_replica_apply_seconds", "Time to apply and commit one batch of transactions");

pub const RESTORES: Name =
    name("zero_restores_total", "Attempts to get the replica from the backup or from another node, by their result");
pub const RESTORE: Name = name("zero_restore_seconds", "Time to get the replica from the backup or from another node");
pub const RESTORED_BYTES: Name =
    name("zero_restored_bytes_total", "Bytes received of backups and of other nodes' replicas");

pub const MEMORY_ALLOCATED: Name = name("zero_memory_allocated_bytes", "Bytes in use as the allocator counts them");
pub const MEMORY_RESIDENT: Name = name("zero_memory_resident_bytes", "Bytes of physical memory the allocator holds");
