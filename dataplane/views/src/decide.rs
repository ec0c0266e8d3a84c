//! Conditions that are decided without looking at any row, decided.
//!
//! Rules compare claims with constants ("is an administrator"). What they come to must not stay in the tree: users for whom a rule
//! comes to the same are to have the same tree, and so one materialisation.

use protocol::ast::{Ast, Condition, CorrelatedSubquery, ExistsOperator, Literal, Operator, ValuePosition};

use crate::convert::constant;

/// The same rows, from a tree without comparisons of constants and without what follows from them.
pub fn decide(ast: &Ast) -> Ast {
    let related = ast.related.iter().map(correlated).collect();
    let filter = ast.filter.as_ref().map(condition).filter(|filter| *filter != yes());
    Ast { filter, related, ..ast.clone() }
}

fn correlated(related: &CorrelatedSubquery) -> CorrelatedSubquery {
    CorrelatedSubquery { subquery: Box::new(decide(&related.subquery)), ..related.clone() }
}

fn condition(given: &Condition) -> Condition {
    match given {
        Condition::And { conditions } => {
            let mut left = Vec::with_capacity(conditions.len());
            for decided in conditions.iter().map(condition) {
                if decided == no() {
                    return decided;
                }
                left.extend(Some(decided).filter(|decided| *decided != yes()));
            }
            Condition::And { conditions: left }
        }
        Condition::Or { conditions } => {
            let mut left = Vec::with_capacity(conditions.len());
            for decided in conditions.iter().map(condition) {
                if decided == yes() {
                    return decided;
                }
                left.extend(Some(decided).filter(|decided| *decided != no()));
            }
            Condition::Or { conditions: left }
        }
        Condition::CorrelatedSubquery { related, op, flip, scalar } => {
            let related = correlated(related);
            if related.subquery.filter == Some(no()) || related.subquery.limit == Some(0) {
                return if *op == ExistsOperator::Exists { no() } else { yes() };
            }
            Condition::CorrelatedSubquery { related: Box::new(related), op: *op, flip: *flip, scalar: *scalar }
        }
        Condition::Simple { left, right, op } => decided(left, *op, right).unwrap_or_else(|| given.clone()),
    }
}

fn decided(left: &ValuePosition, op: Operator, right: &ValuePosition) -> Option<Condition> {
    let ValuePosition::Literal { value: right } = right else { return None };
    let holds = match left {
        ValuePosition::Literal { value } => constant(value, op, right),
        // Only these two see nulls.
        ValuePosition::Column { .. } if !matches!(op, Operator::Is | Operator::IsNot) && *right == Literal::Null => {
            false
        }
        ValuePosition::Column { .. } | ValuePosition::Static { .. } => return None,
    };
    Some(if holds { yes() } else { no() })
}

fn yes() -> Condition {
    Condition::And { conditions: Vec::new() }
}

fn no() -> Condition {
    Condition::Or { conditions: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn simple(left: Value, op: &str, right: Value) -> Value {
        let side = |value: Value| match value.as_str().and_then(|text| text.strip_prefix('.')) {
            Some(column) => json!({"type": "column", "name": column}),
            None => json!({"type": "literal", "value": value}),
        };
        json!({"type": "simple", "left": side(left), "op": op, "right": side(right)})
    }

    fn filter_of(condition: &Value) -> Value {
        let ast = Ast::from_value("ast", &json!({"table": "t", "where": condition})).unwrap();
        serde_json::to_value(decide(&ast)).unwrap().get("where").cloned().unwrap_or_else(|| json!(true))
    }

    #[test]
    fn comparisons_of_constants_come_to_what_they_say() {
        let no = json!({"type": "or", "conditions": []});
        for (left, op, right, holds) in [
            (json!("a"), "=", json!("a"), true),
            (json!("a"), "=", json!(1), false),
            (json!("a"), "!=", json!(1), true),
            (json!(null), "!=", json!("a"), false),
            (json!(null), "IS", json!(null), true),
            (json!("a"), "IS NOT", json!(null), true),
            (json!(2), "<", json!(10), true),
            (json!("2"), "<", json!("10"), false),
            (json!("2"), "<", json!(10), false),
            (json!(10), "<", json!("2"), false),
            (json!(true), ">=", json!(0), false),
            (json!("a@corp.example"), "LIKE", json!("%@corp.example"), true),
            (json!("a@corp.example"), "NOT LIKE", json!("%@corp.example"), false),
            (json!("A"), "ILIKE", json!("a"), true),
            (json!("A"), "NOT ILIKE", json!("b%"), true),
            (json!(5), "NOT LIKE", json!("b%"), false),
            (json!(null), "NOT LIKE", json!("b%"), false),
            (json!("a"), "IN", json!(["b", "a"]), true),
            (json!("c"), "NOT IN", json!(["b", "a"]), true),
            (json!(null), "NOT IN", json!(["b"]), false),
            (json!("a"), "IN", json!(null), false),
        ] {
            let expected = if holds { json!(true) } else { no.clone() };
            assert_eq!(filter_of(&simple(left.clone(), op, right.clone())), expected, "{left} {op} {right}");
        }
    }

    #[test]
    fn what_follows_from_them_goes_too() {
        let yes = || simple(json!(1), "=", json!(1));
        let no = || simple(json!(1), "=", json!(2));
        let open = || simple(json!(".a"), "=", json!(1));
        let and = |conditions: &[Value]| json!({"type": "and", "conditions": conditions});
        let or = |conditions: &[Value]| json!({"type": "or", "conditions": conditions});
        let exists = |op: &str, inner: &Value, limit: u64| {
            json!({"type": "correlatedSubquery", "op": op, "related": {"system": "permissions",
                "correlation": {"parentField": ["a"], "childField": ["b"]},
                "subquery": {"table": "u", "where": inner, "limit": limit}}})
        };
        for (given, expected) in [
            (or(&[no(), open(), yes()]), json!(true)),
            (or(&[no(), open()]), or(&[open()])),
            (and(&[open(), or(&[])]), or(&[])),
            (and(&[open(), yes()]), and(&[open()])),
            (simple(json!(".a"), "!=", json!(null)), or(&[])),
            (simple(json!(".a"), "IS", json!(null)), simple(json!(".a"), "IS", json!(null))),
            (exists("EXISTS", &and(&[open(), no()]), 1), or(&[])),
            (exists("NOT EXISTS", &no(), 1), json!(true)),
            (exists("EXISTS", &open(), 0), or(&[])),
            (exists("EXISTS", &open(), 1), exists("EXISTS", &open(), 1)),
        ] {
            assert_eq!(filter_of(&given), expected, "{given}");
        }
    }
}
