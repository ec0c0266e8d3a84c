//! Changes of the schema, tables emptied, rows that cannot be sent.

use rows::transaction::{AddedColumn, Backfill, Cell, SchemaChange};
use rows::{Change, ColumnType, TableSpec};
use serde_json::json;
use std::sync::Arc;

use crate::client::{Client, Seen, Store, put};
use crate::data::{all, column};
use crate::sync::A_WHILE;
use crate::world::{Reply, World, again, init};

fn with_column(spec: &TableSpec, name: &str) -> Arc<TableSpec> {
    let mut new = spec.clone();
    let attnum = new.columns.iter().map(|c| c.attnum).max().unwrap() + 1;
    new.columns.push(column(attnum, name, ColumnType::Str, false));
    Arc::new(new)
}

pub fn add_column(spec: &Arc<TableSpec>, name: &str) -> Change {
    Change::Schema(SchemaChange::AlterTable {
        old: Arc::clone(spec),
        new: with_column(spec, name),
        added: vec![AddedColumn { name: name.into(), value: Cell::Text("new".into()) }],
        rows: Backfill::None,
    })
}

fn drop_column(spec: &Arc<TableSpec>, name: &str) -> Change {
    let mut new = TableSpec::clone(spec);
    new.columns.retain(|c| c.name != name);
    Change::Schema(SchemaChange::AlterTable {
        old: Arc::clone(spec),
        new: Arc::new(new),
        added: vec![],
        rows: Backfill::None,
    })
}

async fn subscribed(world: &mut World) -> Client {
    world.api.ask("issues", all("issue").with());
    world.api.ask("labels", all("label"));
    for n in 0..5 {
        world.issue(&format!("i{n}"), "a", n).await;
        world.upsert("comment", json!({"id": format!("m{n}"), "issueID": format!("i{n}"), "body": "x"})).await;
        world.upsert("label", json!({"a": n, "b": "x", "info": null})).await;
    }
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("issues", 1000), put("labels", 1000)]));
    c.until("both", |s| s.got.len() == 2).await;
    assert_eq!(c.store.rows.len(), 15);
    c
}

#[tokio::test]
async fn a_new_column_reaches_clients_as_changed_rows() {
    let mut world = World::new().await;
    let mut c = subscribed(&mut world).await;
    let store = c.store.clone();
    let spec = world.spec("issue");
    let hydrations = world.metrics().hydrations.get();
    world.apply(vec![add_column(&spec, "extra")]).await;
    let expected = world.expected([&all("issue").with(), &all("label")]);
    let pokes = c.until("the column", |s| s.rows == expected).await;
    let keys: Vec<String> = pokes.iter().flat_map(|p| p.keys("put")).collect();
    assert!(keys.iter().all(|k| k.starts_with("issue/")), "the other tables are not sent again: {keys:?}");
    assert!(pokes.iter().all(|p| p.keys("del").is_empty()));
    assert_eq!(world.metrics().rehydrations.get(), 1);
    assert_eq!(world.metrics().hydrations.get(), hydrations + 1, "on a thread for that");
    c.cut();
    // For one that was away as well, before and after a restart.
    for restart in [false, true] {
        if restart {
            world.kill();
            world.start().await;
        }
        let mut c = world.connect("g", "c1", store.clone(), again(&[]));
        c.until("the column", |s| s.rows == expected).await;
        c.cut();
    }
}

#[tokio::test]
async fn a_query_that_is_hydrated_during_a_schema_change() {
    for round in 0..8 {
        let mut world = World::new().await;
        world.api.ask("q", all("issue").with());
        for n in 0..5 {
            world.issue(&format!("i{n}"), "a", n).await;
        }
        let mut clients = Vec::new();
        for n in 0..6 {
            let ask = all("issue").by("n", n);
            world.api.ask(&format!("q{n}"), ask);
            let hashes = [put("q", 1000), put(&format!("q{n}"), 1000)];
            clients.push(world.connect(&format!("g{n}"), "c", Store::default(), init(&hashes)));
            if n == round % 6 {
                let spec = world.spec("issue");
                world.apply(vec![add_column(&spec, &format!("x{round}"))]).await;
            }
            world.upsert("comment", json!({"id": format!("m{n}"), "issueID": "i1", "body": "x"})).await;
        }
        let expected = world.expected([&all("issue").with()]);
        for c in &mut clients {
            c.until("both, with the column", |s| s.got.len() == 2 && s.rows == expected).await;
        }
    }
}

#[tokio::test]
async fn a_truncated_table_is_a_difference() {
    let mut world = World::new().await;
    let mut c = subscribed(&mut world).await;
    let store = c.store.clone();
    let spec = world.spec("comment");
    world.model.remove("comment");
    let new = world.put("comment", json!({"id": "new", "issueID": "i1", "body": "y"}));
    world.apply(vec![Change::Truncate { tables: vec![spec] }, new]).await;
    let pokes = c.until("the new comment", |s| s.rows.len() == 11).await;
    assert_eq!(pokes.iter().flat_map(|p| p.keys("put")).collect::<Vec<_>>(), [r#"comment/"new""#]);
    assert_eq!(pokes.iter().flat_map(|p| p.keys("del")).count(), 5);
    c.cut();
    let mut c = world.connect("g", "c1", store, again(&[]));
    c.until("the new comment", |s| s.rows.len() == 11).await;
}

#[tokio::test]
async fn a_client_whose_schema_no_longer_fits_is_told() {
    let mut world = World::new().await;
    let mut a = subscribed(&mut world).await;
    let mut b = world.connect("g", "c2", Store::default(), init(&[]));
    b.until("both", |s| s.got.len() == 2).await;
    let spec = world.spec("issue");
    world.apply(vec![drop_column(&spec, "owner")]).await;
    for c in [&mut a, &mut b] {
        let (error, _) = c.refused().await;
        assert_eq!(error["kind"], "SchemaVersionNotSupported");
        assert!(error["message"].as_str().unwrap().contains("\"owner\""), "{error}");
    }
    let mut c = world.connect("h", "c1", Store::default(), init(&[]));
    assert_eq!(c.refused().await.0["kind"], "SchemaVersionNotSupported");
    let mut wrong = init(&[]);
    wrong["clientSchema"]["tables"]["issue"]["columns"] = json!({"id": {"type": "number"}});
    let mut c = world.connect("i", "c1", Store::default(), wrong.clone());
    assert_eq!(c.refused().await.0["kind"], "SchemaVersionNotSupported");
    // The schema of a group does not change.
    let mut c = world.connect("g", "c1", Store::default(), wrong);
    assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequest");
}

#[tokio::test]
async fn a_table_that_is_dropped() {
    let mut world = World::new().await;
    let mut schema = init(&[put("labels", 1000), put("issues", 1000)]);
    schema["clientSchema"]["tables"].as_object_mut().unwrap().remove("label");
    world.api.ask("issues", all("issue"));
    world.api.ask("labels", all("label"));
    world.issue("i1", "a", 1).await;
    world.upsert("label", json!({"a": 1, "b": "x", "info": null})).await;
    let mut c = world.connect("g", "c1", Store::default(), schema);
    c.until("both", |s| s.got.len() == 2).await;
    let spec = world.spec("label");
    world.apply(vec![Change::Schema(SchemaChange::DropTable { table: spec })]).await;
    let error = c.message_of("transformError").await;
    assert_eq!(error[0]["id"], "labels");
    c.until("only issues", |s| s.got.len() == 1).await;
    world.issue("i2", "a", 1).await;
    c.until("i2", |s| s.rows.contains_key(&("issue".into(), json!("i2").to_string()))).await;
    world.alive();
}

#[tokio::test]
async fn an_integer_that_javascript_cannot_hold_fails_only_its_query() {
    let mut world = World::new().await;
    world.api.ask("small", all("issue").by("owner", "a"));
    world.api.ask("all", all("issue"));
    world.api.set("b", Reply::Ask(all("issue").by("owner", "b")));
    world.issue("i1", "a", 1).await;
    world.issue("i2", "b", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("small", 1000), put("all", 1000)]));
    c.until("both", |s| s.got.len() == 2 && s.rows.len() == 2).await;
    // In the same commit a row leaves the failing query.
    let changes = vec![
        world.put("issue", crate::world::issue("big", "b", (1 << 53) + 1)),
        world.del("issue", &crate::world::issue("i2", "b", 1)),
    ];
    world.apply(changes).await;
    let error = c.message_of("transformError").await;
    assert_eq!(error[0]["id"], "all");
    let message = error[0]["message"].as_str().unwrap();
    assert!(message.contains("issue.n") && !message.contains("9007199254740993"), "{message}");
    c.until("only small", |s| s.got.len() == 1 && s.rows.len() == 1).await;
    world.issue("i3", "a", 3).await;
    assert_eq!(c.poke().await.keys("put"), [r#"issue/"i3""#]);
    // From the beginning.
    c.change(json!([put("b", 1000)]));
    assert_eq!(c.message_of("transformError").await[0]["id"], "b");
    // Once the row is gone, the query works when it is wanted anew.
    world.delete("issue", crate::world::issue("big", "b", 0)).await;
    c.change(json!([put("b", 1000), put("all", 1000)]));
    c.until("all", |s| s.got.len() == 3).await;
    assert_eq!(c.store.rows, world.expected([&all("issue")]));
    c.silent(A_WHILE).await;
    assert!(!c.log.iter().any(|seen| matches!(seen, Seen::Close(_))));
}
