//! The HTTPRoute of the Gateway API, with session persistence, which is in its experimental channel.

use crds::names::port;
use crds::spec::{ParentRef, Provider, StickinessMode};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Serialize;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::services::public_name;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    parent_refs: &'a [ParentRef],
    hostnames: &'a [String],
    rules: [Rule<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule<'a> {
    matches: [Match<'a>; 1],
    backend_refs: [Backend; 1],
    /// Zero switches the limit off: a WebSocket is a request that never ends.
    timeouts: Timeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_persistence: Option<Persistence<'a>>,
}

#[derive(Serialize)]
struct Match<'a> {
    path: PathMatch<'a>,
}

#[derive(Serialize)]
struct PathMatch<'a> {
    r#type: &'static str,
    value: &'a str,
}

#[derive(Serialize)]
struct Backend {
    name: String,
    port: i32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Timeouts {
    request: &'static str,
    backend_request: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Persistence<'a> {
    session_name: &'a str,
    r#type: &'static str,
    absolute_timeout: String,
    cookie_config: CookieConfig,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CookieConfig {
    lifetime_type: &'static str,
}

pub(super) fn http_route(wanted: &Wanted, meta: &Meta) -> Option<DynamicObject> {
    let given = &wanted.spec.ingress;
    let gateway = given.gateway.as_ref().filter(|_| given.enabled && given.provider == Provider::GatewayAPI)?;
    let stickiness = &given.stickiness;
    let spec = Spec {
        parent_refs: &gateway.parent_refs,
        hostnames: &given.hosts,
        rules: [Rule {
            matches: [Match { path: PathMatch { r#type: "PathPrefix", value: &given.path } }],
            backend_refs: [Backend { name: public_name(wanted), port: port::SYNC }],
            timeouts: Timeouts { request: "0s", backend_request: "0s" },
            session_persistence: (stickiness.mode == StickinessMode::Cookie).then(|| Persistence {
                session_name: &stickiness.cookie_name,
                r#type: "Cookie",
                absolute_timeout: format!("{}s", stickiness.ttl_seconds),
                cookie_config: CookieConfig { lifetime_type: "Permanent" },
            }),
        }],
    };
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
    let mut route = DynamicObject::new(wanted.name, &kind).data(serde_json::json!({ "spec": spec }));
    let mut metadata = meta.shared(wanted.name.to_owned());
    metadata.annotations = super::pod::some_map(&given.annotations);
    route.metadata = metadata;
    Some(route)
}
