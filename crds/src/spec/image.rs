//! Which image runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NAME_MAX;
use crate::rules;

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::IMAGE))]
pub struct Image {
    /// Registry and name; by default the image published with the operator.
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9][A-Za-z0-9._:/-]*$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Version; by default the operator's. A tag that moves, such as `latest`, is reported: pods of one deployment may differ.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Digest, instead of a tag.
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[a-f0-9]{64}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When the node fetches the image; by default Kubernetes decides by the tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Names of Secrets that hold registry credentials.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 1, max = NAME_MAX)))]
    pub pull_secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}
