//! Secrets between nodes, and what pods may do.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NAME_MAX, SecretKeyRef};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// The connection between view-syncers and the replication-manager.
    pub change_stream: ChangeStream,
    /// Merged over the pods' security context, which is that of the restricted profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_security_context: Option<PodSecurityContext>,
    /// Merged over the container's security context, which is that of the restricted profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_security_context: Option<SecurityContext>,
    /// The identity of the pods.
    pub service_account: ServiceAccount,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChangeStream {
    /// The token that view-syncers show to the replication-manager; one is generated when none is given. While it is changed, the
    /// former one may stay in the same Secret, under the key with `-previous` at its end: it is accepted as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Secret of type kubernetes.io/tls with which port 4849 is served, so that view-syncers follow over wss. Its certificate must be
    /// for the Service NAME-rm.NAMESPACE.svc.DOMAIN and for the pods, *.NAME-rm-headless.NAMESPACE.svc.DOMAIN. A key ca.crt in it is
    /// whom nodes trust instead of the system's authorities. A renewed certificate is taken up without a restart. Needs MultiNode.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_secret_name: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccount {
    /// Make a ServiceAccount; otherwise the one named must exist.
    pub create: bool,
    /// Name; by default that of the resource.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Annotations, as for the workload identity of a cloud.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for ServiceAccount {
    fn default() -> Self {
        ServiceAccount { create: true, name: None, annotations: BTreeMap::new() }
    }
}
