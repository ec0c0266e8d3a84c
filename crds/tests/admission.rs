//! Each rule refuses what it is for, with its message, and nothing else: documents are judged by the rules of the definition as an
//! API server would, defaults filled in first.

use std::collections::BTreeSet;

use crds::rules::{self, Rule};
use serde_json::{Value, json};

use crate::documents::{bad, bad_changes, document, fits, good, good_changes, long_name, misfits, repairs};
use crate::schema;

/// Messages of the rules that a document breaks, at admission or as a change of an old one.
fn refusals(new: &Value, old: Option<&Value>) -> Vec<String> {
    let validator = kube_cel::Validator::new();
    match validator.validate(&schema(), new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

fn rule_with(message: &str) -> Option<Rule> {
    rules::all().into_iter().find(|rule| rule.message == message)
}

fn check(refused: &[String], part: &str, what: &Value) {
    assert!(
        refused.len() == 1 && refused[0].contains(part) && rule_with(&refused[0]).is_some(),
        "{what} should be refused by {part:?} alone, but: {refused:#?}"
    );
}

#[test]
fn each_rule_refuses_what_it_is_for() {
    let mut used = BTreeSet::new();
    for (spec, part) in bad() {
        let refused = refusals(&document(spec.clone()), None);
        check(&refused, part, &spec);
        used.extend(refused);
    }
    for (old, new, part) in bad_changes() {
        let refused = refusals(&document(new.clone()), Some(&document(old)));
        check(&refused, part, &new);
        used.extend(refused);
    }
    let mut long = document(json!({}));
    long["metadata"]["name"] = json!(long_name());
    let refused = refusals(&long, None);
    check(&refused, "40 characters", &long["metadata"]);
    used.extend(refused);
    let unused: Vec<&str> =
        rules::all().iter().map(|rule| rule.message).filter(|message| !used.contains(*message)).collect();
    assert!(unused.is_empty(), "no document shows that these rules refuse anything: {unused:#?}");
}

#[test]
fn good_documents_and_changes_pass() {
    for spec in good() {
        assert_eq!(refusals(&document(spec.clone()), None), Vec::<String>::new(), "{spec}");
        assert_eq!(refusals(&document(spec.clone()), Some(&document(spec.clone()))), Vec::<String>::new(), "{spec}");
    }
    for (old, new) in good_changes() {
        assert_eq!(refusals(&document(new.clone()), Some(&document(old))), Vec::<String>::new(), "{new}");
    }
}

/// Fields of a document that the patterns and bounds of the schema refuse.
fn misfitting(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut refuse = |is_bad: bool| found.extend(is_bad.then(|| path.to_owned()));
    if schema["x-kubernetes-int-or-string"] == true {
        refuse(!value.is_string() && !value.is_i64() && !value.is_u64());
    } else if schema["type"] == "string" {
        refuse(!value.is_string());
    }
    match value {
        Value::String(text) => {
            if let Some(pattern) = schema["pattern"].as_str() {
                refuse(!regex::Regex::new(pattern).unwrap().is_match(text));
            }
            refuse(schema["maxLength"].as_u64().is_some_and(|most| text.chars().count() as u64 > most));
        }
        Value::Number(number) => {
            refuse(schema["minimum"].as_f64().is_some_and(|least| number.as_f64().unwrap() < least));
            refuse(schema["maximum"].as_f64().is_some_and(|most| number.as_f64().unwrap() > most));
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let known = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                if let Some(known) = known {
                    misfitting(known, value, &format!("{path}.{name}"), found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| misfitting(&schema["items"], item, path, found)),
        Value::Null | Value::Bool(_) => {}
    }
}

fn misfits_of(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    misfitting(&schema(), document, "", &mut found);
    found
}

#[test]
fn quantities_shares_and_lengths_are_those_that_kubernetes_takes() {
    for (spec, field) in misfits() {
        let found = misfits_of(&document(spec.clone()));
        assert!(!found.is_empty() && found.iter().all(|path| path.contains(field)), "{spec}: {found:?}");
    }
    for spec in fits() {
        let document = document(spec.clone());
        assert_eq!((misfits_of(&document), refusals(&document, None)), (Vec::new(), Vec::new()), "{spec}");
        let read: crds::ZeroCache = serde_json::from_value(document).unwrap();
        let back = serde_json::to_value(&read.spec).unwrap();
        for size in [&back["replicationManager"]["storage"]["size"], &back["viewSyncer"]["storage"]["size"]] {
            assert!(crds::quantity::nanos(size.as_str().unwrap()).is_some_and(|it| it > 0), "{size}");
        }
    }
}

/// A rule that fails says no to every change, also to the correction and to the operator's status.
#[test]
fn what_was_stored_before_can_be_repaired_and_written_to() {
    for (old, new) in repairs() {
        let (old, new) = (document(old), document(new));
        assert_eq!(refusals(&new, Some(&old)), Vec::<String>::new(), "{new}");
        assert_eq!(misfits_of(&new), Vec::<String>::new());
        assert_eq!(refusals(&old, Some(&old)), Vec::<String>::new(), "a write to its status is refused: {old}");
    }
}
