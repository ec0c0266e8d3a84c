//! CRUD mutations on their way to whoever applies them, played by the test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway::Options;
use gateway::crud::{CrudFuture, CrudOptions, CrudOutcome, CrudRequest, CrudWriter, RateLimit};
use serde_json::{Value, json};

use crate::support::api::{Api, ok};
use crate::support::{Harness, options};

/// Notes what comes and answers by the table that a mutation names.
#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<(String, i64)>>,
}

impl CrudWriter for Notes {
    fn apply(&self, request: CrudRequest) -> CrudFuture {
        self.seen.lock().unwrap().push((request.client_id.clone(), request.id));
        let table = request.ops.first().map(|op| op.table.clone()).unwrap_or_default();
        Box::pin(async move {
            match table.as_str() {
                "bad" => CrudOutcome::Failed("it does not fit".to_owned()),
                "gap" => CrudOutcome::OutOfOrder { expected: 7 },
                "away" => CrudOutcome::Unavailable,
                _ => CrudOutcome::Done,
            }
        })
    }
}

fn with_crud(options: Options, limit: Option<RateLimit>) -> (Options, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    (Options { crud: Some(CrudOptions { writer: notes.clone(), limit }), ..options }, notes)
}

fn mutation(id: i64, table: &str) -> Value {
    let ops = json!([{"op": "insert", "tableName": table, "primaryKey": ["id"], "value": {"id": id}}]);
    json!({"type": "crud", "id": id, "clientID": "c", "name": "_zero_crud", "args": [{"ops": ops}], "timestamp": 1})
}

fn push(mutations: &[Value]) -> String {
    json!(["push", {"clientGroupID": "g", "mutations": mutations, "pushVersion": 1, "timestamp": 1, "requestID": "r"}])
        .to_string()
}

#[tokio::test]
async fn what_fails_is_told_and_the_socket_goes_on() {
    let (options, notes) = with_crud(options(), None);
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    client.send(push(&[mutation(1, "t"), mutation(2, "bad"), mutation(3, "t")])).await;
    let error = client.error().await;
    assert_eq!((&error["kind"], &error["message"]), (&json!("MutationFailed"), &json!("it does not fit")));
    client.send(push(&[mutation(4, "bad")])).await;
    assert_eq!(client.error().await["kind"], "MutationFailed");
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    let seen: Vec<i64> = notes.seen.lock().unwrap().iter().map(|(_, id)| *id).collect();
    assert_eq!(seen, [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_cannot_go_on_ends_the_socket() {
    let no_ops =
        json!({"type": "crud", "id": 1, "clientID": "c", "name": "_zero_crud", "args": [{"ops": 5}], "timestamp": 1});
    let other_name =
        json!({"type": "crud", "id": 1, "clientID": "c", "name": "other", "args": [{"ops": []}], "timestamp": 1});
    let custom = json!({"type": "custom", "id": 2, "clientID": "c", "name": "f", "args": [null], "timestamp": 1});
    let (options, notes) = with_crud(options(), None);
    let mut harness = Harness::start(options).await;
    for (mutations, kind, count) in [
        (vec![mutation(1, "gap"), mutation(2, "t")], "InvalidPush", 1),
        (vec![mutation(1, "away"), mutation(2, "t")], "ServerOverloaded", 1),
        (vec![mutation(1, "t"), custom], "InvalidPush", 0),
        (vec![no_ops], "InvalidMessage", 0),
        (vec![other_name], "InvalidMessage", 0),
    ] {
        notes.seen.lock().unwrap().clear();
        let (mut client, _connect) = harness.client("c").await;
        client.send(push(&mutations)).await;
        assert_eq!(client.error().await["kind"], kind, "{mutations:?}");
        assert_eq!(client.closed().await, None);
        harness.disconnect().await;
        assert_eq!(notes.seen.lock().unwrap().len(), count);
    }
}

#[tokio::test]
async fn too_many_are_refused_for_a_while() {
    let limit = RateLimit { mutations_max: 2, window: Duration::from_secs(3600) };
    let (options, notes) = with_crud(options(), Some(limit));
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    client.send(push(&[mutation(1, "t"), mutation(2, "t"), mutation(3, "t"), mutation(4, "t")])).await;
    assert_eq!(client.error().await["kind"], "MutationRateLimited");
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    assert_eq!(notes.seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn both_kinds_of_one_client_stay_in_order() {
    let mut api = Api::start(|_| ok(json!({"mutations": []}))).await;
    let mut options = options();
    options.mutate.urls = vec![api.url("/api/mutate")];
    let (options, notes) = with_crud(options, None);
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    let custom = |id: i64| {
        push(&[json!({"type": "custom", "id": id, "clientID": "c", "name": "f", "args": [null], "timestamp": 1})])
    };
    api.hold();
    client.send(custom(1)).await;
    assert_eq!(api.request().await.body()["mutations"][0]["id"], 1);
    for (id, is_custom) in [(2, true), (3, true), (4, false), (5, true), (6, false)] {
        client.send(if is_custom { custom(id) } else { push(&[mutation(id, "t")]) }).await;
    }
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    assert!(notes.seen.lock().unwrap().is_empty());
    api.release();
    let body = api.request().await.body();
    assert_eq!((&body["mutations"][0]["id"], &body["mutations"][1]["id"]), (&json!(2), &json!(3)));
    assert_eq!(api.request().await.body()["mutations"][0]["id"], 5);
    assert_eq!(notes.seen.lock().unwrap()[0], ("c".to_owned(), 4));
}
