//! Saying how it stands: the status, written before anything else and only when it changed; events where something happened; and
//! series for Prometheus.

mod events;
mod series;

use crds::ZeroCache;
use crds::conditions::{event, kind, reason};
use crds::names::STATUS_FIELD_MANAGER;
use crds::status::{Phase, RetiredState, ZeroCacheStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde_json::json;

use crate::error::{Error, request};
use crate::metrics::Metrics;
use crate::observe::outside::Key;
use crate::plan::{Event, Severity};
pub use events::Events;
pub use series::Series;

/// Owner of what is said about a resource that cannot be planned for.
const FAULT_FIELD_MANAGER: &str = "zerocache-operator-fault";

/// Writes the status; the resource as it is afterwards. Refused where anything changed since `cache` was read: what was planned
/// from an older picture is never recorded.
pub async fn write(
    client: &Client,
    key: &Key,
    cache: &ZeroCache,
    status: &ZeroCacheStatus,
) -> Result<ZeroCache, Error> {
    let api: Api<ZeroCache> = Api::namespaced(client.clone(), &key.namespace);
    // All of it, so that what is not in it any longer is taken off.
    let document = json!({
        "apiVersion": "zerocache.dev/v1alpha1",
        "kind": "ZeroCache",
        "metadata": {
            "name": key.name,
            "uid": cache.metadata.uid,
            "resourceVersion": cache.metadata.resource_version,
        },
        "status": status,
    });
    let parameters = PatchParams::apply(STATUS_FIELD_MANAGER).force();
    let doing = || format!("write the status of ZeroCache {key}");
    let mut written = request(doing, api.patch_status(&key.name, &parameters, &Patch::Apply(&document))).await?;
    written.metadata.managed_fields = None;
    Ok(written)
}

/// Counts what a change of the status says has come to its end.
pub fn count(metrics: &Metrics, key: &Key, before: &ZeroCacheStatus, after: &ZeroCacheStatus, now: i64) {
    let seconds = |start: i64| f64::from(u32::try_from((now - start).max(0)).unwrap_or(u32::MAX));
    if let (Some(upgrade), None) = (&before.upgrade, &after.upgrade) {
        let is_done = after.current_revision.as_deref() == Some(upgrade.target.as_str());
        let result = if is_done { "completed" } else { "cancelled" };
        let took = seconds(upgrade.started_at.0.as_second());
        metrics.upgrade_duration_seconds.with_label_values(&[result]).observe(took);
    }
    if let (Some(reset), None) = (&before.reset, &after.reset) {
        let is_done = after.current_generation.as_deref() == Some(reset.to.as_str());
        let result = if is_done { "completed" } else { "cancelled" };
        let took = seconds(reset.started_at.0.as_second());
        metrics.reset_duration_seconds.with_label_values(&[result]).observe(took);
        if is_done {
            metrics.resets.with_label_values(&[&key.namespace, &key.name]).inc();
        }
    }
    for generation in after.retired_generations.iter().filter(|it| it.state == RetiredState::Deleted) {
        let was_deleted = |it: &crds::status::RetiredGeneration| it.state == RetiredState::Deleted;
        let old = before.retired_generations.iter().find(|it| it.name == generation.name);
        if let Some(count) = generation.objects_deleted.filter(|_| !old.is_some_and(was_deleted)) {
            let counter = metrics.cleanup_objects_deleted.with_label_values(&[&key.namespace, &key.name]);
            counter.inc_by(u64::try_from(count).unwrap_or(0));
        }
    }
}

/// What keeps a resource from being planned for.
#[derive(Clone, Copy, Debug)]
pub enum Fault<'a> {
    /// Part of the cluster cannot be seen.
    Blind(&'a str),
    /// Its document cannot be read.
    Broken(&'a str),
}

/// Says in a condition and an event that nothing can be planned. Owns nothing but the fields it writes, so that the rest of the
/// status stays as it is, and the next whole status takes them over.
pub async fn fault(client: &Client, events: &Events, key: &Key, of: &ObjectMeta, fault: Fault<'_>, now: Timestamp) {
    let (kind, status, reason, event, phase, text) = match fault {
        Fault::Blind(text) => {
            (kind::DEGRADED, "True", reason::RECONCILE_FAILED, event::RECONCILE_FAILED, Phase::Degraded, text)
        }
        Fault::Broken(text) => (kind::READY, "False", reason::INVALID_SPEC, event::INVALID_SPEC, Phase::Failed, text),
    };
    let condition = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: text.chars().take(4096).collect(),
        observed_generation: of.generation,
        last_transition_time: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
    };
    let document = json!({
        "apiVersion": "zerocache.dev/v1alpha1",
        "kind": "ZeroCache",
        "metadata": { "name": key.name, "uid": of.uid },
        "status": { "phase": phase, "conditions": [condition] },
    });
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &key.namespace, &ApiResource::erase::<ZeroCache>(&()));
    let parameters = PatchParams::apply(FAULT_FIELD_MANAGER).force();
    let doing = || format!("write a condition of ZeroCache {key}");
    if let Err(error) = request(doing, api.patch_status(&key.name, &parameters, &Patch::Apply(&document))).await {
        tracing::warn!(resource = %key, error = error.to_string(), "a condition could not be written");
    }
    let reference = ObjectReference {
        api_version: Some("zerocache.dev/v1alpha1".to_owned()),
        kind: Some("ZeroCache".to_owned()),
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()),
        uid: of.uid.clone(),
        ..ObjectReference::default()
    };
    let happened = Event { severity: Severity::Warning, reason: event, message: text.to_owned() };
    events.publish(&reference, &[happened]).await;
}
