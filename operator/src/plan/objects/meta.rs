//! Names, labels and owners of children.

use std::collections::BTreeMap;

use crds::ZeroCache;
use crds::names::{component, label};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource as _;

use crate::observe::Role;

/// What children have in common.
#[derive(Clone, Debug)]
pub(super) struct Meta {
    instance: String,
    namespace: String,
    version: String,
    owner: Option<OwnerReference>,
}

impl Meta {
    pub fn new(cache: &ZeroCache, version: &str) -> Meta {
        Meta {
            instance: cache.metadata.name.clone().unwrap_or_default(),
            namespace: cache.metadata.namespace.clone().unwrap_or_default(),
            version: label_value(version),
            owner: cache.controller_owner_ref(&()),
        }
    }

    /// Of a child that concerns one role.
    pub fn of(&self, role: Role, name: String) -> ObjectMeta {
        self.child(name, self.labels(role.component()))
    }

    /// Of a child that concerns the whole deployment.
    pub fn shared(&self, name: String) -> ObjectMeta {
        let mut labels = self.labels("");
        labels.remove(label::COMPONENT);
        self.child(name, labels)
    }

    /// Of a Job.
    pub fn cleanup(&self, name: String) -> ObjectMeta {
        self.child(name, self.labels(component::CLEANUP))
    }

    fn child(&self, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    pub fn labels(&self, component: &str) -> BTreeMap<String, String> {
        let mut labels = self.selected(component);
        for (name, value) in [
            (label::VERSION, self.version.as_str()),
            (label::PART_OF, label::ZERO_CACHE),
            (label::MANAGED_BY, label::OPERATOR),
        ] {
            labels.insert(name.to_owned(), value.to_owned());
        }
        labels
    }

    /// By which pods are selected: never changed, and those of another's pods, whatever made them, are others.
    pub fn selected(&self, component: &str) -> BTreeMap<String, String> {
        let mut labels = self.claimed(component);
        labels.insert(label::MANAGED_BY.to_owned(), label::OPERATOR.to_owned());
        labels
    }

    /// On volume claims, where they can never be changed.
    pub fn claimed(&self, component: &str) -> BTreeMap<String, String> {
        [(label::NAME, label::ZERO_CACHE), (label::INSTANCE, &self.instance), (label::COMPONENT, component)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    pub fn selector(&self, role: Role) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selected(role.component())), match_expressions: None }
    }

    /// Of a workload: that of the existing one, which cannot be changed in place.
    pub fn selector_of(&self, role: Role, existing: Option<&BTreeMap<String, String>>) -> LabelSelector {
        let existing = existing.filter(|labels| !labels.is_empty()).cloned();
        let labels = existing.unwrap_or_else(|| self.selected(role.component()));
        LabelSelector { match_labels: Some(labels), match_expressions: None }
    }

    /// Among which pods are spread. Part of their template: another one would replace them all.
    pub fn spread(&self, role: Role) -> LabelSelector {
        LabelSelector { match_labels: Some(self.claimed(role.component())), match_expressions: None }
    }
}

/// A selector as text.
pub(in crate::plan) fn selector_text(instance: &str, role: Role) -> String {
    let component = role.component();
    let (name, managed) =
        (format!("{}={}", label::NAME, label::ZERO_CACHE), format!("{}={}", label::MANAGED_BY, label::OPERATOR));
    format!("{name},{}={instance},{}={component},{managed}", label::INSTANCE, label::COMPONENT)
}

/// A tag may be longer than a label's value.
fn label_value(text: &str) -> String {
    let short: String = text.chars().take(63).collect();
    short.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}
