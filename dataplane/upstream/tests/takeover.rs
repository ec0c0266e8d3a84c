//! Databases that the reference has set up, in what its releases left; and having them back.
//!
//! What is written here stands for the reference: its tables, the signatures of its functions and the names of its triggers.

use tokio::sync::mpsc;
use tokio_postgres::Client;
use upstream::{Error, Options, Stream, initial_copy};

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
    for release in RELEASES {
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
        fixture.run("ALTER TABLE t ADD COLUMN c int DEFAULT 3; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (2)").await;
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
        assert!(matches!(&error, Error::Occupied { message } if message.contains("seconds ago")), "{error}");
        assert_eq!(catalog(&fixture.client).await, after);
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
}
