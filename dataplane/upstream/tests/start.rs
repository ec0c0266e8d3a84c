//! What start-up says when Postgres is not as it must be, and what it sets up when it is.

use testkit::postgres::{Options as ServerOptions, Postgres, Version as Server};
use tokio::sync::mpsc;
use upstream::{App, Error, Options, Stream, connect, decommission, initial_copy};

use crate::model::{Fixture, MARK, copied, options, resume};

async fn failure(options: &Options) -> Error {
    let (sender, _receiver) = mpsc::channel(1);
    initial_copy(options, sender).await.unwrap_err()
}

fn assert_configuration(error: &Error, part: &str) {
    assert!(matches!(error, Error::Configuration { message, .. } if message.contains(part)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_must_be_logical() {
    let postgres =
        Postgres::start_with(Server::V15, ServerOptions { wal_level: "replica", ..ServerOptions::default() }).unwrap();
    assert_configuration(&failure(&options(&postgres, "zero")).await, "ALTER SYSTEM SET wal_level = 'logical'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_servers_are_refused() {
    let postgres = Postgres::start(Server::V14).unwrap();
    assert_configuration(&failure(&options(&postgres, "zero")).await, "version 15 or newer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_must_be_allowed_to_replicate() {
    let fixture = Fixture::start("CREATE ROLE plain LOGIN").await;
    let mut options = fixture.options.clone();
    options.address = fixture.postgres.url("postgres").replace("postgres@", "plain@").parse().unwrap();
    assert_configuration(&failure(&options).await, "ALTER ROLE plain WITH REPLICATION");
}

/// Somebody else's slot is theirs; one of our own that nobody reads makes room for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_free_slot_is_asked_for_or_taken_from_a_replica_that_nobody_uses() {
    let settings = vec![("max_replication_slots".to_owned(), "1".to_owned())];
    let postgres = Postgres::start_with(Server::V15, ServerOptions { settings, ..ServerOptions::default() }).unwrap();
    let (client, options) = (postgres.connect("postgres").await.unwrap(), options(&postgres, "zero"));
    client.batch_execute("SELECT pg_create_logical_replication_slot('foreign', 'pgoutput')").await.unwrap();
    assert_configuration(&failure(&options).await, "max_replication_slots");
    client.batch_execute("SELECT pg_drop_replication_slot('foreign')").await.unwrap();
    let (first, _) = copied(&options).await;
    let (second, _) = copied(&options).await;
    let own = "SELECT s.slot_name::text FROM pg_replication_slots s JOIN zero_0.replicas r ON r.slot = s.slot_name";
    assert_eq!(client.query_one(own, &[]).await.unwrap().get::<_, &str>(0), second.slot);
    Stream::start(&options, resume(&second, second.version)).await.unwrap();
    let error = Stream::start(&options, resume(&first, first.version)).await.unwrap_err();
    assert!(matches!(&error, Error::ResetRequired { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_server_is_worth_a_retry_and_a_wrong_database_is_not() {
    let port = testkit::free_ports(1).unwrap();
    let address = format!("postgres://u:secret@127.0.0.1:{port}/db").parse().unwrap();
    let error = failure(&Options::new(address, App::new("zero", 0).unwrap())).await;
    assert!(matches!(error, Error::Transient { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"));
    let postgres = Postgres::start(Server::V15).unwrap();
    let address = postgres.url("nowhere").parse().unwrap();
    assert_configuration(&failure(&Options::new(address, App::new("zero", 0).unwrap())).await, "nowhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_are_checked() {
    let fixture = Fixture::start(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION partly FOR TABLE t WITH (publish = 'insert, update')",
    )
    .await;
    for (name, part) in
        [("_mine", "must start with a letter"), ("nothing", "do not exist: nothing"), ("partly", "SET (publish")]
    {
        let mut options = fixture.options.clone();
        options.publications = vec![name.to_owned()];
        assert_configuration(&failure(&options).await, part);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shard_serves_api_servers_and_goes_without_a_trace() {
    let fixture = Fixture::start(MARK).await;
    let (_, model) = copied(&fixture.options).await;
    for table in ["zero.permissions", "zero_0.clients", "zero_0.mutations"] {
        assert!(model.spec(table).is_some(), "{table}");
    }
    fixture
        .run(
            r#"INSERT INTO zero_0."clients" AS current ("clientGroupID","clientID","lastMutationID") VALUES ('g','c',1)
               ON CONFLICT ("clientGroupID","clientID") DO UPDATE SET "lastMutationID" = current."lastMutationID" + 1;
               INSERT INTO zero_0."mutations" ("clientGroupID","clientID","mutationID","result") VALUES ('g','c',1,'{"error":"app"}'::text::json);
               UPDATE zero.permissions SET permissions = '{"tables": {}}'"#,
        )
        .await;
    let hash: String = fixture.client.query_one("SELECT hash FROM zero.permissions", &[]).await.unwrap().get(0);
    assert_eq!(hash.len(), 32);
    let mut client = connect(&fixture.options.address, "test").await.unwrap();
    decommission(&mut client, &fixture.options.app, false).await.unwrap();
    let left: i64 = fixture
        .client
        .query_one(
            "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)
                  + (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'zero_0')",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_tables_are_left_out_and_the_rest_goes_on() {
    let fixture = Fixture::start(
        "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE \"bad name\" (id int PRIMARY KEY);
         CREATE TABLE reserved (id int PRIMARY KEY, _0_version text); INSERT INTO good VALUES (1);
         CREATE TABLE generated (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO generated VALUES (4);",
    )
    .await;
    let (_, model) = copied(&fixture.options).await;
    assert_eq!(model.sorted("good").len(), 1);
    assert!(model.spec("bad name").is_none() && model.spec("reserved").is_none());
    assert_eq!(model.row("generated").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_sockets_work_for_both_kinds_of_connection() {
    let fixture = Fixture::start(
        "SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'p w%''';
         SET password_encryption = 'md5'; CREATE ROLE digest LOGIN SUPERUSER PASSWORD 'p w%''';",
    )
    .await;
    let hba: String = fixture.client.query_one("SHOW hba_file", &[]).await.unwrap().get(0);
    let rules = std::fs::read_to_string(&hba).unwrap();
    let ours = "host all,replication scram 127.0.0.1/32 scram-sha-256\nhost all,replication digest 127.0.0.1/32 md5\n";
    std::fs::write(&hba, format!("{ours}{rules}")).unwrap();
    fixture.run("SELECT pg_reload_conf()").await;
    for (role, password, good) in [
        ("scram", "p%20w%25'", true),
        ("digest", "p%20w%25'", true),
        ("scram", "wrong", false),
        ("digest", "wrong", false),
    ] {
        let mut options = fixture.options.clone();
        let url = fixture.postgres.url("postgres").replace("postgres@", &format!("{role}:{password}@"));
        options.address = url.parse().unwrap();
        assert_eq!(connect(&options.address, "test").await.is_ok(), good, "{role}");
        if good {
            copied(&options).await;
        } else {
            assert_configuration(&failure(&options).await, "password authentication failed");
        }
    }
    let mut options = fixture.options.clone();
    let folder = fixture.postgres.socket_folder().display().to_string();
    options.address =
        format!("host={folder} port={} user=postgres dbname=postgres", fixture.postgres.port()).parse().unwrap();
    copied(&options).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_used_when_asked_for() {
    let fixture = Fixture::start(MARK).await;
    let url = |mode: &str| fixture.postgres.url("postgres").replace("127.0.0.1", "localhost") + "?sslmode=" + mode;
    let with = |mode: &str| {
        let mut options = fixture.options.clone();
        options.address = url(mode).parse().unwrap();
        options
    };
    // The server has no TLS yet.
    copied(&with("prefer")).await;
    assert!(matches!(failure(&with("require")).await, Error::Transient { .. }));
    fixture
        .run(
            "COPY (SELECT 1) TO PROGRAM 'openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost
              -addext subjectAltName=DNS:localhost -keyout server.key -out server.crt 2>/dev/null && chmod 600 server.key'"
                .replace('\n', " ")
                .as_str(),
        )
        .await;
    fixture.run("ALTER SYSTEM SET ssl = on").await;
    fixture.run("SELECT pg_reload_conf()").await;
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for (mode, expected) in [("disable", false), ("prefer", true), ("require", true), ("no-verify", true)] {
        let options = with(mode);
        let client = connect(&options.address, "test").await.unwrap();
        assert_eq!(client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0), expected, "{mode}");
        copied(&options).await;
    }
    // Signed by nobody that the system trusts.
    let error = failure(&with("verify-full")).await;
    assert!(error.to_string().contains("certificate"), "{error}");
}
