//! The configuration of the server: `ZERO_*` variables and flags, read once at start, checked as a whole, typed by group.
//!
//! * [`settings`] is the table of everything that can be given; flags, `--help` and `CONFIG.md` are derived from it.
//! * [`given`] reads the command line and the environment by that table.
//! * [`load`] turns what was given into a [`Config`], or says everything that is wrong at once.
//!
//! Knows no other crate of the data plane: the composition root converts these groups into each crate's own options.
//! Secrets live in types whose `Debug` is masked, so a `Config` may be logged as a whole.
//!
//! The process ends with one of the codes in [`exit`]; a refused configuration is [`exit::ERROR`].

mod env_file;
pub mod exit;
mod given;
mod load;
mod nodes;
pub mod option;
mod problem;
mod reference;
mod secret;
pub mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use given::Environment;
pub use load::{backup_from_process, databases_from_process, from_process, load, permissions_from_process};
pub use problem::{Problem, Refusal};
pub use reference::reference;
pub use secret::{Secret, SecretUrl};

/// What a process does. One binary serves all roles; the settings decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Replicates from upstream and serves clients.
    SingleNode,
    /// Replicates from upstream and serves the change stream to view-syncers: `ZERO_NUM_SYNC_WORKERS=0`.
    ReplicationManager,
    /// Serves clients from a replication-manager's change stream: `ZERO_CHANGE_STREAMER_URI` is set.
    ViewSyncer,
}

impl Role {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::SingleNode => "single-node",
            Role::ReplicationManager => "replication-manager",
            Role::ViewSyncer => "view-syncer",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    pub app: App,
    pub upstream: Upstream,
    /// Where the change log is kept.
    pub change_db: SecretUrl,
    pub cvr: Cvr,
    pub mutate: ApiServer,
    pub query: ApiServer,
    /// `None`: CRUD mutations are refused.
    pub crud: Option<Crud>,
    pub auth: Auth,
    pub network: Network,
    pub change_stream: ChangeStream,
    pub backup: Backup,
    pub admin: Admin,
    pub logging: Logging,
    pub replica: Replica,
    pub engine: Engine,
    /// Unique name of this instance.
    pub task_id: String,
    pub server_version: String,
    /// What was given, in the order of the table and fit to be logged.
    pub given: Vec<(&'static str, String)>,
    pub notices: Notices,
}

/// Isolates one application's schemas, publications and slots from another's.
#[derive(Clone, Debug)]
pub struct App {
    pub id: String,
    pub shard_num: u32,
    /// Empty: the publication over all tables of schema `public` that setup maintains.
    pub publications: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub db: SecretUrl,
    /// Silence that ends the replication stream; zero is never.
    pub inbound_timeout: Option<Duration>,
    pub replication_slot_failover: bool,
    pub initial_sync_table_copy_workers: usize,
}

/// Rows that clients write themselves.
#[derive(Clone, Debug)]
pub struct Crud {
    /// Most connections to upstream at once.
    pub connections_max: usize,
    /// Of one client group in a window; `None`: no limit.
    pub mutations_max: Option<usize>,
    pub window: Duration,
}

#[derive(Clone, Debug)]
pub struct Cvr {
    pub db: SecretUrl,
    /// Most connections to that database at once.
    pub connections_max: usize,
    /// A client group that was not connected for so long may be forgotten.
    pub inactivity_threshold: Duration,
}

/// The user's API server as seen by one kind of request.
#[derive(Clone)]
pub struct ApiServer {
    /// URL patterns; the first is the default endpoint. Empty: not configured.
    pub urls: Vec<String>,
    pub api_key: Option<Secret>,
    pub forward_cookies: bool,
    /// Lower-case.
    pub allowed_client_headers: Vec<String>,
    /// Lower-case.
    pub allowed_request_headers: Vec<String>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("urls", &self.urls.iter().map(|url| secret::mask_text(url)).collect::<Vec<_>>())
            .field("api_key", &self.api_key)
            .field("forward_cookies", &self.forward_cookies)
            .field("allowed_client_headers", &self.allowed_client_headers)
            .field("allowed_request_headers", &self.allowed_request_headers)
            .finish()
    }
}

#[derive(Clone, Debug)]
pub struct Auth {
    /// How client tokens are verified here; `None` leaves that to the API server.
    pub key: Option<TokenKey>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub revalidate_interval: Duration,
    pub retransform_interval: Duration,
}

#[derive(Clone, Debug)]
pub enum TokenKey {
    /// A public key as JSON.
    Jwk(String),
    JwksUrl(SecretUrl),
    Secret(Secret),
}

#[derive(Clone, Debug)]
pub struct Network {
    pub port: u16,
    /// For `/metrics` and `/statz`, which the port for clients then does not have.
    pub admin_port: Option<u16>,
    /// Of web pages that may connect. Empty: all.
    pub allowed_origins: Vec<String>,
    /// Sockets whose credentials are yet to be judged; `None`: no limit.
    pub unverified_per_address_max: Option<usize>,
    pub websocket_max_payload_bytes: usize,
    /// Drain and exit when calls to `/keepalive` stop for so long after having started.
    pub keepalive_timeout: Option<Duration>,
    /// From the stop signal to the end of the process.
    pub shutdown_grace: Duration,
}

/// How the nodes of a deployment reach each other.
#[derive(Clone, Debug)]
pub struct ChangeStream {
    /// Where a view-syncer finds the replication-manager; `None` elsewhere.
    pub source: Option<StreamSource>,
    /// Shown by view-syncers and asked for by the port; `None`: it is derived from the admin password.
    pub token: Option<Secret>,
    /// Shown by view-syncers that are yet to learn of the present one.
    pub previous_token: Option<Secret>,
    /// Port of a node that replicates from upstream.
    pub port: u16,
    /// Address to register instead of this host's, with or without a scheme.
    pub address: Option<String>,
    /// `ws` or `wss`, for the registered address.
    pub scheme: String,
    /// What the port shows; `None`: it does not speak TLS.
    pub certificate: Option<CertificateFiles>,
    /// Whom a node that connects trusts instead of the system's authorities.
    pub authority_file: Option<PathBuf>,
    pub startup_delay: Duration,
    /// A process that replicates is relieved only when it is not at work any more.
    pub stands_by: bool,
    /// `None`: a subscriber that makes no progress is never cut off.
    pub slow_subscriber_grace: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug)]
pub enum StreamSource {
    Uri(SecretUrl),
    /// The address is read from the change database.
    Discover,
}

/// What it takes to look at what a shard has in its databases without running a server.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    pub app: App,
    pub upstream: SecretUrl,
    pub cvr: SecretUrl,
    pub change: SecretUrl,
}

/// What it takes to look at a backup without running a server.
#[derive(Clone, Debug)]
pub struct BackupSettings {
    pub app: App,
    pub backup: Backup,
}

/// What it takes to deploy permissions without running a server.
#[derive(Clone, Debug)]
pub struct PermissionsSettings {
    pub app: App,
    pub upstream: Option<SecretUrl>,
}

/// The replica's backup in an object store.
#[derive(Clone, Debug)]
pub struct Backup {
    /// `s3://bucket/path`; `None`: there is no backup, or, on a view-syncer, the replication-manager names it.
    pub url: Option<String>,
    /// A key and its secret.
    pub key: Option<(String, Secret)>,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub interval: Duration,
    pub snapshot_interval: Duration,
    pub restore_parallelism: usize,
    pub multipart_bytes: usize,
    pub multipart_concurrency: usize,
}

#[derive(Clone, Debug)]
pub struct Admin {
    /// `None` only in development: then a request without a password is let in.
    pub password: Option<Secret>,
    /// What the token of the change stream was made from before.
    pub previous_password: Option<Secret>,
    /// `NODE_ENV=development`.
    pub development: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Logging {
    pub level: tracing::Level,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Replica {
    pub file: PathBuf,
    /// Remove replicas of former generations, in folders beside that of the file.
    pub removes_siblings: bool,
    /// Wipe and sync anew when replication cannot continue.
    pub auto_reset: bool,
}

#[derive(Clone, Debug)]
pub struct Engine {
    /// Threads that run queries from scratch; at least one, except on a replication-manager.
    pub threads: usize,
    /// Whether clients may define queries themselves; deployed permissions restrict them.
    pub client_queries: bool,
}

/// What the person running the server should know about settings that were accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Old spelling and new one.
    pub deprecated: Vec<(&'static str, &'static str)>,
    pub no_effect: Vec<&'static str>,
    pub not_built: Vec<&'static str>,
}

impl Config {
    /// Logs what was given, a line each, and what became of settings that have no effect. Call once, after logging has started.
    pub fn announce(&self) {
        let Notices { deprecated, no_effect, not_built } = &self.notices;
        for (old, new) in deprecated {
            tracing::warn!("{old} is an old spelling; use {new}");
        }
        if !not_built.is_empty() {
            tracing::warn!("settings for parts that are not in this build: {}; see CONFIG.md", not_built.join(", "));
        }
        if !no_effect.is_empty() {
            tracing::info!("settings without effect here: {}; see CONFIG.md", no_effect.join(", "));
        }
        if self.admin.password.is_none() {
            tracing::warn!("ZERO_ADMIN_PASSWORD is not set: /statz is open to everybody who can reach the port");
        }
        tracing::info!(version = self.server_version, role = self.role.name(), task = self.task_id, "starting");
        for (variable, value) in &self.given {
            tracing::info!("{variable} = {value}");
        }
        tracing::info!("all other settings have their defaults; see CONFIG.md");
    }
}
