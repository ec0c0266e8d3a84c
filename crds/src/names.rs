//! Names that the operator, its chart, its tests and the people who run it must agree on.

/// API group of the resource.
pub const GROUP: &str = "zerocache.dev";
/// Owner of the fields that the operator applies.
pub const FIELD_MANAGER: &str = "zerocache-operator";
/// Owner of the status.
pub const STATUS_FIELD_MANAGER: &str = "zerocache-operator-status";
/// Holds the resource back until outside state is released.
pub const FINALIZER: &str = "zerocache.dev/cleanup";

/// Labels of children. Selectors use name, instance and component only, for they can never change.
pub mod label {
    pub const NAME: &str = "app.kubernetes.io/name";
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    pub const VERSION: &str = "app.kubernetes.io/version";
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

    /// Value of [`NAME`] and [`PART_OF`].
    pub const ZERO_CACHE: &str = "zero-cache";
    /// Value of [`MANAGED_BY`].
    pub const OPERATOR: &str = "zerocache-operator";
    /// Value of [`NAME`] on the operator's own pods, whatever its release is called.
    pub const OPERATOR_POD: &str = "zero-cache-operator";
    /// On every namespace: its name.
    pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
}

/// Values of [`label::COMPONENT`].
pub mod component {
    pub const REPLICATION_MANAGER: &str = "replication-manager";
    pub const VIEW_SYNCER: &str = "view-syncer";
    pub const SINGLE_NODE: &str = "single-node";
    pub const CLEANUP: &str = "cleanup";
}

pub mod annotation {
    /// On the resource: releases a gated step of the upgrade whose target it names.
    pub const RELEASE_UPGRADE: &str = "zerocache.dev/release-upgrade";
    /// On the resource: a new value restarts all pods in the order of an upgrade.
    pub const RESTARTED_AT: &str = "zerocache.dev/restartedAt";
    /// On the resource: `true` lets it be deleted without releasing anything outside.
    pub const SKIP_CLEANUP: &str = "zerocache.dev/skip-cleanup";
    /// On the resource: names a retired generation that may be used again.
    pub const REUSE_GENERATION: &str = "zerocache.dev/reuse-generation";
    /// On pods: hash of the template they were made from, without this annotation.
    pub const REVISION: &str = "zerocache.dev/revision";
    /// On pods: the generation they serve.
    pub const GENERATION: &str = "zerocache.dev/generation";
    /// On pods: hash of the Secrets they read.
    pub const SECRETS: &str = "zerocache.dev/secrets-hash";
}

/// Ports of the data plane, and their names in pods and Services.
pub mod port {
    /// Clients' WebSockets, and probes of nodes that serve clients.
    pub const SYNC: i32 = 4848;
    pub const SYNC_NAME: &str = "sync";
    /// Metrics and status of nodes that serve clients, for nobody who comes in by an Ingress.
    pub const ADMIN: i32 = 4850;
    pub const ADMIN_NAME: &str = "admin";
    /// The change stream between nodes, probes and metrics of the replication-manager. Private.
    pub const CHANGE_STREAM: i32 = 4849;
    pub const CHANGE_STREAM_NAME: &str = "change-stream";
}

/// Paths of the data plane's probes.
pub mod path {
    /// Answers 200 while the node takes work.
    pub const READY: &str = "/";
    /// Answers 200 from when the node first took work to the end of the process, also while it drains.
    pub const ALIVE: &str = "/keepalive";
    /// Answers 200 from the beginning to the end of the process, also during an initial copy.
    pub const LIVE: &str = "/livez";
    pub const METRICS: &str = "/metrics";
}

/// Keys of a Secret of type `kubernetes.io/tls`, and where pods have them as files.
pub mod tls {
    pub const CERTIFICATE: &str = "tls.crt";
    pub const KEY: &str = "tls.key";
    /// Whom nodes trust instead of the system's authorities, if it is there.
    pub const AUTHORITY: &str = "ca.crt";
    pub const VOLUME: &str = "change-stream-tls";
    pub const PATH: &str = "/etc/zero-cache/change-stream-tls";
}

/// The data plane's container, its folders and the user it runs as.
pub mod pod {
    pub const CONTAINER: &str = "zero-cache";
    pub const DATA_VOLUME: &str = "data";
    pub const DATA_PATH: &str = "/data";
    pub const TEMPORARY_VOLUME: &str = "tmp";
    pub const TEMPORARY_PATH: &str = "/tmp";
    pub const USER: i64 = 65532;
    /// Longest name of a ZeroCache: `<name>-rm-<revision hash of ten>` must fit the 63 characters of a label.
    pub const NAME_MAX: usize = 40;
}

/// Commands of the data plane's image that Jobs run.
pub mod command {
    /// Deletes every object below `--url`, unless one was written after `--unless-written-after`. Says how many
    /// on its last line and in the file `--report`.
    pub const DELETE_BACKUP: &[&str] = &["backup", "delete"];
}

/// The name by which pods of the whole cluster reach a Service, and which a certificate is for. `domain` is the cluster's.
#[must_use]
pub fn service_host(service: &str, namespace: &str, domain: &str) -> String {
    format!("{service}.{namespace}.svc.{domain}")
}

/// Names of children, from the name of the resource.
pub mod child {
    #[must_use]
    pub fn replication_manager(name: &str) -> String {
        format!("{name}-rm")
    }

    #[must_use]
    pub fn headless(name: &str) -> String {
        format!("{name}-rm-headless")
    }

    #[must_use]
    pub fn view_syncer(name: &str) -> String {
        format!("{name}-vs")
    }

    /// The Secret with the change stream's token, when none is given.
    #[must_use]
    pub fn token(name: &str) -> String {
        format!("{name}-change-stream")
    }

    /// The Secret with the admin password, when none is given.
    #[must_use]
    pub fn admin_password(name: &str) -> String {
        format!("{name}-admin")
    }

    /// The claim of a StatefulSet's only pod.
    #[must_use]
    pub fn claim(workload: &str) -> String {
        format!("{}-{workload}-0", super::pod::DATA_VOLUME)
    }

    /// The Job that deletes a retired generation's backup. Generations may hold dots and underscores, and be as long as a
    /// whole name: what does not fit is replaced by the caller's hash.
    #[must_use]
    pub fn cleanup(name: &str, hash: &str) -> String {
        format!("{name}-cleanup-{hash}")
    }

    /// The key of generated Secrets.
    pub const SECRET_KEY: &str = "value";
}
