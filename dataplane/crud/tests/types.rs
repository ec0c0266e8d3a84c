//! Every type of column, there and back.

use crud::Outcome;
use serde_json::json;

use crate::world::{World, op, op_on, open};

const SETUP: &str = "CREATE TYPE mood AS ENUM ('ok', 'not so');
CREATE TABLE t (id text PRIMARY KEY, a int2, b int4, c int8, d float4, e float8, f numeric(12,3), g bool, h text, i varchar(5), j char(4),
  k uuid, l date, m time, n timetz, o timestamp, p timestamptz(3), q json, r jsonb, s text[], u int[], v mood, w inet, x mood[], y jsonb[],
  z timestamptz[], secret bytea);";

#[tokio::test]
async fn every_type_is_written_as_clients_have_it() {
    let world = World::new("crud_types", SETUP, &open(&["t"])).await;
    world.run("SET timezone = 'UTC'").await;
    for (n, (column, value, printed)) in [
        ("a", json!(-7), Some("-7")),
        ("b", json!(7.0), Some("7")),
        ("c", json!(9_007_199_254_740_993_i64), Some("9007199254740993")),
        ("d", json!(0.1), Some("0.1")),
        ("e", json!(1e300), Some("1e+300")),
        ("f", json!(1234.5), Some("1234.500")),
        ("g", json!(true), Some("t")),
        ("h", json!("a'\"\\\n\u{1f600}$1"), Some("a'\"\\\n\u{1f600}$1")),
        ("i", json!("abcde"), Some("abcde")),
        ("j", json!("ab"), Some("ab  ")),
        ("k", json!("6E9F3C1A-0000-4000-8000-000000000001"), Some("6e9f3c1a-0000-4000-8000-000000000001")),
        ("l", json!(1_709_164_800_000_i64), Some("2024-02-29")),
        ("m", json!(45_296_789), Some("12:34:56.789")),
        ("n", json!(45_296_789), Some("12:34:56.789+00")),
        ("o", json!(1_732_200_000_000.123), Some("2024-11-21 14:40:00.000123")),
        ("p", json!(1_732_200_000_000_i64), Some("2024-11-21 14:40:00+00")),
        ("q", json!(true), Some("true")),
        ("q", json!({"b": 1, "a": [null, "x"]}), Some("{\"b\":1,\"a\":[null,\"x\"]}")),
        ("q", json!("text"), Some("\"text\"")),
        ("r", json!(false), Some("false")),
        ("r", json!(12.5), Some("12.5")),
        ("r", json!(null), None),
        ("s", json!(["a,b", "", null, "NULL", "\"{}\\"]), Some("{\"a,b\",\"\",NULL,\"NULL\",\"\\\"{}\\\\\"}")),
        ("u", json!([[1, 2], [3, 4]]), Some("{{1,2},{3,4}}")),
        ("u", json!([]), Some("{}")),
        ("v", json!("not so"), Some("not so")),
        ("w", json!("10.0.0.1"), Some("10.0.0.1")),
        ("x", json!(["ok", "not so"]), Some("{ok,\"not so\"}")),
        ("y", json!([[1], {"k": true}]), Some("{[1],\"{\\\"k\\\": true}\"}")),
        ("z", json!([0]), Some("{\"1970-01-01 00:00:00+00\"}")),
        ("h", json!(null), None),
    ]
    .into_iter()
    .enumerate()
    {
        let find = |id: &str| format!("SELECT {column} FROM t WHERE id = '{id}'");
        for (kind, id) in [("insert", format!("i{n}")), ("upsert", format!("u{n}"))] {
            assert_eq!(
                world.apply(&json!([op(kind, json!({"id": id, column: value}))])).await,
                Outcome::Applied,
                "{column} {value}"
            );
            assert_eq!(world.ask(&find(&id)).await.as_deref(), printed, "{kind} {column}");
        }
        for kind in ["update", "upsert"] {
            world.run(&format!("UPDATE t SET {column} = NULL WHERE id = 'i{n}'")).await;
            let ops = json!([op(kind, json!({"id": format!("i{n}"), column: value}))]);
            assert_eq!(world.apply(&ops).await, Outcome::Applied);
            assert_eq!(world.ask(&find(&format!("i{n}"))).await.as_deref(), printed, "{kind} {column}");
        }
    }
}

#[tokio::test]
async fn every_type_of_key_finds_its_row() {
    let setup = "CREATE TYPE mood AS ENUM ('ok', 'not so');
        CREATE TABLE k1 (id int8 PRIMARY KEY, n int); CREATE TABLE k2 (id uuid PRIMARY KEY, n int); CREATE TABLE k3 (id char(4) PRIMARY KEY, n int);
        CREATE TABLE k4 (id mood PRIMARY KEY, n int); CREATE TABLE k5 (id bool PRIMARY KEY, n int);
        CREATE TABLE \"K-6\" (id text PRIMARY KEY, n int, \"x.y\" text); CREATE SCHEMA other; CREATE TABLE other.k7 (id int PRIMARY KEY, n int);
        CREATE TABLE two (id int, part text, n int, PRIMARY KEY (id, part)); CREATE PUBLICATION p FOR TABLE k1;";
    let world = World::new("crud_keys", setup, &open(&["k1", "k2", "k3", "k4", "k5", "K-6", "two"])).await;
    for (table, key) in [
        ("k1", json!(5)),
        ("k2", json!("6e9f3c1a-0000-4000-8000-000000000001")),
        ("k3", json!("ab")),
        ("k4", json!("ok")),
        ("k5", json!(false)),
        ("K-6", json!("it's \"$1\"")),
    ] {
        let count = format!("SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM \"{table}\"");
        for (kind, n, expected) in
            [("insert", 1, "1 1"), ("insert", 2, "1 1"), ("update", 3, "1 3"), ("upsert", 4, "1 4")]
        {
            assert_eq!(world.apply(&json!([op_on(table, kind, json!({"id": key, "n": n}))])).await, Outcome::Applied);
            assert_eq!(world.ask(&count).await.as_deref(), Some(expected), "{kind} {table}");
        }
        assert_eq!(world.apply(&json!([op_on(table, "delete", json!({"id": key}))])).await, Outcome::Applied);
        assert_eq!(world.ask(&count).await.as_deref(), Some("0 0"), "{table}");
    }
    let two = |kind: &str, n: i32| json!([{"op": kind, "tableName": "two", "primaryKey": ["part", "id"], "value": {"id": 1, "part": "x", "n": n}}]);
    world.run("INSERT INTO two VALUES (1, 'y', 0), (2, 'x', 0)").await;
    for (kind, n) in [("insert", 1), ("update", 2), ("upsert", 3)] {
        assert_eq!(world.apply(&two(kind, n)).await, Outcome::Applied);
        assert_eq!(world.ask("SELECT string_agg(n::text, ',' ORDER BY n) FROM two").await, Some(format!("0,0,{n}")));
    }
}
