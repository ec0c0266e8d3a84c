//! Series that follow from the resources' status: made anew whenever they are asked for, so that none outlives its resource.

use std::sync::{Arc, Mutex};

use crds::ZeroCache;
use crds::status::{Phase, RetiredState, UpgradeStep};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts};

/// The stores whose resources are told of; none before this operator leads.
#[derive(Clone, Default)]
pub struct Series(Arc<Mutex<Vec<Store<DeserializeGuard<ZeroCache>>>>>);

const PHASES: [Phase; 9] = [
    Phase::Pending,
    Phase::Provisioning,
    Phase::Running,
    Phase::Upgrading,
    Phase::Resetting,
    Phase::Suspended,
    Phase::Degraded,
    Phase::Failed,
    Phase::Deleting,
];

const STEPS: [UpgradeStep; 5] = [
    UpgradeStep::Preflight,
    UpgradeStep::ReplicationManager,
    UpgradeStep::Settle,
    UpgradeStep::Gate,
    UpgradeStep::ViewSyncers,
];

const STATES: [RetiredState; 4] =
    [RetiredState::Kept, RetiredState::Deleting, RetiredState::Deleted, RetiredState::Failed];

struct Gauges {
    info: IntGaugeVec,
    condition: IntGaugeVec,
    phase: IntGaugeVec,
    view_syncers: IntGaugeVec,
    replication_manager_ready: IntGaugeVec,
    upgrade_step: IntGaugeVec,
    connection_budget: IntGaugeVec,
    backup_generations: IntGaugeVec,
    last_backup: IntGaugeVec,
}

impl Series {
    pub fn follow(&self, stores: Vec<Store<DeserializeGuard<ZeroCache>>>) {
        *self.0.lock().expect("nothing panics while it holds the lock") = stores;
    }

    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        let stores = self.0.lock().expect("nothing panics while it holds the lock").clone();
        let gauges = match Gauges::new() {
            Ok(gauges) => gauges,
            Err(error) => {
                tracing::error!(error = error.to_string(), "cannot make series of the resources");
                return Vec::new();
            }
        };
        for cache in stores.iter().flat_map(Store::state) {
            if let Ok(cache) = &cache.0 {
                gauges.add(cache);
            }
        }
        gauges.families()
    }
}

impl Gauges {
    fn new() -> Result<Gauges, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), &[&["namespace", "name"], labels].concat())
        };
        Ok(Gauges {
            info: gauge(
                "zerocache_info",
                "Always 1; the labels say what runs.",
                &["version", "generation", "topology"],
            )?,
            condition: gauge("zerocache_condition", "1 for the status that a condition has.", &["type", "status"])?,
            phase: gauge("zerocache_phase", "1 for the phase that a resource is in.", &["phase"])?,
            view_syncers: gauge("zerocache_view_syncers", "View-syncers, by state.", &["state"])?,
            replication_manager_ready: gauge(
                "zerocache_replication_manager_ready",
                "1 while the replication-manager, or the single node, is ready.",
                &[],
            )?,
            upgrade_step: gauge("zerocache_upgrade_step", "1 for the step that a rollout is at.", &["step"])?,
            connection_budget: gauge(
                "zerocache_connection_budget",
                "Connections of a Postgres server: required at the peak of a rollout, allowed, in use by others.",
                &["server", "kind"],
            )?,
            backup_generations: gauge(
                "zerocache_backup_generations",
                "Retired generations of the backup, by what became of them.",
                &["state"],
            )?,
            last_backup: gauge(
                "zerocache_last_backup_timestamp_seconds",
                "When the backup was last written to, in seconds since 1970.",
                &[],
            )?,
        })
    }

    fn add(&self, cache: &ZeroCache) {
        let (Some(namespace), Some(name)) = (&cache.metadata.namespace, &cache.metadata.name) else { return };
        let (namespace, name) = (namespace.as_str(), name.as_str());
        let Some(status) = &cache.status else { return };
        let version = status.current_version.as_deref().unwrap_or_default();
        let generation = status.current_generation.as_deref().unwrap_or_default();
        let topology = format!("{:?}", cache.spec.topology);
        self.info.with_label_values(&[namespace, name, version, generation, &topology]).set(1);
        for condition in &status.conditions {
            for state in ["True", "False", "Unknown"] {
                let is_so = i64::from(condition.status == state);
                self.condition.with_label_values(&[namespace, name, &condition.type_, state]).set(is_so);
            }
        }
        for phase in PHASES {
            let is_so = i64::from(status.phase == Some(phase));
            self.phase.with_label_values(&[namespace, name, &format!("{phase:?}")]).set(is_so);
        }
        if let Some(syncers) = &status.view_syncer {
            let states = [
                ("desired", cache.spec.view_syncer.replicas),
                ("ready", syncers.ready_replicas),
                ("updated", syncers.updated_replicas),
                ("terminating", syncers.terminating_replicas),
            ];
            for (state, count) in states {
                self.view_syncers.with_label_values(&[namespace, name, state]).set(i64::from(count));
            }
        }
        let manager = status.replication_manager.as_ref();
        let is_ready = i64::from(manager.is_some_and(|manager| manager.ready));
        self.replication_manager_ready.with_label_values(&[namespace, name]).set(is_ready);
        for step in STEPS {
            let is_so = i64::from(status.upgrade.as_ref().is_some_and(|upgrade| upgrade.step == step));
            self.upgrade_step.with_label_values(&[namespace, name, &format!("{step:?}")]).set(is_so);
        }
        for budget in &status.connection_budget {
            let kinds = [("required", Some(budget.required)), ("limit", budget.limit), ("in_use", budget.in_use)];
            for (kind, count) in kinds {
                let labels = [namespace, name, &budget.server, kind];
                if let Some(count) = count {
                    self.connection_budget.with_label_values(&labels).set(i64::from(count));
                }
            }
        }
        for state in STATES {
            let count = status.retired_generations.iter().filter(|it| it.state == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.backup_generations.with_label_values(&[namespace, name, &format!("{state:?}")]).set(count);
        }
        if let Some(at) = manager.and_then(|manager| manager.last_backup_at.as_ref()) {
            self.last_backup.with_label_values(&[namespace, name]).set(at.0.as_second());
        }
    }

    fn families(self) -> Vec<MetricFamily> {
        // Destructured so that a new gauge cannot be forgotten here.
        let Gauges {
            info,
            condition,
            phase,
            view_syncers,
            replication_manager_ready,
            upgrade_step,
            connection_budget,
            backup_generations,
            last_backup,
        } = self;
        let all = [
            info,
            condition,
            phase,
            view_syncers,
            replication_manager_ready,
            upgrade_step,
            connection_budget,
            backup_generations,
            last_backup,
        ];
        all.iter().flat_map(|gauge| gauge.collect()).filter(|family| !family.get_metric().is_empty()).collect()
    }
}
