//! Named queries become ASTs: the views' `Transformer`, backed by the application's query endpoint.
//!
//! Many clients connect at once and ask for the same: see [`crate::sharing`] for who shares whose call. What does not go into one
//! request is asked in several.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use protocol::ast::Ast;
use protocol::error::{CallReason, ErrorBody, Failure, TransformFailed, preview};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use views::api::{ConnectionContext, NamedQuery, TransformFuture, Transformed, Transformer};

use crate::api::{CALL_BYTES, CALL_ITEMS, Caller, Endpoint, Operation, Request};
use crate::metrics::Metrics;
use crate::sharing::{Answer, Answers, Asked, Called, Key, Sharing};

/// Requests that the queries of one question may be asked in at the same time.
const CALLS_MAX: usize = 4;

/// Transforms through the configured query endpoint.
pub(crate) struct QueryTransformer {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Option<Endpoint>,
    caller: Caller,
    sharing: Arc<Sharing>,
    metrics: Metrics,
}

impl QueryTransformer {
    pub(crate) fn new(endpoint: Option<Endpoint>, caller: Caller, ttl: Duration, metrics: Metrics) -> QueryTransformer {
        QueryTransformer { inner: Arc::new(Inner { endpoint, caller, sharing: Sharing::new(ttl), metrics }) }
    }
}

impl Transformer for QueryTransformer {
    fn configured(&self) -> bool {
        self.inner.endpoint.is_some()
    }

    fn transform(&self, context: Arc<ConnectionContext>, queries: Vec<NamedQuery>) -> TransformFuture {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.transform(&context, queries).await })
    }
}

/// A query that has to be asked for.
struct Open {
    query: NamedQuery,
    asked: Asked,
    /// Of the query in the request.
    bytes: usize,
}

impl Inner {
    async fn transform(
        self: Arc<Inner>,
        context: &Arc<ConnectionContext>,
        queries: Vec<NamedQuery>,
    ) -> Result<Vec<Transformed>, ErrorBody> {
        let ids = || queries.iter().map(|q| q.id.clone()).collect();
        let request = match &self.endpoint {
            Some(endpoint) => endpoint.request(context.user_query_url.as_deref(), &context.user_query_headers, context),
            None => return Err(ErrorBody::internal("no query URL is configured")),
        };
        let request = Arc::new(request.map_err(|e| failed(e.failure(), e.to_string(), None, ids()))?);
        let caller = request.fingerprint(context.user_id.as_deref());
        let mut answers = Answers::new();
        let mut open = Vec::new();
        // An id that comes twice is asked for once.
        let mut seen = HashSet::new();
        for query in queries.iter().filter(|query| seen.insert(&query.id)) {
            let args = query.args.to_string();
            let key = Key::of([&caller, &query.id, &query.name, &args].map(|part| part.as_bytes()));
            match self.sharing.known(&key) {
                Some(ast) => {
                    answers.insert(query.id.clone(), Answer::Ast(ast));
                    self.metrics.query_transformations.with_label_values(&["cached"]).inc();
                }
                None => {
                    let bytes = query.id.len() + query.name.len() + args.len();
                    open.push(Open { query: query.clone(), asked: Asked { key, id: query.id.clone() }, bytes });
                }
            }
        }
        let is_validation = queries.is_empty();
        if is_validation || !open.is_empty() {
            self.ask_all(context, &request, &caller, open, &mut answers).await?;
        }
        let mut seen = HashSet::new();
        Ok(queries
            .into_iter()
            .filter(|query| seen.insert(query.id.clone()))
            // An answer for an id that was not asked for is none of ours.
            .filter_map(|query| match answers.remove(&query.id)? {
                Answer::Ast(ast) => Some(Transformed::Ast { id: query.id, ast: Box::new(Ast::clone(&ast)) }),
                Answer::Failed(error) => Some(Transformed::Failed { id: query.id, error }),
            })
            .collect())
    }

    /// Asks for everything that is open, in as many calls as it takes. One that fails fails the question.
    async fn ask_all(
        self: &Arc<Inner>,
        context: &Arc<ConnectionContext>,
        request: &Arc<Request>,
        caller: &str,
        open: Vec<Open>,
        answers: &mut Answers,
    ) -> Result<(), ErrorBody> {
        let turns = Semaphore::new(CALLS_MAX);
        let mut calls: FuturesUnordered<_> = split(open)
            .into_iter()
            .map(|part| {
                let turns = &turns;
                async move {
                    // The semaphore is never closed.
                    let _turn = turns.acquire().await;
                    self.ask(context, request, caller, part).await
                }
            })
            .collect();
        while let Some(answered) = calls.next().await {
            answers.extend(answered?.iter().map(|(id, answer)| (id.clone(), answer.clone())));
        }
        Ok(())
    }

    async fn ask(
        self: &Arc<Inner>,
        context: &Arc<ConnectionContext>,
        request: &Arc<Request>,
        caller: &str,
        part: Vec<Open>,
    ) -> Result<Arc<Answers>, ErrorBody> {
        let count = part.len() as u64;
        let (queries, asked): (Vec<_>, Vec<_>) = part.into_iter().map(|open| (open.query, open.asked)).unzip();
        let mut keys: Vec<Key> = asked.iter().map(|asked| asked.key).collect();
        // Without queries it is the validation of the caller's credentials.
        keys.push(Key::of([caller.as_bytes()]));
        let queries = Arc::new(queries);
        let call = || {
            let (inner, context, request) = (Arc::clone(self), Arc::clone(context), Arc::clone(request));
            let queries = Arc::clone(&queries);
            async move { inner.call(&context, &request, &queries).await }
        };
        let (is_shared, outcome) = self.sharing.ask(Key::all(keys), asked, call).await;
        if is_shared {
            self.metrics.query_transformations.with_label_values(&["shared"]).inc_by(count);
        }
        outcome
    }

    async fn call(&self, context: &ConnectionContext, request: &Request, queries: &[NamedQuery]) -> Called {
        let ids = || queries.iter().map(|q| q.id.clone()).collect::<Vec<_>>();
        let asked: Vec<Value> = queries.iter().map(|q| json!({"id": q.id, "name": q.name, "args": q.args})).collect();
        let body = Bytes::from(json!(["transform", asked]).to_string());
        let operation = if queries.is_empty() { Operation::ValidateAuth } else { Operation::Query };
        let count = |result: &str| {
            self.metrics.query_transformations.with_label_values(&[result]).inc_by(queries.len() as u64);
        };
        let Some(endpoint) = &self.endpoint else { return Err(ErrorBody::internal("no query URL is configured")) };
        let lane = (&endpoint.lanes, context.client_group.as_str());
        let body = self.caller.post(operation, request, body, lane).await.map_err(|error| {
            count("error");
            let told = || failed(error.failure(), format!("the query endpoint failed: {error}"), None, ids());
            error.passes().unwrap_or_else(told)
        })?;
        let result = read_answer(&body, context.user_id.as_deref(), ids());
        count(if result.is_ok() { "success" } else { "error" });
        result.map(|answers| (answers, body.len()))
    }
}

/// Into calls of a size that servers take. Without queries there is one call.
fn split(open: Vec<Open>) -> Vec<Vec<Open>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for one in open {
        let part = parts.last_mut().expect("there is always one");
        if !part.is_empty() && (bytes + one.bytes > CALL_BYTES || part.len() >= CALL_ITEMS) {
            bytes = one.bytes;
            parts.push(vec![one]);
        } else {
            bytes += one.bytes;
            part.push(one);
        }
    }
    parts
}

fn failed(failure: Failure, message: String, details: Option<Value>, query_ids: Vec<String>) -> ErrorBody {
    TransformFailed { failure, message, details, query_ids }.into()
}

fn read_answer(body: &[u8], user_id: Option<&str>, ids: Vec<String>) -> Result<Answers, ErrorBody> {
    let garbage = |reason: &str| {
        failed(
            Failure::ZeroCache(CallReason::Parse),
            format!("the answer of the query endpoint cannot be understood: {reason}"),
            Some(json!({"bodyPreview": preview(&String::from_utf8_lossy(body))})),
            ids.clone(),
        )
    };
    let answer: Value = serde_json::from_slice(body).map_err(|e| garbage(&e.to_string()))?;
    let tag = answer.get(0).and_then(Value::as_str);
    let results = match (answer.get("kind").and_then(Value::as_str), tag) {
        (Some("QueryResponse"), _) => {
            check_user(&answer, user_id)?;
            answer.get("queries")
        }
        (Some("TransformFailed"), _) => return Err(reported_failure(&answer).map_err(|e| garbage(&e))?),
        (None, Some("transformed")) => answer.get(1),
        (None, Some("transformFailed")) => {
            let reported = answer.get(1).ok_or_else(|| garbage("transformFailed has no body"))?;
            return Err(reported_failure(reported).map_err(|e| garbage(&e))?);
        }
        _ => return Err(garbage("it is neither a QueryResponse nor a TransformFailed")),
    };
    let results = results.and_then(Value::as_array).ok_or_else(|| garbage("it has no list of queries"))?;
    results.iter().map(|result| read_result(result).map_err(|e| garbage(&e))).collect()
}

/// The connection's user must be the one that the API server saw, if it says whom it saw.
fn check_user(answer: &Value, user_id: Option<&str>) -> Result<(), ErrorBody> {
    match answer.get("userID") {
        None => Ok(()),
        Some(Value::Null) if user_id.is_none() => Ok(()),
        Some(Value::String(seen)) if Some(seen.as_str()) == user_id => Ok(()),
        Some(_) => Err(ErrorBody::unauthorized("the API server knows the client as another user than it claims to be")),
    }
}

fn reported_failure(value: &Value) -> Result<ErrorBody, String> {
    TransformFailed::from_value(value).map(ErrorBody::from).map_err(|e| e.to_string())
}

/// One query's result. A tree that makes no sense fails its query, not the others.
fn read_result(result: &Value) -> Result<(String, Answer), String> {
    let id = result.get("id").and_then(Value::as_str).ok_or("a query has no id")?.to_owned();
    match result.get("error").and_then(Value::as_str) {
        Some("app" | "parse") => Ok((id, Answer::Failed(result.clone()))),
        Some(_) => Err(format!("query {id} failed in an unknown way")),
        None => {
            let ast = result.get("ast").ok_or_else(|| format!("query {id} has neither an ast nor an error"))?;
            match Ast::from_value("ast", ast) {
                Ok(ast) => Ok((id, Answer::Ast(Arc::new(ast)))),
                Err(error) => {
                    let name = result.get("name").cloned().unwrap_or_default();
                    let message = format!("the API server returned an invalid query: {error}");
                    let failure = json!({"error": "parse", "id": id, "name": name, "message": message});
                    Ok((id, Answer::Failed(failure)))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str, user: Option<&str>) -> Result<Answers, ErrorBody> {
        read_answer(body.as_bytes(), user, vec!["a".to_owned()])
    }

    #[test]
    fn reads_current_and_legacy_answers() {
        for body in [
            r#"{"kind":"QueryResponse","userID":"u","queries":[{"id":"a","name":"n","ast":{"table":"t"}}]}"#,
            r#"{"kind":"QueryResponse","queries":[{"id":"a","name":"n","ast":{"table":"t"}}]}"#,
            r#"["transformed",[{"id":"a","name":"n","ast":{"table":"t"}}]]"#,
        ] {
            let answers = read(body, Some("u")).expect("success");
            assert!(matches!(answers.get("a"), Some(Answer::Ast(ast)) if ast.table == "t"), "{body}");
        }
        for body in [
            r#"{"kind":"TransformFailed","origin":"server","reason":"database","message":"m","queryIDs":["a"]}"#,
            r#"["transformFailed",{"kind":"TransformFailed","origin":"server","reason":"database","message":"m","queryIDs":["a"]}]"#,
        ] {
            let Err(ErrorBody::TransformFailed(failed)) = read(body, None) else { panic!("{body}") };
            assert_eq!(failed.message, "m");
        }
    }

    #[test]
    fn another_user_is_unauthorized() {
        let body = r#"{"kind":"QueryResponse","userID":"u","queries":[]}"#;
        assert!(read(body, Some("u")).is_ok());
        assert!(read(body, Some("v")).is_err_and(|e| e.is_auth()));
        assert!(read(body, None).is_err_and(|e| e.is_auth()));
        let body = r#"{"kind":"QueryResponse","userID":null,"queries":[]}"#;
        assert!(read(body, None).is_ok());
        assert!(read(body, Some("v")).is_err_and(|e| e.is_auth()));
    }

    #[test]
    fn one_bad_query_does_not_fail_the_others() {
        let body = r#"["transformed",[{"id":"a","name":"n","ast":{"no":"table"}},{"id":"b","name":"n","ast":{"table":"t"}},
            {"error":"app","id":"c","name":"n","message":"x"}]]"#;
        let answers = read(body, None).expect("whole answer is fine");
        assert!(matches!(answers.get("a"), Some(Answer::Failed(e)) if e["error"] == "parse"));
        assert!(matches!(answers.get("b"), Some(Answer::Ast(_))));
        assert!(matches!(answers.get("c"), Some(Answer::Failed(e)) if e["message"] == "x"));
    }

    #[test]
    fn garbage_is_a_parse_failure() {
        for body in ["", "<html>", "{}", "[]", r#"["transformed"]"#, r#"{"kind":"QueryResponse"}"#, "null", "[[[["] {
            let Err(ErrorBody::TransformFailed(failed)) = read(body, None) else { panic!("{body}") };
            assert_eq!(failed.failure, Failure::ZeroCache(CallReason::Parse), "{body}");
            assert_eq!(failed.query_ids, ["a"]);
        }
    }
}
