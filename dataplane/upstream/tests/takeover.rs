//! Databases that the reference has set up, in what its releases left; and having them back.
//!
//! What is written here stands for the reference: its tables, the signatures of its functions and the names of its triggers.

use tokio::sync::mpsc;
use tokio_postgres::Client;
use upstream::{Error, Options, Stream, belongings, connect, decommission, initial_copy};

use crate::model::{Fixture, MARK, assert_equals_copy, catch_up, copied, resume};

/// What differs between releases.
#[derive(Clone, Copy, Debug)]
struct Release {
    /// The last of its migrations.
    version: i32,
    /// Its `replicas` have ids.
    has_ids: bool,
    /// It keeps what it saw last, and has `update_schemas`.
    keeps_schema: bool,
    /// One trigger for each command, as well as functions with other arguments.
    triggers_by_tag: bool,
}

const OLDEST: Release = Release { version: 18, has_ids: false, keeps_schema: false, triggers_by_tag: true };
const NEWEST: Release = Release { version: 23, has_ids: true, keeps_schema: true, triggers_by_tag: false };
const RELEASES: [Release; 4] = [
    OLDEST,
    Release { version: 20, triggers_by_tag: false, ..OLDEST },
    Release { version: 21, keeps_schema: true, triggers_by_tag: false, ..OLDEST },
    NEWEST,
];

/// What a release has set up for an application and shard in a database.
fn set_up(release: Release, app: &str, shard: u32) -> String {
    let schema = format!("{app}_{shard}");
    let specs_type = if release.keeps_schema { "JSON" } else { "TEXT" };
    let specs = format!(
        "SELECT json_build_object('tables', (SELECT count(*) FROM pg_publication_tables WHERE pubname = '_{app}_public_{shard}'))"
    );
    let replicas = if release.has_ids {
        "id TEXT PRIMARY KEY DEFAULT replace(gen_random_uuid()::text, '-', ''), rank BIGSERIAL, slot TEXT NOT NULL,
         version TEXT NOT NULL, \"initialSchema\" JSON"
    } else {
        "slot TEXT PRIMARY KEY, version TEXT NOT NULL, \"initialSchema\" JSON NOT NULL"
    };
    let watch = match (release.triggers_by_tag, release.keeps_schema) {
        (true, _) => format!(
            "CREATE FUNCTION {schema}.notice_ignore(tag TEXT, target RECORD) RETURNS VOID LANGUAGE plpgsql AS 'BEGIN END';
             CREATE FUNCTION {schema}.emit_ddl_end(tag TEXT) RETURNS VOID LANGUAGE plpgsql AS $$ BEGIN
               PERFORM pg_logical_emit_message(true, '{app}/{shard}', {schema}.schema_specs()); END $$;
             CREATE FUNCTION {schema}.emit_alter_table() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
               PERFORM {schema}.emit_ddl_end('ALTER TABLE'); END $$;
             CREATE EVENT TRIGGER {app}_alter_table_{shard} ON ddl_command_end WHEN TAG IN ('ALTER TABLE')
               EXECUTE FUNCTION {schema}.emit_alter_table();"
        ),
        (false, keeps_schema) => {
            let update = if keeps_schema {
                format!(
                    "CREATE TABLE {schema}.\"publishedSchema\" (current JSON, exists BOOL PRIMARY KEY DEFAULT true CHECK (exists));
                     INSERT INTO {schema}.\"publishedSchema\" VALUES ({schema}.schema_specs());
                     CREATE FUNCTION {schema}.update_schemas(event_type TEXT, tag TEXT, target RECORD) RETURNS VOID LANGUAGE plpgsql AS $$ BEGIN
                       PERFORM pg_logical_emit_message(true, '{app}/{shard}/ddl', json_build_object('type', event_type)::text); END $$;
                     CREATE FUNCTION {schema}.update_schemas() RETURNS VOID LANGUAGE plpgsql AS $$ BEGIN
                       PERFORM {schema}.update_schemas('schemaSnapshot', 'MANUAL', NULL); END $$;"
                )
            } else {
                String::new()
            };
            format!(
                "CREATE FUNCTION {schema}.notice_ignore(reason TEXT, tag TEXT, target RECORD) RETURNS VOID LANGUAGE plpgsql AS 'BEGIN END';
                 {update}
                 CREATE FUNCTION {schema}.emit_ddl_end() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                   PERFORM pg_logical_emit_message(true, '{app}/{shard}/ddl', '{{}}'); END $$;
                 CREATE EVENT TRIGGER {app}_ddl_end_{shard} ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE', 'COMMENT')
                   EXECUTE FUNCTION {schema}.emit_ddl_end();"
            )
        }
    };
    format!(
        "CREATE SCHEMA IF NOT EXISTS {app};
         CREATE TABLE IF NOT EXISTS {app}.permissions (permissions JSONB, hash TEXT, lock BOOL PRIMARY KEY DEFAULT true CHECK (lock));
         CREATE OR REPLACE FUNCTION {app}.set_permissions_hash() RETURNS TRIGGER LANGUAGE plpgsql AS
           'BEGIN NEW.hash = md5(NEW.permissions::text); RETURN NEW; END';
         CREATE OR REPLACE TRIGGER on_set_permissions BEFORE INSERT OR UPDATE ON {app}.permissions
           FOR EACH ROW EXECUTE FUNCTION {app}.set_permissions_hash();
         INSERT INTO {app}.permissions VALUES ('{{\"tables\": {{}}}}') ON CONFLICT DO NOTHING;
         CREATE SCHEMA {schema};
         CREATE TABLE {schema}.\"versionHistory\" (\"dataVersion\" INT NOT NULL, \"schemaVersion\" INT NOT NULL,
           \"minSafeVersion\" INT NOT NULL, lock CHAR(1) PRIMARY KEY DEFAULT 'v' CHECK (lock = 'v'));
         INSERT INTO {schema}.\"versionHistory\" VALUES ({version}, {version}, 1);
         CREATE TABLE {schema}.clients (\"clientGroupID\" TEXT NOT NULL, \"clientID\" TEXT NOT NULL, \"lastMutationID\" BIGINT NOT NULL,
           \"userID\" TEXT, PRIMARY KEY (\"clientGroupID\", \"clientID\"));
         INSERT INTO {schema}.clients VALUES ('g', 'c', 7, 'u');
         CREATE TABLE {schema}.mutations (\"clientGroupID\" TEXT NOT NULL, \"clientID\" TEXT NOT NULL, \"mutationID\" BIGINT NOT NULL,
           result JSON NOT NULL, PRIMARY KEY (\"clientGroupID\", \"clientID\", \"mutationID\"));
         CREATE PUBLICATION _{app}_public_{shard} FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true);
         CREATE PUBLICATION _{app}_metadata_{shard} FOR TABLE {app}.permissions, {schema}.clients, {schema}.mutations;
         CREATE TABLE {schema}.\"shardConfig\" (publications TEXT[] NOT NULL, \"ddlDetection\" BOOL NOT NULL,
           lock BOOL PRIMARY KEY DEFAULT true CHECK (lock));
         INSERT INTO {schema}.\"shardConfig\" VALUES (ARRAY['_{app}_metadata_{shard}', '_{app}_public_{shard}'], true);
         CREATE TABLE {schema}.replicas ({replicas}, \"initialSyncContext\" JSON, \"subscriberContext\" JSON);
         INSERT INTO {schema}.replicas (slot, version, \"initialSchema\", \"initialSyncContext\", \"subscriberContext\")
           VALUES ('{schema}_a', '01', '{{}}', '{{}}', '{{}}');
         CREATE FUNCTION {schema}.get_trigger_context() RETURNS RECORD LANGUAGE plpgsql AS 'DECLARE r RECORD; BEGIN SELECT 1 AS query INTO r; RETURN r; END';
         CREATE FUNCTION {schema}.schema_specs() RETURNS {specs_type} STABLE LANGUAGE sql AS $$ {specs} $$;
         CREATE FUNCTION {schema}.emit_ddl_start() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_advisory_xact_lock(4353719051050729648); END $$;
         {watch}
         CREATE EVENT TRIGGER {app}_ddl_start_{shard} ON ddl_command_start WHEN TAG IN ('CREATE TABLE', 'ALTER TABLE')
           EXECUTE FUNCTION {schema}.emit_ddl_start();",
        version = release.version,
    )
}

/// With its slot, which cannot be made in the same transaction.
async fn set_up_by(fixture: &Fixture, release: Release, app: &str, shard: u32) {
    fixture.run(&set_up(release, app, shard)).await;
    let slot = format!("SELECT pg_create_logical_replication_slot('{app}_{shard}_a', 'pgoutput')");
    fixture.run(&slot).await;
}

/// What the reference does first, in a transaction of its own: it notes its version, after the migrations that it lacks.
async fn begin_reference(fixture: &Fixture, version: i32) {
    fixture
        .run(&format!(
            "INSERT INTO zero_0.\"versionHistory\" AS v (\"dataVersion\", \"schemaVersion\", \"minSafeVersion\") VALUES ({version}, {version}, 1)
             ON CONFLICT (lock) DO UPDATE SET \"dataVersion\" = {version}, \"schemaVersion\" = greatest(v.\"schemaVersion\", {version})"
        ))
        .await;
}

/// All that is in the catalog under names of Zero.
async fn catalog(client: &Client) -> Vec<String> {
    let rows = client
        .query(
            "SELECT concat('function ', f.oid::regprocedure, ' ', md5(pg_get_functiondef(f.oid))) FROM pg_proc f
             JOIN pg_namespace n ON n.oid = f.pronamespace WHERE n.nspname LIKE 'zero%'
             UNION ALL SELECT concat('trigger ', t.evtname, ' ', t.evtevent, ' ', t.evtenabled, ' ', t.evttags, ' ', t.evtfoid::regproc) FROM pg_event_trigger t
             UNION ALL SELECT concat('column ', a.attrelid::regclass, '.', a.attname, ' ', a.atttypid::regtype) FROM pg_attribute a
               JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'v') JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname LIKE 'zero%' AND a.attnum > 0
             UNION ALL SELECT concat('published ', pubname, ' ', schemaname, '.', tablename) FROM pg_publication_tables
             UNION ALL SELECT concat('slot ', slot_name) FROM pg_replication_slots
             ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn only<'a>(catalog: &'a [String], kind: &str, part: &str) -> Vec<&'a str> {
    catalog.iter().filter(|line| line.starts_with(kind) && line.contains(part)).map(String::as_str).collect()
}

async fn failure(options: &Options) -> Error {
    let (sender, _receiver) = mpsc::channel(1);
    initial_copy(options, sender).await.unwrap_err()
}

async fn text(fixture: &Fixture, sql: &str) -> String {
    fixture.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

const KEPT: &str = "SELECT concat(c.\"lastMutationID\", c.\"userID\", p.permissions, length(p.hash)) FROM zero_0.clients c, zero.permissions p";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_release_is_taken_over_and_has_its_own_back() {
    let mut releases = tokio::task::JoinSet::new();
    for release in RELEASES {
        releases.spawn(is_taken_over_and_has_its_own_back(release));
    }
    while let Some(done) = releases.join_next().await {
        done.unwrap();
    }
}

async fn is_taken_over_and_has_its_own_back(release: Release) {
    let fixture =
        Fixture::start(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);")).await;
    set_up_by(&fixture, release, "zero", 0).await;
    // Neighbours.
    set_up_by(&fixture, NEWEST, "zero", 1).await;
    set_up_by(&fixture, OLDEST, "zerox", 0).await;
    let before = catalog(&fixture.client).await;
    let kept = text(&fixture, KEPT).await;

    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture
        .run("ALTER TABLE t ADD COLUMN c int DEFAULT 3; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (2)")
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!((model.spec("t").unwrap().columns.len(), model.sorted("u").len()), (2, 1));
    assert_eq!(text(&fixture, KEPT).await, kept, "{release:?}");
    let during = catalog(&fixture.client).await;
    for neighbour in ["zero_1", "zerox_0", "_1 "] {
        for kind in ["function", "trigger", "column", "slot"] {
            assert_eq!(only(&during, kind, neighbour), only(&before, kind, neighbour), "{release:?}");
        }
    }
    assert_eq!(only(&during, "function", "get_trigger_context()").len(), 2, "of the neighbours: {release:?}");
    assert!(
        only(&during, "trigger", "zero_ddl_start_0").is_empty()
            && !only(&during, "trigger", "zero_ddl_drop_0").is_empty()
    );

    // It comes back as an older release than was there, as the same, and as a newer one; each notes that first.
    begin_reference(&fixture, release.version).await;
    let told = loop {
        match stream.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(told.to_string().contains("Rocicorp's zero-cache has begun"), "{told}");
    let after = catalog(&fixture.client).await;
    let functions = |catalog: &[String]| {
        only(catalog, "function", "zero_0.")
            .into_iter()
            .filter(|f| !f.contains("hand_back"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(functions(&after), functions(&before), "{release:?}");
    assert_eq!(only(&after, "trigger", ""), only(&before, "trigger", ""), "{release:?}");
    assert_eq!(only(&after, "published _zero_", ""), {
        let mut published = only(&before, "published _zero_", "");
        published.push("published _zero_public_0 public.u");
        published.push("published _zero_public_1 public.u");
        published.sort_unstable();
        published
    });
    assert_eq!(text(&fixture, "SELECT count(*)::text FROM zero_0.replicas").await, "0");
    assert_eq!(text(&fixture, "SELECT \"ddlDetection\"::text FROM zero_0.\"shardConfig\"").await, "true");

    // As long as it is seen to begin, it is not disturbed; when it has streamed and does not any more, it is taken over again,
    // and what ours had before is not continued.
    let error = failure(&fixture.options).await;
    assert!(matches!(&error, Error::Occupied { message } if message.contains("just now")), "{error}");
    let unclaimed =
        |catalog: Vec<String>| catalog.into_iter().filter(|line| line != "slot zero_0_a").collect::<Vec<_>>();
    let waiting = catalog(&fixture.client).await;
    assert!(!waiting.contains(&"slot zero_0_a".to_owned()), "what it had streamed from holds nothing back");
    assert_eq!(waiting, unclaimed(after));
    fixture
        .run("INSERT INTO zero_0.replicas (slot, version, \"initialSchema\", \"initialSyncContext\", \"subscriberContext\") VALUES ('zero_0_b', '02', '{}', '{}', '{}');
              ALTER TABLE t DROP COLUMN c")
        .await;
    let error = Stream::start(&fixture.options, resume(&plan, model.version)).await.unwrap_err();
    assert!(matches!(&error, Error::ResetRequired { .. }), "{error}");
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
    assert_eq!(text(&fixture, KEPT).await, kept, "{release:?}");
}

/// The reference on a database that only this server has set up: its tables are there, and it makes its own triggers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_finds_its_tables_made_and_no_triggers() {
    let fixture = Fixture::start(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)")).await;
    let (plan, _) = copied(&fixture.options).await;
    let history = "SELECT concat_ws(' ', \"dataVersion\", \"schemaVersion\", \"minSafeVersion\", lock) FROM zero_0.\"versionHistory\"";
    let noted = text(&fixture, history).await;
    assert_eq!(noted, "17 22 1 v");
    Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    assert_eq!(text(&fixture, history).await, noted, "a start changes nothing");
    // As a release that knows no ids; no release has this version, so that each of them writes another.
    begin_reference(&fixture, OLDEST.version).await;
    let left = catalog(&fixture.client).await;
    assert!(only(&left, "trigger", "").is_empty() && only(&left, "slot", "").is_empty());
    assert_eq!(text(&fixture, "SELECT \"ddlDetection\"::text FROM zero_0.\"shardConfig\"").await, "false");
    fixture
        .run("INSERT INTO zero_0.replicas (slot, version, \"initialSchema\", \"initialSyncContext\") VALUES ('zero_0_1796094084351', '01', '{}', '{}');
              ALTER TABLE t ADD COLUMN c int; SELECT zero_0.update_schemas()")
        .await;
    fixture.run("SELECT pg_create_logical_replication_slot('zero_0_1796094084351', 'pgoutput')").await;
    fixture.run("UPDATE zero_0.replicas SET \"subscriberContext\" = '{}'").await;
    let (_, model) = copied(&fixture.options).await;
    assert_eq!(model.spec("t").unwrap().columns.len(), 2);
    assert_eq!(only(&catalog(&fixture.client).await, "slot", "").len(), 1, "its slot is gone");
    assert_eq!(text(&fixture, history).await, noted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_is_not_disturbed_while_it_is_at_work() {
    let fixture = Fixture::start(MARK).await;
    set_up_by(&fixture, NEWEST, "zero", 0).await;
    let before = catalog(&fixture.client).await;
    let url = fixture.postgres.url("postgres");
    let streaming = std::process::Command::new("/usr/lib/postgresql/15/bin/pg_recvlogical")
        .args([
            "-d",
            &format!("{url}?application_name=zero-replicator"),
            "--slot",
            "zero_0_a",
            "--start",
            "-f",
            "/dev/null",
        ])
        .args(["-o", "proto_version=1", "-o", "publication_names=_zero_metadata_0"])
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut streaming = streaming.unwrap();
    while text(&fixture, "SELECT count(*)::text FROM pg_replication_slots WHERE active").await == "0" {}
    let error = failure(&fixture.options).await;
    let Error::Occupied { message } = &error else { panic!("{error:?}") };
    for part in ["zero_0", "slot zero_0_a", "zero-replicator", "stop it"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(error.entry().class, fault::Class::Person);
    assert_eq!(catalog(&fixture.client).await, before, "nothing is changed");
    // And nothing is removed.
    let mut client = connect(&fixture.options.address, "test").await.unwrap();
    let error = decommission(&mut client, &fixture.options.app, true).await.unwrap_err().to_string();
    assert!(error.contains("zero-replicator") && error.contains("stop it first"), "{error}");
    assert_eq!(catalog(&fixture.client).await, before);
    streaming.kill().unwrap();
    streaming.wait().unwrap();
    while text(&fixture, "SELECT count(*)::text FROM pg_replication_slots WHERE active").await == "1" {}
    // While it copies, its slot is idle.
    let copying = connect(&fixture.options.address, "zero-initial-sync-replication-session").await.unwrap();
    let error = failure(&fixture.options).await.to_string();
    assert!(error.contains("makes its copy"), "{error}");
    drop(copying);
    while text(
        &fixture,
        "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE '%sync-replication-session'",
    )
    .await
        == "1"
    {}
    copied(&fixture.options).await;
}

/// Each is told by one line that says what it is about, and the database is as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_the_reference_leaves_it_is_named_and_left_alone() {
    let fixture = Fixture::start(MARK).await;
    let clean = "DO $$ DECLARE it RECORD; BEGIN
                   FOR it IN SELECT evtname FROM pg_event_trigger LOOP EXECUTE format('DROP EVENT TRIGGER %I', it.evtname); END LOOP;
                   FOR it IN SELECT pubname FROM pg_publication LOOP EXECUTE format('DROP PUBLICATION %I', it.pubname); END LOOP;
                 END $$; DROP SCHEMA IF EXISTS zero_0 CASCADE; DROP SCHEMA IF EXISTS zero CASCADE;";
    for (damage, parts) in [
        ("UPDATE zero_0.\"versionHistory\" SET \"schemaVersion\" = 31, \"dataVersion\" = 31", ["newer", "31"]),
        ("UPDATE zero_0.\"versionHistory\" SET \"minSafeVersion\" = 40", ["newer", "40"]),
        ("ALTER TABLE zero_0.\"versionHistory\" RENAME \"schemaVersion\" TO v", ["versionHistory", "does not say"]),
        (
            "ALTER TABLE zero_0.\"versionHistory\" ALTER \"dataVersion\" TYPE text USING 'x'",
            ["versionHistory", "does not say"],
        ),
        ("ALTER TABLE zero_0.clients RENAME \"lastMutationID\" TO l", ["clients", "no column \"lastMutationID\""]),
        ("ALTER TABLE zero_0.clients ALTER \"lastMutationID\" TYPE text", ["clients", "type text and not int8"]),
        ("ALTER TABLE zero_0.mutations DROP CONSTRAINT mutations_pkey", ["mutations", "no unique index"]),
        ("ALTER TABLE zero_0.\"shardConfig\" DROP publications", ["shardConfig", "no column \"publications\""]),
        ("ALTER TABLE zero.permissions ALTER permissions TYPE text", ["permissions", "type text and not jsonb"]),
        // Somebody else's.
        (
            "DROP SCHEMA zero_0 CASCADE; CREATE SCHEMA zero_0; CREATE TABLE zero_0.clients (id int PRIMARY KEY, name text)",
            ["clients", "not the one of Zero"],
        ),
        (
            "DROP SCHEMA zero CASCADE; CREATE SCHEMA zero; CREATE TABLE zero.permissions (role text PRIMARY KEY)",
            ["permissions", "not the one of Zero"],
        ),
        (
            "DELETE FROM zero_0.clients; ALTER TABLE zero_0.clients ADD tenant int NOT NULL",
            ["clients", "\"tenant\" wants a value"],
        ),
        (
            "DROP TABLE zero_0.clients CASCADE; CREATE VIEW zero_0.clients AS SELECT 1 AS one",
            ["clients", "nothing was changed"],
        ),
    ] {
        fixture.run(clean).await;
        fixture.run(&set_up(NEWEST, "zero", 0)).await;
        fixture.run(damage).await;
        let before = catalog(&fixture.client).await;
        let error = failure(&fixture.options).await;
        assert!(matches!(&error, Error::Configuration { .. }), "{damage}: {error:?}");
        let message = error.to_string();
        assert!(
            parts.iter().all(|part| message.contains(part)) && message.contains("nothing was changed"),
            "{damage}: {message}"
        );
        assert_eq!(catalog(&fixture.client).await, before, "{damage}");
    }
    // What is only missing is made.
    for damage in [
        "DROP TABLE zero_0.replicas",
        "DROP TABLE zero_0.\"versionHistory\"",
        "DROP TABLE zero_0.mutations",
        "DROP FUNCTION zero_0.schema_specs()",
        "ALTER TABLE zero_0.clients DROP \"userID\"",
        "DROP PUBLICATION _zero_metadata_0",
        "DELETE FROM zero_0.\"shardConfig\"",
    ] {
        fixture.run(clean).await;
        fixture.run(&set_up(NEWEST, "zero", 0)).await;
        fixture.run(damage).await;
        let (_, model) = copied(&fixture.options).await;
        assert_eq!(model.spec("zero_0.clients").unwrap().columns.len(), 4, "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_goes_wholly_and_its_neighbours_stay() {
    let fixture = Fixture::start(MARK).await;
    set_up_by(&fixture, NEWEST, "zerox", 0).await;
    set_up_by(&fixture, NEWEST, "zero", 1).await;
    // A function of the whole application is replaced by an equal one.
    let others = async || {
        let mut all = catalog(&fixture.client).await;
        all.retain(|line| !line.contains("zero.set_permissions_hash"));
        all
    };
    let neighbours = others().await;
    let mut client = connect(&fixture.options.address, "test").await.unwrap();
    let app = &fixture.options.app;
    for by_reference in [false, true] {
        if by_reference {
            set_up_by(&fixture, OLDEST, "zero", 0).await;
        } else {
            copied(&fixture.options).await;
        }
        let found = belongings(&client, app, true).await.unwrap();
        for part in [
            "replication slot zero_0_a",
            "event trigger zero_ddl_end_0",
            "publication _zero_public_0",
            "schema zero_0 with clients, mutations",
        ] {
            assert!(
                by_reference && part.contains("trigger") || found.goes.iter().any(|line| line.starts_with(part)),
                "{part}: {found:?}"
            );
        }
        assert!(found.stays.iter().any(|line| line.contains("zero_1")) && found.streaming.is_none(), "{found:?}");
        decommission(&mut client, app, true).await.unwrap();
        assert_eq!(others().await, neighbours);
        assert!(belongings(&client, app, true).await.unwrap().goes.is_empty());
        decommission(&mut client, app, true).await.unwrap();
    }
    // The last shard takes the permissions along, if that is wanted.
    let last = upstream::App::new("zero", 1).unwrap();
    decommission(&mut client, &last, false).await.unwrap();
    assert_eq!(text(&fixture, "SELECT count(*)::text FROM zero.permissions").await, "1");
    let found = belongings(&client, &last, true).await.unwrap();
    assert_eq!(found.goes, ["schema zero with permissions"]);
    decommission(&mut client, &last, true).await.unwrap();
    assert!(only(&catalog(&fixture.client).await, "", "zero_").is_empty());
}
