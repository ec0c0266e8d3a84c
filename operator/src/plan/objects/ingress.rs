//! The Ingress, in the dialects of its controllers.

use std::collections::BTreeMap;

use crds::names::port;
use crds::spec::{Provider, StickinessMode};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    IngressTLS, ServiceBackendPort,
};

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::some_map;
use super::services::public_name;

pub(super) fn ingress(wanted: &Wanted, meta: &Meta) -> Option<Ingress> {
    let given = &wanted.spec.ingress;
    if !given.enabled || given.provider == Provider::GatewayAPI {
        return None;
    }
    let mut annotations = dialect(wanted);
    annotations.extend(given.annotations.clone());
    let mut metadata = meta.shared(wanted.name.to_owned());
    metadata.annotations = some_map(&annotations);
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: public_name(wanted),
            port: Some(ServiceBackendPort { name: Some(port::SYNC_NAME.to_owned()), number: None }),
        }),
        resource: None,
    };
    let path = HTTPIngressPath { path: Some(given.path.clone()), path_type: "Prefix".to_owned(), backend };
    let rules = given.hosts.iter().map(|host| IngressRule {
        host: Some(host.clone()),
        http: Some(HTTPIngressRuleValue { paths: vec![path.clone()] }),
    });
    Some(Ingress {
        metadata,
        spec: Some(IngressSpec {
            ingress_class_name: given.class_name.clone(),
            rules: Some(rules.collect()),
            tls: given.tls.as_ref().map(|tls| {
                let secret_name = Some(tls.secret_name.clone());
                vec![IngressTLS { hosts: Some(given.hosts.clone()), secret_name }]
            }),
            ..IngressSpec::default()
        }),
        ..Ingress::default()
    })
}

/// Names without their prefix, and values.
type Lines<'a> = Vec<(&'a str, &'a str)>;

/// Sticky routing and patience with silent WebSockets, as the controller wants to be told. Traefik reads stickiness from the
/// Service and has its timeouts on the entry point.
fn dialect(wanted: &Wanted) -> BTreeMap<String, String> {
    let given = &wanted.spec.ingress;
    let (name, age) = (given.stickiness.cookie_name.as_str(), given.stickiness.ttl_seconds.to_string());
    let idle = given.idle_timeout_seconds.to_string();
    let idle_seconds = format!("{idle}s");
    let by_cookie = given.stickiness.mode == StickinessMode::Cookie;
    let same_site = if given.tls.is_some() { "None" } else { "Lax" };
    let (prefix, always, sticky): (&str, Lines, Lines) = match given.provider {
        Provider::IngressNginx => (
            "nginx.ingress.kubernetes.io/",
            vec![("proxy-read-timeout", &idle), ("proxy-send-timeout", &idle)],
            vec![
                ("affinity", "cookie"),
                // Clients stay where they are when pods are added.
                ("affinity-mode", "persistent"),
                ("session-cookie-name", name),
                ("session-cookie-max-age", &age),
                ("session-cookie-expires", &age),
                ("session-cookie-samesite", same_site),
                ("session-cookie-change-on-failure", "true"),
            ],
        ),
        Provider::HAProxyIngress => (
            "haproxy-ingress.github.io/",
            vec![
                ("balance-algorithm", "leastconn"),
                ("timeout-tunnel", &idle_seconds),
                ("timeout-server", &idle_seconds),
                ("timeout-client", &idle_seconds),
            ],
            vec![
                ("affinity", "cookie"),
                ("session-cookie-name", name),
                ("session-cookie-strategy", "insert"),
                ("session-cookie-preserve", "true"),
                ("session-cookie-value-strategy", "pod-uid"),
                ("session-cookie-keywords", "httponly"),
            ],
        ),
        Provider::HAProxyTech => (
            "haproxy.org/",
            vec![("load-balance", "leastconn"), ("timeout-tunnel", &idle_seconds)],
            vec![("cookie-persistence", name)],
        ),
        Provider::Traefik | Provider::GatewayAPI | Provider::Custom => ("", Vec::new(), Vec::new()),
    };
    let sticky = sticky.into_iter().filter(|_| by_cookie);
    always.into_iter().chain(sticky).map(|(key, value)| (format!("{prefix}{key}"), value.to_owned())).collect()
}
