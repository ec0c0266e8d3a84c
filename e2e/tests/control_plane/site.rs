//! What a test stands on: the API server, a namespace of its own, a database, and how to wait for something.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crds::ZeroCache;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testkit::postgres::{Postgres, Version};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::kubelet::Kubelet;

/// Most tests run beside each other; those that measure run alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

#[allow(dead_code, reason = "held for its drop")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub struct Site {
    pub client: Client,
    /// The namespace.
    pub name: String,
    pub kubelet: Kubelet,
    /// Connection URL of an empty database.
    pub database: String,
    /// How many times the usual time to wait for something.
    pub patience: u32,
    _turn: Turn,
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A client of the administrator.
pub async fn administrator() -> Result<Client> {
    if std::env::var_os("KUBECONFIG").is_none() {
        bail!(
            "KUBECONFIG is not set; run e2e/kube/cluster --control-plane-only -- cargo test -p e2e --test control_plane"
        );
    }
    // One TLS implementation for the process; whoever comes second finds it there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_default().await.context("reach the API server that KUBECONFIG names")
}

impl Site {
    pub async fn new(test: &str) -> Result<Site> {
        let turn = Turn::Shared(MACHINE.read().await);
        Site::with(test, turn).await
    }

    /// No other test runs meanwhile.
    pub async fn alone(test: &str) -> Result<Site> {
        let turn = Turn::Alone(MACHINE.write().await);
        Site::with(test, turn).await
    }

    async fn with(test: &str, turn: Turn) -> Result<Site> {
        static NUMBER: AtomicU8 = AtomicU8::new(1);
        let client = administrator().await?;
        install_kind(&client).await?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", test.replace('_', "-"));
        let namespace = Namespace {
            metadata: kube::core::ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.context("make a namespace")?;
        let database = Postgres::shared(Version::V15)?.create_database(test).await?.url();
        let kubelet = Kubelet::start(client.clone(), &name, number).await?;
        let site = Site { client, name, kubelet, database, patience: 1, _turn: turn };
        site.secret("shop", json!({ "upstream": site.database, "admin": "admin-password" })).await?;
        Ok(site)
    }

    pub fn caches(&self) -> Api<ZeroCache> {
        self.api()
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn dynamic(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Api::namespaced_with(self.client.clone(), &self.name, &resource)
    }

    pub async fn secret(&self, name: &str, data: Value) -> Result<()> {
        let secret = json!({ "metadata": { "name": name }, "stringData": data });
        let api: Api<Secret> = self.api();
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(with_type(secret, "v1", "Secret"))).await?;
        Ok(())
    }

    /// A small resource with `spec` merged into it.
    pub fn document(&self, name: &str, spec: Value) -> Value {
        let mut document = json!({
            "apiVersion": "zerocache.dev/v1alpha1",
            "kind": "ZeroCache",
            "metadata": { "name": name, "namespace": self.name },
            "spec": {
                "appId": name.replace('-', "_"),
                "adminPassword": { "name": "shop", "key": "admin" },
                // Given, for computed sizes change with the number of pods, and a change of size is a rollout.
                "databases": {
                    "upstream": { "urlSecretRef": { "name": "shop", "key": "upstream" } },
                    "cvr": { "maxConns": 5 },
                },
                "backup": { "url": "s3://shop/replica" },
                "image": { "repository": "example.com/zero-cache", "tag": "1.0.0" },
                "viewSyncer": { "replicas": 1, "minReadySeconds": 0 },
                "replicationManager": { "storage": { "type": "Ephemeral" } },
            },
        });
        merge(&mut document["spec"], spec);
        document
    }

    pub async fn create(&self, name: &str, spec: Value) -> Result<ZeroCache> {
        let document = serde_json::from_value(self.document(name, spec))?;
        Ok(self.caches().create(&PostParams::default(), &document).await?)
    }

    /// Changes a resource as a user does.
    pub async fn change(&self, name: &str, patch: Value) -> Result<ZeroCache> {
        Ok(self.caches().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.caches().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    pub async fn get(&self, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(self.caches().get(name).await?)?)
    }

    /// When to stop waiting.
    pub fn end(&self, seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds) * self.patience
    }

    /// Waits until a resource is as `is_so` wants it.
    pub async fn until(&self, name: &str, what: &str, seconds: u64, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        self.until_object::<ZeroCache>(name, what, seconds, is_so).await
    }

    pub async fn until_object<K>(
        &self,
        name: &str,
        what: &str,
        seconds: u64,
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let api: Api<K> = self.api();
        let end = self.end(seconds);
        loop {
            let found = api.get_opt(name).await?.map(serde_json::to_value).transpose()?.unwrap_or_default();
            if is_so(&found) {
                return Ok(found);
            }
            if Instant::now() > end {
                let seconds = seconds * u64::from(self.patience);
                bail!("{name} was not {what} within {seconds} s:\n{}", summary(&found));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_ready(&self, name: &str) -> Result<Value> {
        self.until(name, "ready", 60, |cache| {
            condition(cache, "Ready").0 == "True" && !cache["status"]["currentRevision"].is_null()
        })
        .await
    }

    pub async fn until_gone(&self, name: &str) -> Result<()> {
        self.until(name, "gone", 60, Value::is_null).await.map(drop)
    }
}

/// Installs the ZeroCache kind, and stand-ins for the kinds that not every cluster serves, once.
pub async fn install_kind(client: &Client) -> Result<()> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let all = || async {
        install(client.clone(), crds::definition()).await?;
        install(client.clone(), free_form("gateway.networking.k8s.io", "HTTPRoute", "httproutes")).await?;
        install(client.clone(), free_form("monitoring.coreos.com", "PodMonitor", "podmonitors")).await
    };
    DONE.get_or_try_init(all).await.copied()
}

/// A kind that takes every document.
fn free_form(group: &str, kind: &str, plural: &str) -> Value {
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let mut annotations = json!({});
    if group.ends_with("k8s.io") {
        annotations = json!({ "api-approved.kubernetes.io": "unapproved, a stand-in for tests" });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}"), "annotations": annotations },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": open, "status": open } } },
            }],
        },
    })
}

/// Installs a definition and waits until it is served.
pub async fn install(client: Client, definition: Value) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let name = definition["metadata"]["name"].as_str().context("a definition has a name")?.to_owned();
    api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(definition)).await.context("install a kind")?;
    let established = kube::runtime::wait::conditions::is_crd_established();
    let waiting = kube::runtime::wait::await_condition(api, &name, established);
    tokio::time::timeout(Duration::from_secs(20), waiting).await.context("wait for a kind")??;
    Ok(())
}

pub fn with_type(mut document: Value, api_version: &str, kind: &str) -> Value {
    document["apiVersion"] = json!(api_version);
    document["kind"] = json!(kind);
    document
}

/// Null takes a field away.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if value.is_null() {
                    into.remove(&name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// Status, reason and message of a condition.
pub fn condition<'a>(cache: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
    let conditions = cache["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(found) = conditions.iter().find(|it| it["type"] == kind) else { return ("", "", "") };
    let text = |name: &str| found[name].as_str().unwrap_or_default();
    (text("status"), text("reason"), text("message"))
}

/// What a person would look at first.
fn summary(cache: &Value) -> String {
    let mut lines = vec![format!("metadata: {}", cache["metadata"]["name"])];
    for condition in cache["status"]["conditions"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{} {} {}: {}",
            condition["type"], condition["status"], condition["reason"], condition["message"]
        ));
    }
    if let Some(status) = cache["status"].as_object() {
        let rest: Vec<String> = status
            .iter()
            .filter(|(name, _)| *name != "conditions")
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        lines.push(rest.join(", "));
    }
    lines.join("\n")
}
