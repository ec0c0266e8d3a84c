//! What is so: conditions, the phase, the numbers of the status, and events where something changed.
//!
//! Every condition is made anew from what is observed; only the time of its last change is carried over. Nothing here is read
//! back by a flow, except that a pause ended.

mod health;
mod numbers;

use crds::conditions::{event, kind, reason};
use crds::status::{DeletionStep, Phase, StorageStatus, SuspensionStep, UpgradeStep, ZeroCacheStatus};
use crds::{ZeroCache, spec::Topology};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::budget::{Budget, Verdict};
use super::flows::{Block, Hold, Power};
use super::seconds_between;
use super::wanted::{Problem, Wanted};
use crate::observe::{Observed, Role, Taken};
pub(super) use health::{database_fault, store_fault};

/// Something worth a line in `kubectl describe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

impl Event {
    pub(super) fn normal(reason: &'static str, message: String) -> Event {
        Event { severity: Severity::Normal, reason, message }
    }

    pub(super) fn warning(reason: &'static str, message: String) -> Event {
        Event { severity: Severity::Warning, reason, message }
    }
}

/// What the report is made from.
pub(super) struct Context<'a> {
    pub cache: &'a ZeroCache,
    pub wanted: &'a Wanted<'a>,
    pub recorded: &'a ZeroCacheStatus,
    pub observed: &'a Observed,
    pub budget: &'a Budget,
    pub power: Power,
    pub hold: Option<&'a Hold>,
    pub upgrade_block: Option<&'a Block>,
    pub reset_block: Option<&'a Block>,
    pub volume_refused: Option<&'a str>,
    pub cleanup_failures: &'a [String],
    /// Revisions that pods should have now.
    pub manager_revision: &'a str,
    pub syncer_revision: Option<&'a str>,
    /// Nothing where an autoscaler decides.
    pub syncers_wanted: Option<i32>,
    pub storage: Option<StorageStatus>,
}

/// A condition before it has its times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    kind: &'static str,
    status: Truth,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    fn text(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        }
    }
}

fn finding(kind: &'static str, status: Truth, reason: &'static str, message: impl Into<String>) -> Finding {
    Finding { kind, status, reason, message: message.into() }
}

pub(super) fn is_true(status: &ZeroCacheStatus, kind: &str) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Completes the status that the flows hand on.
pub(super) fn report(context: &Context, mut next: ZeroCacheStatus) -> (ZeroCacheStatus, Vec<Event>) {
    numbers::fill(context, &mut next);
    let upgrade = upgrade(context, &next);
    let reset = reset(context, &next);
    let is_stalled = upgrade
        .iter()
        .chain(&reset)
        .any(|it| it.status == Truth::True && (it.kind == kind::UPGRADE_STALLED || it.reason == reason::STEP_TIMEOUT));
    let manager = health::replication_manager(context);
    let syncers = health::view_syncers(context);
    let backup = health::backup(context);
    let progress = progressing(context, &next);
    let mut degraded = health::degraded(context, &next, is_stalled, &backup);
    if degraded.status != Truth::True && is_overdue_start(context, &next) {
        let text = format!("not running after {}: {}", context.wanted.spec.upgrade.step_timeout, manager.message);
        degraded = finding(kind::DEGRADED, Truth::True, reason::ROLLOUT_STALLED, text);
    }
    if let Some(failure) = &context.observed.failure {
        degraded = finding(kind::DEGRADED, Truth::True, reason::RECONCILE_FAILED, failure);
    }
    let ready = ready(context, &next, &manager, syncers.as_ref(), &progress);
    let stays_degraded = is_unasked(kind::DEGRADED, context) && is_true(context.recorded, kind::DEGRADED);
    next.phase = Some(phase(context, &next, &ready, stays_degraded || degraded.status == Truth::True));
    let mut findings = vec![ready, progress];
    // What was asked for by an earlier operator is not forgotten by the next one for a moment.
    findings.extend((!stays_degraded).then_some(degraded));
    findings.push(manager);
    findings.extend(syncers);
    findings.extend([health::upstream(context), budget(context), backup]);
    findings.extend(upgrade);
    findings.extend(reset);
    findings.extend([paused(context), health::route(context)]);
    let is_known = |kind: &str| context.recorded.conditions.iter().any(|condition| condition.type_ == kind);
    findings.retain(|it| it.kind == kind::DEGRADED || !(is_unasked(it.kind, context) && is_known(it.kind)));
    let events = write(&mut next, &findings, context.cache, context.observed.now);
    (next, events)
}

/// Names that others have, and what to do. Nothing where there are none.
pub(super) fn strangers<'a>(taken: impl Iterator<Item = &'a Taken>) -> Option<String> {
    let of = |it: &Taken| it.by.as_ref().map_or_else(String::new, |by| format!(" of {by}"));
    let names: Vec<String> = taken.map(|it| format!("{} {}{}", it.kind, it.name, of(it))).collect();
    (!names.is_empty()).then(|| {
        format!(
            "not this ZeroCache's, and left alone: {}; rename or remove them, or give the ZeroCache another name",
            names.join(", ")
        )
    })
}

/// What a condition of this kind depends on was not asked yet since the operator started, or since what is asked changed.
fn is_unasked(kind: &str, context: &Context) -> bool {
    let pending = context.observed.pending;
    match kind {
        kind::UPSTREAM_READY => pending.databases && !matches!(context.hold, Some(Hold::SecretsMissing(_))),
        kind::CONNECTION_BUDGET_SATISFIED => pending.databases,
        kind::BACKUP_HEALTHY => pending.nodes || pending.store,
        kind::DEGRADED => pending.databases || pending.nodes || pending.store,
        _ => false,
    }
}

/// The status of a resource that cannot be used as it is.
pub(super) fn invalid(
    cache: &ZeroCache,
    recorded: ZeroCacheStatus,
    problems: &[Problem],
    now: Timestamp,
) -> (ZeroCacheStatus, Vec<Event>) {
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let mut next = recorded;
    next.phase = Some(Phase::Failed);
    next.observed_generation = cache.metadata.generation;
    let ready = finding(kind::READY, Truth::False, reason::INVALID_SPEC, text);
    let events = write(&mut next, &[ready], cache, now);
    (next, events)
}

/// The status of a resource that is being deleted.
pub(super) fn deleting(
    cache: &ZeroCache,
    next: &mut ZeroCacheStatus,
    reason: &'static str,
    text: &str,
    now: Timestamp,
) {
    next.phase = Some(Phase::Deleting);
    next.observed_generation = cache.metadata.generation;
    let is_done = next.deletion.as_ref().is_some_and(|deletion| deletion.step == DeletionStep::Done);
    let progress = if is_done { Truth::False } else { Truth::True };
    let findings =
        [finding(kind::READY, Truth::False, reason, text), finding(kind::PROGRESSING, progress, reason, text)];
    write(next, &findings, cache, now);
}

/// Writes findings over the conditions there are; the rest stay.
fn write(next: &mut ZeroCacheStatus, findings: &[Finding], cache: &ZeroCache, now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    for finding in findings {
        let before = next.conditions.iter().position(|condition| condition.type_ == finding.kind);
        let old = before.map(|at| next.conditions[at].clone());
        events.extend(event_of(finding, old.as_ref()));
        let since = old.filter(|old| old.status == finding.status.text()).map(|old| old.last_transition_time);
        let condition = Condition {
            type_: finding.kind.to_owned(),
            status: finding.status.text().to_owned(),
            reason: finding.reason.to_owned(),
            message: shortened(&finding.message),
            observed_generation: cache.metadata.generation,
            last_transition_time: since.unwrap_or(Time(now)),
        };
        match before {
            Some(at) => next.conditions[at] = condition,
            None => next.conditions.push(condition),
        }
    }
    events
}

/// The API server refuses longer messages.
fn shortened(text: &str) -> String {
    text.chars().take(4096).collect()
}

/// An event where a condition turned bad, or bad in another way, or a pause began or ended.
fn event_of(finding: &Finding, old: Option<&Condition>) -> Option<Event> {
    let was = |status: Truth| old.is_some_and(|old| old.status == status.text());
    let is_same = old.is_some_and(|old| old.status == finding.status.text() && old.reason == finding.reason);
    let text = || finding.message.clone();
    if is_same {
        return None;
    }
    let warning = match (finding.kind, finding.status) {
        (kind::READY, Truth::False) if finding.reason == reason::INVALID_SPEC => event::INVALID_SPEC,
        (kind::READY, Truth::False) if finding.reason == reason::NAME_TAKEN => event::NAME_TAKEN,
        (kind::UPSTREAM_READY, Truth::False) if finding.reason == reason::SECRET_MISSING => event::SECRET_MISSING,
        (kind::UPSTREAM_READY, Truth::False) => event::PREFLIGHT_FAILED,
        (kind::CONNECTION_BUDGET_SATISFIED, Truth::False) => event::OVER_CONNECTION_BUDGET,
        // What is wrong with the store, and not only late, is told also of a backup that never was.
        (kind::BACKUP_HEALTHY, Truth::False) if was(Truth::True) || finding.reason != reason::NO_SNAPSHOT_YET => {
            event::BACKUP_STALE
        }
        (kind::UPGRADE_STALLED, Truth::True) => event::UPGRADE_STALLED,
        (kind::UPGRADE_BLOCKED, Truth::True) => event::UPGRADE_BLOCKED,
        (kind::RESET_BLOCKED, Truth::True) => event::RESET_BLOCKED,
        (kind::DEGRADED, Truth::True) if finding.reason == reason::CLEANUP_FAILED => event::CLEANUP_FAILED,
        (kind::DEGRADED, Truth::True) if finding.reason == reason::RECONCILE_FAILED => event::RECONCILE_FAILED,
        (kind::DEGRADED, Truth::True) => event::DEGRADED,
        (kind::RECONCILIATION_PAUSED, Truth::True) => return Some(Event::normal(event::PAUSED, text())),
        (kind::RECONCILIATION_PAUSED, Truth::False) if was(Truth::True) => {
            return Some(Event::normal(event::RESUMED, text()));
        }
        _ => return None,
    };
    Some(Event::warning(warning, text()))
}

fn is_overdue(since: &Time, context: &Context) -> bool {
    seconds_between(since.0, context.observed.now) >= context.wanted.spec.upgrade.step_timeout.seconds()
}

/// Flows are held, so that no step can be late.
fn stands_still(context: &Context) -> bool {
    context.hold.is_some() || context.wanted.spec.paused || context.wanted.spec.suspended
}

/// The first start has no step of its own: it is as old as the resource has not been ready.
fn is_overdue_start(context: &Context, next: &ZeroCacheStatus) -> bool {
    let ready = context.recorded.conditions.iter().find(|condition| condition.type_ == kind::READY);
    let since = ready.filter(|it| it.status == "False" && it.reason != reason::SUSPENDED);
    next.current_revision.is_none()
        && !context.wanted.spec.suspended
        && since.is_some_and(|it| is_overdue(&it.last_transition_time, context))
}

fn upgrade(context: &Context, next: &ZeroCacheStatus) -> Vec<Finding> {
    let Some(upgrade) = &next.upgrade else {
        let blocked = context.upgrade_block.filter(|_| next.reset.is_some());
        return vec![
            finding(kind::UPGRADE_IN_PROGRESS, Truth::False, reason::IDLE, ""),
            finding(kind::UPGRADE_STALLED, Truth::False, reason::IDLE, ""),
            match blocked {
                Some(block) => finding(kind::UPGRADE_BLOCKED, Truth::True, block.reason, &block.message),
                None => finding(kind::UPGRADE_BLOCKED, Truth::False, reason::IDLE, ""),
            },
        ];
    };
    let step = match upgrade.step {
        UpgradeStep::Preflight => "Preflight",
        UpgradeStep::ReplicationManager => "ReplicationManager",
        UpgradeStep::Settle => "Settle",
        UpgradeStep::Gate => "Gate",
        UpgradeStep::ViewSyncers => "ViewSyncers",
    };
    let is_waiting = matches!(upgrade.step, UpgradeStep::Preflight | UpgradeStep::Gate);
    // What is recorded as a message of these steps is what a person must do.
    let block = match (upgrade.step, context.upgrade_block) {
        (UpgradeStep::Preflight, Some(block)) => Some(block.reason),
        (UpgradeStep::Gate, _) => Some(reason::WAITING_FOR_RELEASE),
        (UpgradeStep::Preflight, None) if upgrade.message.starts_with("waiting") => Some(reason::WAITING_FOR_RELEASE),
        _ => None,
    };
    let is_stalled = !is_waiting && is_overdue(&upgrade.step_started_at, context) && !stands_still(context);
    let stalled = format!(
        "{step} takes longer than {}: {}; repair the cause, or go back by setting the image or configuration that ran before",
        context.wanted.spec.upgrade.step_timeout, upgrade.message
    );
    vec![
        finding(kind::UPGRADE_IN_PROGRESS, Truth::True, step, &upgrade.message),
        match is_stalled {
            true => finding(kind::UPGRADE_STALLED, Truth::True, reason::STEP_TIMEOUT, stalled),
            false => finding(kind::UPGRADE_STALLED, Truth::False, step, ""),
        },
        match block {
            Some(reason) => finding(kind::UPGRADE_BLOCKED, Truth::True, reason, &upgrade.message),
            None => finding(kind::UPGRADE_BLOCKED, Truth::False, step, ""),
        },
    ]
}

fn reset(context: &Context, next: &ZeroCacheStatus) -> Vec<Finding> {
    use crds::status::ResetStep;
    let Some(reset) = &next.reset else {
        return vec![
            finding(kind::RESET_IN_PROGRESS, Truth::False, reason::IDLE, ""),
            match context.reset_block {
                Some(block) => finding(kind::RESET_BLOCKED, Truth::True, block.reason, &block.message),
                None => finding(kind::RESET_BLOCKED, Truth::False, reason::IDLE, ""),
            },
        ];
    };
    let step = match reset.step {
        ResetStep::Requested => "Requested",
        ResetStep::ReplicationManager => "ReplicationManager",
        ResetStep::Backup => "Backup",
        ResetStep::ViewSyncers => "ViewSyncers",
    };
    let block = context.reset_block.filter(|_| reset.step == ResetStep::Requested);
    let is_stalled =
        reset.step != ResetStep::Requested && is_overdue(&reset.step_started_at, context) && !stands_still(context);
    let stalled = format!(
        "{step} takes longer than {}: {}; repair the cause, or go back by setting generation to {}",
        context.wanted.spec.upgrade.step_timeout, reset.message, reset.from
    );
    vec![
        finding(kind::RESET_IN_PROGRESS, Truth::True, step, &reset.message),
        match (block, is_stalled) {
            (Some(block), _) => finding(kind::RESET_BLOCKED, Truth::True, block.reason, &block.message),
            (None, true) => finding(kind::RESET_BLOCKED, Truth::True, reason::STEP_TIMEOUT, stalled),
            (None, false) => finding(kind::RESET_BLOCKED, Truth::False, step, ""),
        },
    ]
}

fn budget(context: &Context) -> Finding {
    let kind = kind::CONNECTION_BUDGET_SATISFIED;
    match &context.budget.verdict {
        Verdict::Disabled => finding(kind, Truth::Unknown, reason::DISABLED, "connectionBudget.mode is Off"),
        Verdict::Unknown => finding(
            kind,
            Truth::Unknown,
            reason::LIMIT_UNKNOWN,
            "no server could be asked for its limit; set connectionBudget.maxConnectionsOverride where a pooler answers",
        ),
        Verdict::Within(text) => finding(kind, Truth::True, reason::WITHIN_BUDGET, text),
        Verdict::Over(text) => finding(kind, Truth::False, reason::OVER_BUDGET, text),
    }
}

fn paused(context: &Context) -> Finding {
    let kind = kind::RECONCILIATION_PAUSED;
    match context.wanted.spec.paused {
        true => finding(kind, Truth::True, reason::PAUSED_BY_SPEC, "set paused to false to go on"),
        false => finding(kind, Truth::False, reason::NOT_PAUSED, ""),
    }
}

fn progressing(context: &Context, next: &ZeroCacheStatus) -> Finding {
    let kind = kind::PROGRESSING;
    let yes = |reason, text: &str| finding(kind, Truth::True, reason, text);
    let deployment = context.observed.deployment.as_ref();
    let manager = context.observed.stateful_set.as_ref();
    let is_awaiting_standby = manager.is_some_and(|it| it.replicas > 1 && it.available < it.replicas);
    let is_scaling = deployment.is_some_and(|it| {
        it.available != it.replicas || context.syncers_wanted.is_some_and(|wanted| wanted != it.replicas)
    });
    match (next.suspension, &next.reset, &next.upgrade) {
        (Some(SuspensionStep::Suspended), ..) => finding(kind, Truth::False, reason::SUSPENDED, "no pod runs"),
        (Some(SuspensionStep::StartingReplicationManager), ..) => {
            yes(reason::RESUMING, "waiting for the replication-manager before view-syncers start")
        }
        (Some(SuspensionStep::DrainingViewSyncers), ..) => yes(reason::SUSPENDING, "waiting for view-syncers to drain"),
        (Some(SuspensionStep::StoppingReplicationManager), ..) => {
            yes(reason::SUSPENDING, "waiting for the replication-manager to stop")
        }
        (None, Some(reset), _) => yes(reason::RESETTING, &reset.message),
        (None, None, Some(upgrade)) => yes(reason::UPGRADING, &upgrade.message),
        (None, None, None) if next.current_revision.is_none() => {
            yes(reason::PROVISIONING, "starting for the first time")
        }
        (None, None, None) if context.storage.as_ref().is_some_and(|storage| storage.resize_pending) => {
            yes(reason::RESIZING, "waiting for the volume to grow")
        }
        (None, None, None) if is_awaiting_standby => yes(reason::SCALING, "waiting for the standby to be ready"),
        (None, None, None) if is_scaling => yes(reason::SCALING, "waiting for view-syncers to start or drain"),
        (None, None, None) => finding(kind, Truth::False, reason::IDLE, ""),
    }
}

fn ready(
    context: &Context,
    next: &ZeroCacheStatus,
    manager: &Finding,
    syncers: Option<&Finding>,
    progress: &Finding,
) -> Finding {
    let kind = kind::READY;
    let no = |reason, text: &str| finding(kind, Truth::False, reason, text);
    if context.wanted.spec.suspended {
        return no(reason::SUSPENDED, "set suspended to false to run again");
    }
    if let Some(text) = strangers(context.observed.taken.iter()) {
        return no(reason::NAME_TAKEN, &text);
    }
    if let Some(text) = hold_text(context.hold).filter(|_| manager.status != Truth::True) {
        return no(reason::REPLICATION_MANAGER_NOT_READY, &text);
    }
    if manager.status != Truth::True {
        return no(reason::REPLICATION_MANAGER_NOT_READY, &manager.message);
    }
    let serving = context.observed.pods_of(Role::ViewSyncer).any(|pod| pod.is_ready && !pod.is_terminating);
    let wants_none = context.syncers_wanted == Some(0);
    match syncers {
        Some(finding)
            if finding.status != Truth::True && (!serving || progress.status != Truth::True) && !wants_none =>
        {
            no(reason::VIEW_SYNCERS_NOT_READY, &finding.message)
        }
        // Who waits for Ready may count on what follows: from here on a change is rolled out in order.
        _ if next.current_revision.is_none() => no(reason::PROVISIONING, "starting for the first time"),
        _ => finding(kind, Truth::True, reason::ALL_REPLICAS_READY, "clients are served"),
    }
}

fn hold_text(hold: Option<&Hold>) -> Option<String> {
    Some(match hold? {
        Hold::SecretsMissing(missing) => missing.join("; "),
        Hold::NamesTaken(text) => text.clone(),
        Hold::SecretsComing => "making Secrets".to_owned(),
        Hold::Asking => "asking the databases what they allow".to_owned(),
        Hold::OverBudget => "the connection budget would be exceeded".to_owned(),
    })
}

fn phase(context: &Context, next: &ZeroCacheStatus, ready: &Finding, is_degraded: bool) -> Phase {
    let is_held = matches!(context.hold, Some(Hold::SecretsMissing(_) | Hold::NamesTaken(_) | Hold::OverBudget));
    let is_ready = ready.status == Truth::True;
    match (next.suspension, &next.reset, &next.upgrade) {
        (Some(SuspensionStep::Suspended), ..) => Phase::Suspended,
        _ if is_held && !is_ready => Phase::Pending,
        _ if is_degraded => Phase::Degraded,
        (_, Some(_), _) => Phase::Resetting,
        (_, None, Some(_)) => Phase::Upgrading,
        _ if next.current_revision.is_none() => Phase::Provisioning,
        _ if is_ready => Phase::Running,
        (Some(_), ..) => Phase::Provisioning,
        _ => Phase::Degraded,
    }
}

/// Whether the deployment has view-syncers of its own.
fn is_multi(context: &Context) -> bool {
    context.wanted.spec.topology == Topology::MultiNode
}
