//! An API server that hangs: so many calls wait for it and no more, no client group waits for another's calls longer than for a
//! turn, and whoever finds no turn is told to come back.

use std::sync::Arc;
use std::time::Duration;

use protocol::error::ErrorBody;
use serde_json::json;
use tokio::task::JoinHandle;
use views::api::{ConnectionContext, NamedQuery, Transformed};

use crate::support::api::{Api, Reply, Seen, ok};
use crate::support::{Harness, options};

fn none(_: &Seen) -> Reply {
    ok(json!({"kind": "QueryResponse", "queries": []}))
}

type Asked = JoinHandle<Result<Vec<Transformed>, ErrorBody>>;

/// A question that nobody else asks.
fn ask(harness: &Harness, group: &str, id: &str) -> Asked {
    let context = ConnectionContext { client_group: group.to_owned(), ..ConnectionContext::default() };
    let query = NamedQuery { id: id.to_owned(), name: "all".to_owned(), args: json!([]) };
    tokio::spawn(harness.transformer.transform(Arc::new(context), vec![query]))
}

fn comes_back(error: &ErrorBody) -> bool {
    error.kind_name() == "ServerOverloaded" && error.message().contains("wait for their turn")
}

#[tokio::test]
async fn calls_are_bounded_while_the_api_server_hangs() {
    let mut api = Api::start(none).await;
    let mut options = options();
    options.query.urls = vec![api.url("/query")];
    // Of one group, one at a time.
    options.limits.api_calls_max = 4;
    options.limits.api_turn_timeout = Duration::from_millis(300);
    let harness = Harness::start(options).await;
    api.hold();
    let mut hanging = vec![ask(&harness, "greedy", "q1")];
    api.request().await;
    let second = ask(&harness, "greedy", "q2");
    // Others do not wait for it.
    for group in ["a", "b", "c"] {
        hanging.push(ask(&harness, group, group));
        api.request().await;
    }
    let late = ask(&harness, "late", "late");
    for asked in [second, late] {
        let error = asked.await.unwrap().expect_err("there is no turn");
        assert!(comes_back(&error), "{error:?}");
    }
    assert_eq!(api.pending(), 0, "none of them was sent");
    api.release();
    for asked in hanging {
        asked.await.unwrap().expect("an answer");
    }
    ask(&harness, "late", "late").await.unwrap().expect("an answer, once the server has come back");
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let mut api = Api::start(none).await;
    let mut options = options();
    options.query.urls = vec![api.url("/query")];
    (options.limits.api_calls_max, options.limits.api_waiting_bytes_max) = (1, 400);
    let harness = Harness::start(options).await;
    api.hold();
    let hanging = ask(&harness, "a", "q1");
    api.request().await;
    let waits = ask(&harness, "b", &"q".repeat(300));
    while !harness.metrics().await.contains("zero_server_api_waiting{operation=\"query\"} 1") {
        tokio::task::yield_now().await;
    }
    let error = ask(&harness, "c", &"r".repeat(300)).await.unwrap().expect_err("there is no room");
    assert!(comes_back(&error), "{error:?}");
    api.release();
    hanging.await.unwrap().expect("an answer");
    waits.await.unwrap().expect("an answer in its turn");
}
