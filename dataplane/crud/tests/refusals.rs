//! What cannot be carried out: it is over, its client is told why, and nobody else notices.

use crud::Outcome;
use serde_json::{Value, json};

use crate::world::{World, op, op_on, open, parse};

const SETUP: &str = "CREATE TABLE t (id text PRIMARY KEY, n int NOT NULL DEFAULT 0, v varchar(3), other text, secret bytea, u int UNIQUE, CHECK (n < 100));
    CREATE TABLE r (id text PRIMARY KEY, tid text REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE keyless (a int); CREATE TABLE plain (id text PRIMARY KEY); INSERT INTO t VALUES ('there');";

async fn fails(world: &World, ops: Value, part: &str) {
    match world.apply(&ops).await {
        Outcome::Failed(message) => assert!(message.contains(part), "{ops}: {message}"),
        other => panic!("{ops}: {other:?}"),
    }
}

#[tokio::test]
async fn what_does_not_fit_fails_and_is_over() {
    let world = World::new("crud_refusals", SETUP, &open(&["t", "r", "plain", "keyless", "zero.permissions"])).await;
    let key = |key: Value, value: Value| json!([{"op": "update", "tableName": "t", "primaryKey": key, "value": value}]);
    for (n, (ops, part)) in [
        (json!([op_on("nowhere", "insert", json!({"id": "a"}))]), "the table \"nowhere\""),
        (json!([op_on("t\"; DROP TABLE t; --", "insert", json!({"id": "a"}))]), "the table"),
        (json!([op_on("public.t", "insert", json!({"id": "a"}))]), "the table"),
        (json!([op_on("zero.permissions", "update", json!({"id": true}))]), "the table"),
        (json!([op_on("zero_0.clients", "delete", json!({"id": "a"}))]), "the table"),
        (json!([op_on("pg_class", "delete", json!({"id": "a"}))]), "the table"),
        (json!([op_on("keyless", "insert", json!({"id": "a"}))]), "the table"),
        (json!([op("insert", json!({"id": "a", "nope": 1}))]), "\"t.nope\": the column"),
        (json!([op("insert", json!({"id": "a", "n\" = 1; --": 1}))]), "the column"),
        (json!([op("insert", json!({"id": "a", "secret": "\\x00"}))]), "\"t.secret\": the column"),
        (json!([op("insert", json!({"n": 1}))]), "the primary key has no value"),
        (json!([op("delete", json!({"id": null}))]), "the primary key has no value"),
        (key(json!(["n"]), json!({"n": 0, "v": "x"})), "no key of the table: n"),
        (key(json!([]), json!({"n": 0})), "no key of the table"),
        (key(json!(["id", "n"]), json!({"id": "there", "n": 0})), "no key of the table"),
        // Nullable, so it is none for clients.
        (key(json!(["u"]), json!({"u": 1, "n": 0})), "no key of the table: u"),
        (json!([op("insert", json!({"id": "a", "n": "x"}))]), "22P02"),
        (json!([op("insert", json!({"id": "a", "n": 1.5}))]), "22P02"),
        (json!([op("insert", json!({"id": "a", "n": true}))]), "a number is expected"),
        (json!([op("insert", json!({"id": "a", "n": 1e12}))]), "22003"),
        (json!([op("insert", json!({"id": "a", "n": null}))]), "23502"),
        (json!([op("insert", json!({"id": "a", "n": 100}))]), "23514"),
        (json!([op("insert", json!({"id": "a", "v": "abcd"}))]), "22001"),
        (json!([op("insert", json!({"id": "a", "other": {}}))]), "text is expected"),
        (json!([op("insert", json!({"id": "a", "other": "\0"}))]), "22021"),
        (json!([op("insert", json!({"id": "a", "u": 1})), op("insert", json!({"id": "b", "u": 1}))]), "23505"),
        // Found at the commit.
        (json!([op_on("r", "insert", json!({"id": "a", "tid": "nobody"}))]), "23503"),
        // All or nothing.
        (json!([op("update", json!({"id": "there", "n": 5})), op("insert", json!({"id": "a", "n": 100}))]), "23514"),
    ]
    .into_iter()
    .enumerate()
    {
        fails(&world, ops, part).await;
        assert_eq!(world.number("c").await, n as i64 + 1);
    }
    assert_eq!(world.ask("SELECT string_agg(id || n, ',') FROM t").await.as_deref(), Some("there0"));
    assert_eq!(world.apply(&json!([op("update", json!({"id": "there", "n": 7}))])).await, Outcome::Applied);
    assert_eq!(world.ask("SELECT n FROM t").await.as_deref(), Some("7"));
}

#[tokio::test]
async fn what_is_new_is_seen_and_what_is_withdrawn_is_not() {
    let world = World::new("crud_schema", SETUP, &open(&["t", "fresh"])).await;
    assert_eq!(world.apply(&json!([op("update", json!({"id": "there", "n": 1}))])).await, Outcome::Applied);
    // The catalog may be read once in a second because of unknown names.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    world.run("CREATE TABLE fresh (id text PRIMARY KEY); ALTER TABLE t ADD COLUMN later int, ALTER COLUMN n TYPE text, DROP CONSTRAINT t_n_check").await;
    assert_eq!(world.apply(&json!([op("update", json!({"id": "there", "n": "now text"}))])).await, Outcome::Applied);
    let both = json!([op_on("fresh", "insert", json!({"id": "a"})), op("update", json!({"id": "there", "later": 3}))]);
    assert_eq!(world.apply(&both).await, Outcome::Applied);
    assert_eq!(world.ask("SELECT n || later FROM t").await.as_deref(), Some("now text3"));
}

#[test]
fn operations_that_make_no_sense_are_not_read() {
    for ops in [
        json!({}),
        json!([1]),
        json!([{"op": "drop", "tableName": "t", "primaryKey": ["id"], "value": {}}]),
        json!([{"op": "insert", "tableName": 1, "primaryKey": ["id"], "value": {}}]),
        json!([{"op": "insert", "tableName": "t", "primaryKey": "id", "value": {}}]),
        json!([{"op": "insert", "tableName": "t", "primaryKey": ["id"], "value": []}]),
        json!([{"op": "insert", "tableName": "t", "primaryKey": ["id"]}]),
    ] {
        assert!(parse(&ops).is_err(), "{ops}");
    }
    assert!(parse(&json!([])).unwrap().is_empty());
}
