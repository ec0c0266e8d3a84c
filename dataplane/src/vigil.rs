//! Whether the process that owns the change log is at work, as it looks from outside.
//!
//! Knows nothing of the log but who owns it. A wrong guess costs a change of owners and no data: the log fences the former owner,
//! whose next write fails, so that it steps down.
//!
//! Invariants: at most one look is under way, however many ask for one. An owner that replicates from another database is not at work
//! here, however lively it is: a server whose files were copied from another one's knows that one's owner.

use anyhow::Context as _;
use changes::{Lineage, Log, Owner};
use streamer::{Alive, Error, Gate};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::node::Node;

/// Between two looks at an owner that nobody complains of.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two looks if a subscriber comes here, perhaps because the owner does not answer it.
const PERIOD_IN_DOUBT: Duration = Duration::from_millis(250);
/// A process that does not answer a probe in this time serves nobody well.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Looks in vain, in a row, after which an owner is given up: one may be lost, and a short stall is no reason for a change.
const FAILURES_MAX: u32 = 3;
/// Between two looks whether the owner that answers streams from this upstream, which costs a connection.
const PERIOD_ELSEWHERE: Duration = Duration::from_secs(15);
/// A stream that has just begun or ended may be seen by one side only.
const SETTLING: Duration = Duration::from_secs(1);
/// Between two lines about an owner that answers and cannot be recognized.
const REMINDER: Duration = Duration::from_secs(60);

/// The looks at one owner.
#[derive(Debug, Default)]
struct Record {
    failures: u32,
    told: Option<Instant>,
}

impl Record {
    /// Whether the owner is to be given up.
    fn note(&mut self, is_at_work: bool) -> bool {
        self.failures = if is_at_work { 0 } else { self.failures + 1 };
        self.failures >= FAILURES_MAX
    }

    /// Whether that the owner cannot be recognized is worth a line in the log.
    fn may_tell(&mut self) -> bool {
        let is_due = self.told.is_none_or(|at| at.elapsed() >= REMINDER);
        if is_due {
            self.told = Some(Instant::now());
        }
        is_due
    }

    /// Whether the owner answers, as far as it can be asked. One that shows a certificate which is not trusted is there:
    /// that is for a person to mend, or for whoever issues certificates.
    fn read(&mut self, owner: &Owner, answer: Result<Alive, Error>) -> Option<bool> {
        match answer {
            Ok(Alive { .. }) => {
                self.told = None;
                Some(true)
            }
            Err(error @ (Error::Unverified { .. } | Error::Configuration { .. })) => {
                if self.may_tell() {
                    warn!(owner = owner.id, %error, "cannot tell whether it is the owner of the change log that answers");
                }
                matches!(error, Error::Unverified { .. }).then_some(true)
            }
            Err(error) => {
                warn!(owner = owner.id, %error, "the owner of the change log does not answer");
                Some(false)
            }
        }
    }
}

/// The process other than this one that owns the log, if it is at work now.
pub async fn running<'a>(
    node: &Node<'_>,
    source: &upstream::Options,
    lineage: Option<&'a Lineage>,
) -> Option<&'a Owner> {
    let other = lineage?.owner.as_ref().filter(|owner| owner.id != node.config.task_id)?;
    if node.config.change_stream.stands_by && answers(node, other, &mut Record::default()).await == Some(true) {
        return (!is_elsewhere(node, source, other).await).then_some(other);
    }
    let is_streamed = upstream::is_streamed(source).await.unwrap_or_else(|error| {
        warn!(%error, "cannot see whether another process replicates");
        // An owner that does not reach upstream either is not at work.
        false
    });
    is_streamed.then_some(other)
}

/// Whether another process is at work and this one is to leave it at that.
pub async fn is_spare(node: &Node<'_>, source: &upstream::Options, log: &Log) -> anyhow::Result<bool> {
    if !node.config.change_stream.stands_by {
        return Ok(false);
    }
    let lineage = log.lineage().await.context("change database")?;
    Ok(running(node, source, lineage.as_ref()).await.is_some())
}

/// Completes when the owner, whoever that is by then, is to be given up.
pub async fn silence(node: &Node<'_>, mut owner: watch::Receiver<Owner>, gate: &Gate, source: &upstream::Options) {
    let mut record = Record::default();
    let mut looked_elsewhere = Instant::now();
    loop {
        if looked_elsewhere.elapsed() >= PERIOD_ELSEWHERE {
            let present = owner.borrow().clone();
            if is_elsewhere(node, source, &present).await && *owner.borrow() == present {
                return;
            }
            looked_elsewhere = Instant::now();
        }
        let begun = Instant::now();
        let present = owner.borrow_and_update().clone();
        tokio::select! {
            is_at_work = looked(node, &present, source, &mut record) => if record.note(is_at_work) {
                return;
            },
            _ = owner.changed() => {
                record = Record::default();
                continue;
            }
        }
        let in_doubt = async {
            gate.wanted().await;
            tokio::time::sleep_until(begun + PERIOD_IN_DOUBT).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(begun + PERIOD) => {}
            () = in_doubt => {}
            _ = owner.changed() => record = Record::default(),
        }
    }
}

/// One look. An owner that cannot be asked is at work while somebody streams from the slot.
async fn looked(node: &Node<'_>, owner: &Owner, source: &upstream::Options, record: &mut Record) -> bool {
    if let Some(is_at_work) = answers(node, owner, record).await {
        return is_at_work;
    }
    upstream::is_streamed(source).await.unwrap_or_else(|error| {
        warn!(%error, "cannot see whether the owner of the change log replicates");
        // Upstream's absence is not the owner's fault.
        true
    })
}

/// Whether an owner that answers says that it streams while nobody streams from this upstream: it is another database's owner, or
/// cut off from this one without noticing.
async fn is_elsewhere(node: &Node<'_>, source: &upstream::Options, owner: &Owner) -> bool {
    for is_last in [false, true] {
        if owner.address.is_empty() || !matches!(asked(node, owner).await, Ok(Alive { streams: Some(true) })) {
            return false;
        }
        // Upstream's absence says nothing.
        if upstream::is_streamed(source).await.unwrap_or(true) {
            return false;
        }
        if !is_last {
            tokio::time::sleep(SETTLING).await;
        }
    }
    warn!(
        owner = owner.id,
        "the owner of the change log streams from another database than this one, which may be a copy of it: it is not waited for"
    );
    true
}

async fn asked(node: &Node<'_>, owner: &Owner) -> Result<Alive, Error> {
    streamer::is_alive(&owner.address, &owner.id, node.authority.as_ref(), ANSWER_MAX).await
}

/// `None` if it cannot be asked.
async fn answers(node: &Node<'_>, owner: &Owner, record: &mut Record) -> Option<bool> {
    if owner.address.is_empty() {
        return None;
    }
    record.read(owner, asked(node, owner).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_given_up_after_failures_in_a_row() {
        let given_up_after = |looks: &str| {
            let mut record = Record::default();
            looks.bytes().position(|look| record.note(look == b'+'))
        };
        assert_eq!(given_up_after("---"), Some(2));
        assert_eq!(given_up_after("--+--+--"), None);
        assert_eq!(given_up_after("++--+---"), Some(7));
    }

    #[test]
    fn an_owner_whose_certificate_is_not_trusted_is_there_and_told_of_now_and_then() {
        let owner = Owner { id: "rm-0".to_owned(), address: "wss://rm-0:4849".to_owned() };
        let message = String::new;
        let (unverified, unusable) =
            (Error::Unverified { message: message() }, Error::Configuration { message: message() });
        let mut record = Record::default();
        for _ in 0..2 * FAILURES_MAX {
            let is_at_work = record.read(&owner, Err(unverified.clone())).unwrap();
            assert!(!record.note(is_at_work) && !record.may_tell());
        }
        // Nor is it silence that this node cannot ask.
        assert_eq!(record.read(&owner, Err(unusable)), None);
        record.told = Instant::now().checked_sub(REMINDER);
        assert!(record.may_tell() && !record.may_tell());
        assert_eq!(record.read(&owner, Ok(Alive { streams: None })), Some(true));
        assert!(record.may_tell(), "again after a change");
        assert_eq!(record.read(&owner, Err(Error::Gone { message: message() })), Some(false));
    }
}
