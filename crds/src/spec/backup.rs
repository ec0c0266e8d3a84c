//! Where the replica is backed up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NAME_MAX, URL_MAX};
use crate::{Span, rules};

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// `s3://bucket/path`; the generation is appended.
    #[schemars(length(max = 1024), regex(pattern = r"^s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"))]
    pub url: String,
    /// Endpoint of an S3-compatible store.
    #[schemars(length(max = URL_MAX), regex(pattern = r"^https?://\S+$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Region of the store.
    #[schemars(length(min = 1, max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Keys of the store. Without it the pods' workload identity is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<Credentials>,
    /// What may be lost with the machine that writes the backup. The data plane never waits longer than 10s.
    #[serde(default = "incremental")]
    #[schemars(extend("x-kubernetes-validations" = rules::INCREMENTAL_INTERVAL))]
    pub incremental_interval: Span,
    /// Time between full copies.
    #[serde(default = "snapshot")]
    #[schemars(extend("x-kubernetes-validations" = rules::SNAPSHOT_INTERVAL))]
    pub snapshot_interval: Span,
    /// What becomes of the backups of earlier generations.
    #[serde(default)]
    pub retention: Retention,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub name: String,
    /// Key of the access key ID.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub access_key_id_key: String,
    /// Key of the secret access key.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub secret_access_key_key: String,
    /// Key of the session token, for temporary credentials.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token_key: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retention {
    /// Delete the backups of earlier generations. Without it they stay for ever.
    pub enabled: bool,
    /// Earlier generations that are kept besides the current one, the newest first.
    #[schemars(range(min = 0, max = 20))]
    pub keep_generations: i32,
    /// A generation retired more recently is never deleted.
    #[schemars(extend("x-kubernetes-validations" = rules::MIN_AGE))]
    pub min_age: Span,
    /// Delete the backups of all generations together with the resource.
    pub delete_on_removal: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { enabled: false, keep_generations: 1, min_age: Span::from("24h"), delete_on_removal: false }
    }
}

fn incremental() -> Span {
    Span::from("15s")
}

fn snapshot() -> Span {
    Span::from("12h")
}
