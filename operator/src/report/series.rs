//! Series that follow from the resources' status: written anew whenever they are asked for, so that none outlives its resource.
//!
//! A resource has some seventy. They go into the page as text at once: as objects of a registry, those of 500 resources would take
//! more memory for a moment than all else that the operator keeps.

use std::fmt::Display;
use std::sync::{Arc, Mutex};

use crds::ZeroCache;
use crds::status::{Phase, RetiredState, UpgradeStep, ZeroCacheStatus};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;

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

/// A gauge, and what one resource adds to it.
struct Family {
    name: &'static str,
    help: &'static str,
    tell: fn(&ZeroCache, &ZeroCacheStatus, &mut Samples<'_>),
}

const FAMILIES: [Family; 9] = [
    Family { name: "zerocache_info", help: "Always 1; the labels say what runs.", tell: info },
    Family { name: "zerocache_condition", help: "1 for the status that a condition has.", tell: conditions },
    Family { name: "zerocache_phase", help: "1 for the phase that a resource is in.", tell: phases },
    Family { name: "zerocache_view_syncers", help: "View-syncers, by state.", tell: view_syncers },
    Family {
        name: "zerocache_replication_manager_ready",
        help: "1 while the replication-manager, or the single node, is ready.",
        tell: replication_manager_ready,
    },
    Family { name: "zerocache_upgrade_step", help: "1 for the step that a rollout is at.", tell: upgrade_steps },
    Family {
        name: "zerocache_connection_budget",
        help: "Connections of a Postgres server: required at the peak of a rollout, allowed, in use by others.",
        tell: connection_budget,
    },
    Family {
        name: "zerocache_backup_generations",
        help: "Retired generations of the backup, by what became of them.",
        tell: backup_generations,
    },
    Family {
        name: "zerocache_last_backup_timestamp_seconds",
        help: "When the backup was last written to, in seconds since 1970.",
        tell: last_backup,
    },
];

impl Series {
    pub fn follow(&self, stores: Vec<Store<DeserializeGuard<ZeroCache>>>) {
        *self.0.lock().expect("nothing panics while it holds the lock") = stores;
    }

    /// Adds them to a page of Prometheus' text format.
    pub fn write(&self, page: &mut String) {
        let stores = self.0.lock().expect("nothing panics while it holds the lock").clone();
        let caches: Vec<_> = stores.iter().flat_map(Store::state).collect();
        write(caches.iter().filter_map(|cache| cache.0.as_ref().ok()), page);
    }
}

fn write<'a>(caches: impl Iterator<Item = &'a ZeroCache> + Clone, page: &mut String) {
    for family in FAMILIES {
        let begin = page.len();
        put(page, format_args!("# HELP {0} {1}\n# TYPE {0} gauge\n", family.name, family.help));
        let empty = page.len();
        for cache in caches.clone() {
            let (Some(namespace), Some(name)) = (&cache.metadata.namespace, &cache.metadata.name) else { continue };
            let Some(status) = &cache.status else { continue };
            (family.tell)(cache, status, &mut Samples { family: family.name, namespace, name, page });
        }
        if page.len() == empty {
            page.truncate(begin);
        }
    }
}

/// Where the samples of one resource and one family go.
struct Samples<'a> {
    family: &'static str,
    namespace: &'a str,
    name: &'a str,
    page: &'a mut String,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &dyn Display)], value: i64) {
        // The API server lets nothing into these two that would have to be escaped.
        put(self.page, format_args!("{}{{namespace=\"{}\",name=\"{}\"", self.family, self.namespace, self.name));
        for (label, text) in labels {
            put(self.page, format_args!(",{label}=\""));
            put(&mut Escaped(self.page), format_args!("{text}"));
            self.page.push('"');
        }
        put(self.page, format_args!("}} {value}\n"));
    }
}

/// A label's value as the text format wants it.
struct Escaped<'a>(&'a mut String);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            match character {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

fn put(page: &mut impl std::fmt::Write, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("text can always be added to a text");
}

fn info(cache: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    let version = status.current_version.as_deref().unwrap_or_default();
    let generation = status.current_generation.as_deref().unwrap_or_default();
    let topology = format!("{:?}", cache.spec.topology);
    samples.add(&[("version", &version), ("generation", &generation), ("topology", &topology)], 1);
}

fn conditions(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    for condition in &status.conditions {
        for state in ["True", "False", "Unknown"] {
            samples.add(&[("type", &condition.type_), ("status", &state)], i64::from(condition.status == state));
        }
    }
}

fn phases(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    for phase in PHASES {
        samples.add(&[("phase", &format_args!("{phase:?}"))], i64::from(status.phase == Some(phase)));
    }
}

fn view_syncers(cache: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    let Some(syncers) = &status.view_syncer else { return };
    let states = [
        ("desired", cache.spec.view_syncer.replicas),
        ("ready", syncers.ready_replicas),
        ("updated", syncers.updated_replicas),
        ("terminating", syncers.terminating_replicas),
    ];
    for (state, count) in states {
        samples.add(&[("state", &state)], i64::from(count));
    }
}

fn replication_manager_ready(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    samples.add(&[], i64::from(status.replication_manager.as_ref().is_some_and(|manager| manager.ready)));
}

fn upgrade_steps(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    for step in STEPS {
        let is_so = status.upgrade.as_ref().is_some_and(|upgrade| upgrade.step == step);
        samples.add(&[("step", &format_args!("{step:?}"))], i64::from(is_so));
    }
}

fn connection_budget(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    for budget in &status.connection_budget {
        let kinds = [("required", Some(budget.required)), ("limit", budget.limit), ("in_use", budget.in_use)];
        for (kind, count) in kinds {
            if let Some(count) = count {
                samples.add(&[("server", &budget.server), ("kind", &kind)], i64::from(count));
            }
        }
    }
}

fn backup_generations(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    for state in STATES {
        let count = status.retired_generations.iter().filter(|it| it.state == state).count();
        samples.add(&[("state", &format_args!("{state:?}"))], i64::try_from(count).unwrap_or(i64::MAX));
    }
}

fn last_backup(_: &ZeroCache, status: &ZeroCacheStatus, samples: &mut Samples<'_>) {
    if let Some(at) = status.replication_manager.as_ref().and_then(|manager| manager.last_backup_at.as_ref()) {
        samples.add(&[], at.0.as_second());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str, status: serde_json::Value) -> ZeroCache {
        let document = serde_json::json!({
            "apiVersion": "zerocache.dev/v1alpha1", "kind": "ZeroCache",
            "metadata": { "namespace": "web", "name": name },
            "spec": { "databases": { "upstream": { "urlSecretRef": { "name": "db", "key": "url" } } } },
            "status": status,
        });
        serde_json::from_value(document).unwrap()
    }

    fn page(caches: &[ZeroCache]) -> String {
        let mut page = String::new();
        write(caches.iter(), &mut page);
        page
    }

    /// The text format wants all of a family in one place, under one header.
    #[test]
    fn each_family_is_told_of_once() {
        let condition = |status: &str| {
            serde_json::json!({
                "type": "Ready", "status": status, "reason": "Serving", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let first = cache("first", serde_json::json!({ "phase": "Running", "conditions": [condition("True")] }));
        let second = cache("second", serde_json::json!({ "conditions": [condition("False")] }));
        let page = page(&[first, second]);
        for family in ["zerocache_info", "zerocache_condition", "zerocache_phase"] {
            assert_eq!(page.matches(&format!("# TYPE {family} gauge\n")).count(), 1, "{page}");
        }
        for line in [
            "zerocache_condition{namespace=\"web\",name=\"first\",type=\"Ready\",status=\"True\"} 1",
            "zerocache_condition{namespace=\"web\",name=\"second\",type=\"Ready\",status=\"True\"} 0",
            "zerocache_phase{namespace=\"web\",name=\"first\",phase=\"Running\"} 1",
            "zerocache_replication_manager_ready{namespace=\"web\",name=\"second\"} 0",
        ] {
            assert!(page.lines().any(|it| it == line), "{line}\n{page}");
        }
        assert!(!page.contains("zerocache_view_syncers"), "a family without samples has no header either");
    }

    #[test]
    fn what_a_label_cannot_hold_is_escaped() {
        let odd = cache("odd", serde_json::json!({ "currentVersion": "a\"b\\c\nd" }));
        assert!(page(&[odd]).contains(r#"version="a\"b\\c\nd""#));
    }
}
