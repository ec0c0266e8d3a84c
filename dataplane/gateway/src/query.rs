//! Named queries become ASTs: the views' `Transformer`, backed by the application's query endpoint.
//!
//! Many clients connect at once and ask for the same: identical requests on behalf of indistinguishable callers share one
//! call while it is under way and its successful results for a short while after.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use protocol::ast::Ast;
use protocol::error::{CallReason, ErrorBody, Failure, TransformFailed, preview};
use serde_json::{Value, json};
use views::api::{ConnectionContext, NamedQuery, TransformFuture, Transformed, Transformer};

use crate::api::{Caller, Endpoint, Operation, Request};
use crate::metrics::Metrics;

/// Transforms through the configured query endpoint.
pub(crate) struct QueryTransformer {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Option<Endpoint>,
    caller: Caller,
    cache: Mutex<Cache>,
    ttl: Duration,
    metrics: Metrics,
}

#[derive(Default)]
struct Cache {
    slots: HashMap<Key, Slot>,
    swept: Option<Instant>,
}

/// Everything that an answer may depend on. `None` is the validation of credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    caller: Arc<str>,
    query: Option<(String, String, String)>,
}

enum Slot {
    UnderWay(Call),
    Known { ast: Arc<Ast>, at: Instant },
}

type Call = Shared<BoxFuture<'static, Result<Arc<Answers>, ErrorBody>>>;

/// By query id.
type Answers = HashMap<String, Answer>;

#[derive(Clone)]
enum Answer {
    Ast(Arc<Ast>),
    Failed(Value),
}

impl QueryTransformer {
    pub(crate) fn new(endpoint: Option<Endpoint>, caller: Caller, ttl: Duration, metrics: Metrics) -> QueryTransformer {
        QueryTransformer { inner: Arc::new(Inner { endpoint, caller, cache: Mutex::default(), ttl, metrics }) }
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
        let request = request.map_err(|e| failed(e.failure(), e.to_string(), None, ids()))?;
        let caller: Arc<str> = request.fingerprint(context.user_id.as_deref()).into();
        let keys: Vec<Key> = if queries.is_empty() {
            vec![Key { caller, query: None }]
        } else {
            queries.iter().map(|q| Key { caller: Arc::clone(&caller), query: Some(describe(q)) }).collect()
        };

        let (mut answers, calls) = self.plan(context, request, &queries, keys);
        for call in calls {
            answers.extend(call.await?.iter().map(|(id, answer)| (id.clone(), answer.clone())));
        }
        // An answer for an id that was not asked for, or asked for by others in the same call, is none of ours.
        let mut seen = HashSet::new();
        Ok(queries
            .into_iter()
            .filter(|query| seen.insert(query.id.clone()))
            .filter_map(|query| match answers.remove(&query.id)? {
                Answer::Ast(ast) => Some(Transformed::Ast { id: query.id, ast: Box::new(Ast::clone(&ast)) }),
                Answer::Failed(error) => Some(Transformed::Failed { id: query.id, error }),
            })
            .collect())
    }

    /// Splits the queries into those whose answer is known, those that others are asking for, and the rest, for which one
    /// call is started.
    fn plan(
        self: &Arc<Inner>,
        context: &Arc<ConnectionContext>,
        request: Request,
        queries: &[NamedQuery],
        keys: Vec<Key>,
    ) -> (Answers, Vec<Call>) {
        let mut answers = Answers::new();
        let mut calls: Vec<Call> = Vec::new();
        let mut missing: Vec<NamedQuery> = Vec::new();
        let mut missing_keys: Vec<Key> = Vec::new();
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, key) in keys.into_iter().enumerate() {
            match cache.slots.get(&key) {
                Some(Slot::Known { ast, at }) if now.duration_since(*at) < self.ttl => {
                    answers.insert(queries[i].id.clone(), Answer::Ast(Arc::clone(ast)));
                    self.metrics.query_transformations.with_label_values(&["cached"]).inc();
                }
                Some(Slot::UnderWay(call)) => {
                    if !calls.iter().any(|c| c.ptr_eq(call)) {
                        calls.push(call.clone());
                    }
                    self.metrics.query_transformations.with_label_values(&["shared"]).inc();
                }
                _ => {
                    missing_keys.push(key);
                    missing.extend(queries.get(i).cloned());
                }
            }
        }
        if !missing_keys.is_empty() {
            let call = self.start(Arc::clone(context), request, missing, missing_keys.clone());
            for key in missing_keys {
                cache.slots.insert(key, Slot::UnderWay(call.clone()));
            }
            calls.push(call);
        }
        (answers, calls)
    }

    /// The call runs in a task of its own: those who asked first may go away, those who joined still wait.
    fn start(
        self: &Arc<Inner>,
        context: Arc<ConnectionContext>,
        request: Request,
        queries: Vec<NamedQuery>,
        keys: Vec<Key>,
    ) -> Call {
        let inner = Arc::clone(self);
        let task = tokio::spawn(async move {
            let call = port::contained(inner.call(&context, &request, &queries));
            let call = std::panic::AssertUnwindSafe(call).catch_unwind();
            let result = match call.await {
                Ok(result) => result.map(Arc::new),
                Err(_) => Err(ErrorBody::internal("the transformation of queries failed")),
            };
            inner.settle(&keys, &result);
            result
        });
        task.map(|joined| {
            joined.unwrap_or_else(|_| Err(ErrorBody::internal("the transformation of queries was interrupted")))
        })
        .boxed()
        .shared()
    }

    fn settle(&self, keys: &[Key], result: &Result<Arc<Answers>, ErrorBody>) {
        let now = Instant::now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let answer = match (result, &key.query) {
                (Ok(answers), Some((id, ..))) => answers.get(id),
                _ => None,
            };
            match answer {
                Some(Answer::Ast(ast)) => {
                    cache.slots.insert(key.clone(), Slot::Known { ast: Arc::clone(ast), at: now });
                }
                _ => {
                    cache.slots.remove(key);
                }
            }
        }
        if cache.swept.is_none_or(|swept| now.duration_since(swept) > self.ttl) {
            cache.swept = Some(now);
            cache.slots.retain(|_, slot| match slot {
                Slot::UnderWay(_) => true,
                Slot::Known { at, .. } => now.duration_since(*at) < self.ttl,
            });
        }
    }

    async fn call(
        &self,
        context: &ConnectionContext,
        request: &Request,
        queries: &[NamedQuery],
    ) -> Result<Answers, ErrorBody> {
        let ids = || queries.iter().map(|q| q.id.clone()).collect::<Vec<_>>();
        let asked: Vec<Value> = queries.iter().map(|q| json!({"id": q.id, "name": q.name, "args": q.args})).collect();
        let body = Bytes::from(json!(["transform", asked]).to_string());
        let operation = if queries.is_empty() { Operation::ValidateAuth } else { Operation::Query };
        let count = |result: &str| {
            self.metrics.query_transformations.with_label_values(&[result]).inc_by(queries.len() as u64);
        };
        let body = self.caller.post(operation, request, body).await.map_err(|error| {
            count("error");
            failed(error.failure(), format!("the query endpoint failed: {error}"), None, ids())
        })?;
        let result = read_answer(&body, context.user_id.as_deref(), ids());
        count(if result.is_ok() { "success" } else { "error" });
        result
    }
}

fn describe(query: &NamedQuery) -> (String, String, String) {
    (query.id.clone(), query.name.clone(), query.args.to_string())
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
