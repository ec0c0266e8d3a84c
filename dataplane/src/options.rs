//! From the configuration to each part's own options.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use gateway::{ApiOptions, AuthOptions, Limits, Secret};
use port::Inside;
use prometheus::{IntCounter, Registry};
use upstream::{Address, App};

use crate::config::{self, ApiServer, Config, TokenKey};
use crate::memory;
use crate::node::Node;
use crate::stop::Share;

/// What the end of a node may take for its clients to be led away, and then for the nodes that follow it.
const LEADING_AWAY: Share = Share { part: 2, at_most: Duration::from_secs(60) };
const SENDING_ON: Share = Share { part: 10, at_most: Duration::from_secs(5) };
/// Snapshots stay for so long after a newer one is due.
const SNAPSHOT_GRACE: Duration = Duration::from_secs(6 * 3600);

/// Where the system does not say what this process may use.
const MEMORY_UNKNOWN: usize = 4 << 30;

pub fn upstream(config: &Config) -> Result<upstream::Options> {
    let address: Address = config.upstream.db.expose().parse().context("ZERO_UPSTREAM_DB")?;
    let app = App::new(&config.app.id, config.app.shard_num)?;
    Ok(upstream::Options {
        publications: config.app.publications.clone(),
        slot_failover: config.upstream.replication_slot_failover,
        inbound_timeout: config.upstream.inbound_timeout.map(|t| if t.is_zero() { Duration::MAX } else { t }),
        copy_workers: config.upstream.initial_sync_table_copy_workers,
        task_id: config.task_id.clone(),
        row_bytes_max: row_bytes_max(memory::limit()),
        ..upstream::Options::new(address, app)
    })
}

/// A row passes through here in about ten copies at the same time: of the message, of the change, of what is stored, of what is
/// sent on. It must not end the process, for it would come again.
fn row_bytes_max(memory_bytes: Option<usize>) -> usize {
    memory_bytes.map_or(upstream::ROW_BYTES_MAX, |bytes| (bytes / 16).min(upstream::ROW_BYTES_MAX))
}

pub fn changes(config: &Config) -> Result<changes::Options> {
    let address: Address = config.change_db.expose().parse().context("ZERO_CHANGE_DB")?;
    let app = App::new(&config.app.id, config.app.shard_num)?;
    // A standby that takes over without the last commits lacks those of upstream as well then; elsewhere it must have them.
    let commits_locally = config.change_db == config.upstream.db;
    Ok(changes::Options { address, app, commits_locally })
}

pub fn gateway(config: &Config) -> gateway::Options {
    gateway::Options {
        listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.network.port)),
        shard_num: config.app.shard_num,
        mutate: api(&config.mutate),
        query: api(&config.query),
        auth: auth(config),
        origins: config.network.allowed_origins.clone(),
        limits: Limits {
            strangers_per_address_max: config.network.unverified_per_address_max,
            drain_timeout: LEADING_AWAY.of(config.network.shutdown_grace),
            ..Limits::for_memory(
                crate::memory::limit().unwrap_or(MEMORY_UNKNOWN),
                config.network.websocket_max_payload_bytes,
            )
        },
        ..gateway::Options::new(config.app.id.clone())
    }
}

/// Where this node keeps its own backup; `None` without `ZERO_LITESTREAM_BACKUP_URL`.
pub fn own_backup(config: &Config) -> Option<backup::Options> {
    config.backup.url.as_deref().map(|url| backup(&config.backup, url))
}

/// The backup at `url`, reached as this node is configured.
pub fn backup(settings: &config::Backup, url: &str) -> backup::Options {
    backup::Options {
        endpoint: settings.endpoint.clone(),
        credentials: settings.key.as_ref().map(|(id, secret)| backup::Credentials {
            access_key_id: id.clone(),
            secret_access_key: secret.expose().to_owned(),
        }),
        region: settings.region.clone(),
        interval: settings.interval,
        snapshot_interval: settings.snapshot_interval,
        retention: settings.snapshot_interval + SNAPSHOT_GRACE,
        restore_parallelism: settings.restore_parallelism,
        multipart_size: settings.multipart_bytes,
        multipart_concurrency: settings.multipart_concurrency,
        ..backup::Options::new(url)
    }
}

/// `/statz` of all ports.
pub fn status_page(config: &Config, status: port::Status, failed_logins: IntCounter) -> port::StatusPage {
    let password = config.admin.password.as_ref().map(config::Secret::expose);
    port::StatusPage::new(status, password, config.admin.development, failed_logins)
}

/// What the port for clients answers over plain HTTP.
pub fn client_pages(config: &Config, registry: Registry, status: port::StatusPage) -> port::Pages {
    let inside = if config.network.admin_port.is_some() { Inside::Hidden } else { Inside::ShownWhenReady };
    port::Pages::new(registry, status, inside)
}

/// What this node shows others and asks of them, with what it accepts as well; `None` only in development without a password. And
/// what others may ask for that are yet to be restarted.
pub fn tokens(config: &Config) -> Result<(Option<streamer::Token>, Vec<streamer::Token>)> {
    let token = |token: Option<&config::Secret>, password: Option<&config::Secret>| {
        streamer::Token::from_config(token.map(config::Secret::expose), password.map(config::Secret::expose))
    };
    let (stream, admin) = (&config.change_stream, &config.admin);
    let present = token(stream.token.as_ref(), admin.password.as_ref()).context("ZERO_CHANGE_STREAMER_TOKEN")?;
    // Either may have been in force: a configured token may replace one that was made from the password, or be replaced by it.
    let former = [(stream.previous_token.as_ref(), None), (None, admin.previous_password.as_ref())];
    let former = former.into_iter().filter_map(|(previous, password)| token(previous, password).transpose());
    let former = former.collect::<std::result::Result<Vec<_>, _>>().context("ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS")?;
    Ok((present.map(|present| former.iter().fold(present, streamer::Token::accepting)), former))
}

/// How this node presents itself to another one, whose address is yet to be filled in.
pub fn subscriber(node: &Node<'_>) -> streamer::Options {
    let config = node.config;
    let (app, shard) = (config.app.id.clone(), config.app.shard_num);
    let options = streamer::Options::new(String::new(), app, shard, config.task_id.clone());
    streamer::Options { token: node.token.clone(), tls: node.authority.clone(), ..options }
}

pub fn stream_port(
    config: &Config,
    token: Option<streamer::Token>,
    certificate: Option<streamer::Certificate>,
) -> streamer::ServerOptions {
    if token.is_none() {
        tracing::warn!(
            port = config.change_stream.port,
            "neither ZERO_CHANGE_STREAMER_TOKEN nor ZERO_ADMIN_PASSWORD is set: the change stream is open to everybody who can reach the port"
        );
    }
    if certificate.is_some() && config.change_stream.address.is_none() {
        tracing::warn!(
            "ZERO_CHANGE_STREAMER_ADDRESS is not set: this node registers an IP address, and nodes that read it refuse a certificate that is not for that address; give a name that it is for"
        );
    }
    streamer::ServerOptions {
        certificate,
        listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.change_stream.port)),
        node: config.task_id.clone(),
        token,
        stall_max: config.change_stream.slow_subscriber_grace,
        drain_timeout: SENDING_ON.of(config.network.shutdown_grace),
        ..streamer::ServerOptions::default()
    }
}

fn api(server: &ApiServer) -> ApiOptions {
    ApiOptions {
        urls: server.urls.clone(),
        api_key: server.api_key.as_ref().map(|key| Secret(key.expose().to_owned())),
        forward_cookies: server.forward_cookies,
        allowed_client_headers: server.allowed_client_headers.clone(),
        allowed_request_headers: server.allowed_request_headers.clone(),
    }
}

fn auth(config: &Config) -> AuthOptions {
    let mut auth = AuthOptions {
        issuer: config.auth.issuer.clone(),
        audience: config.auth.audience.clone(),
        ..AuthOptions::default()
    };
    match &config.auth.key {
        None => {}
        Some(TokenKey::Jwk(key)) => auth.jwk = Some(Secret(key.clone())),
        Some(TokenKey::JwksUrl(url)) => auth.jwks_url = Some(url.expose().to_owned()),
        Some(TokenKey::Secret(secret)) => auth.secret = Some(Secret(secret.expose().to_owned())),
    }
    auth
}

#[cfg(test)]
mod tests {
    use super::row_bytes_max;

    #[test]
    fn a_row_fits_the_memory() {
        assert_eq!(row_bytes_max(Some(1 << 30)), 64 << 20);
        assert_eq!(row_bytes_max(Some(64 << 30)), upstream::ROW_BYTES_MAX);
        assert_eq!(row_bytes_max(None), upstream::ROW_BYTES_MAX);
    }
}
