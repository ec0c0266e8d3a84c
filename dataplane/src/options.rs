//! From the configuration to each part's own options.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use gateway::{ApiOptions, AuthOptions, Limits, Secret};
use upstream::{Address, App};

use crate::config::{ApiServer, Config, TokenKey};

pub fn upstream(config: &Config) -> Result<upstream::Options> {
    let address: Address = config.upstream.db.expose().parse().context("ZERO_UPSTREAM_DB")?;
    let app = App::new(&config.app.id, config.app.shard_num)?;
    Ok(upstream::Options {
        publications: config.app.publications.clone(),
        slot_failover: config.upstream.replication_slot_failover,
        copy_workers: config.upstream.initial_sync_table_copy_workers,
        task_id: config.task_id.clone(),
        ..upstream::Options::new(address, app)
    })
}

pub fn changes(config: &Config) -> Result<changes::Options> {
    let address: Address = config.change_db.expose().parse().context("ZERO_CHANGE_DB")?;
    Ok(changes::Options { address, app: App::new(&config.app.id, config.app.shard_num)? })
}

pub fn gateway(config: &Config) -> gateway::Options {
    gateway::Options {
        listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.network.port)),
        shard_num: config.app.shard_num,
        mutate: api(&config.mutate),
        query: api(&config.query),
        auth: auth(config),
        admin_password: config.admin.password.as_ref().map(|p| Secret(p.expose().to_owned())),
        development: config.admin.development,
        limits: Limits { payload_bytes_max: config.network.websocket_max_payload_bytes, ..Limits::default() },
        ..gateway::Options::new(config.app.id.clone())
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
