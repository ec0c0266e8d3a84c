//! Watches of everything that resources own, and of the Secrets they refer to. Objects are reduced as they arrive and dropped.
//!
//! A watch that ends goes on by itself, with back-off; a watch that is refused is told of in [`World`]. Kinds that not every
//! cluster serves are looked for now and then.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crds::names::label;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicObject, DynamicResourceScope, GroupVersionKind, PartialObjectMeta};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, discovery};
use serde::de::DeserializeOwned;

use super::kinds::Kind;
use super::secrets::Secrets;
use super::wakes::Wakes;
use super::world::{Door, Fact, Key, Scope, World};
use super::{Claim, Deployment, Job, Pod, Route, StatefulSet};
use crate::metrics::Metrics;

/// How often the API server is asked whether it serves an optional kind by now.
const DISCOVERY_SECONDS: u64 = 60;
/// Objects in one answer while listing: an answer is held as a whole.
pub const PAGE: u32 = 20;

/// What every watch needs.
#[derive(Clone)]
pub struct Watching {
    pub client: Client,
    pub world: Arc<World>,
    pub secrets: Arc<Secrets>,
    pub wakes: Wakes,
    pub metrics: Metrics,
}

/// How a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The kind is not served any longer.
    NotServed,
    Closed,
}

impl Watching {
    /// Watches one kind in one scope, for as long as it is served.
    async fn follow(&self, kind: Kind, scope: &Scope) -> End {
        let resource = kind.resource();
        match kind {
            Kind::Secret => self.follow_secrets(scope).await,
            Kind::StatefulSet => {
                self.typed(kind, scope, |set: &apps::StatefulSet| Fact::StatefulSet(StatefulSet::from(set))).await
            }
            Kind::Deployment => {
                self.typed(kind, scope, |it: &apps::Deployment| Fact::Deployment(Deployment::from(it))).await
            }
            Kind::Pod => self.typed(kind, scope, pod).await,
            Kind::PersistentVolumeClaim => {
                self.typed(kind, scope, |claim: &core::PersistentVolumeClaim| Fact::Claim(Claim::from(claim))).await
            }
            // What its pod said is read from the pod.
            Kind::Job => self.typed(kind, scope, |job: &batch::Job| Fact::Job(Job::from(job))).await,
            Kind::Ingress => {
                self.typed(kind, scope, |ingress: &networking::Ingress| Fact::Route(Route::from(ingress))).await
            }
            Kind::HttpRoute => {
                let api: Api<DynamicObject> = dynamic(&self.client, scope, &resource);
                let stream = watcher(api, config(kind));
                self.take(kind, scope, stream, |route| (route.metadata.clone(), Fact::Route(Route::from(route)))).await
            }
            Kind::ServiceAccount
            | Kind::Service
            | Kind::NetworkPolicy
            | Kind::PodDisruptionBudget
            | Kind::HorizontalPodAutoscaler
            | Kind::PodMonitor => {
                let api: Api<PartialObjectMeta<DynamicObject>> = dynamic(&self.client, scope, &resource);
                let stream = watcher(api, config(kind));
                self.take(kind, scope, stream, |object| (object.metadata.clone(), Fact::Nothing)).await
            }
        }
    }

    async fn typed<K>(&self, kind: Kind, scope: &Scope, reduce: impl Fn(&K) -> Fact) -> End
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let api: Api<K> = match scope {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        self.take(kind, scope, watcher(api, config(kind)), |object| (object.meta().clone(), reduce(object))).await
    }

    /// Takes everything in that a watch shows.
    async fn take<T>(
        &self,
        kind: Kind,
        scope: &Scope,
        stream: impl Stream<Item = watcher::Result<watcher::Event<T>>> + Send,
        reduce: impl Fn(&T) -> (ObjectMeta, Fact),
    ) -> End {
        let mut events = pin!(stream.default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => self.world.begin_listing(kind, scope),
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    let (metadata, fact) = reduce(&object);
                    drop(object);
                    self.wakes.send(self.world.show(kind, scope, &metadata, fact)).await;
                }
                Ok(watcher::Event::InitDone) => self.wakes.send(self.world.end_listing(kind, scope)).await,
                Ok(watcher::Event::Delete(object)) => {
                    let (metadata, _) = reduce(&object);
                    self.wakes.send(self.world.forget(kind, &metadata)).await;
                }
                Err(error) => {
                    if self.failed(kind, scope, &error) == End::NotServed && kind.is_optional() {
                        return End::NotServed;
                    }
                }
            }
        }
        End::Closed
    }

    async fn follow_secrets(&self, scope: &Scope) -> End {
        let kind = Kind::Secret;
        let api: Api<PartialObjectMeta<DynamicObject>> = dynamic(&self.client, scope, &kind.resource());
        let mut events = pin!(watcher(api, config(kind)).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {
                    self.world.begin_listing(kind, scope);
                    self.secrets.begin_listing(scope);
                }
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    let version = object.metadata.resource_version.as_deref().unwrap_or_default();
                    if let Some(secret) = key_of(&object.metadata) {
                        self.wakes.send(self.secrets.show(&secret, version)).await;
                    }
                    if is_ours(&object.metadata) {
                        self.wakes.send(self.world.show(kind, scope, &object.metadata, Fact::Nothing)).await;
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    self.wakes.send(self.secrets.end_listing(scope)).await;
                    self.wakes.send(self.world.end_listing(kind, scope)).await;
                }
                Ok(watcher::Event::Delete(object)) => {
                    if let Some(secret) = key_of(&object.metadata) {
                        self.wakes.send(self.secrets.gone(&secret)).await;
                    }
                    self.wakes.send(self.world.forget(kind, &object.metadata)).await;
                }
                Err(error) => {
                    self.failed(kind, scope, &error);
                }
            }
        }
        End::Closed
    }

    fn failed(&self, kind: Kind, scope: &Scope, error: &watcher::Error) -> End {
        self.metrics.watch_restarts.with_label_values(&[kind.name()]).inc();
        let (code, text) = explain(error);
        tracing::warn!(kind = kind.name(), namespace = scope.as_deref(), error = text, "a watch was cut off");
        self.world.failed(kind, scope, text);
        if code == Some(404) { End::NotServed } else { End::Closed }
    }

    /// Watches one kind for ever.
    pub async fn keep(self, kind: Kind, scope: Scope) {
        loop {
            self.follow(kind, &scope).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Watches a kind while the cluster serves it.
    pub async fn keep_optional(self, kind: Kind, scope: Scope) {
        loop {
            if self.discover(kind).await {
                self.world.expect(kind, &scope);
                if self.world.set_served(kind, true) {
                    tracing::info!(kind = kind.name(), "the cluster serves an optional kind");
                    self.wakes.all();
                }
                self.follow(kind, &scope).await;
                self.wakes.send(self.world.dismiss(kind, &scope)).await;
                if self.world.set_served(kind, false) {
                    tracing::info!(kind = kind.name(), "the cluster does not serve an optional kind any longer");
                    self.wakes.all();
                }
            }
            tokio::time::sleep(Duration::from_secs(DISCOVERY_SECONDS)).await;
        }
    }

    async fn discover(&self, kind: Kind) -> bool {
        let resource = kind.resource();
        let wanted = GroupVersionKind::gvk(&resource.group, &resource.version, &resource.kind);
        discovery::pinned_kind(&self.client, &wanted).await.is_ok()
    }
}

fn dynamic<K>(client: &Client, scope: &Scope, resource: &ApiResource) -> Api<K>
where
    K: Resource<Scope = DynamicResourceScope, DynamicType = ApiResource>,
{
    match scope {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

fn config(kind: Kind) -> watcher::Config {
    let config = watcher::Config::default().page_size(PAGE);
    match kind {
        // Those that users refer to have no labels of ours.
        Kind::Secret => config,
        // Made by the StatefulSet's controller, with the labels of its selector.
        Kind::PersistentVolumeClaim => config.labels(&format!("{}={}", label::NAME, label::ZERO_CACHE)),
        _ => config.labels(&format!("{}={}", label::MANAGED_BY, label::OPERATOR)),
    }
}

/// The answer's code and text.
pub fn explain(error: &watcher::Error) -> (Option<u16>, String) {
    let status = match error {
        watcher::Error::WatchError(status) => Some(&**status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(&**status),
        _ => None,
    };
    match status {
        Some(status) => (Some(status.code), status.message.clone()),
        None => (None, error.to_string()),
    }
}

fn key_of(metadata: &ObjectMeta) -> Option<Key> {
    Some(Key { namespace: metadata.namespace.clone()?, name: metadata.name.clone()? })
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(label::MANAGED_BY)).map(String::as_str) == Some(label::OPERATOR)
}

fn pod(pod: &core::Pod) -> Fact {
    if let Some(reduced) = Pod::read(pod) {
        return Fact::Pod(reduced, door(pod));
    }
    let job = pod.metadata.labels.as_ref().and_then(|labels| labels.get("batch.kubernetes.io/job-name"));
    match (job, last_line(pod)) {
        (Some(job), Some(line)) => Fact::LastLine { job: job.clone(), line },
        _ => Fact::Nothing,
    }
}

fn door(pod: &core::Pod) -> Option<Door> {
    let ip = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    let probes = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|it| it.readiness_probe.as_ref());
    let mut schemes = probes.filter_map(|probe| probe.http_get.as_ref()?.scheme.as_deref());
    Some(Door { ip, is_encrypted: schemes.any(|scheme| scheme == "HTTPS") })
}

/// What a container said at its end.
fn last_line(pod: &core::Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let message = containers.iter().find_map(|it| it.state.as_ref()?.terminated.as_ref()?.message.clone())?;
    let line = message.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().take(512).collect())
}
