//! What a mutate endpoint answers, current and legacy forms.

use protocol::error::{CallReason, Failure, MutationId, PushFailed, ServerReason};
use serde_json::Value;

#[derive(Debug)]
pub(super) enum Answer {
    Processed {
        /// `None`: the server does not say. `Some(None)`: nobody is logged in.
        user_id: Option<Option<String>>,
        out_of_order: Vec<MutationId>,
    },
    Failed(PushFailed),
}

/// `sent` are the mutations of the request, for answers that do not name those that failed.
pub(super) fn parse(body: &[u8], sent: &[MutationId]) -> Result<Answer, String> {
    let answer: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    match (answer.get("kind").and_then(Value::as_str), answer.get("error").and_then(Value::as_str)) {
        (Some("PushFailed"), _) => PushFailed::from_value(&answer).map(Answer::Failed).map_err(|e| e.to_string()),
        (Some("MutateResponse"), _) | (None, None) => processed(&answer),
        (None, Some(error)) => legacy_failure(&answer, error, sent).map(Answer::Failed),
        (Some(_), _) => Err("it is neither a MutateResponse nor a PushFailed".to_owned()),
    }
}

fn processed(answer: &Value) -> Result<Answer, String> {
    let mutations = answer.get("mutations").and_then(Value::as_array).ok_or("it has no list of mutations")?;
    let mut out_of_order = Vec::new();
    for mutation in mutations {
        let id = mutation.get("id").ok_or("a mutation has no id")?;
        let id = MutationId::from_value("mutations.id", id).map_err(|e| e.to_string())?;
        let result = mutation.get("result").and_then(Value::as_object).ok_or("a mutation has no result")?;
        if result.get("error").and_then(Value::as_str) == Some("oooMutation") {
            out_of_order.push(id);
        }
    }
    let user_id = match answer.get("userID") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(Value::String(user)) => Some(Some(user.clone())),
        Some(_) => return Err("userID is neither a string nor null".to_owned()),
    };
    Ok(Answer::Processed { user_id, out_of_order })
}

fn legacy_failure(answer: &Value, error: &str, sent: &[MutationId]) -> Result<PushFailed, String> {
    let details = answer.get("details").cloned();
    let failure = match error {
        "unsupportedPushVersion" => Failure::Server(ServerReason::UnsupportedPushVersion),
        "unsupportedSchemaVersion" => Failure::Server(ServerReason::Internal),
        "http" => {
            let status = answer.get("status").and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok());
            let status = status.ok_or("an http error has no status")?;
            Failure::http(status, details.as_ref().and_then(Value::as_str).unwrap_or_default())
        }
        "zeroPusher" => Failure::ZeroCache(CallReason::Internal),
        _ => return Err("it reports an unknown error".to_owned()),
    };
    let mutation_ids = match answer.get("mutationIDs").and_then(Value::as_array) {
        Some(ids) => ids
            .iter()
            .map(|id| MutationId::from_value("mutationIDs", id))
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?,
        None => sent.to_vec(),
    };
    Ok(PushFailed { failure, message: format!("the API server reported {error}"), details, mutation_ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Vec<MutationId> {
        vec![MutationId { id: 4, client_id: "c".to_owned() }]
    }

    #[test]
    fn success_in_both_forms() {
        for (body, user) in [
            (r#"{"mutations":[]}"#, None),
            (r#"{"kind":"MutateResponse","mutations":[]}"#, None),
            (r#"{"kind":"MutateResponse","userID":null,"mutations":[]}"#, Some(None)),
            (
                r#"{"kind":"MutateResponse","userID":"u","mutations":[{"id":{"id":4,"clientID":"c"},"result":{"error":"app"}}]}"#,
                Some(Some("u".to_owned())),
            ),
        ] {
            let Ok(Answer::Processed { user_id, out_of_order }) = parse(body.as_bytes(), &sent()) else {
                panic!("{body}")
            };
            assert_eq!(user_id, user, "{body}");
            assert!(out_of_order.is_empty());
        }
    }

    #[test]
    fn failures_name_their_mutations() {
        for (body, failure) in [
            (
                r#"{"kind":"PushFailed","origin":"server","reason":"oooMutation","message":"m","mutationIDs":[{"id":4,"clientID":"c"}]}"#,
                Failure::Server(ServerReason::OutOfOrderMutation),
            ),
            (r#"{"error":"unsupportedPushVersion"}"#, Failure::Server(ServerReason::UnsupportedPushVersion)),
            (r#"{"error":"http","status":401,"details":"no"}"#, Failure::http(401, "no")),
            (
                r#"{"error":"zeroPusher","mutationIDs":[{"id":4,"clientID":"c"}]}"#,
                Failure::ZeroCache(CallReason::Internal),
            ),
        ] {
            let Ok(Answer::Failed(failed)) = parse(body.as_bytes(), &sent()) else { panic!("{body}") };
            assert_eq!(failed.failure, failure);
            assert_eq!(failed.mutation_ids, sent());
        }
    }

    #[test]
    fn garbage_is_refused() {
        for body in ["", "null", "{}", "[]", r#"{"mutations":{}}"#, r#"{"kind":"X"}"#, r#"{"mutations":[{"id":1}]}"#] {
            assert!(parse(body.as_bytes(), &sent()).is_err(), "{body}");
        }
    }
}
