//! The environment of the data plane's container: the whole of its configuration.

use std::collections::BTreeMap;

use crds::names::{pod, port};
use crds::spec::{Placement, SecretKeyRef};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector};

use super::super::wanted::Wanted;
use super::{Render, stream_tls};
use crate::observe::{Role, Secret};

/// What a process takes at most to stop unless it is told otherwise, and what is left for the kubelet.
const SHUTDOWN_USUAL_SECONDS: i32 = 90;
const SHUTDOWN_MARGIN_SECONDS: i32 = 5;

/// Variables that only the operator sets.
pub const OWN: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "ZERO_ADMIN_PASSWORD",
    "ZERO_ADMIN_PORT",
    "ZERO_APP_ID",
    "ZERO_APP_PUBLICATIONS",
    "ZERO_AUTH_JWK",
    "ZERO_AUTH_JWKS_URL",
    "ZERO_AUTH_SECRET",
    "ZERO_AUTO_RESET",
    "ZERO_CHANGE_DB",
    "ZERO_CHANGE_MAX_CONNS",
    "ZERO_CHANGE_STREAMER_ADDRESS",
    "ZERO_CHANGE_STREAMER_PORT",
    "ZERO_CHANGE_STREAMER_STANDBY",
    "ZERO_CHANGE_STREAMER_TLS_CA_FILE",
    "ZERO_CHANGE_STREAMER_TLS_CERT_FILE",
    "ZERO_CHANGE_STREAMER_TLS_KEY_FILE",
    "ZERO_CHANGE_STREAMER_TOKEN",
    "ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS",
    "ZERO_CHANGE_STREAMER_URI",
    "ZERO_CVR_DB",
    "ZERO_CVR_GARBAGE_COLLECTION_INACTIVITY_THRESHOLD_HOURS",
    "ZERO_CVR_MAX_CONNS",
    "ZERO_ENABLE_CRUD_MUTATIONS",
    "ZERO_INITIAL_SYNC_TABLE_COPY_WORKERS",
    "ZERO_LITESTREAM_BACKUP_URL",
    "ZERO_LITESTREAM_ENDPOINT",
    "ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS",
    "ZERO_LITESTREAM_REGION",
    "ZERO_LITESTREAM_SNAPSHOT_BACKUP_INTERVAL_HOURS",
    "ZERO_LOG_FORMAT",
    "ZERO_LOG_LEVEL",
    "ZERO_MUTATE_API_KEY",
    "ZERO_MUTATE_FORWARD_COOKIES",
    "ZERO_MUTATE_URL",
    "ZERO_NUM_SYNC_WORKERS",
    "ZERO_PER_USER_MUTATION_LIMIT_MAX",
    "ZERO_PER_USER_MUTATION_LIMIT_WINDOW_MS",
    "ZERO_PORT",
    "ZERO_QUERY_API_KEY",
    "ZERO_QUERY_FORWARD_COOKIES",
    "ZERO_QUERY_URL",
    "ZERO_REPLICA_FILE",
    "ZERO_REPLICA_REMOVE_SIBLINGS",
    "ZERO_REPLICA_VACUUM_INTERVAL_HOURS",
    "ZERO_SHARD_NUM",
    "ZERO_SHUTDOWN_GRACE_SECONDS",
    "ZERO_TASK_ID",
    "ZERO_UPSTREAM_DB",
    "ZERO_UPSTREAM_MAX_CONNS",
    "ZERO_UPSTREAM_PG_REPLICATION_SLOT_FAILOVER",
    "ZERO_WEBSOCKET_COMPRESSION",
    "ZERO_WEBSOCKET_MAX_PAYLOAD_BYTES",
    "ZERO_YIELD_THRESHOLD_MS",
];

/// All variables of a role, the operator's first. Later ones may refer to earlier ones.
pub(super) fn variables(wanted: &Wanted, role: Role, render: &Render) -> Vec<EnvVar> {
    let mut plain = common(wanted, render);
    plain.extend(shutdown_grace(wanted, role));
    if role != Role::ViewSyncer {
        plain.extend(writes_replica(wanted, render));
    }
    match role {
        Role::ReplicationManager => {
            plain.push(("ZERO_NUM_SYNC_WORKERS", "0".to_owned()));
            // Also where it is alone: pods need not restart for a second one to come or go.
            plain.push(("ZERO_CHANGE_STREAMER_STANDBY", "true".to_owned()));
        }
        Role::ViewSyncer => {
            plain.extend(serves_clients(wanted, render));
            plain.push(("ZERO_CHANGE_STREAMER_URI", change_stream_uri(wanted)));
        }
        Role::SingleNode => plain.extend(serves_clients(wanted, render)),
    }
    plain.extend(stream_tls::variables(wanted, role));
    if let Some(backup) = &wanted.spec.backup {
        plain.extend(backup.endpoint.clone().map(|endpoint| ("ZERO_LITESTREAM_ENDPOINT", endpoint)));
        if let Some(region) = &backup.region {
            plain.push(("ZERO_LITESTREAM_REGION", region.clone()));
            plain.push(("AWS_REGION", region.clone()));
        }
    }
    let plain =
        plain.into_iter().map(|(name, value)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None });
    let secret = secret_variables(wanted, role).into_iter().map(|it| from_secret(it.name, it.reference));
    let task = EnvVar {
        name: "ZERO_TASK_ID".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: "metadata.name".to_owned() }),
            ..EnvVarSource::default()
        }),
    };
    let previous = (role == Role::ReplicationManager).then(|| previous_token(wanted));
    let site = wanted.placement(role).extra_env.iter().cloned();
    std::iter::once(task).chain(plain).chain(secret).chain(previous).chain(site).collect()
}

pub(super) fn from_secret(name: &str, reference: SecretKeyRef) -> EnvVar {
    let selector = SecretKeySelector { name: reference.name, key: reference.key, optional: None };
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }),
    }
}

/// The token that view-syncers still show while the Secret is being rotated: the key beside the present one's that ends in
/// `-previous`, if it is there.
fn previous_token(wanted: &Wanted) -> EnvVar {
    let SecretKeyRef { name, key } = wanted.token.clone();
    let reference = SecretKeyRef { name, key: format!("{key}-previous") };
    let mut variable = from_secret("ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS", reference);
    let source = variable.value_from.as_mut().and_then(|source| source.secret_key_ref.as_mut());
    if let Some(selector) = source {
        selector.optional = Some(true);
    }
    variable
}

/// Keys of Secrets that a role's container cannot start without.
pub fn secrets(wanted: &Wanted, role: Role) -> Vec<SecretKeyRef> {
    secret_variables(wanted, role).into_iter().map(|variable| variable.reference).collect()
}

/// The same with the fields that name them.
pub fn secret_fields(wanted: &Wanted, role: Role) -> Vec<(&'static str, SecretKeyRef)> {
    secret_variables(wanted, role).into_iter().map(|variable| (variable.field, variable.reference)).collect()
}

/// Keys of existing Secrets that a site's own variables read.
pub fn secrets_of_site(placement: &Placement, existing: &BTreeMap<String, Secret>) -> Vec<SecretKeyRef> {
    let single = placement.extra_env.iter().filter_map(|variable| {
        let selector = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
        Some(SecretKeyRef { name: selector.name.clone(), key: selector.key.clone() })
    });
    let whole = placement.extra_env_from.iter().filter_map(|source| source.secret_ref.as_ref()).flat_map(|source| {
        let keys = existing.get(&source.name).into_iter().flat_map(|secret| secret.keys.keys());
        keys.map(|key| SecretKeyRef { name: source.name.clone(), key: key.clone() })
    });
    single.chain(whole).collect()
}

/// Secrets that a site's own variables read.
pub fn secret_names_of_site(placement: &Placement) -> impl Iterator<Item = String> {
    let single = placement.extra_env.iter().filter_map(|it| it.value_from.as_ref()?.secret_key_ref.as_ref());
    let whole = placement.extra_env_from.iter().filter_map(|source| source.secret_ref.as_ref());
    single.map(|it| it.name.clone()).chain(whole.map(|it| it.name.clone()))
}

/// Where view-syncers find the replication-manager.
pub(in crate::plan) fn change_stream_uri(wanted: &Wanted) -> String {
    let scheme = if wanted.tls_secret().is_some() { "wss" } else { "ws" };
    format!("{scheme}://{}:{}/", stream_tls::service_host(wanted), port::CHANGE_STREAM)
}

type Plain = Vec<(&'static str, String)>;

fn common(wanted: &Wanted, render: &Render) -> Plain {
    let spec = wanted.spec;
    let mut plain = vec![
        ("ZERO_APP_ID", spec.app_id.clone()),
        ("ZERO_SHARD_NUM", spec.shard_num.to_string()),
        ("ZERO_PORT", port::SYNC.to_string()),
        ("ZERO_CHANGE_STREAMER_PORT", port::CHANGE_STREAM.to_string()),
        // The generation is part of the path: a volume that outlives a reset must not bring the old replica back.
        ("ZERO_REPLICA_FILE", format!("{}/{}/replica.db", pod::DATA_PATH, render.generation)),
        ("ZERO_AUTO_RESET", spec.auto_reset.to_string()),
        ("ZERO_LOG_LEVEL", word(&spec.logging.level)),
        ("ZERO_LOG_FORMAT", word(&spec.logging.format)),
    ];
    if !spec.publications.is_empty() {
        plain.push(("ZERO_APP_PUBLICATIONS", spec.publications.join(",")));
    }
    if let Some(otlp) = &spec.telemetry.otlp {
        plain.push(("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint.clone()));
        plain.push(("OTEL_EXPORTER_OTLP_PROTOCOL", word(&otlp.protocol)));
    }
    plain
}

/// A process that has less time than it takes by itself is told, so that it gives up in order what it cannot store.
fn shutdown_grace(wanted: &Wanted, role: Role) -> Option<(&'static str, String)> {
    let left = super::pod::stop_seconds(wanted, role) - SHUTDOWN_MARGIN_SECONDS;
    (left < SHUTDOWN_USUAL_SECONDS).then(|| ("ZERO_SHUTDOWN_GRACE_SECONDS", left.to_string()))
}

fn writes_replica(wanted: &Wanted, render: &Render) -> Plain {
    let spec = wanted.spec;
    let mut plain = vec![
        // A volume outlives its generations.
        ("ZERO_REPLICA_REMOVE_SIBLINGS", "true".to_owned()),
        ("ZERO_CHANGE_MAX_CONNS", render.pools.change.to_string()),
        ("ZERO_UPSTREAM_PG_REPLICATION_SLOT_FAILOVER", spec.databases.upstream.slot_failover.to_string()),
        ("ZERO_INITIAL_SYNC_TABLE_COPY_WORKERS", spec.databases.initial_sync.table_copy_workers.to_string()),
    ];
    if let Some(hours) = spec.replication_manager.vacuum_interval_hours {
        plain.push(("ZERO_REPLICA_VACUUM_INTERVAL_HOURS", hours.to_string()));
    }
    if let (Some(backup), Some(url)) = (&spec.backup, wanted.backup_url(&render.generation)) {
        plain.push(("ZERO_LITESTREAM_BACKUP_URL", url));
        let incremental = backup.incremental_interval.seconds();
        plain.push(("ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS", incremental.to_string()));
        plain.push(("ZERO_LITESTREAM_SNAPSHOT_BACKUP_INTERVAL_HOURS", hours(backup.snapshot_interval.seconds())));
    }
    plain
}

fn serves_clients(wanted: &Wanted, render: &Render) -> Plain {
    let spec = wanted.spec;
    let (api, node) = (&spec.api, &spec.view_syncer);
    let mut plain = vec![
        ("ZERO_ADMIN_PORT", port::ADMIN.to_string()),
        ("ZERO_CVR_MAX_CONNS", render.pools.cvr.to_string()),
        ("ZERO_QUERY_FORWARD_COOKIES", api.query_forward_cookies.to_string()),
        ("ZERO_MUTATE_FORWARD_COOKIES", api.mutate_forward_cookies.to_string()),
        ("ZERO_ENABLE_CRUD_MUTATIONS", api.enable_crud_mutations.to_string()),
        ("ZERO_YIELD_THRESHOLD_MS", node.yield_threshold_ms.to_string()),
        ("ZERO_WEBSOCKET_COMPRESSION", node.websocket_compression.to_string()),
        ("ZERO_WEBSOCKET_MAX_PAYLOAD_BYTES", node.websocket_max_payload_bytes.to_string()),
    ];
    if api.enable_crud_mutations {
        plain.push(("ZERO_UPSTREAM_MAX_CONNS", render.pools.upstream.to_string()));
    }
    if let Some(limit) = &api.per_user_mutation_limit {
        plain.push(("ZERO_PER_USER_MUTATION_LIMIT_MAX", limit.max.to_string()));
        plain.push(("ZERO_PER_USER_MUTATION_LIMIT_WINDOW_MS", limit.window_ms.to_string()));
    }
    if let Some(workers) = node.num_sync_workers {
        plain.push(("ZERO_NUM_SYNC_WORKERS", workers.to_string()));
    }
    if let Some(hours) = spec.databases.cvr.inactivity_threshold_hours {
        plain.push(("ZERO_CVR_GARBAGE_COLLECTION_INACTIVITY_THRESHOLD_HOURS", hours.to_string()));
    }
    if !api.query_urls.is_empty() {
        plain.push(("ZERO_QUERY_URL", api.query_urls.join(",")));
    }
    if !api.mutate_urls.is_empty() {
        plain.push(("ZERO_MUTATE_URL", api.mutate_urls.join(",")));
    }
    if let Some(url) = api.auth.as_ref().and_then(|auth| auth.jwks_url.clone()) {
        plain.push(("ZERO_AUTH_JWKS_URL", url));
    }
    plain
}

/// A variable that is read from a Secret, and the field of the spec that says from which.
struct SecretVariable {
    name: &'static str,
    field: &'static str,
    reference: SecretKeyRef,
}

fn secret_variables(wanted: &Wanted, role: Role) -> Vec<SecretVariable> {
    let spec = wanted.spec;
    let (databases, api) = (&spec.databases, &spec.api);
    let mut list = Vec::new();
    let mut add = |name, field, given: Option<&SecretKeyRef>| {
        list.extend(given.cloned().map(|reference| SecretVariable { name, field, reference }));
    };
    add("ZERO_UPSTREAM_DB", "databases.upstream.urlSecretRef", Some(&databases.upstream.url_secret_ref));
    add("ZERO_ADMIN_PASSWORD", "adminPassword", Some(&wanted.admin_password));
    add("ZERO_CHANGE_STREAMER_TOKEN", "security.changeStream.tokenSecretRef", Some(&wanted.token));
    let headers = spec.telemetry.otlp.as_ref().and_then(|otlp| otlp.headers_secret_ref.as_ref());
    add("OTEL_EXPORTER_OTLP_HEADERS", "telemetry.otlp.headersSecretRef", headers);
    if role != Role::ViewSyncer {
        add("ZERO_CHANGE_DB", "databases.change.urlSecretRef", databases.change.url_secret_ref.as_ref());
    }
    if role != Role::ReplicationManager {
        add("ZERO_CVR_DB", "databases.cvr.urlSecretRef", databases.cvr.url_secret_ref.as_ref());
        add("ZERO_QUERY_API_KEY", "api.queryApiKeySecretRef", api.query_api_key_secret_ref.as_ref());
        add("ZERO_MUTATE_API_KEY", "api.mutateApiKeySecretRef", api.mutate_api_key_secret_ref.as_ref());
        if let Some(auth) = &api.auth {
            add("ZERO_AUTH_SECRET", "api.auth.secretRef", auth.secret_ref.as_ref());
            add("ZERO_AUTH_JWK", "api.auth.jwkSecretRef", auth.jwk_secret_ref.as_ref());
        }
    }
    for (name, reference) in store_credentials(wanted) {
        add(name, "backup.credentialsSecretRef", Some(&reference));
    }
    list
}

/// Keys of the backup's store.
pub(in crate::plan) fn store_credentials(wanted: &Wanted) -> Vec<(&'static str, SecretKeyRef)> {
    let given = wanted.spec.backup.as_ref().and_then(|backup| backup.credentials_secret_ref.as_ref());
    let Some(credentials) = given else { return Vec::new() };
    let key = |key: &str| SecretKeyRef { name: credentials.name.clone(), key: key.to_owned() };
    let mut list = vec![
        ("AWS_ACCESS_KEY_ID", key(&credentials.access_key_id_key)),
        ("AWS_SECRET_ACCESS_KEY", key(&credentials.secret_access_key_key)),
    ];
    list.extend(credentials.session_token_key.as_deref().map(|name| ("AWS_SESSION_TOKEN", key(name))));
    list
}

/// Hours with a fraction only where there is one.
fn hours(seconds: u64) -> String {
    let thousandths = seconds * 1000 / 3600;
    match thousandths % 1000 {
        0 => (thousandths / 1000).to_string(),
        _ => format!("{}.{:03}", thousandths / 1000, thousandths % 1000),
    }
}

/// The text of an enumeration's value, which is the same in the resource and in the data plane.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("an enumeration without fields is a string, not {other:?}"),
    }
}
