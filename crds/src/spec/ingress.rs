//! How clients reach the view-syncers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NAME_MAX;
use crate::rules;

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::INGRESS))]
pub struct Ingress {
    /// Make a route from outside.
    pub enabled: bool,
    /// Whose dialect is spoken for sticky routing and idle timeouts; Custom adds nothing to the given annotations.
    pub provider: Provider,
    /// Ingress class; by default the cluster's.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Names that clients connect to.
    #[schemars(
        length(max = 16),
        inner(
            length(max = 253),
            regex(pattern = r"^(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$")
        )
    )]
    pub hosts: Vec<String>,
    /// Path below which clients connect.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^/[A-Za-z0-9._~/-]*$"))]
    pub path: String,
    /// Certificate of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<IngressTls>,
    /// Annotations of the Ingress; they win over generated ones.
    #[schemars(extend("maxProperties" = 64))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How a client gets back to the node that knows it.
    pub stickiness: Stickiness,
    /// How long a WebSocket may be silent.
    #[schemars(range(min = 60, max = 86400))]
    pub idle_timeout_seconds: i32,
    /// For provider GatewayAPI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// The Service in front of the view-syncers.
    pub service: IngressService,
}

impl Default for Ingress {
    fn default() -> Self {
        Ingress {
            enabled: false,
            provider: Provider::Custom,
            class_name: None,
            hosts: Vec::new(),
            path: "/".to_owned(),
            tls: None,
            annotations: BTreeMap::new(),
            stickiness: Stickiness::default(),
            idle_timeout_seconds: 3600,
            gateway: None,
            service: IngressService::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Provider {
    IngressNginx,
    Traefik,
    HAProxyIngress,
    HAProxyTech,
    GatewayAPI,
    #[default]
    Custom,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressTls {
    /// Secret with the certificate.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub secret_name: String,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stickiness {
    /// Cookie needs a provider that can; ClientIP works with any Service but not behind address translation.
    pub mode: StickinessMode,
    /// Name of the cookie.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub cookie_name: String,
    /// How long a node is remembered.
    #[schemars(range(min = 1, max = 86400))]
    pub ttl_seconds: i32,
}

impl Default for Stickiness {
    fn default() -> Self {
        Stickiness { mode: StickinessMode::Cookie, cookie_name: "zc_affinity".to_owned(), ttl_seconds: 180 }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum StickinessMode {
    #[default]
    Cookie,
    ClientIP,
    None,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Gateways that the route is attached to.
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentRef>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Name of the Gateway.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub name: String,
    /// Namespace of the Gateway; by default that of the resource.
    #[schemars(length(min = 1, max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Listener of the Gateway; by default all that fit.
    #[schemars(length(min = 1, max = 253))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressService {
    /// Type of the Service.
    pub r#type: ServiceType,
    /// Annotations of the Service, as for a cloud's load balancer.
    #[schemars(extend("maxProperties" = 64))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}
