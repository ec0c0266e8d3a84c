//! How much is kept, and for how long. One place, so that tests can make everything small.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a group without connections stays in memory: a page that reloads finds it there.
    pub group_idle: Duration,
    /// How long a materialisation without subscribers is kept for whoever comes back.
    pub materialisation_idle: Duration,
    /// Encoded hydrations are dropped, oldest use first, beyond this many bytes in all.
    pub payload_bytes: usize,
    /// One that somebody waited for just now is about to be sent: it is kept beyond the budget.
    pub payload_in_use: Duration,
    /// Changes kept in memory per materialisation; older ones are read from the CVR database.
    pub history_bytes: usize,
    pub history_entries: usize,
    /// Frames that wait for the CVR database beyond this many bytes close their connections: memory must not grow while it is away.
    pub held_bytes: usize,
    /// A materialisation with so many stored deltas has some of them merged.
    pub merge_deltas: i64,
    /// How often stored deltas are looked at.
    pub merge_interval: Duration,
    /// How often what nobody can come back for is looked for.
    pub purge_interval: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            group_idle: Duration::from_secs(5),
            materialisation_idle: Duration::from_secs(60),
            payload_bytes: 256 << 20,
            payload_in_use: Duration::from_secs(5),
            history_bytes: 1 << 20,
            history_entries: 4_096,
            held_bytes: 256 << 20,
            merge_deltas: 64,
            merge_interval: Duration::from_secs(30),
            purge_interval: Duration::from_secs(600),
        }
    }
}
