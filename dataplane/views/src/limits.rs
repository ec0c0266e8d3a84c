//! How much is kept, and for how long. One place, so that tests can make everything small.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a group without connections stays in memory: a page that reloads finds it there.
    pub group_idle: Duration,
    /// How long a materialisation without subscribers is kept for whoever comes back.
    pub materialisation_idle: Duration,
    /// Encoded rows that are in memory; others are on disk. Encoded hydrations are dropped, oldest use first, beyond this many
    /// bytes in all.
    pub payload_bytes: usize,
    /// Memory of the maintained queries and of those that are being run from scratch. What gives way beyond it: `relief`.
    pub graph_bytes: usize,
    /// How long a query waits for room before its clients are sent away, and the least time between two attempts.
    pub crowded_max: Duration,
    pub crowded_retry: Duration,
    /// One that somebody waited for just now is about to be sent: it is kept beyond the budget.
    pub payload_in_use: Duration,
    /// Changes kept in memory per materialisation; older ones are read from the CVR database.
    pub history_bytes: usize,
    pub history_entries: usize,
    /// What all connections together may leave waiting, for their sockets or for the CVR database, beside one answer each. One
    /// for which more than its share waits is told nothing more until it has taken that.
    pub backlog_bytes: usize,
    /// What was handed to the CVR database, and what of the histories must be kept until it is stored, before no more is made.
    pub unflushed_bytes: usize,
    /// Commits that may wait for the views before replication waits for them.
    pub commit_bytes: usize,
    /// A materialisation with so many stored deltas has some of them merged.
    pub merge_deltas: i64,
    /// How often stored deltas are looked at.
    pub merge_interval: Duration,
    /// How often what nobody can come back for is looked for.
    pub purge_interval: Duration,
    /// How often a node says in the CVR database that it lives, and learns what others took over.
    pub heartbeat: Duration,
    /// A node that was not seen for so long has no say in who keeps a contested group. Nothing else depends on it.
    pub node_live: Duration,
    /// The longest that a node keeps a group against connections to others; the shortest is a sixteenth of it.
    pub contested_max: Duration,
    /// A node that was not seen for so long is struck off: it stops when it finds out, and its histories are cleared away.
    pub node_dead: Duration,
    /// The longest that the CVR database may take to answer; its connection is given up then.
    pub answer: Duration,
    /// How long a client waits for a replica that is behind what it has seen, before it is sent elsewhere.
    pub behind: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            group_idle: Duration::from_secs(5),
            materialisation_idle: Duration::from_secs(60),
            payload_bytes: 256 << 20,
            graph_bytes: 4 << 30,
            crowded_max: Duration::from_secs(10),
            crowded_retry: Duration::from_secs(1),
            payload_in_use: Duration::from_secs(5),
            history_bytes: 1 << 20,
            history_entries: 4_096,
            backlog_bytes: 256 << 20,
            unflushed_bytes: 256 << 20,
            commit_bytes: 256 << 20,
            merge_deltas: 64,
            merge_interval: Duration::from_secs(30),
            purge_interval: Duration::from_secs(600),
            heartbeat: Duration::from_secs(1),
            node_live: Duration::from_secs(3),
            contested_max: Duration::from_secs(8),
            node_dead: Duration::from_secs(15 * 60),
            answer: Duration::from_secs(30),
            behind: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// The budgets for a process that may use so many bytes: half of them for graphs and their histories, a sixteenth each for encoded
    /// rows, for what waits for sockets, for what waits to be stored and for commits that wait for the views, since sockets,
    /// transactions and SQLite need theirs, within sensible bounds.
    #[must_use]
    pub fn for_memory(bytes: usize) -> Limits {
        let budget = (bytes / 16).clamp(8 << 20, 1 << 30);
        let graph_bytes = (bytes / 2).max(64 << 20);
        Limits {
            graph_bytes,
            payload_bytes: budget,
            backlog_bytes: budget,
            unflushed_bytes: budget,
            commit_bytes: budget,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_follow_the_memory_within_bounds() {
        let budget = |bytes: usize| {
            let limits = Limits::for_memory(bytes);
            assert_eq!(limits.payload_bytes, limits.backlog_bytes);
            limits.payload_bytes
        };
        assert_eq!(budget(4 << 30), 256 << 20);
        assert_eq!((budget(0), budget(usize::MAX)), (8 << 20, 1 << 30));
    }
}
