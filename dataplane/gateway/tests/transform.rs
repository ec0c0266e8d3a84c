use std::sync::Arc;
use std::time::Duration;

use gateway::Options;
use protocol::error::{CallReason, ErrorBody, Failure, TransformFailed};
use serde_json::{Value, json};
use views::api::{ConnectionContext, NamedQuery, Transformed};

use crate::support::api::{Api, Reply, Seen, ok, status};
use crate::support::{Harness, options};

fn configured(api: &Api) -> Options {
    let mut options = options();
    options.query.urls = vec![api.url("/query")];
    options
}

fn query(id: &str) -> NamedQuery {
    NamedQuery { id: id.to_owned(), name: "all".to_owned(), args: json!([{"n": 1}]) }
}

fn context(token: Option<&str>) -> Arc<ConnectionContext> {
    Arc::new(ConnectionContext { token: token.map(str::to_owned), ..ConnectionContext::default() })
}

/// Answers every query with a table named after its id.
fn tables(seen: &Seen) -> Reply {
    let asked = seen.body();
    assert_eq!(asked[0], "transform");
    let queries: Vec<Value> = asked[1]
        .as_array()
        .unwrap()
        .iter()
        .map(|q| json!({"id": q["id"], "name": q["name"], "ast": {"table": q["id"]}}))
        .collect();
    ok(json!({"kind": "QueryResponse", "queries": queries}))
}

fn asts(result: Result<Vec<Transformed>, ErrorBody>) -> Vec<(String, String)> {
    result
        .expect("success")
        .into_iter()
        .map(|t| match t {
            Transformed::Ast { id, ast } => (id, ast.table),
            Transformed::Failed { error, .. } => panic!("{error}"),
        })
        .collect()
}

fn failure(result: Result<Vec<Transformed>, ErrorBody>) -> TransformFailed {
    match result {
        Err(ErrorBody::TransformFailed(failed)) => *failed,
        other => panic!("expected TransformFailed, got {other:?}"),
    }
}

#[tokio::test]
async fn asks_once_for_all_and_remembers_for_a_while() {
    let mut api = Api::start(tables).await;
    let mut options = configured(&api);
    options.limits.transform_cache_ttl = Duration::from_millis(500);
    let harness = Harness::start(options).await;
    let transformer = &harness.transformer;
    assert!(transformer.configured());
    let result = transformer.transform(context(None), vec![query("a"), query("b")]).await;
    assert_eq!(asts(result), [("a".to_owned(), "a".to_owned()), ("b".to_owned(), "b".to_owned())]);
    let seen = api.request().await;
    assert_eq!(seen.target, "/query?schema=zero_0&appID=zero");
    assert_eq!(
        seen.body(),
        json!(["transform", [{"id": "a", "name": "all", "args": [{"n": 1}]}, {"id": "b", "name": "all", "args": [{"n": 1}]}]])
    );
    let result = transformer.transform(context(None), vec![query("b"), query("c")]).await;
    assert_eq!(asts(result).len(), 2);
    assert_eq!(api.request().await.body()[1].as_array().unwrap().len(), 1, "only what is not known");
    // Another caller, other arguments: another question.
    asts(transformer.transform(context(Some("t")), vec![query("a")]).await);
    assert_eq!(api.request().await.header("authorization"), Some("Bearer t"));
    asts(transformer.transform(context(None), vec![NamedQuery { args: json!([]), ..query("a") }]).await);
    api.request().await;
    let user = ConnectionContext { user_id: Some("u".to_owned()), ..ConnectionContext::default() };
    asts(transformer.transform(Arc::new(user), vec![query("a")]).await);
    api.request().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    asts(transformer.transform(context(None), vec![query("a")]).await);
    assert_eq!(api.pending(), 1, "forgotten by now");
}

#[tokio::test]
async fn identical_questions_at_the_same_time_are_one_call() {
    let mut api = Api::start(tables).await;
    let harness = Harness::start(configured(&api)).await;
    api.hold();
    let ask = |queries: Vec<NamedQuery>| tokio::spawn(harness.transformer.transform(context(None), queries));
    let first = ask(vec![query("a"), query("b")]);
    api.request().await;
    let same: Vec<_> = (0..50).map(|_| ask(vec![query("b"), query("a"), query("b")])).collect();
    let validations: Vec<_> = (0..50).map(|_| ask(Vec::new())).collect();
    assert_eq!(api.request().await.body(), json!(["transform", []]));
    // The one who asked first goes away; those who joined get their answer.
    first.abort();
    api.release();
    for task in same {
        let mut answers = asts(task.await.unwrap());
        answers.sort();
        assert_eq!(answers, [("a".to_owned(), "a".to_owned()), ("b".to_owned(), "b".to_owned())]);
    }
    for task in validations {
        assert!(asts(task.await.unwrap()).is_empty());
    }
    assert_eq!(api.pending(), 0);
    // A validation is asked again every time.
    asts(harness.transformer.transform(context(None), Vec::new()).await);
    assert_eq!(api.pending(), 1);
}

#[tokio::test]
async fn nobody_waits_for_what_another_asks_besides() {
    let mut api = Api::start(tables).await;
    let harness = Harness::start(configured(&api)).await;
    let ask = |queries: Vec<NamedQuery>| tokio::spawn(harness.transformer.transform(context(None), queries));
    // A stranger's query keeps the API server busy.
    api.hold_those_with("slow");
    let stuck = ask(vec![query("a"), query("slow")]);
    api.request().await;
    assert_eq!(asts(ask(vec![query("a")]).await.unwrap()), [("a".to_owned(), "a".to_owned())]);
    assert_eq!(api.request().await.body()[1].as_array().unwrap().len(), 1);
    assert!(!stuck.is_finished());
    // What is known by now is asked by nobody.
    assert_eq!(asts(ask(vec![query("a")]).await.unwrap()).len(), 1);
    assert_eq!(api.pending(), 0);
    api.release();
    assert_eq!(asts(stuck.await.unwrap()).len(), 2);
}

#[tokio::test]
async fn a_failure_is_its_callers_alone() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let mut api = Api::start(move |seen| match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => status(400, "not today"),
        _ => tables(seen),
    })
    .await;
    let harness = Harness::start(configured(&api)).await;
    api.hold();
    let ask = || tokio::spawn(harness.transformer.transform(context(None), vec![query("a")]));
    let first = ask();
    api.request().await;
    let joined: Vec<_> = (0..5).map(|_| ask()).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(api.pending(), 0, "they wait for the first one's");
    api.release();
    assert_eq!(failure(first.await.unwrap()).failure, Failure::http(400, "not today"));
    for task in joined {
        assert_eq!(asts(task.await.unwrap()).len(), 1);
    }
}

#[tokio::test]
async fn what_does_not_go_into_one_call_is_asked_in_several() {
    let mut api = Api::start(tables).await;
    let harness = Harness::start(configured(&api)).await;
    let long = |id: &str| NamedQuery { args: json!(["x".repeat(400 << 10)]), ..query(id) };
    let asked: Vec<NamedQuery> = ["a", "b", "c", "d", "e"].iter().map(|id| long(id)).collect();
    let mut answers = asts(harness.transformer.transform(context(None), asked).await);
    answers.sort();
    assert_eq!(answers.iter().map(|(id, _)| id.as_str()).collect::<String>(), "abcde");
    let mut counts = Vec::new();
    for _ in 0..3 {
        let seen = api.request().await;
        assert!(seen.text.len() < 1_100_000, "{}", seen.text.len());
        counts.push(seen.body()[1].as_array().unwrap().len());
    }
    counts.sort_unstable();
    assert_eq!((counts, api.pending()), (vec![1, 2, 2], 0));
    // Many small ones, and one that is too large by itself.
    let many: Vec<NamedQuery> = (0..2_500).map(|n| query(&n.to_string())).collect();
    assert_eq!(asts(harness.transformer.transform(context(None), many).await).len(), 2_500);
    assert_eq!(api.pending(), 3);
    let huge = NamedQuery { args: json!(["x".repeat(2 << 20)]), ..query("huge") };
    assert_eq!(asts(harness.transformer.transform(context(None), vec![huge]).await).len(), 1);
}

#[tokio::test]
async fn one_query_may_fail_alone_and_is_asked_again() {
    let mut api = Api::start(|_| {
        ok(json!(["transformed", [
            {"error": "app", "id": "a", "name": "all", "message": "not found", "details": {"code": 404}},
            {"id": "b", "name": "all", "ast": {"table": "t"}},
            {"id": "unknown", "name": "all", "ast": {"table": "t"}}]]))
    })
    .await;
    let harness = Harness::start(configured(&api)).await;
    for round in 1..=2 {
        let result = harness.transformer.transform(context(None), vec![query("a"), query("b"), query("missing")]).await;
        let result = result.expect("not a whole failure");
        let [Transformed::Failed { id, error }, Transformed::Ast { .. }] = &result[..] else { panic!("{result:?}") };
        assert_eq!(id, "a");
        assert_eq!(error["details"]["code"], 404);
        assert_eq!(api.request().await.body()[1].as_array().unwrap().len(), 4 - round, "b is cached the second time");
    }
}

#[tokio::test]
async fn whole_failures_say_what_happened() {
    let mut api = Api::start(tables).await;
    let mut options = configured(&api);
    options.limits.api_response_bytes_max = 10_000;
    options.limits.api_timeout = Duration::from_millis(1500);
    let harness = Harness::start(options).await;
    let ask = || harness.transformer.transform(context(None), vec![query("a")]);

    api.answer(|_| status(401, "denied"));
    let failed = failure(ask().await);
    assert_eq!(failed.failure, Failure::http(401, "denied"));
    assert_eq!(failed.query_ids, ["a"]);
    assert!(ErrorBody::from(failed).is_auth());
    assert_eq!(api.pending(), 1);

    api.answer(|_| status(500, "broken"));
    assert_eq!(failure(ask().await).failure, Failure::http(500, "broken"));
    assert_eq!(api.pending(), 4, "tried again");

    api.answer(|_| ok("<html>down for maintenance"));
    let failed = failure(ask().await);
    assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Parse));
    assert_eq!(failed.details.unwrap()["bodyPreview"], "<html>down for maintenance");

    api.answer(|_| ok("x".repeat(20_000)));
    assert_eq!(failure(ask().await).failure, Failure::ZeroCache(CallReason::Parse));

    api.answer(|_| ok(json!({"kind": "QueryResponse", "userID": "u", "queries": []})));
    assert!(matches!(ask().await, Err(error) if error.kind_name() == "Unauthorized"));

    api.answer(|_| {
        ok(json!({"kind": "TransformFailed", "origin": "server", "reason": "database", "message": "m", "queryIDs": ["a"]}))
    });
    assert_eq!(failure(ask().await).message, "m");

    api.answer(tables);
    assert_eq!(asts(ask().await).len(), 1, "a failure is not remembered");

    api.hold();
    let failed = failure(harness.transformer.transform(context(None), vec![query("slow")]).await);
    assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Timeout));

    let elsewhere =
        ConnectionContext { user_query_url: Some("http://evil/".to_owned()), ..ConnectionContext::default() };
    let failed = failure(harness.transformer.transform(Arc::new(elsewhere), vec![query("a")]).await);
    assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Internal));
}

#[tokio::test]
async fn redirects_are_followed_at_home_only() {
    let mut other = Api::start(|_| status(403, "the cloud's secrets")).await;
    let away = other.url("/moved");
    let mut api = Api::start(|seen| match seen.target.starts_with("/query") {
        true => Reply { status: 308, body: String::new(), location: Some("/second?x=1".to_owned()) },
        false => tables(seen),
    })
    .await;
    let harness = Harness::start(configured(&api)).await;
    asts(harness.transformer.transform(context(Some("t")), vec![query("a")]).await);
    assert_eq!(api.request().await.header("authorization"), Some("Bearer t"));
    let second = api.request().await;
    assert_eq!((second.target.as_str(), second.header("authorization")), ("/second?x=1", Some("Bearer t")));

    for code in [301, 302, 303, 307, 308] {
        let location = Some(away.clone());
        api.answer(move |_| Reply { status: code, body: "look there".to_owned(), location: location.clone() });
        let failed = failure(harness.transformer.transform(context(None), vec![query("away")]).await);
        assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Internal), "{code}");
        assert!(!failed.message.contains(&away) && failed.message.contains("another origin"), "{}", failed.message);
    }
    assert_eq!(other.pending(), 0, "nobody else is asked");
    // One that leads nowhere has no body to show either.
    api.answer(|_| Reply { status: 300, body: "look there".to_owned(), location: None });
    let failed = failure(harness.transformer.transform(context(None), vec![query("nowhere")]).await);
    assert_eq!(failed.failure, Failure::http(300, ""));

    api.answer(|_| Reply { status: 307, body: String::new(), location: Some("/again".to_owned()) });
    let failed = failure(harness.transformer.transform(context(None), vec![query("loop")]).await);
    assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Internal));
    // The body of an error may be as long as it likes.
    api.answer(|_| status(400, &"e".repeat(40 << 20)));
    let failed = failure(harness.transformer.transform(context(None), vec![query("long")]).await);
    assert_eq!(failed.failure, Failure::http(400, &"e".repeat(600)));
}

#[tokio::test]
async fn without_a_url_nothing_is_configured() {
    let harness = Harness::start(options()).await;
    assert!(!harness.transformer.configured());
}
