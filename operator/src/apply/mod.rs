//! Bringing the cluster into the planned form: objects by server-side apply, in the order they depend on each other, then what is
//! not wanted any longer is removed. What is known to be so already is not written again.
//!
//! Invariant: nothing is changed or removed but what the resource controls, each only while it is the object that was seen.

pub mod actions;
mod memory;

use std::collections::{BTreeMap, BTreeSet};

use crds::names::FIELD_MANAGER;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Category, Error, request};
use crate::metrics::{Metrics, applied};
use crate::observe::kept::{Access, Keeper};
use crate::observe::kinds::Kind;
use crate::observe::outside::Key;
use crate::observe::world::{Seen, fingerprint};
use crate::observe::{self, Child};
use crate::plan::{GeneratedSecret, Objects};
pub use memory::Memory;
use memory::{Shown, digest};

/// Objects by kind and name, as the watches last showed them.
pub type Existing = BTreeMap<(Kind, String), Seen>;

/// Writes for one resource.
pub struct Applier<'a> {
    pub client: &'a Client,
    pub metrics: &'a Metrics,
    pub memory: &'a Memory,
    pub cache: &'a Key,
    /// The resource's: what it does not control is another's, and is neither changed nor removed.
    pub uid: &'a str,
    pub existing: &'a Existing,
    /// Kinds that are left alone, for nobody knows what there is of them.
    pub unseen: &'a BTreeSet<Kind>,
    /// How many of them have gone so far.
    pub losses: u64,
    pub keeper: &'a Keeper,
    /// Connection URLs as the Secrets have them.
    pub access: Option<&'a Access>,
    /// Secrets that the resource refers to and that exist.
    pub secrets: &'a BTreeMap<String, observe::Secret>,
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written(pub u32);

impl Applier<'_> {
    /// Goes on after an object that was refused, so that one bad part does not hold the others back; the first error is
    /// what is told.
    pub async fn apply(&self, objects: Objects) -> (Written, Result<(), Error>) {
        // Destructured so that a new kind cannot be forgotten here. The order is that of dependence.
        let Objects {
            secrets,
            service_account,
            services,
            network_policies,
            disruption_budgets,
            stateful_set,
            deployment,
            autoscaler,
            ingress,
            http_route,
            pod_monitor,
            cleanup_jobs,
        } = objects;
        let mut run = Run { applier: self, written: Written::default(), first: None };
        for generated in &secrets {
            run.generate(generated).await;
        }
        run.object(Kind::ServiceAccount, service_account.as_ref()).await;
        for service in &services {
            run.object(Kind::Service, Some(service)).await;
        }
        for policy in &network_policies {
            run.object(Kind::NetworkPolicy, Some(policy)).await;
        }
        for budget in &disruption_budgets {
            run.object(Kind::PodDisruptionBudget, Some(budget)).await;
        }
        run.object(Kind::StatefulSet, stateful_set.applied()).await;
        run.object(Kind::Deployment, deployment.applied()).await;
        run.object(Kind::HorizontalPodAutoscaler, autoscaler.as_ref()).await;
        run.object(Kind::Ingress, ingress.as_ref()).await;
        run.object(Kind::HttpRoute, http_route.as_ref()).await;
        run.object(Kind::PodMonitor, pod_monitor.as_ref()).await;
        for job in &cleanup_jobs {
            run.object(Kind::Job, Some(job)).await;
        }
        (run.written, run.first.map_or(Ok(()), Err))
    }

    /// Removes children, each only while it is the one that was seen.
    pub async fn remove(&self, children: &[Child]) -> (Written, Result<(), Error>) {
        let mut run = Run { applier: self, written: Written::default(), first: None };
        for child in children {
            let Some(kind) = Kind::named(&child.kind) else { continue };
            let Some(seen) = self.own(kind, &child.name) else { continue };
            let outcome = self.delete(kind, &child.name, seen.uid.clone(), DeleteParams::background()).await;
            run.note(outcome.map(|()| true));
        }
        (run.written, run.first.map_or(Ok(()), Err))
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.cache.namespace, &kind.resource())
    }

    /// Whether anything was written.
    async fn object<T: Serialize>(&self, kind: Kind, object: &T) -> Result<bool, Error> {
        if self.unseen.contains(&kind) {
            return Ok(false);
        }
        let mut document = serde_json::to_value(object).expect("an object is made of strings, numbers, lists and maps");
        let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let count = |result| self.metrics.applies.with_label_values(&[kind.name(), result]).inc();
        let own = self.own(kind, &name);
        let print = own.map(|seen| seen.print);
        let shown = Shown { print, losses: self.losses };
        let digest = digest(&document);
        if self.memory.is_applied(self.cache, kind, &name, digest, shown) {
            count(applied::UNCHANGED);
            return Ok(false);
        }
        let known = own.map(|seen| seen.uid.clone()).or_else(|| self.memory.uid(self.cache, kind, &name));
        let doing = || format!("apply {} {name}", kind.name());
        let api = self.api(kind);
        let outcome = match &known {
            // Another one of the same name is refused by the API server.
            Some(uid) => {
                document["metadata"]["uid"] = json!(uid);
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                request(doing, api.patch_metadata(&name, &parameters, &Patch::Apply(&document))).await
            }
            None => self.make(kind, &name, &document).await,
        };
        match outcome {
            Ok(answer) => {
                let after = fingerprint(&answer.metadata);
                let is_changed = print != Some(after);
                count(if is_changed { applied::CHANGED } else { applied::UNCHANGED });
                let uid = answer.metadata.uid.unwrap_or_default();
                self.memory.applied(self.cache, kind, &name, digest, shown, memory::Outcome { print: after, uid });
                Ok(is_changed)
            }
            Err(error) => {
                let is_conflict = error.category() == Category::Conflict;
                if is_conflict {
                    self.memory.forget(self.cache, kind, &name);
                }
                count(if is_conflict { applied::CONFLICT } else { applied::ERROR });
                Err(error)
            }
        }
    }

    /// What the watches show, where it is the resource's own.
    fn own(&self, kind: Kind, name: &str) -> Option<&Seen> {
        let seen = self.existing.get(&(kind, name.to_owned()));
        seen.filter(|seen| seen.owner.as_deref() == Some(self.uid))
    }

    /// Makes an object where nothing is known to be. One that somebody made meanwhile is given back as it was.
    async fn make(&self, kind: Kind, name: &str, document: &Value) -> Result<PartialObjectMeta<DynamicObject>, Error> {
        let api = self.api(kind);
        let parameters = PatchParams::apply(FIELD_MANAGER);
        let doing = || format!("apply {} {name}", kind.name());
        let answer = request(doing, api.patch_metadata(name, &parameters, &Patch::Apply(document))).await?;
        let managers = answer.metadata.managed_fields.iter().flatten().filter_map(|entry| entry.manager.as_deref());
        if { managers }.all(|manager| manager == FIELD_MANAGER) {
            return Ok(answer);
        }
        let nothing = json!({
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "metadata": { "name": name, "uid": answer.metadata.uid },
        });
        let doing = || format!("give {} {name} back", kind.name());
        request(doing, api.patch_metadata(name, &parameters, &Patch::Apply(&nothing))).await?;
        Err(Error::Taken { kind: kind.name(), name: name.to_owned() })
    }

    /// Makes a Secret with a value that nobody knows, unless it exists.
    async fn generate(&self, generated: &GeneratedSecret) -> Result<bool, Error> {
        let name = generated.secret.metadata.name.clone().unwrap_or_default();
        let count = |result| self.metrics.applies.with_label_values(&[Kind::Secret.name(), result]).inc();
        // Also one that somebody else made.
        if self.secrets.contains_key(&name) {
            count(applied::UNCHANGED);
            return Ok(false);
        }
        let mut bytes = vec![0_u8; generated.length];
        rand::Rng::fill(&mut rand::rng(), bytes.as_mut_slice());
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let data = BTreeMap::from([(generated.key.to_owned(), ByteString(text.into_bytes()))]);
        let secret = Secret { data: Some(data), ..generated.secret.clone() };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.cache.namespace);
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match request(|| format!("create Secret {name}"), api.create(&parameters, &secret)).await {
            Ok(_) => {
                count(applied::CHANGED);
                Ok(true)
            }
            // Somebody made it, maybe this operator in an earlier life: it is used as it is.
            Err(error) if error.category() == Category::Conflict => {
                count(applied::UNCHANGED);
                Ok(false)
            }
            Err(error) => {
                count(applied::ERROR);
                Err(error)
            }
        }
    }

    async fn delete(&self, kind: Kind, name: &str, uid: String, parameters: DeleteParams) -> Result<(), Error> {
        let preconditions = Preconditions { uid: Some(uid), ..Preconditions::default() };
        let parameters = parameters.preconditions(preconditions);
        let doing = || format!("delete {} {name}", kind.name());
        let outcome = request(doing, self.api(kind).delete(name, &parameters)).await;
        self.memory.forget(self.cache, kind, name);
        match outcome {
            // It is gone already, or another one of the same name has come.
            Err(error) if matches!(error.category(), Category::Missing | Category::Conflict) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// One pass over the objects.
struct Run<'a> {
    applier: &'a Applier<'a>,
    written: Written,
    first: Option<Error>,
}

impl Run<'_> {
    async fn object<T: Serialize>(&mut self, kind: Kind, object: Option<&T>) {
        if let Some(object) = object {
            let outcome = self.applier.object(kind, object).await;
            self.note(outcome);
        }
    }

    async fn generate(&mut self, generated: &GeneratedSecret) {
        let outcome = self.applier.generate(generated).await;
        self.note(outcome);
    }

    fn note(&mut self, outcome: Result<bool, Error>) {
        match outcome {
            Ok(is_written) => self.written.0 += u32::from(is_written),
            Err(error) if self.first.is_none() => self.first = Some(error),
            Err(error) => tracing::warn!(error = error.to_string(), "another part of the plan failed"),
        }
    }
}
