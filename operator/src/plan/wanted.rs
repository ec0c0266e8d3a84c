//! A spec with no question left open: defaults of the installation filled in, references resolved, templates read.

use std::collections::{BTreeMap, BTreeSet};

use crds::ZeroCache;
use crds::names::{annotation, child, service_host, tls};
use crds::spec::{Placement, SecretKeyRef, Topology, ZeroCacheSpec};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Volume};
use sha2::{Digest as _, Sha256};

use super::objects::{env, stream_tls};
use super::{annotation_of, values};
use crate::observe::{Observed, Role};

/// What is wrong with a spec that the API server could not see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("{field}: {name} is set by the operator; remove it from the list")]
    OwnVariable { field: &'static str, name: String },
    #[error("{field}: {value:?} is not {what}")]
    Value { field: String, value: String, what: &'static str },
    #[error("{field} is not a pod template: {message}")]
    Template { field: &'static str, message: String },
    #[error("{field}: {what}, which whoever runs the operator does not allow; remove it")]
    NotAllowed { field: &'static str, what: String },
    #[error(
        "{} already uses this replication slot; give another appId or shardNum, or delete one of the two: two would fight for it",
        .0.join(", ")
    )]
    Rival(Vec<String>),
}

/// A resource's wishes as planning uses them.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub spec: &'a ZeroCacheSpec,
    /// Repository with tag or digest.
    pub image: String,
    pub token: SecretKeyRef,
    pub admin_password: SecretKeyRef,
    pub service_account: String,
    pub cluster_domain: &'a str,
    /// Where the operator's pods are.
    pub operator_namespace: &'a str,
    pub restarted_at: Option<&'a str>,
    /// Secrets that the operator makes up once.
    pub generated: Vec<String>,
    overrides: BTreeMap<Role, PodTemplateSpec>,
    secrets: &'a BTreeMap<String, crate::observe::Secret>,
}

impl<'a> Wanted<'a> {
    /// Reads the resource. With problems the rest is of no use.
    pub(super) fn resolve(cache: &'a ZeroCache, observed: &'a Observed) -> (Wanted<'a>, Vec<Problem>) {
        let spec = &cache.spec;
        let name = cache.metadata.name.as_deref().unwrap_or_default();
        let mut generated = Vec::new();
        let mut or_generated = |given: &Option<SecretKeyRef>, name: String| match given {
            Some(reference) => reference.clone(),
            None => {
                generated.push(name.clone());
                SecretKeyRef { name, key: child::SECRET_KEY.to_owned() }
            }
        };
        let token = or_generated(&spec.security.change_stream.token_secret_ref, child::token(name));
        let admin_password = or_generated(&spec.admin_password, child::admin_password(name));
        let account = &spec.security.service_account;
        let mut wanted = Wanted {
            name,
            namespace: cache.metadata.namespace.as_deref().unwrap_or_default(),
            spec,
            image: image(spec, observed),
            token,
            admin_password,
            service_account: account.name.clone().unwrap_or_else(|| name.to_owned()),
            cluster_domain: &observed.installation.cluster_domain,
            operator_namespace: &observed.installation.namespace,
            restarted_at: annotation_of(cache, annotation::RESTARTED_AT),
            generated,
            overrides: BTreeMap::new(),
            secrets: &observed.secrets,
        };
        let mut problems = values::problems(spec);
        for &role in wanted.roles() {
            wanted.check(role, observed.installation.refuses_raw_fields, &mut problems);
        }
        if !observed.rivals.is_empty() {
            problems.push(Problem::Rival(observed.rivals.clone()));
        }
        (wanted, problems)
    }

    fn check(&mut self, role: Role, refuses_raw_fields: bool, problems: &mut Vec<Problem>) {
        let is_view_syncer = role == Role::ViewSyncer;
        let (env_field, template_field, volumes_field) = match is_view_syncer {
            true => ("spec.viewSyncer.extraEnv", "spec.viewSyncer.podTemplate", "spec.viewSyncer.extraVolumes"),
            false => (
                "spec.replicationManager.extraEnv",
                "spec.replicationManager.podTemplate",
                "spec.replicationManager.extraVolumes",
            ),
        };
        let placement = self.placement(role);
        for variable in &placement.extra_env {
            if env::OWN.contains(&variable.name.as_str()) {
                problems.push(Problem::OwnVariable { field: env_field, name: variable.name.clone() });
            }
        }
        if refuses_raw_fields {
            if placement.pod_template.is_some() {
                problems
                    .push(Problem::NotAllowed { field: template_field, what: "it changes pods at will".to_owned() });
            }
            for volume in placement.extra_volumes.iter().filter(|volume| !is_harmless(volume)) {
                let what = format!("{} is no volume of the namespace's own", volume.name);
                problems.push(Problem::NotAllowed { field: volumes_field, what });
            }
        }
        if let Some(template) = &placement.pod_template {
            match serde_json::from_value(serde_json::Value::Object(template.clone())) {
                Ok(template) => drop(self.overrides.insert(role, template)),
                Err(error) => {
                    problems.push(Problem::Template { field: template_field, message: error.to_string() });
                }
            }
        }
    }

    pub(super) fn is_single(&self) -> bool {
        self.spec.topology == Topology::SingleNode
    }

    /// The role of the StatefulSet's pod.
    pub(super) fn main_role(&self) -> Role {
        if self.is_single() { Role::SingleNode } else { Role::ReplicationManager }
    }

    pub(super) fn roles(&self) -> &'static [Role] {
        if self.is_single() { &[Role::SingleNode] } else { &[Role::ReplicationManager, Role::ViewSyncer] }
    }

    /// The role whose pods clients connect to.
    pub(super) fn public_role(&self) -> Role {
        if self.is_single() { Role::SingleNode } else { Role::ViewSyncer }
    }

    /// The name of one of its Services for the whole cluster.
    pub(super) fn host_of(&self, service: &str) -> String {
        service_host(service, self.namespace, self.cluster_domain)
    }

    /// The Secret with which nodes encrypt what they tell each other.
    pub(super) fn tls_secret(&self) -> Option<&'a str> {
        self.spec.security.change_stream.tls_secret_name.as_deref().filter(|_| !self.is_single())
    }

    /// That Secret says whom to trust.
    pub(super) fn has_tls_authority(&self) -> bool {
        let secret = self.tls_secret().and_then(|name| self.secrets.get(name));
        secret.is_some_and(|secret| secret.keys.contains_key(tls::AUTHORITY))
    }

    pub(super) fn placement(&self, role: Role) -> &'a Placement {
        match role {
            Role::ViewSyncer => &self.spec.view_syncer.placement,
            Role::ReplicationManager | Role::SingleNode => &self.spec.replication_manager.placement,
        }
    }

    pub(super) fn override_of(&self, role: Role) -> Option<&PodTemplateSpec> {
        self.overrides.get(&role)
    }

    /// Name of a role's workload, Service and policies.
    #[must_use]
    pub fn workload_name(&self, role: Role) -> String {
        match role {
            Role::ReplicationManager => child::replication_manager(self.name),
            Role::ViewSyncer => child::view_syncer(self.name),
            Role::SingleNode => self.name.to_owned(),
        }
    }

    pub(super) fn headless_name(&self) -> String {
        if self.is_single() { format!("{}-headless", self.name) } else { child::headless(self.name) }
    }

    /// `<backup.url>/<generation>`.
    pub(super) fn backup_url(&self, generation: &str) -> Option<String> {
        self.spec.backup.as_ref().map(|backup| format!("{}/{generation}", backup.url))
    }

    /// Secrets and keys that pods cannot start without, and that do not exist, with the fields that name them.
    pub(super) fn missing_secrets(&self) -> Vec<String> {
        let mut missing: Vec<(String, Vec<&str>)> = Vec::new();
        let variables = self.roles().iter().flat_map(|role| env::secret_fields(self, *role));
        for (field, reference) in variables.chain(stream_tls::required(self)) {
            let text = match self.secrets.get(&reference.name) {
                None => format!("Secret {} does not exist", reference.name),
                Some(secret) if !secret.keys.contains_key(&reference.key) => {
                    format!("Secret {} has no key {}", reference.name, reference.key)
                }
                Some(_) => continue,
            };
            if self.generated.contains(&reference.name) {
                continue;
            }
            match missing.iter_mut().find(|(known, _)| *known == text) {
                Some((_, fields)) if fields.contains(&field) => {}
                Some((_, fields)) => fields.push(field),
                None => missing.push((text, vec![field])),
            }
        }
        missing.into_iter().map(|(text, fields)| format!("{}: {text}", fields.join(", "))).collect()
    }

    /// Secrets that pods read, also a site's own.
    pub(super) fn secret_names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for &role in self.roles() {
            names.extend(env::secrets(self, role).into_iter().map(|reference| reference.name));
            names.extend(env::secret_names_of_site(self.placement(role)));
        }
        names.extend(self.tls_secret().map(str::to_owned));
        names
    }

    /// Secrets of the operator's own making that are not there yet.
    pub(super) fn lacks_generated_secrets(&self) -> bool {
        self.generated.iter().any(|name| !self.secrets.contains_key(name))
    }

    /// A hash that changes when data that a role's pods read from Secrets changes.
    pub(super) fn secrets_hash(&self, role: Role) -> String {
        let mut references: Vec<SecretKeyRef> = env::secrets(self, role);
        references.extend(env::secrets_of_site(self.placement(role), self.secrets));
        references.sort();
        references.dedup();
        let hash_of = |reference: &SecretKeyRef| {
            self.secrets.get(&reference.name).and_then(|secret| secret.keys.get(&reference.key)).cloned()
        };
        let lines: Vec<String> = references
            .iter()
            .filter_map(|it| hash_of(it).map(|hash| format!("{}/{}={hash}\n", it.name, it.key)))
            .collect();
        short_hash(lines.concat().as_bytes())
    }
}

/// Name of the StatefulSet.
pub(super) fn main_workload(cache: &ZeroCache) -> String {
    let name = cache.metadata.name.as_deref().unwrap_or_default();
    match cache.spec.topology {
        Topology::SingleNode => name.to_owned(),
        Topology::MultiNode => child::replication_manager(name),
    }
}

/// Of the kinds that Kubernetes' restricted pods may have: they reach nothing outside the namespace.
fn is_harmless(volume: &Volume) -> bool {
    let Volume {
        config_map, csi, downward_api, empty_dir, ephemeral, persistent_volume_claim, projected, secret, ..
    } = volume;
    config_map.is_some()
        || csi.is_some()
        || downward_api.is_some()
        || empty_dir.is_some()
        || ephemeral.is_some()
        || persistent_volume_claim.is_some()
        || projected.is_some()
        || secret.is_some()
}

/// Ten hexadecimal digits.
pub(super) fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

fn image(spec: &ZeroCacheSpec, observed: &Observed) -> String {
    let repository = spec.image.repository.as_deref().unwrap_or(&observed.installation.repository);
    match (&spec.image.digest, &spec.image.tag) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Some(tag)) => format!("{repository}:{tag}"),
        (None, None) => format!("{repository}:{}", observed.installation.tag),
    }
}

/// The tag of an image, or the start of its digest.
pub(super) fn version_of(image: &str) -> String {
    if let Some((_, digest)) = image.split_once('@') {
        return digest.trim_start_matches("sha256:").chars().take(12).collect();
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').map_or("latest", |(_, tag)| tag).to_owned()
}

/// A tag that says nothing about what runs.
pub(super) fn is_moving(image: &str) -> bool {
    !image.contains('@') && matches!(version_of(image).as_str(), "latest" | "main" | "edge")
}

/// Major, minor and patch, where a tag is a version.
pub(super) fn numbers_of(image: &str) -> Option<(u64, u64, u64)> {
    if image.contains('@') {
        return None;
    }
    let version = version_of(image);
    let plain = version.trim_start_matches('v').split(['-', '+']).next()?.to_owned();
    let mut parts = plain.split('.').map(str::parse::<u64>);
    let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next().unwrap_or(Ok(0)).ok()?);
    parts.next().is_none().then_some((major, minor, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_images() {
        assert_eq!(version_of("registry:5000/zero/cache:1.4.0"), "1.4.0");
        assert_eq!(version_of("registry:5000/zero/cache"), "latest");
        assert_eq!(version_of(&format!("zero/cache@sha256:{}", "ab".repeat(32))), "abababababab");
        assert_eq!(numbers_of("zero:v1.4.2-rc.1"), Some((1, 4, 2)));
        assert_eq!(numbers_of("zero:1.4"), Some((1, 4, 0)));
        assert_eq!(numbers_of("zero:latest"), None);
        assert_eq!(numbers_of("zero:20260101"), None);
        assert!(is_moving("zero:latest") && is_moving("zero") && !is_moving("zero:1.0.0"));
    }
}
