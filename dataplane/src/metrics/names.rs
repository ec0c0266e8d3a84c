//! Names and help texts of all metrics made here. Units are last and are base units; counters end in `_total`.

/// A metric as it is scraped.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub name: &'static str,
    pub help: &'static str,
}

const fn name(name: &'static str, help: &'static str) -> Name {
    Name { name, help }
}

pub const BUILD_INFO: Name = name("zero_build_info", "Always 1; the labels say what is running.");

pub const COMMIT_TO_POKE: Name = name(
    "zero_commit_to_poke_seconds",
    "From a commit in Postgres to the end of the poke that carries it being handed to the socket. Includes the difference \
     between the two clocks.",
);

pub const CONNECTIONS: Name = name("zero_connections", "Open client sockets.");
pub const CLIENT_GROUPS: Name = name("zero_client_groups", "Client groups with at least one open socket.");
pub const MATERIALISATIONS: Name = name("zero_materialisations", "Queries kept up to date, each counted once.");
pub const SUBSCRIPTIONS: Name = name("zero_subscriptions", "Pairs of a client group and a materialisation it uses.");

pub const REPLICA_VERSION_LAG: Name = name(
    "zero_replica_version_lag_bytes",
    "Bytes of Postgres's log between its end and the newest transaction in the replica.",
);
pub const TRANSACTIONS: Name =
    name("zero_replicated_transactions_total", "Upstream transactions applied to the replica.");
pub const CHANGES: Name = name("zero_replicated_changes_total", "Row changes applied to the replica.");

pub const HYDRATIONS: Name = name("zero_hydrations_total", "Queries computed from scratch.");
pub const HYDRATION: Name = name("zero_hydration_seconds", "Time to compute one query from scratch.");
pub const ADVANCES: Name = name("zero_advances_total", "Materialisations brought to a newer version.");
pub const ADVANCE: Name = name("zero_advance_seconds", "Time to bring all materialisations to a newer version.");

pub const CVR_FLUSH: Name = name("zero_cvr_flush_seconds", "Time to make one batch of client view records durable.");
pub const CVR_FLUSH_FAILURES: Name = name(
    "zero_cvr_flush_failures_total",
    "Attempts to make client view records durable that failed and are tried again.",
);

pub const POKES: Name = name("zero_pokes_total", "Pokes handed to sockets.");
pub const POKED_ROWS: Name = name("zero_poked_rows_total", "Row puts and deletes carried by those pokes.");

pub const MEMORY_ALLOCATED: Name = name("zero_memory_allocated_bytes", "Bytes in use as the allocator counts them.");
pub const MEMORY_RESIDENT: Name = name("zero_memory_resident_bytes", "Bytes of physical memory the allocator holds.");
