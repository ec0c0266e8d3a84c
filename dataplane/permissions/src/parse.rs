//! The text of deployed permissions to rules, within bounds.
//!
//! Strict: a property that is not known here could be one that forbids something, so it is refused and never ignored.

use std::collections::BTreeMap;

use protocol::ParseError;
use protocol::ast::{Ast, Condition, System};
use serde_json::{Map, Value};

use crate::deployed::{Action, Permissions, Policies, Policy, TableRules};

/// Longest text. Rules for a thousand tables have some hundred KiB.
pub const BYTES_MAX: usize = 4 << 20;
/// Most conditions and subqueries in all rules together.
pub const NODES_MAX: usize = 100_000;
/// Deepest nesting of conditions and subqueries in one rule.
pub const RULE_DEPTH_MAX: usize = 32;

const ROOT: &str = "permissions";

impl Permissions {
    /// Reads the text of the column `permissions`.
    pub fn parse(text: &str) -> Result<Permissions, ParseError> {
        if text.len() > BYTES_MAX {
            return Err(refuse(ROOT, format!("{} bytes, more than {BYTES_MAX}", text.len())));
        }
        let value: Value = serde_json::from_str(text).map_err(|error| refuse(ROOT, format!("not JSON: {error}")))?;
        let mut permissions = Permissions::default();
        let mut nodes = NODES_MAX;
        for (name, tables) in known(ROOT, &value, &["tables"])? {
            let at = format!("{ROOT}.{name}");
            for (table, rules) in object(&at, tables)? {
                permissions.tables.insert(table.clone(), table_rules(&format!("{at}.{table}"), rules, &mut nodes)?);
            }
        }
        Ok(permissions)
    }
}

fn table_rules(at: &str, value: &Value, nodes: &mut usize) -> Result<TableRules, ParseError> {
    let mut rules = TableRules::default();
    for (name, value) in known(at, value, &["row", "cell"])? {
        let at = format!("{at}.{name}");
        if name == "row" {
            rules.row = policies(&at, value, nodes)?;
            continue;
        }
        for (column, value) in object(&at, value)? {
            rules.cells.insert(column.clone(), policies(&format!("{at}.{column}"), value, nodes)?);
        }
    }
    Ok(rules)
}

fn policies(at: &str, value: &Value, nodes: &mut usize) -> Result<Policies, ParseError> {
    let mut policies = BTreeMap::new();
    for (name, value) in known(at, value, &["select", "insert", "update", "delete"])? {
        let at = format!("{at}.{name}");
        match name {
            "update" => {
                for (phase, value) in known(&at, value, &["preMutation", "postMutation"])? {
                    let action = if phase == "preMutation" { Action::UpdateBefore } else { Action::UpdateAfter };
                    policies.insert(action, policy(&format!("{at}.{phase}"), value, nodes)?);
                }
            }
            "select" => drop(policies.insert(Action::Select, policy(&at, value, nodes)?)),
            "insert" => drop(policies.insert(Action::Insert, policy(&at, value, nodes)?)),
            _ => drop(policies.insert(Action::Delete, policy(&at, value, nodes)?)),
        }
    }
    Ok(policies)
}

fn policy(at: &str, value: &Value, nodes: &mut usize) -> Result<Policy, ParseError> {
    let list = value.as_array().ok_or_else(|| refuse(at, "expected an array of rules"))?;
    let mut rules = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let Some([kind, condition]) = value.as_array().map(Vec::as_slice) else {
            return Err(refuse(&at, "expected a rule, which is [\"allow\", condition]"));
        };
        if kind.as_str() != Some("allow") {
            return Err(refuse(&format!("{at}[0]"), "expected \"allow\""));
        }
        let at = format!("{at}[1]");
        let mut rule = Condition::from_value(&at, condition)?;
        let written = serde_json::to_value(&rule).map_err(|error| refuse(&at, error.to_string()))?;
        nothing_unknown(&at, condition, &written)?;
        settle(&at, &mut rule, 0, nodes)?;
        rules.push(rule);
    }
    Ok(Policy { rules })
}

/// Counts, and makes every subquery one whose rows no client gets.
fn settle(at: &str, condition: &mut Condition, depth: usize, nodes: &mut usize) -> Result<(), ParseError> {
    spend(at, depth, nodes)?;
    match condition {
        Condition::Simple { .. } => Ok(()),
        Condition::And { conditions } | Condition::Or { conditions } => {
            conditions.iter_mut().try_for_each(|condition| settle(at, condition, depth + 1, nodes))
        }
        Condition::CorrelatedSubquery { related, .. } => {
            related.system = Some(System::Permissions);
            settle_ast(at, &mut related.subquery, depth + 1, nodes)
        }
    }
}

fn settle_ast(at: &str, ast: &mut Ast, depth: usize, nodes: &mut usize) -> Result<(), ParseError> {
    spend(at, depth, nodes)?;
    // Whether a row is there does not depend on what hangs on it.
    ast.related.clear();
    ast.filter.iter_mut().try_for_each(|filter| settle(at, filter, depth + 1, nodes))
}

fn spend(at: &str, depth: usize, nodes: &mut usize) -> Result<(), ParseError> {
    if depth > RULE_DEPTH_MAX {
        return Err(refuse(at, format!("nested deeper than {RULE_DEPTH_MAX} levels")));
    }
    *nodes = nodes.checked_sub(1).ok_or_else(|| {
        refuse(at, format!("all rules together have more than {NODES_MAX} conditions and subqueries"))
    })?;
    Ok(())
}

/// Refuses what was in the text and was not understood.
fn nothing_unknown(at: &str, given: &Value, understood: &Value) -> Result<(), ParseError> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => {
            for (name, given) in given.iter().filter(|(_, value)| !value.is_null()) {
                match understood.get(name) {
                    Some(understood) => nothing_unknown(&format!("{at}.{name}"), given, understood)?,
                    // An empty list is left out when it is written.
                    None if given.as_array().is_some_and(Vec::is_empty) => {}
                    None => return Err(refuse(at, format!("unknown property \"{name}\""))),
                }
            }
            Ok(())
        }
        (Value::Array(given), Value::Array(understood)) => {
            let mut pairs = given.iter().zip(understood).enumerate();
            pairs.try_for_each(|(n, (a, b))| nothing_unknown(&format!("{at}[{n}]"), a, b))
        }
        _ => Ok(()),
    }
}

/// The properties of an object that are present and not null; others than those named are refused.
fn known<'a>(at: &str, value: &'a Value, names: &[&'static str]) -> Result<Vec<(&'static str, &'a Value)>, ParseError> {
    let properties = object(at, value)?;
    if let Some(unknown) = properties.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(refuse(at, format!("unknown property \"{unknown}\", expected one of: {}", names.join(", "))));
    }
    let present = |name: &'static str| Some((name, properties.get(name).filter(|value| !value.is_null())?));
    Ok(names.iter().copied().filter_map(present).collect())
}

fn object<'a>(at: &str, value: &'a Value) -> Result<&'a Map<String, Value>, ParseError> {
    value.as_object().ok_or_else(|| refuse(at, "expected an object"))
}

fn refuse(at: &str, reason: impl Into<String>) -> ParseError {
    ParseError { at: at.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<Permissions, ParseError> {
        Permissions::parse(&value.to_string())
    }

    fn select(condition: &Value) -> Value {
        json!({"tables": {"t": {"row": {"select": [["allow", condition]]}}}})
    }

    fn exists(system: &str) -> Value {
        json!({"type": "correlatedSubquery", "op": "EXISTS", "related": {
            "system": system,
            "correlation": {"parentField": ["a"], "childField": ["b"]},
            "subquery": {"table": "u", "alias": "zsubq_u", "orderBy": [["b", "asc"]], "related": [{
                "correlation": {"parentField": ["a"], "childField": ["b"]}, "subquery": {"table": "v"}}]},
        }})
    }

    #[test]
    fn every_place_for_a_policy_is_read() {
        let yes = json!([["allow", {"type": "and", "conditions": []}]]);
        let shape =
            json!({"select": yes, "insert": yes, "delete": yes, "update": {"preMutation": yes, "postMutation": []}});
        let permissions = parse(&json!({"tables": {"t": {"row": shape, "cell": {"c": shape}}, "empty": {}}})).unwrap();
        for action in [Action::Select, Action::Insert, Action::UpdateBefore, Action::UpdateAfter, Action::Delete] {
            let rules = if action == Action::UpdateAfter { 0 } else { 1 };
            assert_eq!(permissions.row("t", action).unwrap().rules().len(), rules);
            let cells: Vec<_> = permissions.cells("t", action).collect();
            assert_eq!((cells[0].0, cells[0].1.rules().len()), ("c", rules));
            assert_eq!(permissions.row("empty", action), None);
            assert_eq!(permissions.row("other", action), None);
            assert_eq!(permissions.cells("other", action).count(), 0);
        }
        assert_eq!(permissions.tables().collect::<Vec<_>>(), ["empty", "t"]);
        for nothing in [json!({}), json!({"tables": null}), json!({"tables": {}})] {
            assert_eq!(parse(&nothing).unwrap(), Permissions::default());
        }
    }

    #[test]
    fn a_rule_can_not_have_its_rows_sent() {
        for system in ["client", "test", "permissions"] {
            let nested = json!({"type": "or", "conditions": [exists(system)]});
            let permissions = parse(&select(&nested)).unwrap();
            let rule = serde_json::to_string(&permissions.row("t", Action::Select).unwrap().rules()[0]).unwrap();
            assert!(rule.contains(r#""system":"permissions""#) && !rule.contains("related\":["), "{rule}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        let simple = |left: Value, right: Value| json!({"type": "simple", "op": "=", "left": left, "right": right});
        let column = json!({"type": "column", "name": "a"});
        let one = json!({"type": "literal", "value": 1});
        let mut negated = simple(column.clone(), one.clone());
        negated["not"] = json!(true);
        let mut deep = json!({"type": "and", "conditions": []});
        for _ in 0..=RULE_DEPTH_MAX {
            deep = json!({"type": "and", "conditions": [deep]});
        }
        let select_at = "permissions.tables.t.row.select";
        for (value, at, reason) in [
            (json!(null), "permissions", "expected an object"),
            (json!([]), "permissions", "expected an object"),
            (json!({"table": {}}), "permissions", "unknown property \"table\""),
            (json!({"tables": []}), "permissions.tables", "expected an object"),
            (json!({"tables": {"t": {"rows": {}}}}), "permissions.tables.t", "unknown property \"rows\""),
            (json!({"tables": {"t": {"row": {"deny": []}}}}), "permissions.tables.t.row", "unknown property \"deny\""),
            (json!({"tables": {"t": {"cell": {"c": 1}}}}), "permissions.tables.t.cell.c", "expected an object"),
            (
                json!({"tables": {"t": {"row": {"update": []}}}}),
                "permissions.tables.t.row.update",
                "expected an object",
            ),
            (json!({"tables": {"t": {"row": {"select": {}}}}}), select_at, "expected an array"),
            (
                json!({"tables": {"t": {"row": {"select": [["allow"]]}}}}),
                "permissions.tables.t.row.select[0]",
                "expected a rule",
            ),
            (
                json!({"tables": {"t": {"row": {"select": [["deny", {}]]}}}}),
                "permissions.tables.t.row.select[0][0]",
                "\"allow\"",
            ),
            (select(&json!({})), "permissions.tables.t.row.select[0][1]", "missing property \"type\""),
            (select(&simple(one, column)), "permissions.tables.t.row.select[0][1].right", "left side"),
            (select(&negated), "permissions.tables.t.row.select[0][1]", "unknown property \"not\""),
            (select(&deep), "permissions.tables.t.row.select[0][1]", "nested deeper"),
        ] {
            let error = parse(&value).expect_err(&value.to_string());
            assert_eq!(error.at, at, "{value}: {error}");
            assert!(error.reason.contains(reason), "{value}: {error}");
        }
    }

    #[test]
    fn the_text_is_bounded() {
        let error = |text: &str| Permissions::parse(text).expect_err("bad").reason;
        assert!(error("{").contains("not JSON"));
        assert!(error("").contains("not JSON"));
        assert!(error(&" ".repeat(BYTES_MAX + 1)).contains("bytes"));
        assert!(error(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))).contains("recursion"));
        let leaf = r#"{"type":"and","conditions":[]}"#;
        let rule = format!(r#"["allow",{{"type":"or","conditions":[{}]}}]"#, vec![leaf; 10_000].join(","));
        let all = vec![rule; 11].join(",");
        let text = format!(r#"{{"tables":{{"t":{{"row":{{"select":[{all}]}}}}}}}}"#);
        assert!(text.len() < BYTES_MAX);
        assert!(error(&text).contains("all rules together"));
    }
}
