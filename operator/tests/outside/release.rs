//! Releasing what the data plane makes upstream, and nothing else.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::postgres::{Database, Postgres, Version};
use testkit::slot::Holder;
use zero_cache_operator::observe::outside::Inputs;

use super::{Scene, secret, shard, upstream};
use crate::model::resource;

fn shared() -> &'static Postgres {
    Postgres::shared(Version::V15).unwrap()
}

/// What the data plane makes for shard 0 of an application, and its slot.
fn made(app: &str) -> String {
    let schema = format!("{app}_0");
    format!(
        "CREATE SCHEMA IF NOT EXISTS {app};
         CREATE TABLE {app}.permissions (permissions jsonb, hash text, lock bool PRIMARY KEY);
         CREATE FUNCTION {app}.set_permissions_hash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
         CREATE TRIGGER on_set_permissions BEFORE INSERT ON {app}.permissions
           FOR EACH ROW EXECUTE FUNCTION {app}.set_permissions_hash();
         CREATE SCHEMA {schema};
         CREATE TABLE {schema}.clients (id int PRIMARY KEY); CREATE TABLE {schema}.mutations (id int PRIMARY KEY);
         CREATE TABLE {schema}.\"shardConfig\" (id int); CREATE TABLE {schema}.\"publishedSchema\" (id int);
         CREATE TABLE {schema}.\"publishedTables\" (oid oid); CREATE TABLE {schema}.\"partitionFiles\" (oid oid);
         CREATE TABLE {schema}.\"schemaEvents\" (id bigserial PRIMARY KEY, event text);
         CREATE TABLE {schema}.replicas (id text PRIMARY KEY, rank bigserial);
         CREATE TABLE {schema}.\"schemaHistory\" (replica text REFERENCES {schema}.replicas (id));
         CREATE FUNCTION {schema}.schema_specs() RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
         CREATE FUNCTION {schema}.table_specs(candidates oid[]) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
         CREATE FUNCTION {schema}.descendants(parents oid[]) RETURNS oid[] LANGUAGE sql AS $$ SELECT parents $$;
         CREATE FUNCTION {schema}.family(members oid[]) RETURNS oid[] LANGUAGE sql AS $$ SELECT members $$;
         CREATE FUNCTION {schema}.update_schemas() RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.update_schemas(tag text) RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.record_tables(tag text, candidates oid[]) RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.take_turn(tag text, everywhere bool) RETURNS text LANGUAGE sql AS $$ SELECT tag $$;
         CREATE FUNCTION {schema}.publish_public() RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.check_partitions() RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.emit_event(event json) RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.emit_failure(tag text, message text) RETURNS void LANGUAGE sql AS $$ SELECT $$;
         CREATE FUNCTION {schema}.emit_ddl_start() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
         CREATE FUNCTION {schema}.emit_ddl_drop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
         CREATE EVENT TRIGGER {app}_ddl_drop_0 ON sql_drop EXECUTE FUNCTION {schema}.emit_ddl_drop();
         CREATE FUNCTION {schema}.emit_ddl_end() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
         CREATE FUNCTION {schema}.emit_ddl_rewrite() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$;
         CREATE EVENT TRIGGER {app}_ddl_start_0 ON ddl_command_start EXECUTE FUNCTION {schema}.emit_ddl_start();
         CREATE EVENT TRIGGER {app}_ddl_end_0 ON ddl_command_end EXECUTE FUNCTION {schema}.emit_ddl_end();
         CREATE EVENT TRIGGER {app}_ddl_rewrite_0 ON table_rewrite EXECUTE FUNCTION {schema}.emit_ddl_rewrite();
         CREATE PUBLICATION _{app}_metadata_0 FOR TABLE {app}.permissions, {schema}.clients, {schema}.mutations;
         CREATE PUBLICATION _{app}_public_0 FOR TABLES IN SCHEMA public;
         CREATE SCHEMA \"{schema}/cdc\"; CREATE TABLE \"{schema}/cdc\".pages (id int);
         CREATE SCHEMA \"{schema}/cvr\"; CREATE TABLE \"{schema}/cvr\".instances (id int);",
    )
}

/// Names of all schemas, publications, event triggers and slots of the database.
async fn names(database: &Database<'_>) -> Vec<String> {
    let client = database.connect().await.unwrap();
    let text =
        "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
         UNION SELECT 'publication ' || pubname FROM pg_publication
         UNION SELECT 'trigger ' || evtname FROM pg_event_trigger
         UNION SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1";
    client.query(text, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Asks again and again, as reconciles do, until there is an outcome.
async fn release(inputs: Inputs) -> Result<(), String> {
    let mut scene = Scene::new(inputs);
    let _ = scene.look();
    scene.outside.release(&resource(json!({})));
    scene.until("an outcome", |facts| facts.release.is_some()).await.release.unwrap()
}

async fn slot(database: &Database<'_>, name: &str) {
    database.execute(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_the_data_plane_goes_and_nothing_else() {
    let database = shared().create_database("release").await.unwrap();
    database.execute(&made("gone")).await.unwrap();
    let before =
        "CREATE TABLE kept (id int PRIMARY KEY); CREATE PUBLICATION kept FOR TABLE kept; CREATE SCHEMA gone_1x;
                  CREATE SCHEMA kept; CREATE TABLE kept.permissions (id int)";
    database.execute(before).await.unwrap();
    for name in ["gone_0_a", "gone_0_ab", "gone_01_a", "xgone_0_a", "gone_0_1", "gone_0"] {
        slot(&database, name).await;
    }
    assert_eq!(release(Inputs { shard: shard("gone"), ..upstream(database.url()) }).await, Ok(()));
    let left = [
        "publication kept",
        "schema gone_1x",
        "schema kept",
        "schema public",
        "slot gone_0",
        "slot gone_01_a",
        "slot gone_0_1",
        "slot xgone_0_a",
    ];
    assert_eq!(names(&database).await, left);
    assert_eq!(release(Inputs { shard: shard("gone"), ..upstream(database.url()) }).await, Ok(()), "again");
    assert_eq!(names(&database).await, left);
    for name in ["gone_01_a", "xgone_0_a", "gone_0_1", "gone_0"] {
        database.execute(&format!("SELECT pg_drop_replication_slot('{name}')")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_use_stays() {
    let database = shared().create_database("release_shared").await.unwrap();
    database.execute(&made("pair")).await.unwrap();
    database
        .execute(
            "CREATE SCHEMA pair_1; CREATE TABLE pair_1.clients (id int);
             CREATE TABLE pair_0.notes (id int); CREATE TABLE pair.orders (id int)",
        )
        .await
        .unwrap();
    assert_eq!(release(Inputs { shard: shard("pair"), ..upstream(database.url()) }).await, Ok(()));
    // The other shard has the permissions, and somebody's tables are in our schemas.
    assert_eq!(names(&database).await, ["schema pair", "schema pair_0", "schema pair_1", "schema public"]);
    for table in ["pair.permissions", "pair.orders", "pair_0.notes", "pair_1.clients"] {
        database.execute(&format!("SELECT FROM {table}")).await.unwrap();
    }
    database.execute("SELECT FROM pair_0.replicas").await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_is_ended_only_when_it_is_ours() {
    let database = shared().create_database("release_active").await.unwrap();
    database.execute(&made("busy")).await.unwrap();
    slot(&database, "busy_0_a").await;
    let others = Holder::start(&database, "busy_0_a", "_busy_public_0").await.unwrap();
    let inputs = Inputs { shard: shard("busy"), ..upstream(database.url()) };
    let error = release(inputs.clone()).await.unwrap_err();
    assert!(
        error.starts_with("databases.upstream.urlSecretRef: replication slot busy_0_a is read by another"),
        "{error}"
    );
    assert!(!others.is_ended());
    assert!(
        names(&database).await.contains(&"publication _busy_metadata_0".to_owned()),
        "a part went without the slot"
    );
    drop(others);
    // The server notices only when it writes next.
    let deadline = Instant::now() + Duration::from_secs(90);
    while let Err(error) = release(inputs.clone()).await {
        assert!(Instant::now() < deadline, "{error}");
        database.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await.unwrap();
    }
    assert_eq!(names(&database).await, ["schema public"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_of_their_own_are_released_as_well() {
    let [main, cvr, change] = [
        shared().create_database("release_main").await.unwrap(),
        shared().create_database("release_cvr").await.unwrap(),
        shared().create_database("release_change").await.unwrap(),
    ];
    for (database, kind) in [(&cvr, "cvr"), (&change, "cdc")] {
        let text = format!(
            "CREATE SCHEMA \"apart_0/{kind}\"; CREATE TABLE \"apart_0/{kind}\".t (id int); CREATE SCHEMA apart_0"
        );
        database.execute(&text).await.unwrap();
    }
    let inputs =
        Inputs { cvr: secret(cvr.url()), change: secret(change.url()), shard: shard("apart"), ..upstream(main.url()) };
    assert_eq!(release(inputs).await, Ok(()));
    for database in [&cvr, &change] {
        assert_eq!(names(database).await, ["schema apart_0", "schema public"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_released_is_said() {
    let database = shared().create_database("release_errors").await.unwrap();
    database.execute(&made("sad")).await.unwrap();
    let of = |url: String| Inputs { shard: shard("sad"), ..upstream(url) };
    let missing = release(Inputs { shard: shard("sad"), ..Inputs::default() }).await.unwrap_err();
    assert!(missing.contains("databases.upstream.urlSecretRef") && missing.contains("skip-cleanup"), "{missing}");
    let down = release(of("postgres://u:hidden@127.0.0.1:1/d".to_owned())).await.unwrap_err();
    assert!(down.contains("refused") && !down.contains("hidden"), "{down}");
    // With the database all that was in it is gone.
    assert_eq!(release(of(shared().url("no_such_database"))).await, Ok(()));

    database.execute("CREATE ROLE sad_reader LOGIN REPLICATION").await.unwrap();
    let denied = release(of(database.url().replace("postgres@", "sad_reader@"))).await.unwrap_err();
    assert!(denied.contains("must be owner") && denied.contains("by hand"), "{denied}");

    database.execute("CREATE VIEW public.depends AS SELECT * FROM sad_0.clients").await.unwrap();
    let depended = release(of(database.url())).await.unwrap_err();
    assert!(depended.contains("view depends") && depended.contains("drop what depends on it"), "{depended}");
    assert!(names(&database).await.contains(&"trigger sad_ddl_end_0".to_owned()), "half of it went");
    database.execute("DROP VIEW public.depends").await.unwrap();

    let mut holder = database.connect().await.unwrap();
    let transaction = holder.transaction().await.unwrap();
    transaction.batch_execute("LOCK TABLE sad_0.clients IN ACCESS SHARE MODE").await.unwrap();
    let locked = release(of(database.url())).await.unwrap_err();
    assert!(locked.contains("lock"), "{locked}");
    transaction.rollback().await.unwrap();
    assert_eq!(release(of(database.url())).await, Ok(()));
    assert_eq!(names(&database).await, ["schema public"]);
}

/// A resource made anew under the same name must not lose what it makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_done_once_and_belongs_to_one_resource() {
    let database = shared().create_database("release_once").await.unwrap();
    let mut scene = Scene::new(Inputs { shard: shard("once"), uid: "1".to_owned(), ..upstream(database.url()) });
    let _ = scene.look();
    scene.outside.release(&resource(json!({})));
    scene.until("an outcome", |facts| facts.release == Some(Ok(()))).await;
    slot(&database, "once_0_a").await;
    scene.outside.release(&resource(json!({})));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(names(&database).await.contains(&"slot once_0_a".to_owned()));
    scene.inputs.uid = "2".to_owned();
    assert_eq!(scene.look().release, None);
    database.execute("SELECT pg_drop_replication_slot('once_0_a')").await.unwrap();
}
