//! Bad input of every kind: the process says what is wrong and what to do, keeps serving whoever is not affected, never panics.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::api::Mood;
use testkit::client::{self, Client, Query};
use testkit::postgres::{Options, Postgres, Version};
use testkit::process::ZeroCache;
use testkit::slot::Holder;

use crate::app::{Site, all_issues, client_schema, cmp, fence, query, with_log};

/// Starts a server that cannot work and returns its log once it contains all of the words.
pub fn failing_start(mut server: ZeroCache, words: &[&str]) -> Result<String> {
    server.spawn()?;
    wait_for_complaint(&mut server, words)
}

/// Waits until a server that is not ready has said all of the words.
pub fn wait_for_complaint(server: &mut ZeroCache, words: &[&str]) -> Result<String> {
    let missing = |log: &str| {
        let log = log.to_lowercase();
        words
            .iter()
            .filter(|word| !log.contains(&word.to_lowercase()))
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for _ in 0..300 {
        let running = server.is_running();
        let log = server.log();
        ensure!(!log.contains("panicked at"), "the server panicked:\n{log}");
        ensure!(server.get("/").map_or(true, |(status, _)| status != 200), "the server claims to be ready:\n{log}");
        if missing(&log).is_empty() {
            return Ok(log);
        }
        ensure!(running, "the server ended without saying {:?}:\n{log}", missing(&log));
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the server did not say {:?} within 15 s:\n{}", missing(&server.log()), server.log())
}

#[test]
fn an_upstream_that_is_not_there_is_named() -> Result<()> {
    let port = testkit::free_ports(1)?;
    let log = failing_start(
        ZeroCache::new(&format!("postgres://somebody:top-secret@127.0.0.1:{port}/nothing"))?,
        &["ZERO_UPSTREAM_DB", &format!("127.0.0.1:{port}"), "refused"],
    )?;
    ensure!(!log.contains("top-secret"), "the password is in the log:\n{log}");
    Ok(())
}

#[test]
fn a_database_that_does_not_exist_is_named() -> Result<()> {
    let postgres = Postgres::shared(Version::V15)?;
    failing_start(
        ZeroCache::new(&postgres.url("no_such_database"))?,
        &["no_such_database", "does not exist", "ZERO_UPSTREAM_DB"],
    )?;
    Ok(())
}

#[test]
fn an_upstream_address_that_is_none_is_refused() -> Result<()> {
    let log = failing_start(ZeroCache::new("mysql://root:top-secret@localhost/db")?, &["ZERO_UPSTREAM_DB"])?;
    ensure!(!log.contains("top-secret"), "the password is in the log:\n{log}");
    failing_start(ZeroCache::new("")?, &["ZERO_UPSTREAM_DB"])?;
    Ok(())
}

#[test]
fn settings_that_make_no_sense_are_named() -> Result<()> {
    let url = Postgres::shared(Version::V15)?.url("postgres");
    for (name, value) in [
        ("ZERO_PORT", "many"),
        ("ZERO_APP_ID", "Not An App"),
        ("ZERO_NUM_SYNC_WORKERS", "-3"),
        ("ZERO_AUTO_RESET", "maybe"),
    ] {
        failing_start(ZeroCache::new(&url)?.env(name, value), &[name])?;
    }
    Ok(())
}

#[test]
fn a_postgres_without_logical_wal_is_refused() -> Result<()> {
    let postgres = Postgres::start_with(Version::V15, Options { wal_level: "replica", ..Options::default() })?;
    failing_start(ZeroCache::new(&postgres.url("postgres"))?, &["wal_level", "logical"])?;
    Ok(())
}

#[test]
fn a_postgres_older_than_15_is_refused() -> Result<()> {
    let postgres = Postgres::start(Version::V14)?;
    failing_start(ZeroCache::new(&postgres.url("postgres"))?, &["14", "15"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_broken_replica_file_is_left_alone() -> Result<()> {
    let site = Site::prepare("foreign_replica").await?;
    let file = site.server.replica_file();
    let folder = file.parent().context("the replica file is in a folder")?.to_owned();

    let foreign = folder.join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign)?;
    connection.execute_batch(
        "CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT); INSERT INTO accounts VALUES (1, 'me')",
    )?;
    drop(connection);
    let garbage = folder.join("garbage.db");
    fs::write(&garbage, "this is the only copy of my thesis".repeat(1000))?;

    for path in [&foreign, &garbage] {
        let before = fs::read(path)?;
        let name = path.display().to_string();
        failing_start(ZeroCache::new(&site.database.url())?.env("ZERO_REPLICA_FILE", &name), &[&name, "replica file"])?;
        ensure!(fs::read(path)? == before, "{name} was changed");
    }
    // A folder that is missing is made, but not where a file is in the way.
    let nowhere = garbage.join("folder/replica.db").display().to_string();
    failing_start(
        ZeroCache::new(&site.database.url())?.env("ZERO_REPLICA_FILE", &nowhere),
        &[&garbage.display().to_string(), "ZERO_REPLICA_FILE"],
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_cannot_hold_is_left_out_by_name() -> Result<()> {
    let mut site = Site::prepare("unfit_keys").await?;
    let setup = "
        CREATE TABLE account (id numeric(20) PRIMARY KEY, v text);
        INSERT INTO account VALUES (1234567890123456789, 'a'), (1234567890123456790, 'b');
        CREATE TABLE reading (at timestamptz PRIMARY KEY, v text);
        INSERT INTO reading VALUES ('infinity', 'x'), ('2024-01-01Z', 'y');";
    site.database.execute(setup).await?;
    // Of the original server, in its own journal mode, which SQLite does not open.
    let mut original = b"SQLite format 3\0\x10\x00\x03\x03".to_vec();
    original.resize(4000, 0);
    original.extend_from_slice(b"CREATE TABLE \"_zero.replicationConfig\" (");
    let file = site.server.replica_file();
    fs::write(&file, &original)?;
    site.server.start()?;
    ensure!(fs::read(file.with_file_name(format!("{}.before-1", file_name(&file)?)))? == original);

    let key = |column: &str| json!({column: {"type": "number"}, "v": {"type": "string"}});
    let mut schema = client_schema();
    schema["tables"]["reading"] = json!({"columns": key("at"), "primaryKey": ["at"]});
    let readings = query(json!({"table": "reading", "orderBy": [["at", "asc"]]}));
    let client = Client::start(client::Options::new(site.server.port(), schema.clone()), &[fence(), readings]).await?;
    let seen = |client: &Client| -> Vec<Value> {
        client.store().rows.get("reading").into_iter().flat_map(|rows| rows.values()).map(|r| r["v"].clone()).collect()
    };
    site.settle(&[&client]).await?;
    ensure!(seen(&client) == ["y"], "{:?}", seen(&client));
    let changes =
        "UPDATE reading SET at = '2025-01-01Z' WHERE v = 'x'; UPDATE reading SET at = '-infinity' WHERE v = 'y';
        INSERT INTO account VALUES (1234567890123456791, 'c'); UPDATE account SET v = v || v;";
    site.database.execute(changes).await?;
    site.settle(&[&client]).await?;
    ensure!(seen(&client) == ["x"], "{:?}", seen(&client));

    schema["tables"]["account"] = json!({"columns": key("id"), "primaryKey": ["id"]});
    let mut refused = Client::new(client::Options::new(site.server.port(), schema));
    refused.want(&[fence()]);
    refused.connect().await?;
    refused.wait_within(Duration::from_secs(10), "a refusal", |store| store.error.is_some()).await?;
    let error = format!("{:?}", refused.store().error);
    ensure!(error.contains("account") && error.contains("tell apart"), "{error}");

    site.server.terminate()?;
    site.server.start()?;
    let log = site.server.log();
    for (words, count) in [("clients hold a numeric as a number of 15 digits", 1), ("the original zero-cache", 1)] {
        ensure!(log.matches(words).count() == count, "'{words}' in the log:\n{log}");
    }
    site.server.check_log()
}

fn file_name(path: &std::path::Path) -> Result<String> {
    Ok(path.file_name().context("a file has a name")?.to_string_lossy().into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_queries_and_malformed_asts_hurt_only_themselves() -> Result<()> {
    let site = Site::start("malformed_ast").await?;
    let good = site.client(&[all_issues(), fence()]).await?;
    let unknown = Query::named("no_such_query", json!([1]));
    let exists = |related: Value| json!({"table": "issue", "where": {"type": "correlatedSubquery", "op": "EXISTS", "related": related}});
    let malformed = [
        json!(null),
        json!("issue"),
        json!({}),
        json!({"table": 7}),
        json!({"table": "no_such_table"}),
        json!({"table": "issue", "limit": -1}),
        json!({"table": "issue", "limit": "ten"}),
        json!({"table": "issue", "orderBy": [["no_such_column", "asc"]]}),
        json!({"table": "issue", "orderBy": [["id", "sideways"]]}),
        json!({"table": "issue", "where": cmp("no_such_column", "=", json!(1))}),
        json!({"table": "issue", "where": cmp("title", "~", json!("x"))}),
        json!({"table": "issue", "where": cmp("id", "IN", json!("i1"))}),
        json!({"table": "issue", "where": cmp("rank", "LIKE", json!(3))}),
        json!({"table": "issue", "where": {"type": "nor", "conditions": []}}),
        json!({"table": "issue", "start": {"row": {"no_such_column": 1}, "exclusive": true}}),
        json!({"table": "issue", "start": 5}),
        json!({"table": "issue", "related": [{}]}),
        exists(json!({})),
        exists(
            json!({"correlation": {"parentField": [], "childField": []}, "subquery": {"table": "comment", "alias": "c"}}),
        ),
        exists(
            json!({"correlation": {"parentField": ["id"], "childField": ["id", "pos"]}, "subquery": {"table": "comment", "alias": "c"}}),
        ),
        exists(
            json!({"correlation": {"parentField": ["id"], "childField": ["nope"]}, "subquery": {"table": "comment", "alias": "c"}}),
        ),
    ];
    for bad in malformed.iter().cloned().map(query).chain([unknown]) {
        let mut client = Client::new(site.options());
        client.want(&[fence(), bad.clone()]);
        client.connect().await?;
        // Either this query is reported and the connection lives on, or the connection is ended with an error: never silence.
        let outcome = client
            .wait_within(Duration::from_secs(10), "a report", |store| {
                !store.transform_errors.is_empty() || store.error.is_some() || store.got.contains(&bad.hash())
            })
            .await;
        outcome.with_context(|| format!("query {bad:?}"))?;
        let store = client.store();
        let harmless = [json!({"table": "issue", "where": cmp("rank", "LIKE", json!(3))})].map(query);
        ensure!(!store.got.contains(&bad.hash()) || harmless.contains(&bad), "a malformed query was served: {bad:?}");
        site.settle(&[&good]).await.with_context(|| format!("after {bad:?}"))?;
    }
    site.check(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_end_their_own_connection() -> Result<()> {
    let mut site = Site::start("malformed_message").await?;
    let good = site.client(&[all_issues(), fence()]).await?;
    let frames = [
        "",
        "nonsense",
        "{}",
        "[]",
        "[1,2,3]",
        "[\"noSuchMessage\",{}]",
        "[\"ping\"",
        "[\"changeDesiredQueries\",{}]",
        "[\"changeDesiredQueries\",{\"desiredQueriesPatch\":[{\"op\":\"jump\"}]}]",
        "[\"changeDesiredQueries\",{\"desiredQueriesPatch\":\"all\"}]",
        "[\"deleteClients\",{\"clientIDs\":[1]}]",
        "[\"push\",{\"clientGroupID\":7}]",
        "[\"updateAuth\",[]]",
        "[\"initConnection\",{\"desiredQueriesPatch\":[{\"op\":\"put\"}]}]",
        "[\"ackMutationResponses\",{\"id\":\"one\"}]",
    ];
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for frame in frames.into_iter().chain([deep.as_str()]) {
        let mut client = site.client(&[fence()]).await?;
        client.send_text(frame.to_owned()).await?;
        let label = frame.chars().take(60).collect::<String>();
        let (error, _) = client.wait_closed().await.with_context(|| format!("after {label}"))?;
        let error = error.with_context(|| format!("the connection ended without an error message after {label}"))?;
        ensure!(
            error["kind"] == json!("InvalidMessage") || error["kind"] == json!("Internal"),
            "after {label}: {error}"
        );
        ensure!(error["message"].is_string() && error["origin"] == json!("zeroCache"), "after {label}: {error}");
        site.settle(&[&good]).await?;
    }
    ensure!(site.server.is_running());
    site.check(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_none_is_closed() -> Result<()> {
    let mut site = Site::start("bad_handshake").await?;
    for (what, change) in [
        (
            "an unsupported version",
            Box::new(|options: &mut testkit::client::Options| options.protocol_version = 7) as Box<dyn Fn(&mut _)>,
        ),
        ("an empty client", Box::new(|options: &mut testkit::client::Options| options.client_id.clear())),
        ("an empty group", Box::new(|options: &mut testkit::client::Options| options.client_group_id.clear())),
    ] {
        let mut options = site.options();
        change(&mut options);
        let mut client = Client::new(options);
        client.want(&[fence()]);
        ensure!(client.connect().await.is_err(), "{what} was accepted");
    }
    let mut schemaless = site.options();
    schemaless.client_schema =
        json!({"tables": {"issue": {"columns": {"id": {"type": "number"}}, "primaryKey": ["id"]}}});
    let mut client = Client::new(schemaless);
    client.want(&[fence()]);
    client.connect().await?;
    let (error, _) = client.wait_closed().await?;
    ensure!(error.as_ref().is_some_and(|e| e["kind"] == json!("SchemaVersionNotSupported")), "{error:?}");
    ensure!(site.server.is_running());
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_down_or_talks_nonsense_stops_nobody_else() -> Result<()> {
    let site = Site::start("api_down").await?;
    let good = site.client(&[all_issues(), fence()]).await?;
    let people = query(json!({"table": "person"}));
    for mood in [
        Mood::Down,
        Mood::Says(500, "oops".into()),
        Mood::Says(404, "<html>not here</html>".into()),
        Mood::Says(401, "who are you?".into()),
        Mood::Says(200, String::new()),
        Mood::Says(200, "<html>welcome</html>".into()),
        Mood::Says(200, "{}".into()),
        Mood::Says(200, "[\"transformed\", 5]".into()),
        Mood::Says(200, "{\"kind\":\"QueryResponse\",\"queries\":[{\"id\":1}]}".into()),
        Mood::Says(200, "{\"kind\":\"TransformFailed\",\"origin\":\"server\",\"reason\":\"database\",\"message\":\"no\",\"queryIDs\":[]}".into()),
    ] {
        let label = format!("{mood:?}");
        site.api.set_mood(mood);
        let mut client = Client::new(site.options());
        client.want(&[people.clone(), fence()]);
        client.connect().await?;
        let (error, _) = client.wait_closed().await.with_context(|| format!("while the API server is {label}"))?;
        let error = error.with_context(|| format!("no error message while the API server is {label}"))?;
        ensure!(error["kind"] == json!("TransformFailed"), "while the API server is {label}: {error}");
        site.settle(&[&good]).await.with_context(|| format!("while the API server is {label}"))?;

        // The application's developer mends it, and the same client works.
        site.api.set_mood(Mood::Normal);
        client.connect().await?;
        client.wait_got(&[people.clone(), fence()]).await?;
        site.check(&client).await?;
    }
    site.check(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_wait_for_an_api_server_that_is_down() -> Result<()> {
    let site = Site::start("mutate_down").await?;
    let good = site.client(&[all_issues(), fence()]).await?;
    for mood in [Mood::Down, Mood::Says(503, "later".into()), Mood::Says(200, "nonsense".into())] {
        let label = format!("{mood:?}");
        let mut client = site.client(&[all_issues(), fence()]).await?;
        site.api.set_mood(mood);
        let id = client.push("rename", json!({"id": "i1", "title": label.replace('"', "")})).await?;
        let (error, _) = client.wait_closed().await?;
        let error = error.context("no error message")?;
        ensure!(error["kind"] == json!("PushFailed"), "while the API server is {label}: {error}");
        site.api.set_mood(Mood::Normal);
        client.connect().await?;
        let own = client.options.client_id.clone();
        client.wait_for("the mutation", |store| store.last_mutation_ids.get(&own) == Some(&id)).await?;
        site.check(&client).await?;
    }
    site.check(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_somebody_else_uses_is_reported_and_waited_for() -> Result<()> {
    let mut site = Site::start("slot_in_use").await?;
    let mut client = site.client(&[all_issues(), fence()]).await?;
    site.server.terminate()?;
    let upstream = site.database.connect().await?;
    let slot: String = upstream
        .query_one("SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()", &[])
        .await
        .context("the server keeps one replication slot")?
        .get(0);
    let publications: String =
        upstream.query_one("SELECT string_agg(pubname, ',') FROM pg_publication", &[]).await?.get(0);
    let other = Holder::start(&site.database, &slot, &publications).await?;
    site.database.execute("UPDATE issue SET title = 'while the slot was taken' WHERE id = 'i1'").await?;
    site.server.spawn()?;
    // Either it waits and says for what, or it takes the slot over, which it is its to take, and says so.
    let reported = tokio::time::timeout(Duration::from_secs(20), async {
        let says = || site.server.last_log().contains(&slot) && site.server.last_log().contains(" WARN ");
        while !says() && !other.is_ended() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    ensure!(reported.is_ok(), "nothing about the slot {slot} in the log:\n{}", site.server.last_log());
    drop(other);
    with_log(site.server.wait_ready(Duration::from_secs(40)), &site.server)?;
    client.connect().await?;
    let checked = site.check(&client).await;
    with_log(checked, &site.server)?;
    ensure!(!site.server.log().contains("panicked at"));
    Ok(())
}

/// That this node has no descriptor left says nothing of a query: its client is told to come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_finds_no_descriptor_is_no_failed_query() -> Result<()> {
    let mut site = Site::prepare("descriptors").await?;
    site.server =
        site.server.started_by(&["sh", "-c", "ulimit -n 256; exec \"$0\""]).allow_error("accept a connection");
    site.server.start()?;
    let mut asking = site.client(&[fence()]).await?;
    let people = query(json!({"table": "person"}));
    // No connection to the API server is kept for later.
    site.api.set_mood(Mood::Down);
    let mut failing = Client::new(site.options());
    failing.want(std::slice::from_ref(&people));
    failing.connect().await?;
    failing.wait_closed().await?;
    site.api.set_mood(Mood::Normal);

    let mut strangers = Vec::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !site.server.last_log().contains("accept a connection") {
        ensure!(std::time::Instant::now() < deadline, "descriptors do not run out:\n{}", site.server.log_tail(20));
        if strangers.len() < 400 {
            strangers.push(std::net::TcpStream::connect(("127.0.0.1", site.server.port()))?);
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    asking.change_queries(std::slice::from_ref(&people), &[]).await?;
    let (error, _) = asking.wait_closed().await.with_context(|| site.server.log_tail(20))?;
    let error = error.context("no error message")?;
    ensure!(error["kind"] == json!("ServerOverloaded"), "{error}");
    drop(strangers);
    asking.connect().await?;
    asking.wait_got(&[people, fence()]).await?;
    with_log(site.check(&asking).await, &site.server)?;
    site.server.check_log()
}
