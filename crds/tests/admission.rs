//! Each rule refuses what it is for, with its message, and nothing else: documents are judged by the rules of the definition as an
//! API server would, defaults filled in first.

use std::collections::BTreeSet;

use crds::rules::{self, Rule};
use serde_json::{Value, json};

use crate::documents::{bad, bad_changes, document, good, good_changes, long_name};
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
