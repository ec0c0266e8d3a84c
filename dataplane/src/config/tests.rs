//! What comes out of an environment: a value, or a problem.

use std::collections::BTreeSet;
use std::time::Duration;

use super::given::Given;
use super::option::Effect;
use super::{Config, Environment, LogFormat, Refusal, Role, StreamSource, TokenKey, load, settings};

const UPSTREAM: (&str, &str) = ("ZERO_UPSTREAM_DB", "postgres://u:hunter2@db/zero");
/// Of the standard's examples.
const JWK: &str =
    r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
const PASSWORD: (&str, &str) = ("ZERO_ADMIN_PASSWORD", "hunter2");

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn words(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|word| (*word).to_owned()).collect()
}

/// The configuration of a minimal environment plus `pairs`.
fn config(pairs: &[(&str, &str)]) -> Config {
    let all: Vec<_> = [UPSTREAM, PASSWORD].iter().chain(pairs).copied().collect();
    load(&[], &environment(&all)).unwrap()
}

/// The problems of a minimal environment plus `pairs`, as text.
fn problems(pairs: &[(&str, &str)]) -> Vec<String> {
    let all: Vec<_> = [UPSTREAM, PASSWORD].iter().chain(pairs).copied().collect();
    refused(&[], &all)
}

fn refused(flags: &[&str], pairs: &[(&str, &str)]) -> Vec<String> {
    match load(&words(flags), &environment(pairs)) {
        Err(Refusal::Problems(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

fn check_refused(pairs: &[(&str, &str)], parts: &[&str]) {
    let problems = problems(pairs);
    assert_eq!(problems.len(), 1, "{pairs:?}: {problems:#?}");
    for part in parts {
        assert!(problems[0].contains(part), "{pairs:?}: {:?} lacks {part:?}", problems[0]);
    }
}

#[test]
fn defaults() {
    let config = config(&[]);
    assert_eq!(config.role, Role::SingleNode);
    assert_eq!(config.app.id, "zero");
    assert_eq!(config.app.shard_num, 0);
    assert!(config.app.publications.is_empty());
    assert_eq!(config.cvr.db, config.upstream.db);
    assert_eq!(config.cvr.inactivity_threshold, Duration::from_secs(48 * 3600));
    assert_eq!(config.network.port, 4848);
    assert_eq!(config.network.admin_port, None);
    assert!(config.network.allowed_origins.is_empty());
    assert_eq!(config.network.unverified_per_address_max, Some(10_000));
    assert_eq!(config.network.websocket_max_payload_bytes, 10 << 20);
    assert_eq!(config.network.shutdown_grace, Duration::from_secs(90));
    assert_eq!(config.upstream.initial_sync_table_copy_workers, 5);
    assert_eq!(config.auth.revalidate_interval, Duration::from_secs(300));
    assert!(config.auth.key.is_none());
    assert_eq!(config.logging.level, tracing::Level::INFO);
    assert_eq!(config.logging.format, LogFormat::Text);
    assert_eq!(config.replica.file.to_str(), Some("zero.db"));
    assert!(config.replica.auto_reset);
    assert!(config.engine.threads >= 1);
    assert!(config.engine.client_queries);
    assert_eq!(config.task_id.len(), 21);
    assert!(!config.admin.development);
    assert_eq!(config.notices, super::Notices::default());
}

/// What providers and their tools print is read here, or refused before any port is opened.
#[test]
fn urls_of_postgres() {
    let given = config(&[
        ("ZERO_CHANGE_DB", " \n postgresql://u:p%40@h/zero?statement_timeout=5&supa=x&max=3\n"),
        ("ZERO_CVR_DB", "postgres://u:hunter2@a:1,b:2/zero?target_session_attrs=read-write"),
    ]);
    assert_eq!(given.change_db.expose(), "postgresql://u:p%40@h/zero?statement_timeout=5&supa=x&max=3");
    assert!(!format!("{given:?}").contains("hunter2"));
    for (url, part) in [
        ("postgres://u:hunter2@db/zero?sslmod=verify-full", "sslmod"),
        ("postgres://u:hunter2@db/zero?sslmode=verify-full&sslrootcert=/nowhere.pem", "/nowhere.pem"),
        ("postgres://u:hunter2@db/zero?gssencmode=require", "gssencmode"),
        ("postgres://db/zero", "no user"),
        ("mysql://u:hunter2@db/zero", "scheme"),
    ] {
        check_refused(&[("ZERO_CVR_DB", url)], &["ZERO_CVR_DB", part]);
        assert!(!problems(&[("ZERO_CVR_DB", url)])[0].contains("hunter2"));
    }
}

#[test]
fn the_key_of_the_store_as_litestream_is_given_it() {
    let key = ("LITESTREAM_ACCESS_KEY_ID", "id");
    let given = config(&[key, ("LITESTREAM_SECRET_ACCESS_KEY", "hunter2")]);
    assert_eq!(given.backup.key.as_ref().map(|(id, secret)| (id.as_str(), secret.expose())), Some(("id", "hunter2")));
    assert!(!format!("{given:?}").contains("hunter2"));
    assert_eq!(config(&[]).backup.key, None);
    check_refused(&[key], &["LITESTREAM_SECRET_ACCESS_KEY", "LITESTREAM_ACCESS_KEY_ID is"]);
}

#[test]
fn values_given() {
    let config = config(&[
        ("ZERO_APP_ID", "my_app2"),
        ("ZERO_APP_PUBLICATIONS", "one, two,one"),
        ("ZERO_CVR_DB", "postgresql://u@cvr/zero"),
        ("ZERO_PORT", "5000"),
        ("ZERO_ADMIN_PORT", "4852"),
        ("ZERO_ALLOWED_ORIGINS", "https://app.example.com, https://*.example.org:8443"),
        ("ZERO_WEBSOCKET_MAX_UNVERIFIED_PER_ADDRESS", "0"),
        ("ZERO_NUM_SYNC_WORKERS", "3"),
        ("ZERO_LOG_FORMAT", "json"),
        ("ZERO_LOG_LEVEL", "debug"),
        ("ZERO_AUTO_RESET", "FALSE"),
        ("ZERO_ALLOW_LEGACY_QUERIES", "false"),
        ("ZERO_MUTATE_FORWARD_COOKIES", "1"),
        ("ZERO_MUTATE_URL", "https://a.example.com/mutate,https://*.example.com/mutate"),
        ("ZERO_MUTATE_ALLOWED_REQUEST_HEADERS", "X-Forwarded-For"),
        ("ZERO_CVR_GARBAGE_COLLECTION_INACTIVITY_THRESHOLD_HOURS", "0.5"),
        ("ZERO_WEBSOCKET_MAX_PAYLOAD_BYTES", "1e6"),
        ("ZERO_AUTH_SECRET", "hunter2"),
        ("ZERO_TASK_ID", "task"),
        ("ZERO_SHUTDOWN_GRACE_SECONDS", "25"),
    ]);
    assert_eq!(config.app.id, "my_app2");
    assert_eq!(config.app.publications, ["one", "two"]);
    assert_eq!(config.cvr.db.expose(), "postgresql://u@cvr/zero");
    assert_eq!(config.network.admin_port, Some(4852));
    assert_eq!(config.network.allowed_origins, ["https://app.example.com", "https://*.example.org:8443"]);
    assert_eq!(config.network.unverified_per_address_max, None);
    assert_eq!(config.engine.threads, 3);
    assert!(!config.engine.client_queries);
    assert_eq!(config.logging.format, LogFormat::Json);
    assert_eq!(config.logging.level, tracing::Level::DEBUG);
    assert!(!config.replica.auto_reset);
    assert!(config.mutate.forward_cookies);
    assert_eq!(config.mutate.urls.len(), 2);
    assert_eq!(config.mutate.allowed_request_headers, ["x-forwarded-for"]);
    assert_eq!(config.cvr.inactivity_threshold, Duration::from_secs(1800));
    assert_eq!(config.network.websocket_max_payload_bytes, 1_000_000);
    assert!(matches!(config.auth.key, Some(TokenKey::Secret(_))));
    assert_eq!(config.task_id, "task");
    assert_eq!(config.network.shutdown_grace, Duration::from_secs(25));
}

#[test]
fn a_flag_comes_before_the_environment() {
    let pairs = environment(&[UPSTREAM, PASSWORD, ("ZERO_PORT", "5000"), ("ZERO_APP_PUBLICATIONS", "a,b")]);
    let flags =
        words(&["--port", "6000", "--app-publications", "c", "d", "--mutate-forward-cookies", "--auto-reset=false"]);
    let config = load(&flags, &pairs).unwrap();
    assert_eq!(config.network.port, 6000);
    assert_eq!(config.app.publications, ["c", "d"]);
    assert!(config.mutate.forward_cookies);
    assert!(!config.replica.auto_reset);
}

#[test]
fn an_empty_variable_is_not_set() {
    let config =
        config(&[("ZERO_PORT", ""), ("ZERO_CVR_DB", ""), ("ZERO_SHARD_ID", ""), ("ZERO_CHANGE_STREAMER_URI", "")]);
    assert_eq!(config.network.port, 4848);
    assert_eq!(config.cvr.db, config.upstream.db);
    assert_eq!(config.role, Role::SingleNode);
}

#[test]
fn what_is_refused() {
    for (variable, value, parts) in [
        ("ZERO_PORT", "abc", &["\"abc\" is not a number"][..]),
        ("ZERO_PORT", "0", &["0 is out of range", "from 1 to 65535"]),
        ("ZERO_PORT", "4848.5", &["out of range"]),
        ("ZERO_CHANGE_STREAMER_PORT", "4848", &["4848 is also ZERO_PORT"]),
        ("ZERO_SHUTDOWN_GRACE_SECONDS", "1", &["1s is out of range", "from 2 to 86400 seconds"]),
        ("ZERO_AUTO_RESET", "yes", &["\"yes\" is not a boolean", "true, 1, false or 0"]),
        ("ZERO_LOG_LEVEL", "trace", &["\"trace\"", "debug, info, warn, error"]),
        ("ZERO_LOG_FORMAT", "JSON", &["text, json"]),
        ("ZERO_APP_ID", "My-App", &["\"My-App\"", "lower-case letters, numbers, and the underscore"]),
        (
            "ZERO_APP_ID",
            "a_very_long_application_name_for_a_replication_slot",
            &["longer than 40 characters", "shorten it"],
        ),
        ("ZERO_SHARD_ID", "0", &["use ZERO_APP_ID"]),
        ("ZERO_APP_PUBLICATIONS", "ok,_zero_public_0", &["\"_zero_public_0\" begins with an underscore"]),
        ("ZERO_APP_PUBLICATIONS", "a,,b", &["is empty"]),
        ("ZERO_CHANGE_STREAMER_URI", "rm:4849", &["the scheme \"rm\" is not ws or wss"]),
        (
            "ZERO_CHANGE_STREAMER_TLS_CERT_FILE",
            "/tls.crt",
            &[
                "ZERO_CHANGE_STREAMER_TLS_KEY_FILE: it is not set, but ZERO_CHANGE_STREAMER_TLS_CERT_FILE is",
                "give both",
            ],
        ),
        (
            "ZERO_CHANGE_STREAMER_TLS_KEY_FILE",
            "/tls.key",
            &["ZERO_CHANGE_STREAMER_TLS_CERT_FILE: it is not set, but ZERO_CHANGE_STREAMER_TLS_KEY_FILE is"],
        ),
        ("ZERO_LITESTREAM_BACKUP_URL", "gs://bucket/path", &["the scheme \"gs\" is not s3", "s3://bucket/path"]),
        ("ZERO_LITESTREAM_BACKUP_URL", "s3:///path", &["names no bucket"]),
        ("ZERO_UPSTREAM_TYPE", "custom", &["custom change sources"]),
        ("ZERO_INITIAL_SYNC_TABLE_COPY_WORKERS", "0", &["0 is out of range", "at least 1"]),
        ("ZERO_AUTH_REVALIDATE_INTERVAL_SECONDS", "-5", &["-5 is not a span of time"]),
        ("ZERO_AUTH_JWK", "{", &["not a usable JSON Web Key"]),
        ("ZERO_AUTH_JWKS_URL", "file:///x", &["the scheme \"file\""]),
        ("ZERO_MUTATE_URL", "example.com", &["no scheme"]),
        // Also settings without effect are read by their kind.
        ("ZERO_YIELD_THRESHOLD_MS", "ten", &["\"ten\" is not a number"]),
        ("ZERO_LITESTREAM_LOG_LEVEL", "loud", &["one of the known values"]),
        ("ZERO_WEBSOCKET_COMPRESSION_OPTIONS", "{level:1}", &["not JSON"]),
    ] {
        check_refused(&[(variable, value)], parts);
    }
    check_refused(&[("ZERO_AUTH_JWK", JWK), ("ZERO_AUTH_SECRET", "hunter2")], &["more than one of"]);
    check_refused(
        &[("ZERO_NUM_SYNC_WORKERS", "0"), ("ZERO_CHANGE_STREAMER_URI", "ws://rm:4849/")],
        &["unset one of ZERO_NUM_SYNC_WORKERS and ZERO_CHANGE_STREAMER_URI"],
    );
}

#[test]
fn all_problems_are_reported_at_once_in_table_order() {
    let problems = refused(&[], &[("ZERO_PORT", "x"), ("ZERO_APP_ID", "A"), ("ZERO_CVR_DB", "mysql://db/zero")]);
    let variables: Vec<_> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
    assert_eq!(variables, ["ZERO_UPSTREAM_DB", "ZERO_CVR_DB", "ZERO_APP_ID", "ZERO_PORT", "ZERO_ADMIN_PASSWORD"]);
}

#[test]
fn what_cannot_be_used_is_among_the_problems() {
    let problems = problems(&[
        ("ZERO_CHANGE_STREAMER_TOKEN", "two words"),
        ("ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS", "\u{fc}ber"),
        ("ZERO_AUTH_JWK", r#"{"kty":"RSA"}"#),
        ("ZERO_QUERY_URL", "https://(api/"),
    ]);
    let variables: BTreeSet<_> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
    let expected =
        ["ZERO_AUTH_JWK", "ZERO_CHANGE_STREAMER_TOKEN", "ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS", "ZERO_QUERY_URL"];
    assert_eq!(variables, BTreeSet::from(expected), "{problems:#?}");
    assert!(!problems.iter().any(|problem| problem.contains("two words")), "{problems:#?}");
}

#[test]
fn the_admin_password_may_be_missing_in_development_only() {
    for node_env in ["", "production", "test"] {
        let problems = refused(&[], &[UPSTREAM, ("NODE_ENV", node_env)]);
        assert!(problems[0].starts_with("ZERO_ADMIN_PASSWORD: it is required in production mode"), "{problems:?}");
    }
    let config = load(&[], &environment(&[UPSTREAM, ("NODE_ENV", "development")])).unwrap();
    assert!(config.admin.development && config.admin.password.is_none());
}

#[test]
fn old_spellings_are_mapped_with_a_warning() {
    let push = config(&[
        ("ZERO_PUSH_URL", "https://old/push"),
        ("ZERO_MUTATE_URL", "https://new/push"),
        ("ZERO_PUSH_API_KEY", "old"),
        ("ZERO_MUTATE_API_KEY", "new"),
        ("ZERO_PUSH_FORWARD_COOKIES", "true"),
    ]);
    assert_eq!(push.mutate.urls, ["https://old/push"]);
    assert_eq!(push.mutate.api_key.map(|key| key.expose().to_owned()).as_deref(), Some("new"));
    assert!(push.mutate.forward_cookies);
    assert!(push.notices.deprecated.contains(&("ZERO_PUSH_URL", "ZERO_MUTATE_URL")));

    let old = [("ZERO_GET_QUERIES_URL", "https://old/q"), ("ZERO_GET_QUERIES_API_KEY", "old")];
    let queries = config(&old);
    assert_eq!(queries.query.urls, ["https://old/q"]);
    assert!(queries.query.api_key.is_some());
    let both = config(&[old[0], old[1], ("ZERO_QUERY_URL", "https://new/q")]);
    assert_eq!(both.query.urls, ["https://new/q"]);
    assert!(both.query.api_key.is_none());
}

#[test]
fn the_role_follows_from_the_settings() {
    assert_eq!(config(&[("ZERO_NUM_SYNC_WORKERS", "0")]).role, Role::ReplicationManager);
    assert_eq!(config(&[("ZERO_CHANGE_STREAMER_MODE", "discover")]).role, Role::ViewSyncer);
    let syncer = config(&[("ZERO_CHANGE_STREAMER_URI", "ws://manager:4849/"), ("ZERO_PORT", "4850")]);
    assert_eq!(syncer.role, Role::ViewSyncer);
    assert!(
        matches!(&syncer.change_stream.source, Some(StreamSource::Uri(uri)) if uri.expose() == "ws://manager:4849/")
    );
    assert_eq!(syncer.change_stream.port, 4851);
}

#[test]
fn a_port_with_a_certificate_is_registered_as_such() {
    let files = [
        ("ZERO_CHANGE_STREAMER_TLS_CERT_FILE", "/etc/tls/tls.crt"),
        ("ZERO_CHANGE_STREAMER_TLS_KEY_FILE", "/etc/tls/tls.key"),
    ];
    let scheme = |pairs: &[(&str, &str)]| config(pairs).change_stream.scheme;
    assert_eq!(scheme(&[]), "ws");
    assert_eq!(scheme(&files), "wss");
    // Something in front of the port may end TLS, or begin it.
    assert_eq!(scheme(&[files[0], files[1], ("ZERO_CHANGE_STREAMER_PROTOCOL", "ws")]), "ws");
    assert_eq!(scheme(&[("ZERO_CHANGE_STREAMER_PROTOCOL", "wss")]), "wss");
    let given = config(&files).change_stream.certificate.unwrap();
    assert_eq!((given.certificate.to_str(), given.key.to_str()), (Some(files[0].1), Some(files[1].1)));
}

#[test]
fn a_backup_is_never_further_behind_than_ten_seconds() {
    let url = ("ZERO_LITESTREAM_BACKUP_URL", "s3://bucket/generation/7");
    let config = config(&[url, ("ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS", "900")]);
    assert_eq!(config.backup.url.as_deref(), Some("s3://bucket/generation/7"));
    assert_eq!(config.backup.interval, Duration::from_secs(10));
}

#[test]
fn crud_mutations_are_on_until_they_are_switched_off() {
    let crud = config(&[]).crud.unwrap();
    assert_eq!((crud.connections_max, crud.mutations_max, crud.window), (20, None, Duration::from_secs(60)));
    let limited = [
        ("ZERO_UPSTREAM_MAX_CONNS", "3"),
        ("ZERO_PER_USER_MUTATION_LIMIT_MAX", "100"),
        ("ZERO_PER_USER_MUTATION_LIMIT_WINDOW_MS", "5000"),
    ];
    let crud = config(&limited).crud.unwrap();
    assert_eq!((crud.connections_max, crud.mutations_max, crud.window), (3, Some(100), Duration::from_secs(5)));
    assert!(config(&[("ZERO_ENABLE_CRUD_MUTATIONS", "false")]).crud.is_none());
}

#[test]
fn settings_without_effect_are_named() {
    let config = config(&[
        ("ZERO_YIELD_THRESHOLD_MS", "20"),
        ("ZERO_SHADOW_SYNC_ENABLED", "true"),
        ("ZERO_UPSTREAM_MAX_CONNS_PER_WORKER", "nonsense"),
        ("ZERO_UNKNOWN", "1"),
    ]);
    assert_eq!(config.notices.no_effect, ["ZERO_YIELD_THRESHOLD_MS"]);
    assert_eq!(config.notices.not_built, ["ZERO_SHADOW_SYNC_ENABLED"]);
}

/// A setting is read exactly when the table says so, so that `CONFIG.md` cannot claim otherwise.
#[test]
fn the_table_says_what_is_read() {
    let mut read = std::collections::BTreeSet::new();
    for old in [&[][..], &[("ZERO_PUSH_URL", "https://x/y"), ("ZERO_GET_QUERIES_URL", "https://x/y")]] {
        let pairs: Vec<_> = [UPSTREAM, PASSWORD].iter().chain(old).copied().collect();
        let mut given = Given::gather(&[], &environment(&pairs)).unwrap();
        assert!(super::load::read(&mut given).is_some());
        read.extend(given.read_variables().iter().copied());
    }
    for setting in settings::all() {
        match setting.effect {
            Effect::Used => assert!(read.contains(setting.variable), "{} is said to be used", setting.variable),
            Effect::Inert(_) | Effect::NotBuilt(_) | Effect::Internal => {
                assert!(!read.contains(setting.variable), "{} is said to have no effect", setting.variable);
            }
            Effect::Replaced(_) | Effect::Rejected(_) => {}
        }
    }
}

#[test]
fn every_setting_of_the_table_is_accepted_by_environment_and_by_flag() {
    for setting in settings::all().filter(|setting| !matches!(setting.effect, Effect::Rejected(_))) {
        let value = match setting.kind {
            super::option::Kind::Text if setting.variable.ends_with("_DB") => "postgres://u@db/zero",
            super::option::Kind::Text => match setting.variable {
                "ZERO_CHANGE_STREAMER_URI" => continue,
                // Only both together.
                "ZERO_CHANGE_STREAMER_TLS_CERT_FILE" | "ZERO_CHANGE_STREAMER_TLS_KEY_FILE" => continue,
                "LITESTREAM_ACCESS_KEY_ID" | "LITESTREAM_SECRET_ACCESS_KEY" => continue,
                "ZERO_APP_ID" => "zero",
                "ZERO_LITESTREAM_BACKUP_URL" => "s3://bucket/path",
                "ZERO_AUTH_JWK" => JWK,
                "ZERO_WEBSOCKET_COMPRESSION_OPTIONS" => "{}",
                _ => "https://example.com/",
            },
            super::option::Kind::Number => "7",
            super::option::Kind::Bool => "true",
            super::option::Kind::List if setting.variable == "ZERO_APP_PUBLICATIONS" => "one",
            super::option::Kind::List => "https://example.com/",
            super::option::Kind::Choice(choices) => choices[0],
        };
        let base: Vec<_> = [UPSTREAM, PASSWORD].into_iter().filter(|(name, _)| *name != setting.variable).collect();
        let by_environment: Vec<_> = base.iter().copied().chain([(setting.variable, value)]).collect();
        load(&[], &environment(&by_environment)).unwrap_or_else(|refusal| panic!("{}: {refusal}", setting.variable));
        if let Some(flag) = setting.flag() {
            let flags = [format!("--{flag}"), value.to_owned()];
            load(&flags, &environment(&base)).unwrap_or_else(|refusal| panic!("--{flag}: {refusal}"));
        }
    }
}

#[test]
fn secrets_are_never_shown() {
    const CANARY: &str = "canary7519";
    let url = format!("postgres://u:{CANARY}@db/zero?password={CANARY}");
    let api = format!("https://u:{CANARY}@api/x");
    for setting in settings::all().filter(|setting| setting.secret) {
        if matches!(setting.effect, Effect::Rejected(_)) {
            assert!(!problems(&[(setting.variable, CANARY)]).join("\n").contains(CANARY), "{}", setting.variable);
            continue;
        }
        let good = if setting.variable.ends_with("_DB") { url.as_str() } else { CANARY };
        let pairs: Vec<_> =
            [UPSTREAM, PASSWORD, ("ZERO_MUTATE_URL", &api), ("ZERO_PUSH_URL", &api), ("ZERO_QUERY_URL", &api)]
                .into_iter()
                .filter(|(name, _)| *name != setting.variable)
                .chain([(setting.variable, good)])
                .chain(
                    (setting.variable == "LITESTREAM_SECRET_ACCESS_KEY").then_some(("LITESTREAM_ACCESS_KEY_ID", "id")),
                )
                .collect();
        let config = load(&[], &environment(&pairs)).unwrap();
        assert!(config.given.iter().any(|(name, _)| *name == setting.variable), "{} is not shown", setting.variable);
        let shown = format!("{config:?}");
        assert!(!shown.contains(CANARY) && !shown.contains("hunter2"), "{}: {shown}", setting.variable);
        // A malformed one is not shown either, nor is one with a stray password in a wrong place.
        let bad = format!("mysql://u:{CANARY}@db:{CANARY}/zero");
        let pairs: Vec<_> = [(setting.variable, bad.as_str()), ("ZERO_PORT", "x")].to_vec();
        assert!(!refused(&[], &pairs).join("\n").contains(CANARY), "{}", setting.variable);
    }
}

#[test]
fn what_was_given_is_shown_a_line_each() {
    let config = config(&[
        ("ZERO_PORT", "5000"),
        ("ZERO_APP_PUBLICATIONS", "one, two"),
        ("ZERO_AUTH_SECRET", "postgresless:hunter2"),
        ("ZERO_MUTATE_URL", "https://key@api.example.com/mutate?key=hunter2"),
        ("ZERO_TASK_ID", "a\nb"),
        ("ZERO_SERVER_VERSION", &"x".repeat(1000)),
        ("NODE_ENV", ""),
    ]);
    let long = format!("{}...", "x".repeat(160));
    let lines = config.given.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>();
    assert_eq!(
        lines,
        [
            ("ZERO_UPSTREAM_DB", "postgres://u:***@db/zero"),
            ("ZERO_MUTATE_URL", "https://***@api.example.com/mutate?***"),
            ("ZERO_APP_PUBLICATIONS", "one, two"),
            ("ZERO_TASK_ID", "a\\nb"),
            ("ZERO_SERVER_VERSION", long.as_str()),
            ("ZERO_AUTH_SECRET", "***"),
            ("ZERO_PORT", "5000"),
            ("ZERO_ADMIN_PASSWORD", "***"),
        ]
    );
}

#[test]
fn help_and_usage() {
    match load(&words(&["--help"]), &Environment::new()) {
        Err(refusal @ Refusal::Help(_)) => {
            assert_eq!(refusal.exit_code(), 0);
            let text = refusal.to_string();
            assert!(text.contains("--upstream-db") && text.contains("ZERO_UPSTREAM_DB") && text.contains("Exit codes"));
            assert!(!text.contains("--push-url"), "hidden settings are not in the help");
        }
        other => panic!("{other:?}"),
    }
    match load(&words(&["--no-such-flag"]), &Environment::new()) {
        Err(refusal @ Refusal::Usage(_)) => assert_eq!(refusal.exit_code(), 255),
        other => panic!("{other:?}"),
    }
}

/// Existing deployments start unchanged, or are told exactly what to change; nothing of theirs is passed over in silence.
#[test]
fn environments_of_existing_deployments() {
    let known: Vec<_> = settings::all().map(|setting| setting.variable).collect();
    let deployments = testkit::deployments::deployments().unwrap();
    assert!(deployments.len() > 30);
    for deployment in deployments {
        let title = deployment.title;
        match load(&[], &environment(&deployment.environment)) {
            Ok(config) => {
                assert_eq!((Some(config.role.name()), 0), (deployment.role, deployment.change.len()), "{title}");
            }
            Err(Refusal::Problems(problems)) => {
                let change: Vec<_> = problems.iter().map(|problem| problem.variable).collect();
                let (mut change, mut expected) = (change, deployment.change.clone());
                change.sort_unstable();
                expected.sort_unstable();
                assert_eq!((change, None), (expected, deployment.role), "{title}: {problems:#?}");
            }
            Err(other) => panic!("{title}: {other}"),
        }
        let unknown = deployment.environment.iter().filter(|(name, _)| !known.contains(name)).map(|(name, _)| *name);
        let (mut unknown, mut foreign): (Vec<_>, _) = (unknown.collect(), deployment.foreign.clone());
        unknown.sort_unstable();
        foreign.sort_unstable();
        assert_eq!(unknown, foreign, "{title}");
    }
}

#[test]
fn the_reference_page_is_current() {
    crate::reference_page::check("CONFIG.md", &super::reference());
}
