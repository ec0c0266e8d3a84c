//! Real servers that fit, and that do not.

use std::time::{Duration, Instant};

use testkit::pgbouncer::PgBouncer;
use testkit::postgres::{Options, Postgres, Version};
use tokio::net::TcpListener;
use zero_cache_operator::observe::outside::Inputs;
use zero_cache_operator::observe::{Fault, Limits, Probe};

use super::{Scene, secret, shard, upstream};

fn shared() -> &'static Postgres {
    Postgres::shared(Version::V15).unwrap()
}

fn settings(list: &[(&str, &str)]) -> Options {
    let settings = list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Options { settings, ..Options::default() }
}

async fn probe(inputs: Inputs) -> Probe {
    let probe = Scene::new(inputs).answered().await.databases.upstream.unwrap();
    assert!(!format!("{probe:?}").contains("hidden"), "a password is told: {probe:?}");
    probe
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fits_says_how_many_connections_it_has() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let in_database = |role: &str, database: &str| postgres.url(database).replace("postgres@", &format!("{role}@"));
    let url = |role: &str| in_database(role, "postgres");
    let admin = postgres.connect("postgres").await.unwrap();
    let others = (postgres.connect("postgres").await.unwrap(), postgres.connect("postgres").await.unwrap());
    let named = |name: &str| format!("{}?application_name={name}", postgres.url("postgres"));
    let ours = testkit::postgres::connect(&named("zero-cvr")).await.unwrap();
    let first = probe(upstream(postgres.url("postgres"))).await;
    assert_eq!((first.fault, first.server), (None, format!("127.0.0.1:{}", postgres.port())));
    // 200 without the 3 of the superuser; the admin and two others are here.
    assert_eq!(first.limits, Some(Limits { connections: 197, in_use: 3 }));

    for statement in [
        "CREATE ROLE app LOGIN REPLICATION CONNECTION LIMIT 30; CREATE ROLE plain LOGIN",
        "CREATE DATABASE small CONNECTION LIMIT 12",
    ] {
        admin.batch_execute(statement).await.unwrap();
    }
    let by_role = probe(upstream(url("app"))).await;
    // The connection that is named like ours is of another role.
    assert_eq!((by_role.fault, by_role.limits), (None, Some(Limits { connections: 30, in_use: 4 })));
    let by_database = probe(upstream(in_database("app", "small"))).await;
    assert_eq!(by_database.limits.unwrap().connections, 12);
    assert!(
        matches!(probe(upstream(url("plain"))).await.fault, Some(Fault::NoReplicationRole(text)) if text.contains("plain"))
    );
    drop((others, ours));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_databases_are_asked_and_need_no_replication() {
    let postgres = Postgres::start_with(Version::V15, Options { wal_level: "replica", ..Options::default() }).unwrap();
    let url = postgres.url("postgres");
    let inputs = Inputs { cvr: secret(&url), change: secret(&url), shard: shard("shop"), ..Inputs::default() };
    let facts = Scene::new(inputs).answered().await;
    for probe in [facts.databases.cvr, facts.databases.change] {
        let probe = probe.unwrap();
        assert_eq!((probe.fault, probe.limits.unwrap().connections), (None, 197));
    }
    assert_eq!(facts.databases.upstream, None, "nothing was asked of it");
    let wrong = probe(upstream(url)).await;
    assert_eq!(wrong.fault, Some(Fault::WalLevel("wal_level is replica".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_named() {
    let postgres = Postgres::start(Version::V14).unwrap();
    let fault = probe(upstream(postgres.url("postgres"))).await.fault;
    assert!(matches!(&fault, Some(Fault::VersionTooOld(text)) if text.contains("14.")), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_slots_are_a_fault_unless_one_is_ours() {
    let options = settings(&[("max_replication_slots", "2")]);
    let postgres = Postgres::start_with(Version::V15, options).unwrap();
    let admin = postgres.connect("postgres").await.unwrap();
    let slot = |name: &str| format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    for name in ["others_a", "shop_10_a"] {
        admin.batch_execute(&slot(name)).await.unwrap();
    }
    let mut scene = Scene::new(upstream(postgres.url("postgres")));
    let full = scene.answered().await.databases.upstream.unwrap();
    let text = "2 of max_replication_slots = 2 are taken".to_owned();
    assert_eq!(full.fault, Some(Fault::SlotsExhausted(text)));
    admin.batch_execute("SELECT pg_drop_replication_slot('others_a')").await.unwrap();
    admin.batch_execute(&slot("shop_0_a")).await.unwrap();
    // Healed by itself, and told.
    scene.until("the fault to go", |facts| facts.databases.upstream.as_ref().unwrap().fault.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_is_seen() {
    let postgres = shared();
    let database = postgres.create_database("lost_slot").await.unwrap();
    let mut scene = Scene::new(upstream(database.url()));
    assert!(!probe(scene.inputs.clone()).await.slot_lost, "there is no replica yet");
    database
        .execute(
            "CREATE SCHEMA shop_0;
             CREATE TABLE shop_0.replicas (id text, rank bigserial, slot text, \"initialSyncContext\" json);
             INSERT INTO shop_0.replicas VALUES ('old', 1, 'shop_0_gone', '{}'), ('new', 2, 'shop_0_lost', '{}'),
                                                ('begun', 3, 'shop_0_begun', NULL)",
        )
        .await
        .unwrap();
    database.execute("SELECT pg_create_logical_replication_slot('shop_0_lost', 'pgoutput')").await.unwrap();
    assert!(!scene.answered().await.databases.upstream.unwrap().slot_lost);
    database.execute("SELECT pg_drop_replication_slot('shop_0_lost')").await.unwrap();
    scene.until("the loss", |facts| facts.databases.upstream.as_ref().unwrap().slot_lost).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_nothing_is_known_of_limits() {
    let pooler = PgBouncer::start(shared(), 3).unwrap();
    for _ in 0..3 {
        let probe = probe(upstream(pooler.url("postgres"))).await;
        assert_eq!((probe.fault, probe.limits), (None, None));
        assert_eq!(probe.server, format!("127.0.0.1:{}", pooler.port()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_let_in_is_told_from_one_that_is_not_there() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let admin = postgres.connect("postgres").await.unwrap();
    let scram = "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'right'";
    admin.batch_execute(scram).await.unwrap();
    let hba: String = admin.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let rules = std::fs::read_to_string(&hba).unwrap();
    let ours = "host all scram 127.0.0.1/32 scram-sha-256\nhost all nobody 127.0.0.1/32 reject\n";
    std::fs::write(&hba, format!("{ours}{rules}")).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let url = |user: &str| postgres.url("postgres").replace("postgres@", &format!("{user}@"));
    assert_eq!(probe(upstream(url("scram:right"))).await.fault, None);
    for user in ["scram:hidden", "nobody:hidden", "missing:hidden"] {
        let fault = probe(upstream(url(user))).await.fault;
        assert!(matches!(fault, Some(Fault::LoginRefused(_))), "{user}: {fault:?}");
    }
    let fault = probe(upstream(postgres.url("missing"))).await.fault;
    assert!(matches!(&fault, Some(Fault::NoDatabase(text)) if text.contains("missing")), "{fault:?}");
    for url in ["hidden", "mysql://u:hidden@h/d", "postgres://u:hidden@h/d?sslmode=hidden"] {
        let probe = probe(upstream(url)).await;
        assert!(matches!(probe.fault, Some(Fault::InvalidUrl(_))), "{probe:?}");
        assert_eq!(probe.server, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_cannot_be_reached_are_named_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let garbage_port = garbage.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = garbage.accept().await else { return };
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for (host, text) in [
        ("127.0.0.1:1".to_owned(), "refused"),
        ("no-such-host.invalid:5432".to_owned(), "no-such-host.invalid:5432: "),
        (silent.local_addr().unwrap().to_string(), "does not answer within 5 s"),
        (format!("127.0.0.1:{garbage_port}"), "127.0.0.1"),
    ] {
        let begun = Instant::now();
        let fault = probe(upstream(format!("postgres://u:hidden@{host}/d?sslmode=disable"))).await.fault;
        assert!(matches!(&fault, Some(Fault::Unreachable(found)) if found.contains(text)), "{host}: {fault:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_used_when_asked_for() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let url = |mode: &str| postgres.url("postgres").replace("127.0.0.1", "localhost") + "?sslmode=" + mode;
    assert_eq!(probe(upstream(url("prefer"))).await.fault, None, "the server has no TLS yet");
    let fault = probe(upstream(url("require"))).await.fault;
    assert!(matches!(&fault, Some(Fault::Unreachable(text)) if text.contains("TLS")), "{fault:?}");
    let admin = postgres.connect("postgres").await.unwrap();
    let certificate = "COPY (SELECT 1) TO PROGRAM 'openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
                       -addext subjectAltName=DNS:localhost -keyout server.key -out server.crt 2>/dev/null && chmod 600 server.key'";
    for statement in [certificate, "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()"] {
        admin.batch_execute(statement).await.unwrap();
    }
    let hba: String = admin.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let rules = std::fs::read_to_string(&hba).unwrap();
    admin.batch_execute("CREATE ROLE sealed LOGIN REPLICATION").await.unwrap();
    std::fs::write(
        &hba,
        format!("hostssl all sealed 127.0.0.1/32 trust\nhost all sealed 127.0.0.1/32 reject\n{rules}"),
    )
    .unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let url = |mode: &str| url(mode).replace("postgres@", "sealed@");
    for mode in ["prefer", "require", "no-verify"] {
        let probe = probe(upstream(url(mode))).await;
        assert_eq!((probe.fault, probe.limits.map(|it| it.connections)), (None, Some(197)), "{mode}");
    }
    let fault = probe(upstream(url("disable"))).await.fault;
    assert!(matches!(&fault, Some(Fault::LoginRefused(_))), "{fault:?}");
    // Signed by nobody that the system trusts.
    let fault = probe(upstream(url("verify-full"))).await.fault;
    assert!(matches!(&fault, Some(Fault::Unreachable(text)) if text.contains("certificate")), "{fault:?}");
}

/// Each look takes one connection and gives it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_kept() {
    let database = shared().create_database("no_connection").await.unwrap();
    let client = database.connect().await.unwrap();
    let count = async || -> i64 {
        let text =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        client.query_one(text, &[]).await.unwrap().get(0)
    };
    let mut scene = Scene::new(upstream(database.url()));
    scene.answered().await;
    let mut most = 0;
    for _ in 0..200 {
        most = most.max(count().await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(most <= 1, "{most} at a time");
    drop(scene);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count().await, 0);
}
