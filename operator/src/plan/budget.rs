//! Connections that all pods together may take, against what the servers allow.
//!
//! Demand of one server is the sum over the databases on it. During a rollout old pods drain for minutes while new ones already
//! run, and a Deployment does not count those, so the peak is twice the number of view-syncers.

use std::collections::BTreeMap;

use crds::spec::{BudgetMode, Handoff, Topology};
use crds::status::BudgetStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::wanted::Wanted;
use crate::observe::{Observed, Probe};

// What a node takes of a pool that nobody has sized (ARCHITECTURE.md, "Nodes"); larger ones would only be reserved in vain.
const CVR: i32 = 2;
const UPSTREAM: i32 = 20;
const CHANGE: i32 = 3;
const LARGEST: i32 = UPSTREAM;
/// Beside the replication connection: one that watches the slot, one that sets up.
const ADMINISTRATION: i32 = 2;

/// Sizes of the connection pools of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    pub upstream: i32,
    pub cvr: i32,
    pub change: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Disabled,
    /// No server could be asked.
    Unknown,
    Within(String),
    Over(String),
}

#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub pools: Pools,
    /// The pools that were not given but computed.
    pub computed: BTreeMap<String, i32>,
    pub servers: Vec<BudgetStatus>,
    pub verdict: Verdict,
    /// The verdict holds rollouts back.
    pub is_enforced: bool,
    /// Most view-syncers that fit, if the servers could be asked.
    pub replicas_max: Option<i32>,
}

impl Budget {
    /// A human must lower the demand or raise the limit first.
    pub fn block(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Over(arithmetic) if self.is_enforced => Some(arithmetic),
            _ => None,
        }
    }
}

/// Judges a wish for so many view-syncers. `recorded` are the sizes computed earlier: they are kept as long as they fit, for a
/// change of size restarts every pod.
pub(super) fn judge(wanted: &Wanted, recorded: &BTreeMap<String, i32>, replicas: i32, observed: &Observed) -> Budget {
    let spec = &wanted.spec.databases;
    let open = [
        ("upstream", spec.upstream.max_conns, UPSTREAM),
        ("cvr", spec.cvr.max_conns, CVR),
        ("change", spec.change.max_conns, CHANGE),
    ];
    let sized = |cap: i32| {
        let size = |index: usize, cap: i32| {
            let (name, given, default) = open[index];
            given.unwrap_or_else(|| recorded.get(name).copied().unwrap_or(default).min(cap))
        };
        // Of the log a node takes what it needs, whatever it is told.
        Pools { upstream: size(0, cap), cvr: size(1, cap), change: size(2, CHANGE) }
    };
    let servers = servers(wanted, observed);
    let is_off = spec.connection_budget.mode == BudgetMode::Off;
    let fits = |pools: Pools, replicas: i32| {
        servers.iter().all(|server| server.limit.is_none_or(|limit| server.demand(wanted, pools, replicas) <= limit))
    };
    let mut pools = sized(LARGEST);
    if !is_off && !fits(pools, replicas) {
        let caps = (1..=LARGEST).rev();
        pools = caps.map(&sized).find(|pools| fits(*pools, replicas)).unwrap_or(pools);
    }
    let sizes = [pools.upstream, pools.cvr, pools.change];
    let computed = open.iter().zip(sizes).filter(|((_, given, _), _)| given.is_none());
    // What runs now has the recorded sizes: until it is replaced, more pods must fit with those.
    let running = sized(LARGEST);
    let is_asked = servers.iter().any(|server| server.limit.is_some());
    Budget {
        pools,
        computed: computed.map(|((name, _, _), size)| ((*name).to_owned(), size)).collect(),
        verdict: verdict(wanted, &servers, pools, replicas, is_off),
        is_enforced: spec.connection_budget.mode == BudgetMode::Enforce,
        replicas_max: (is_asked && !is_off).then(|| most(|count| fits(running, count))),
        servers: servers.into_iter().map(|server| server.status(wanted, pools, replicas)).collect(),
    }
}

/// The largest count that fits, of up to as many as a resource may ask for.
fn most(fits: impl Fn(i32) -> bool) -> i32 {
    let (mut least, mut beyond) = (0, 1001);
    while beyond - least > 1 {
        let middle = i32::midpoint(least, beyond);
        if fits(middle) { least = middle } else { beyond = middle }
    }
    least
}

fn verdict(wanted: &Wanted, servers: &[Server], pools: Pools, replicas: i32, is_off: bool) -> Verdict {
    if is_off {
        return Verdict::Disabled;
    }
    let mut lines = Vec::new();
    let mut is_over = false;
    for server in servers {
        let Some(limit) = server.limit else { continue };
        let demand = server.demand(wanted, pools, replicas);
        is_over |= demand > limit;
        lines.push(format!("{}: {} = {demand} of {limit}", server.name, server.arithmetic(wanted, pools, replicas)));
    }
    let text = lines.join("; ");
    match (lines.is_empty(), is_over) {
        (true, _) => Verdict::Unknown,
        (false, false) => Verdict::Within(text),
        (false, true) => Verdict::Over(format!(
            "{text}; lower viewSyncer.replicas or databases.*.maxConns, or raise max_connections of the server"
        )),
    }
}

/// A server and which of the databases are on it.
struct Server {
    name: String,
    limit: Option<i32>,
    in_use: Option<i32>,
    checked_at: Option<Time>,
    has_upstream: bool,
    has_cvr: bool,
    has_change: bool,
}

fn servers(wanted: &Wanted, observed: &Observed) -> Vec<Server> {
    let databases = &observed.databases;
    let limit_given = wanted.spec.databases.connection_budget.max_connections_override;
    let upstream = databases.upstream.as_ref();
    let on = |given: bool, probe: Option<&Probe>| if given { probe.cloned() } else { upstream.cloned() };
    let spec = &wanted.spec.databases;
    let probes = [
        upstream.cloned(),
        on(spec.cvr.url_secret_ref.is_some(), databases.cvr.as_ref()),
        on(spec.change.url_secret_ref.is_some(), databases.change.as_ref()),
    ];
    let mut servers: Vec<Server> = Vec::new();
    for (index, probe) in probes.into_iter().enumerate() {
        let Some(probe) = probe else { continue };
        let known = servers.iter().position(|server| server.name == probe.server);
        let at = known.unwrap_or_else(|| {
            servers.push(Server {
                name: probe.server.clone(),
                limit: limit_given.or_else(|| probe.limits.map(|limits| limits.connections)),
                in_use: probe.limits.map(|limits| limits.in_use),
                checked_at: Some(Time(probe.checked_at)),
                has_upstream: false,
                has_cvr: false,
                has_change: false,
            });
            servers.len() - 1
        });
        let server = &mut servers[at];
        if let (None, Some(limits)) = (limit_given, probe.limits) {
            // A limit of one database or role is the first that is reached.
            server.limit = Some(server.limit.map_or(limits.connections, |limit| limit.min(limits.connections)));
            server.in_use = server.in_use.or(Some(limits.in_use));
        }
        match index {
            0 => server.has_upstream = true,
            1 => server.has_cvr = true,
            _ => server.has_change = true,
        }
    }
    servers
}

impl Server {
    /// Connections of the replication-manager and of one view-syncer.
    fn per_pod(&self, wanted: &Wanted, pools: Pools) -> (i32, i32) {
        let spec = wanted.spec;
        let mut manager = 0;
        let mut syncer = 0;
        if self.has_upstream {
            manager += 1 + spec.databases.initial_sync.table_copy_workers + ADMINISTRATION;
            syncer += if spec.api.enable_crud_mutations { pools.upstream } else { 0 };
        }
        syncer += if self.has_cvr { pools.cvr } else { 0 };
        manager += if self.has_change { pools.change.max(CHANGE) } else { 0 };
        (manager, syncer)
    }

    fn demand(&self, wanted: &Wanted, pools: Pools, replicas: i32) -> i32 {
        let (manager, syncer) = self.per_pod(wanted, pools);
        let reserve = wanted.spec.databases.connection_budget.reserve;
        manager
            .saturating_mul(managers(wanted))
            .saturating_add(syncer.saturating_mul(peak(wanted, replicas)))
            .saturating_add(reserve)
    }

    fn arithmetic(&self, wanted: &Wanted, pools: Pools, replicas: i32) -> String {
        let (manager, syncer) = self.per_pod(wanted, pools);
        let reserve = wanted.spec.databases.connection_budget.reserve;
        let managers = match managers(wanted) {
            1 => format!("{manager} (replication-manager)"),
            several => format!("{several} x {manager} (replication-managers)"),
        };
        format!(
            "{managers} + {} x {syncer} (view-syncers at the peak of a rollout) + {reserve} (reserve)",
            peak(wanted, replicas)
        )
    }

    fn status(self, wanted: &Wanted, pools: Pools, replicas: i32) -> BudgetStatus {
        BudgetStatus {
            required: self.demand(wanted, pools, replicas),
            limit: self.limit,
            in_use: self.in_use,
            checked_at: self.checked_at,
            server: self.name,
        }
    }
}

/// Replication-managers at the peak of a rollout.
fn managers(wanted: &Wanted) -> i32 {
    let given = &wanted.spec.replication_manager;
    let is_second = given.standby.enabled || given.handoff == Handoff::Overlap;
    if is_second && !wanted.is_single() { 2 } else { 1 }
}

fn peak(wanted: &Wanted, replicas: i32) -> i32 {
    match wanted.spec.topology {
        Topology::SingleNode => 1,
        Topology::MultiNode => (2 * replicas).max(replicas + surge(&wanted.spec.view_syncer.max_surge, replicas)),
    }
}

fn surge(surge: &IntOrString, replicas: i32) -> i32 {
    match surge {
        IntOrString::Int(count) => (*count).max(0),
        IntOrString::String(text) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            // Rounded up, as Kubernetes does.
            replicas.saturating_mul(percent).saturating_add(99) / 100
        }
    }
}
