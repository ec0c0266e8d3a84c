//! What this node is doing, for whoever operates it: the group `node` of `/statz`.
//!
//! Written by the parts as they go on, read at any moment. Lives as long as the process, across rebuilt replicas.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use rows::{Transaction, Version};
use serde_json::{Value, json};

/// Without news for so long, a node that has applied everything is not behind, however late the last news was.
const QUIET: Duration = Duration::from_secs(10);

/// Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How many of each are under way.
    streaming: usize,
    copying: usize,
    restoring: usize,
    version: Option<Version>,
    /// What was received and is not applied: the last version of a commit, and when its first transaction was committed upstream.
    waiting: VecDeque<(Version, SystemTime)>,
    /// How late the last transaction was when it was applied, and when that was.
    last_lag: Option<(Duration, Instant)>,
    slot_lost: bool,
    backup: Option<Backup>,
}

/// How far the backup is, and what keeps it from going on.
#[derive(Clone, Debug, Default)]
pub struct Backup {
    pub snapshot_at: Option<SystemTime>,
    pub last_at: Option<SystemTime>,
    pub fault: Option<backup::Failure>,
}

/// Something is under way while it lives.
#[derive(Debug)]
pub struct Underway {
    status: Status,
    count: fn(&mut State) -> &mut usize,
}

impl Drop for Underway {
    fn drop(&mut self) {
        *(self.count)(&mut self.status.state()) -= 1;
    }
}

impl Status {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn underway(&self, count: fn(&mut State) -> &mut usize) -> Underway {
        *count(&mut self.state()) += 1;
        Underway { status: self.clone(), count }
    }

    /// Changes arrive: from upstream, or from the replication-manager.
    pub fn streaming(&self) -> Underway {
        self.state().slot_lost = false;
        self.underway(|state| &mut state.streaming)
    }

    pub fn is_streaming(&self) -> bool {
        self.state().streaming > 0
    }

    /// The initial copy is made.
    pub fn copying(&self) -> Underway {
        self.underway(|state| &mut state.copying)
    }

    /// A replica is fetched from the backup or from another node.
    pub fn restoring(&self) -> Underway {
        self.underway(|state| &mut state.restoring)
    }

    /// There is no replica any more.
    pub fn discarded(&self) {
        let mut state = self.state();
        (state.version, state.last_lag) = (None, None);
        state.waiting.clear();
    }

    /// The replica is at `version`.
    pub fn at(&self, version: Version) {
        let mut state = self.state();
        state.version = Some(version);
        state.waiting.clear();
    }

    /// Transactions have come that are yet to be applied.
    pub fn received(&self, transactions: &[Transaction]) {
        let (Some(first), Some(last)) = (transactions.first(), transactions.last()) else { return };
        self.state().waiting.push_back((last.version, commit_time(first)));
    }

    /// Transactions are in the replica.
    pub fn applied(&self, transactions: &[Transaction]) {
        let Some(last) = transactions.last() else { return };
        let mut state = self.state();
        state.version = Some(last.version);
        while state.waiting.front().is_some_and(|(version, _)| *version <= last.version) {
            state.waiting.pop_front();
        }
        state.last_lag = Some((since(commit_time(last)), Instant::now()));
    }

    /// Upstream does not have what was not received yet.
    pub fn lost_slot(&self) {
        self.state().slot_lost = true;
    }

    pub fn backup(&self, change: impl FnOnce(&mut Backup)) {
        change(self.state().backup.get_or_insert_default());
    }

    /// The facts. `subscribers` counts the nodes that follow this one, where it can be followed.
    pub fn facts(&self, role: &str, version: &str, subscribers: Option<&prometheus::IntGaugeVec>) -> Value {
        let state = self.state();
        let backup = state.backup.as_ref().map(|backup| {
            json!({
                "snapshotAt": backup.snapshot_at.map(unix_seconds),
                "lastAt": backup.last_at.map(unix_seconds),
                "fault": backup.fault.as_ref().map(|fault| json!({
                    "kind": if fault.is_denied { "access-denied" } else { "failing" },
                    "message": fault.message,
                })),
            })
        });
        json!({
            "role": role,
            "version": version,
            "streaming": state.streaming > 0,
            "initialSync": state.copying > 0,
            "restoring": state.restoring > 0,
            "replicaVersion": state.version.map(|version| version.to_string()),
            "lagSeconds": state.lag().map(|lag| (lag.as_secs_f64() * 1000.0).round() / 1000.0),
            "slotLost": state.slot_lost,
            "subscribers": subscribers.map(sum),
            "backup": backup,
        })
    }
}

impl State {
    /// From a commit upstream to its arrival here. Unknown while nothing could arrive.
    fn lag(&self) -> Option<Duration> {
        match (self.waiting.front(), self.last_lag) {
            _ if self.streaming == 0 => None,
            (Some((_, committed)), _) => Some(since(*committed)),
            (None, Some((lag, at))) if at.elapsed() < QUIET => Some(lag),
            (None, _) => Some(Duration::ZERO),
        }
    }
}

fn commit_time(transaction: &Transaction) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(transaction.commit_time_us).unwrap_or_default())
}

/// Nothing if that is in the future: upstream's clock may be ahead.
fn since(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn sum(gauges: &prometheus::IntGaugeVec) -> i64 {
    // Gauges are numbers with a fraction once they are collected; these have none.
    gauges.collect().iter().flat_map(|f| f.get_metric()).map(|m| m.get_gauge().get_value() as i64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(version: u64, age: Duration) -> Transaction {
        let time = (SystemTime::now() - age).duration_since(UNIX_EPOCH).unwrap();
        let commit_time_us = i64::try_from(time.as_micros()).unwrap();
        Transaction { version: Version::new(version), commit_time_us, changes: Vec::new() }
    }

    fn facts(status: &Status) -> Value {
        status.facts("single-node", "1.2.3", None)
    }

    #[test]
    fn a_node_that_has_just_begun_says_all_it_knows() {
        let expected = json!({
            "role": "single-node", "version": "1.2.3", "streaming": false, "initialSync": false, "restoring": false,
            "replicaVersion": null, "lagSeconds": null, "slotLost": false, "subscribers": null, "backup": null,
        });
        assert_eq!(facts(&Status::default()), expected);
    }

    #[test]
    fn what_is_under_way_ends_with_its_guard() {
        let status = Status::default();
        let (copying, restoring) = (status.copying(), status.restoring());
        assert_eq!((&facts(&status)["initialSync"], &facts(&status)["restoring"]), (&json!(true), &json!(true)));
        drop((copying, restoring));
        assert_eq!((&facts(&status)["initialSync"], &facts(&status)["restoring"]), (&json!(false), &json!(false)));
        status.lost_slot();
        assert_eq!(facts(&status)["slotLost"], true);
        let streaming = status.streaming();
        assert_eq!((&facts(&status)["streaming"], &facts(&status)["slotLost"]), (&json!(true), &json!(false)));
        drop(streaming);
        assert_eq!(facts(&status)["streaming"], false);
    }

    #[test]
    fn the_lag_is_that_of_the_oldest_change_that_waits() {
        let status = Status::default();
        let lag = || facts(&status)["lagSeconds"].as_f64();
        status.at(Version::new(5));
        assert_eq!(lag(), None, "nothing can arrive");
        let _streaming = status.streaming();
        assert_eq!(lag(), Some(0.0));
        let (old, new) = (transaction(6, Duration::from_secs(90)), transaction(7, Duration::from_secs(30)));
        status.received(&[old.clone(), transaction(6, Duration::from_secs(60))]);
        status.received(std::slice::from_ref(&new));
        assert!(lag().is_some_and(|lag| (90.0..92.0).contains(&lag)), "{:?}", lag());
        status.applied(&[old]);
        assert!(lag().is_some_and(|lag| (30.0..32.0).contains(&lag)), "{:?}", lag());
        status.applied(&[new]);
        assert!(lag().is_some_and(|lag| (30.0..32.0).contains(&lag)), "as late as it was: {:?}", lag());
        assert_eq!(facts(&status)["replicaVersion"], Version::new(7).to_string());
        status.state().last_lag = Some((Duration::from_secs(30), Instant::now() - 2 * QUIET));
        assert_eq!(lag(), Some(0.0));
        let ahead = Transaction { commit_time_us: i64::MAX, ..transaction(8, Duration::ZERO) };
        status.received(std::slice::from_ref(&ahead));
        assert_eq!(lag(), Some(0.0), "another clock");
    }

    #[test]
    fn the_backup_shows_its_fault() {
        let status = Status::default();
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        status.backup(|backup| (backup.snapshot_at, backup.last_at) = (at(100), at(200)));
        assert_eq!(facts(&status)["backup"], json!({"snapshotAt": 100, "lastAt": 200, "fault": null}));
        status.backup(|b| b.fault = Some(backup::Failure { is_denied: true, message: "no".to_owned() }));
        assert_eq!(facts(&status)["backup"]["fault"], json!({"kind": "access-denied", "message": "no"}));
        assert_eq!(facts(&status)["backup"]["lastAt"], 200);
    }

    #[test]
    fn subscribers_are_counted_over_their_modes() {
        let options = prometheus::Opts::new("subscribers", "of a test");
        let gauges = prometheus::IntGaugeVec::new(options, &["mode"]).unwrap();
        gauges.with_label_values(&["live"]).set(2);
        gauges.with_label_values(&["catching-up"]).set(1);
        assert_eq!(Status::default().facts("", "", Some(&gauges))["subscribers"], 3);
    }
}
