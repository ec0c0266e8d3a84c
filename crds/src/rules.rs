//! The rules that the API server checks, and what it says when one is broken. Nothing else refuses a document at admission but
//! the types, patterns and bounds of the fields. A rule says nothing, rather than failing, about a value that those refuse.

use serde::Serialize;

/// A rule in the Common Expression Language about the object it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    pub rule: &'static str,
    /// Says what to do, to a person.
    pub message: &'static str,
}

const fn rule(rule: &'static str, message: &'static str) -> Rule {
    Rule { rule, message }
}

pub const SPEC: &[Rule] = &[
    rule("self.topology == oldSelf.topology", "topology cannot be changed; make another ZeroCache"),
    rule(
        "self.appId == oldSelf.appId",
        "appId cannot be changed: it names what exists upstream; make another ZeroCache",
    ),
    rule("self.shardNum == oldSelf.shardNum", "shardNum cannot be changed; make another ZeroCache"),
    rule(
        "self.topology != 'MultiNode' || has(self.backup)",
        "topology MultiNode needs backup.url, such as s3://bucket/path: view-syncers start from the backup",
    ),
    rule(
        "self.topology != 'MultiNode' || has(self.adminPassword)",
        "topology MultiNode needs adminPassword: the name and key of a Secret",
    ),
    rule(
        "self.topology != 'SingleNode' || !has(self.viewSyncer.autoscaling)",
        "topology SingleNode has no view-syncers to scale: remove viewSyncer.autoscaling",
    ),
    rule(
        "self.topology != 'SingleNode' || !self.replicationManager.standby.enabled",
        "topology SingleNode has no replication-manager to stand by for: remove replicationManager.standby, or use MultiNode",
    ),
    rule(
        "self.topology != 'SingleNode' || !has(self.security.changeStream.tlsSecretName)",
        "topology SingleNode has no other nodes to encrypt for: remove security.changeStream.tlsSecretName, or use MultiNode",
    ),
    rule(
        "self.topology != 'SingleNode' || self.replicationManager.handoff == 'Recreate'",
        "topology SingleNode cannot run two pods at a time: remove replicationManager.handoff, or use MultiNode",
    ),
    rule(
        "self.generation == oldSelf.generation || self.image == oldSelf.image",
        "change generation and image in two steps: a reset and an upgrade must not overlap",
    ),
    rule(
        "!has(self.viewSyncer.numSyncWorkers) || !has(self.databases.cvr.maxConns) \
         || self.viewSyncer.numSyncWorkers <= self.databases.cvr.maxConns",
        "viewSyncer.numSyncWorkers must not be greater than databases.cvr.maxConns: every worker needs a connection",
    ),
];

pub const IMAGE: &[Rule] = &[rule(
    "!(has(self.tag) && has(self.digest))",
    "give a tag or a digest, not both: a digest already says which image it is",
)];

pub const AUTH: &[Rule] = &[rule(
    "(has(self.secretRef) ? 1 : 0) + (has(self.jwkSecretRef) ? 1 : 0) + (has(self.jwksUrl) ? 1 : 0) <= 1",
    "give at most one of secretRef, jwkSecretRef and jwksUrl: tokens are signed by one kind of key",
)];

pub const INCREMENTAL_INTERVAL: &[Rule] = &[rule(
    "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
    "incrementalInterval must be between 1s and 1h",
)];

pub const SNAPSHOT_INTERVAL: &[Rule] = &[rule(
    "duration(self) >= duration('1h') && duration(self) <= duration('168h')",
    "snapshotInterval must be between 1h and 168h",
)];

pub const MIN_AGE: &[Rule] =
    &[rule("duration(self) >= duration('1h')", "minAge must be at least 1h: nodes may still read an old generation")];

pub const STEP_TIMEOUT: &[Rule] = &[rule("duration(self) >= duration('1m')", "stepTimeout must be at least 1m")];

pub const DELETION_TIMEOUT: &[Rule] = &[rule(
    "duration(self) >= duration('1m') && duration(self) <= duration('24h')",
    "timeout must be between 1m and 24h",
)];

pub const SCRAPE_INTERVAL: &[Rule] = &[rule(
    "duration(self) >= duration('1s') && duration(self) <= duration('1h')",
    "interval must be between 1s and 1h",
)];

pub const REPLICATION_MANAGER_STORAGE: &[Rule] = &[
    rule("self.type == oldSelf.type", "storage.type of the replication-manager cannot be changed"),
    rule(
        "has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)",
        "storage.className of the replication-manager cannot be changed: volumes do not move between classes",
    ),
    rule(
        // A stored size may be one that was taken before sizes were looked at: the correction must pass.
        "self.type == 'Ephemeral' || !isQuantity(string(self.size)) || !isQuantity(string(oldSelf.size)) \
         || quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
        "storage.size cannot shrink: volumes only grow",
    ),
];

pub const RESOURCES: &[Rule] = &[rule(
    "!has(self.limits) || !has(self.requests) || !('memory' in self.limits) || !('memory' in self.requests) \
     || !isQuantity(string(self.limits['memory'])) || !isQuantity(string(self.requests['memory'])) \
     || quantity(string(self.limits['memory'])).compareTo(quantity(string(self.requests['memory']))) >= 0",
    "limits.memory must not be less than requests.memory",
)];

pub const VIEW_SYNCER: &[Rule] = &[
    rule(
        "!(string(self.maxSurge).matches('^0+%?$') && string(self.maxUnavailable).matches('^0+%?$'))",
        "maxSurge and maxUnavailable must not both be 0: no pod could ever be replaced",
    ),
    rule(
        "self.terminationGracePeriodSeconds >= self.preStopDelaySeconds + 30",
        "terminationGracePeriodSeconds must be at least preStopDelaySeconds + 30: the delay counts against it",
    ),
];

pub const PDB: &[Rule] = &[rule(
    "has(self.maxUnavailable) != has(self.minAvailable)",
    "give exactly one of maxUnavailable and minAvailable",
)];

pub const AUTOSCALING: &[Rule] =
    &[rule("self.minReplicas <= self.maxReplicas", "minReplicas must not be greater than maxReplicas")];

pub const INGRESS: &[Rule] = &[
    rule("!self.enabled || size(self.hosts) > 0", "an enabled ingress needs at least one name in hosts"),
    rule(
        "!self.enabled || self.provider != 'GatewayAPI' || (has(self.gateway) && size(self.gateway.parentRefs) > 0)",
        "provider GatewayAPI needs gateway.parentRefs: the Gateways that the route is attached to",
    ),
];

/// On the whole resource.
pub const OBJECT: Rule = rule(
    "size(self.metadata.name) <= 40",
    "the name must not be longer than 40 characters: names of child objects are made from it",
);

/// All rules, for tests and the reference.
#[must_use]
pub fn all() -> Vec<Rule> {
    let lists = [
        SPEC,
        IMAGE,
        AUTH,
        INCREMENTAL_INTERVAL,
        SNAPSHOT_INTERVAL,
        MIN_AGE,
        STEP_TIMEOUT,
        DELETION_TIMEOUT,
        SCRAPE_INTERVAL,
        REPLICATION_MANAGER_STORAGE,
        RESOURCES,
        VIEW_SYNCER,
        PDB,
        AUTOSCALING,
        INGRESS,
    ];
    let mut all = lists.concat();
    all.push(OBJECT);
    all
}
