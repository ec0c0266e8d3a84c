//! From what was given to a [`Config`]: derived defaults, checks within one setting and across settings.

use std::path::PathBuf;
use std::time::Duration;

use super::given::{self, Environment, Given};
use super::option::{Effect, Kind};
use super::problem::Refusal;
use super::secret::SecretUrl;
use super::{
    Admin, ApiServer, App, Auth, BackupSettings, Config, Crud, Cvr, DatabaseSettings, Engine, LogFormat, Logging,
    Network, Notices, PermissionsSettings, Replica, Role, StreamSource, TokenKey, Upstream, env_file, nodes,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A day is as good as for ever.
const SHUTDOWN_GRACE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(86_400);
/// Postgres cuts longer names off.
const IDENTIFIER_BYTES_MAX: usize = 63;
/// Leaves room for shard number and suffixes in names of slots, schemas and publications.
const APP_ID_BYTES_MAX: usize = 40;

/// Reads the command line, the environment and the `.env` file of the working directory.
pub fn from_process() -> Result<Config, Refusal> {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    load(&arguments, &env_file::with_file(environment(), std::path::Path::new(".env")))
}

/// What commands about a backup need; everything else may be unset.
pub fn backup_from_process() -> Result<BackupSettings, Refusal> {
    let mut given = Given::gather(&[], &env_file::with_file(environment(), std::path::Path::new(".env")))?;
    let settings = BackupSettings { app: app(&mut given), backup: nodes::backup(&mut given) };
    if given.has_problems() { Err(Refusal::Problems(given.into_problems())) } else { Ok(settings) }
}

/// What commands about permissions need. `flags` are settings as flags.
pub fn permissions_from_process(flags: &[String]) -> Result<PermissionsSettings, Refusal> {
    let mut given = Given::gather(flags, &env_file::with_file(environment(), std::path::Path::new(".env")))?;
    let settings = PermissionsSettings { app: app(&mut given), upstream: given.postgres("ZERO_UPSTREAM_DB") };
    if given.has_problems() { Err(Refusal::Problems(given.into_problems())) } else { Ok(settings) }
}

/// What commands about the databases need; everything else may be unset.
pub fn databases_from_process() -> Result<DatabaseSettings, Refusal> {
    let mut given = Given::gather(&[], &env_file::with_file(environment(), std::path::Path::new(".env")))?;
    let app = app(&mut given);
    let upstream = upstream_db(&mut given);
    let mut other = |variable| given.postgres(variable).or_else(|| upstream.clone());
    let (cvr, change) = (other("ZERO_CVR_DB"), other("ZERO_CHANGE_DB"));
    match (upstream, cvr, change) {
        (Some(upstream), Some(cvr), Some(change)) if !given.has_problems() => {
            Ok(DatabaseSettings { app, upstream, cvr, change })
        }
        _ => Err(Refusal::Problems(given.into_problems())),
    }
}

fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect()
}

/// `arguments` are those after the program's name.
pub fn load(arguments: &[String], environment: &Environment) -> Result<Config, Refusal> {
    let mut given = Given::gather(arguments, environment)?;
    let config = read(&mut given);
    match config {
        Some(config) if !given.has_problems() => Ok(config),
        _ => Err(Refusal::Problems(given.into_problems())),
    }
}

/// `None` only together with a problem.
pub(super) fn read(given: &mut Given) -> Option<Config> {
    refuse_former(given);
    let notices = notices(given);
    let source = nodes::source(given);
    let role = role(given, source.as_ref());
    let app = app(given);
    let upstream_db = upstream_db(given);
    let change_db = given.postgres("ZERO_CHANGE_DB").or_else(|| upstream_db.clone());
    let cvr_db = given.postgres("ZERO_CVR_DB").or_else(|| upstream_db.clone());
    let mutate = mutate(given);
    let query = query(given);
    let crud = crud(given);
    let auth = auth(given);
    let network = network(given);
    let change_stream = nodes::change_stream(given, source, network.port);
    check_ports(given, &network, change_stream.port);
    let backup = nodes::backup(given);
    compression_options(given);
    let admin = admin(given);
    let logging = logging(given);
    let replica = Replica {
        file: PathBuf::from(given.text("ZERO_REPLICA_FILE").unwrap_or_default()),
        removes_siblings: given.boolean("ZERO_REPLICA_REMOVE_SIBLINGS"),
        auto_reset: given.boolean("ZERO_AUTO_RESET"),
    };
    let engine = Engine { threads: engine_threads(given), client_queries: given.boolean("ZERO_ALLOW_LEGACY_QUERIES") };
    let task_id = given.text("ZERO_TASK_ID").unwrap_or_else(random_task_id);
    let server_version = given.text("ZERO_SERVER_VERSION").unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let replication_slot_failover = given.boolean("ZERO_UPSTREAM_PG_REPLICATION_SLOT_FAILOVER");
    let inbound_timeout = given.duration("ZERO_UPSTREAM_PG_STREAM_INBOUND_TIMEOUT_MS", MILLISECOND);
    let initial_sync_table_copy_workers = whole(given, "ZERO_INITIAL_SYNC_TABLE_COPY_WORKERS");
    let cvr_connections_max = whole(given, "ZERO_CVR_MAX_CONNS");
    let inactivity_threshold = span(given, "ZERO_CVR_GARBAGE_COLLECTION_INACTIVITY_THRESHOLD_HOURS", HOUR);
    Some(Config {
        role,
        app,
        upstream: Upstream {
            db: upstream_db?,
            inbound_timeout,
            replication_slot_failover,
            initial_sync_table_copy_workers,
        },
        change_db: change_db?,
        cvr: Cvr { db: cvr_db?, connections_max: cvr_connections_max, inactivity_threshold },
        mutate,
        query,
        crud,
        auth,
        network,
        change_stream,
        backup,
        admin,
        logging,
        replica,
        engine,
        task_id,
        server_version,
        given: given.masked(),
        notices,
    })
}

fn refuse_former(given: &mut Given) {
    let former: Vec<_> = given
        .given()
        .filter_map(|setting| match setting.effect {
            Effect::Rejected(remedy) => Some((setting.variable, remedy)),
            _ => None,
        })
        .collect();
    for (variable, remedy) in former {
        given.problem(variable, "it is not supported any more", remedy);
    }
}

fn notices(given: &Given) -> Notices {
    let mut notices = Notices::default();
    for setting in given.given() {
        // Switching off what is not here is no wish that goes unheard.
        let off = setting.kind == Kind::Bool
            && given.peek(setting.variable).is_some_and(|text| given::boolean(text) == Some(false));
        match setting.effect {
            Effect::NotBuilt(_) if off => {}
            Effect::Replaced(new) => notices.deprecated.push((setting.variable, new)),
            Effect::Inert(_) => notices.no_effect.push(setting.variable),
            Effect::NotBuilt(_) => notices.not_built.push(setting.variable),
            Effect::Used | Effect::Internal | Effect::Rejected(_) => {}
        }
    }
    notices
}

fn role(given: &mut Given, source: Option<&StreamSource>) -> Role {
    let replicates = given.number("ZERO_NUM_SYNC_WORKERS") == Some(0.0);
    match (replicates, source) {
        (false, None) => Role::SingleNode,
        (true, None) => Role::ReplicationManager,
        (false, Some(_)) => Role::ViewSyncer,
        (true, Some(_)) => {
            given.problem(
                "ZERO_NUM_SYNC_WORKERS",
                "0 makes this a replication-manager, but the change streamer settings make it a view-syncer",
                "unset one of ZERO_NUM_SYNC_WORKERS and ZERO_CHANGE_STREAMER_URI (or ZERO_CHANGE_STREAMER_MODE)",
            );
            Role::ReplicationManager
        }
    }
}

fn app(given: &mut Given) -> App {
    let id = given.text("ZERO_APP_ID").unwrap_or_default();
    let shard_num = given.integer("ZERO_SHARD_NUM", 0..=u32::MAX).unwrap_or_default();
    if !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        given.problem(
            "ZERO_APP_ID",
            format!("{id:?} has characters that are not allowed"),
            "the App ID may only consist of lower-case letters, numbers, and the underscore character",
        );
    }
    if id.len() > APP_ID_BYTES_MAX {
        given.problem(
            "ZERO_APP_ID",
            format!("{id:?} is longer than {APP_ID_BYTES_MAX} characters"),
            "shorten it: Postgres allows 63 bytes for the names of slots and schemas made from it",
        );
    }
    let mut publications = Vec::new();
    for name in given.list("ZERO_APP_PUBLICATIONS") {
        let fault = if name.is_empty() {
            "one of the names is empty".to_owned()
        } else if name.starts_with('_') {
            format!("{name:?} begins with an underscore, which is kept for publications made by the server")
        } else if name.len() > IDENTIFIER_BYTES_MAX {
            format!("{name:?} is longer than the {IDENTIFIER_BYTES_MAX} bytes Postgres allows")
        } else {
            if !publications.contains(&name) {
                publications.push(name);
            }
            continue;
        };
        given.problem("ZERO_APP_PUBLICATIONS", fault, "give names of existing publications, separated by commas");
    }
    App { id, shard_num, publications }
}

fn upstream_db(given: &mut Given) -> Option<SecretUrl> {
    if given.text("ZERO_UPSTREAM_TYPE").as_deref() == Some("custom") {
        given.problem(
            "ZERO_UPSTREAM_TYPE",
            "custom change sources are not available",
            "replicate from Postgres: unset it, or give pg",
        );
    }
    if !given.is_given("ZERO_UPSTREAM_DB") {
        given.problem(
            "ZERO_UPSTREAM_DB",
            "it is required and not set",
            format!("give a URL such as {}", given::POSTGRES_EXAMPLE),
        );
    }
    given.postgres("ZERO_UPSTREAM_DB")
}

/// Old spellings are consulted field by field, and the URL's old spelling comes first.
fn mutate(given: &mut Given) -> ApiServer {
    let old = |given: &Given, old: &'static str, new: &'static str| {
        if given.is_given(old) && !given.is_given(new) { old } else { new }
    };
    let urls = if given.is_given("ZERO_PUSH_URL") { "ZERO_PUSH_URL" } else { "ZERO_MUTATE_URL" };
    let api_key = old(given, "ZERO_PUSH_API_KEY", "ZERO_MUTATE_API_KEY");
    let cookies = old(given, "ZERO_PUSH_FORWARD_COOKIES", "ZERO_MUTATE_FORWARD_COOKIES");
    let client = old(given, "ZERO_PUSH_ALLOWED_CLIENT_HEADERS", "ZERO_MUTATE_ALLOWED_CLIENT_HEADERS");
    let request = old(given, "ZERO_PUSH_ALLOWED_REQUEST_HEADERS", "ZERO_MUTATE_ALLOWED_REQUEST_HEADERS");
    api_server(given, urls, api_key, cookies, client, request)
}

/// The old group counts as a whole, and only when the new one has no URL.
fn query(given: &mut Given) -> ApiServer {
    if given.is_given("ZERO_QUERY_URL") || !given.is_given("ZERO_GET_QUERIES_URL") {
        api_server(
            given,
            "ZERO_QUERY_URL",
            "ZERO_QUERY_API_KEY",
            "ZERO_QUERY_FORWARD_COOKIES",
            "ZERO_QUERY_ALLOWED_CLIENT_HEADERS",
            "ZERO_QUERY_ALLOWED_REQUEST_HEADERS",
        )
    } else {
        api_server(
            given,
            "ZERO_GET_QUERIES_URL",
            "ZERO_GET_QUERIES_API_KEY",
            "ZERO_GET_QUERIES_FORWARD_COOKIES",
            "ZERO_GET_QUERIES_ALLOWED_CLIENT_HEADERS",
            "ZERO_GET_QUERIES_ALLOWED_REQUEST_HEADERS",
        )
    }
}

fn api_server(
    given: &mut Given,
    urls: &'static str,
    api_key: &'static str,
    forward_cookies: &'static str,
    allowed_client_headers: &'static str,
    allowed_request_headers: &'static str,
) -> ApiServer {
    let texts = given.list(urls);
    if let Some(bad) = texts.iter().find(|text| !text.contains("://") && !text.starts_with("http")) {
        let fault = if bad.is_empty() { "one of the URLs is empty" } else { "one of the URLs has no scheme" };
        given.problem(urls, fault, "give absolute URLs such as https://api.example.com/mutate, separated by commas");
    }
    if let Some(fault) = texts.iter().filter(|text| text.contains("://")).find_map(|url| gateway::check_url(url).err())
    {
        given.problem(urls, fault.to_string(), "give absolute URLs, in which * and :name stand for what may vary");
    }
    let lower = |names: Vec<String>| names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
    ApiServer {
        urls: texts,
        api_key: given.secret(api_key),
        forward_cookies: given.boolean(forward_cookies),
        allowed_client_headers: lower(given.list(allowed_client_headers)),
        allowed_request_headers: lower(given.list(allowed_request_headers)),
    }
}

fn crud(given: &mut Given) -> Option<Crud> {
    let crud = Crud {
        connections_max: whole(given, "ZERO_UPSTREAM_MAX_CONNS"),
        mutations_max: given.integer("ZERO_PER_USER_MUTATION_LIMIT_MAX", 0..=u32::MAX).map(|max| max as usize),
        window: span(given, "ZERO_PER_USER_MUTATION_LIMIT_WINDOW_MS", MILLISECOND),
    };
    given.boolean("ZERO_ENABLE_CRUD_MUTATIONS").then_some(crud)
}

fn auth(given: &mut Given) -> Auth {
    let jwk = given.text("ZERO_AUTH_JWK");
    if let Some(Err(fault)) = jwk.as_deref().map(gateway::check_jwk) {
        given.problem("ZERO_AUTH_JWK", fault.to_string(), "give the public key in JWK form");
    }
    let mut keys: Vec<TokenKey> = Vec::new();
    keys.extend(jwk.map(TokenKey::Jwk));
    keys.extend(
        given
            .url("ZERO_AUTH_JWKS_URL", &["https", "http"], "https://auth.example.com/.well-known/jwks.json")
            .map(TokenKey::JwksUrl),
    );
    keys.extend(given.secret("ZERO_AUTH_SECRET").map(TokenKey::Secret));
    if keys.len() > 1 {
        given.problem(
            "ZERO_AUTH_JWK",
            "more than one of ZERO_AUTH_JWK, ZERO_AUTH_JWKS_URL and ZERO_AUTH_SECRET is set",
            "keep the one that verifies your tokens",
        );
    }
    Auth {
        key: keys.pop(),
        issuer: given.text("ZERO_AUTH_ISSUER"),
        audience: given.text("ZERO_AUTH_AUDIENCE"),
        revalidate_interval: span(given, "ZERO_AUTH_REVALIDATE_INTERVAL_SECONDS", SECOND),
        retransform_interval: span(given, "ZERO_AUTH_RETRANSFORM_INTERVAL_SECONDS", SECOND),
    }
}

fn network(given: &mut Given) -> Network {
    let port = given.integer("ZERO_PORT", 1..=u32::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
    let port = port.unwrap_or_default();
    let on_ecs = given.text("ECS_CONTAINER_METADATA_URI_V4").is_some();
    let keepalive_timeout = match given.duration("ZERO_KEEPALIVE_TIMEOUT_MS", MILLISECOND) {
        None if on_ecs => Some(20 * SECOND),
        given => given,
    };
    let websocket_max_payload_bytes = whole(given, "ZERO_WEBSOCKET_MAX_PAYLOAD_BYTES");
    let admin_port =
        given.integer("ZERO_ADMIN_PORT", 1..=u32::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
    let unverified = given.integer("ZERO_WEBSOCKET_MAX_UNVERIFIED_PER_ADDRESS", 0..=u32::MAX).unwrap_or_default();
    Network {
        port,
        admin_port,
        allowed_origins: allowed_origins(given),
        unverified_per_address_max: (unverified > 0).then_some(unverified as usize),
        websocket_max_payload_bytes,
        keepalive_timeout,
        shutdown_grace: shutdown_grace(given),
    }
}

fn allowed_origins(given: &mut Given) -> Vec<String> {
    let origins = given.list("ZERO_ALLOWED_ORIGINS");
    let is_origin = |text: &String| {
        text.trim_end_matches('/').split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty()
                && !host.is_empty()
                && !host.contains('/')
                && !host.trim_start_matches("*.").contains('*')
        })
    };
    if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
        given.problem(
            "ZERO_ALLOWED_ORIGINS",
            format!("{bad:?} is not an origin"),
            "give origins such as https://app.example.com or https://*.example.com, separated by commas",
        );
    }
    origins
}

/// Every port of a node is its own.
fn check_ports(given: &mut Given, network: &Network, change_stream: u16) {
    let Some(admin) = network.admin_port else { return };
    for (variable, port) in [("ZERO_PORT", network.port), ("ZERO_CHANGE_STREAMER_PORT", change_stream)] {
        if admin == port {
            given.problem("ZERO_ADMIN_PORT", format!("{admin} is {variable}'s as well"), "give it a port of its own");
        }
    }
}

fn shutdown_grace(given: &mut Given) -> Duration {
    let variable = "ZERO_SHUTDOWN_GRACE_SECONDS";
    let Some(grace) = given.duration(variable, SECOND) else { return Duration::default() };
    if !SHUTDOWN_GRACE.contains(&grace) {
        given.problem(variable, format!("{grace:?} is out of range"), "give from 2 to 86400 seconds");
    }
    grace
}

/// Not obeyed here, but a text that is not JSON is a mistake the original reports as well.
fn compression_options(given: &mut Given) {
    let malformed = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_err();
    if given.peek("ZERO_WEBSOCKET_COMPRESSION_OPTIONS").is_some_and(malformed) {
        given.problem("ZERO_WEBSOCKET_COMPRESSION_OPTIONS", "it is not JSON", "give an object such as {\"level\":1}");
    }
}

fn admin(given: &mut Given) -> Admin {
    let development = given.text("NODE_ENV").as_deref() == Some("development");
    let password = given.secret("ZERO_ADMIN_PASSWORD");
    if password.is_none() && !development {
        given.problem(
            "ZERO_ADMIN_PASSWORD",
            "it is required in production mode and not set",
            "set it, or set NODE_ENV=development on a machine of your own",
        );
    }
    Admin { password, previous_password: given.secret("ZERO_ADMIN_PASSWORD_PREVIOUS"), development }
}

fn logging(given: &mut Given) -> Logging {
    Logging {
        level: match given.text("ZERO_LOG_LEVEL").as_deref() {
            Some("debug") => tracing::Level::DEBUG,
            Some("warn") => tracing::Level::WARN,
            Some("error") => tracing::Level::ERROR,
            _ => tracing::Level::INFO,
        },
        format: match given.text("ZERO_LOG_FORMAT").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
    }
}

fn engine_threads(given: &mut Given) -> usize {
    match given.integer("ZERO_NUM_SYNC_WORKERS", 0..=u32::from(u16::MAX)) {
        Some(threads) => threads as usize,
        // One processor is left to the sockets and the replica's writer.
        None => std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1)),
    }
}

/// A span whose default is in the table; zero stands in for one that is already a problem.
pub(super) fn span(given: &mut Given, variable: &'static str, unit: Duration) -> Duration {
    given.duration(variable, unit).unwrap_or_default()
}

/// A whole number of at least one whose default is in the table.
pub(super) fn whole(given: &mut Given, variable: &'static str) -> usize {
    given.integer(variable, 1..=u32::MAX).unwrap_or(1) as usize
}

fn random_task_id() -> String {
    const LENGTH: usize = 21;
    rand::Rng::sample_iter(rand::rng(), rand::distr::Alphanumeric).take(LENGTH).map(char::from).collect()
}
