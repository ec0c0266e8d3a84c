//! The application's API server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SecretKeyRef, URL_MAX};
use crate::rules;

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Api {
    /// Allowed query endpoints as URL patterns; the first is the default.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = URL_MAX), regex(pattern = r"^https?://[^,\s]+$")))]
    pub query_urls: Vec<String>,
    /// Allowed mutate endpoints as URL patterns; the first is the default.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = URL_MAX), regex(pattern = r"^https?://[^,\s]+$")))]
    pub mutate_urls: Vec<String>,
    /// Key sent to the query endpoint as `X-Api-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_api_key_secret_ref: Option<SecretKeyRef>,
    /// Key sent to the mutate endpoint as `X-Api-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mutate_api_key_secret_ref: Option<SecretKeyRef>,
    /// Forward the client's cookies to the query endpoint.
    #[serde(default)]
    pub query_forward_cookies: bool,
    /// Forward the client's cookies to the mutate endpoint.
    #[serde(default)]
    pub mutate_forward_cookies: bool,
    /// Accept CRUD mutations and write them upstream, which takes upstream connections on every view-syncer.
    #[serde(default)]
    pub enable_crud_mutations: bool,
    /// Who signs clients' tokens, for older applications whose API server does not check them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// CRUD mutations allowed per user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_user_mutation_limit: Option<MutationLimit>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::AUTH))]
pub struct Auth {
    /// Symmetric key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// Public key as JWK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwk_secret_ref: Option<SecretKeyRef>,
    /// URL of a JWK set.
    #[schemars(length(max = URL_MAX), regex(pattern = r"^https?://\S+$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MutationLimit {
    /// Mutations in one window.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: i32,
    /// Length of the window in milliseconds.
    #[serde(default = "minute")]
    #[schemars(range(min = 1, max = 86_400_000))]
    pub window_ms: i32,
}

fn minute() -> i32 {
    60_000
}
