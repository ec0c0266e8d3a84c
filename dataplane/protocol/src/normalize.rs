//! One form for queries that mean the same, and the hash that decides whether two queries share a materialisation.

use sha2::{Digest, Sha256};

use crate::ast::{Ast, Condition, CorrelatedSubquery};
use crate::hash::base36;

/// The canonical form: nested `and`/`or` of one kind merged, lone members unwrapped, members sorted and said once, and
/// truth propagated. Executing it gives the rows of the original; an empty `or` stays false.
#[must_use]
pub fn normalize_ast(ast: &Ast) -> Ast {
    let filter = ast.filter.as_ref().map(normalize_condition).filter(|c| !is_true(c));
    let mut related: Vec<CorrelatedSubquery> = ast.related.iter().map(normalize_correlated).collect();
    related.sort_by_cached_key(|r| (r.subquery.alias.clone(), text(r)));
    Ast {
        schema: ast.schema.clone(),
        table: ast.table.clone(),
        alias: ast.alias.clone(),
        filter,
        related,
        start: ast.start.clone(),
        limit: ast.limit,
        order_by: ast.order_by.clone(),
    }
}

/// Equal for queries with the same rows for the same data. Hints (`flip`, `scalar`, `hidden`), aliases and the unused
/// `schema` do not count. Materialisations are shared across users by this hash, so it is a cryptographic one: nobody can
/// craft a query that is answered with another's rows.
#[must_use]
pub fn transformation_hash(ast: &Ast) -> String {
    let digest = Sha256::digest(text(&normalize_ast(&without_hints(ast))).as_bytes());
    let mut first = [0_u8; 16];
    first.copy_from_slice(&digest[..16]);
    base36(u128::from_be_bytes(first))
}

fn normalize_correlated(related: &CorrelatedSubquery) -> CorrelatedSubquery {
    CorrelatedSubquery { subquery: Box::new(normalize_ast(&related.subquery)), ..related.clone() }
}

fn is_true(condition: &Condition) -> bool {
    matches!(condition, Condition::And { conditions } if conditions.is_empty())
}

fn is_false(condition: &Condition) -> bool {
    matches!(condition, Condition::Or { conditions } if conditions.is_empty())
}

fn normalize_condition(condition: &Condition) -> Condition {
    match condition {
        Condition::Simple { .. } => condition.clone(),
        Condition::CorrelatedSubquery { related, op, flip, scalar } => Condition::CorrelatedSubquery {
            related: Box::new(normalize_correlated(related)),
            op: *op,
            flip: *flip,
            scalar: *scalar,
        },
        Condition::And { conditions } => {
            let mut members = Vec::with_capacity(conditions.len());
            for member in conditions.iter().map(normalize_condition) {
                match member {
                    Condition::And { conditions } => members.extend(conditions),
                    member if is_false(&member) => return member,
                    member => members.push(member),
                }
            }
            lone_or(members, |conditions| Condition::And { conditions })
        }
        Condition::Or { conditions } => {
            let mut members = Vec::with_capacity(conditions.len());
            for member in conditions.iter().map(normalize_condition) {
                match member {
                    Condition::Or { conditions } => members.extend(conditions),
                    member if is_true(&member) => return member,
                    member => members.push(member),
                }
            }
            lone_or(members, |conditions| Condition::Or { conditions })
        }
    }
}

fn lone_or(mut members: Vec<Condition>, group: impl FnOnce(Vec<Condition>) -> Condition) -> Condition {
    members.sort_by_cached_key(text);
    members.dedup();
    match members.len() {
        1 => members.remove(0),
        _ => group(members),
    }
}

fn without_hints(ast: &Ast) -> Ast {
    Ast {
        schema: None,
        alias: None,
        filter: ast.filter.as_ref().map(condition_without_hints),
        related: ast.related.iter().map(correlated_without_hints).collect(),
        ..ast.clone()
    }
}

fn correlated_without_hints(related: &CorrelatedSubquery) -> CorrelatedSubquery {
    CorrelatedSubquery {
        correlation: related.correlation.clone(),
        hidden: None,
        subquery: Box::new(without_hints(&related.subquery)),
        system: related.system,
    }
}

fn condition_without_hints(condition: &Condition) -> Condition {
    match condition {
        Condition::Simple { .. } => condition.clone(),
        Condition::And { conditions } => {
            Condition::And { conditions: conditions.iter().map(condition_without_hints).collect() }
        }
        Condition::Or { conditions } => {
            Condition::Or { conditions: conditions.iter().map(condition_without_hints).collect() }
        }
        Condition::CorrelatedSubquery { related, op, .. } => Condition::CorrelatedSubquery {
            related: Box::new(correlated_without_hints(related)),
            op: *op,
            flip: None,
            scalar: None,
        },
    }
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("a query tree has string keys only")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ast(text: &str) -> Ast {
        serde_json::from_str(text).expect("ast")
    }

    const A: &str =
        r#"{"type":"simple","op":"=","left":{"type":"column","name":"a"},"right":{"type":"literal","value":1}}"#;
    const B: &str =
        r#"{"type":"simple","op":"=","left":{"type":"column","name":"b"},"right":{"type":"literal","value":"x"}}"#;

    fn with(condition: &str) -> Ast {
        ast(&format!(r#"{{"table":"t","where":{condition}}}"#))
    }

    fn and(members: &[&str]) -> String {
        format!(r#"{{"type":"and","conditions":[{}]}}"#, members.join(","))
    }

    fn or(members: &[&str]) -> String {
        format!(r#"{{"type":"or","conditions":[{}]}}"#, members.join(","))
    }

    #[test]
    fn same_meaning_same_hash() {
        let same = [
            (with(&and(&[A, B])), with(&and(&[B, A]))),
            (with(&and(&[A, &and(&[B, &and(&[])])])), with(&and(&[A, B]))),
            (with(&or(&[A])), with(A)),
            (with(&and(&[])), ast(r#"{"table":"t"}"#)),
            (with(&or(&[A, &and(&[])])), ast(r#"{"table":"t"}"#)),
            (with(&and(&[A, &or(&[])])), with(&or(&[]))),
            (with(&and(&[A, A])), with(A)),
            (ast(r#"{"table":"t","alias":"x","schema":""}"#), ast(r#"{"table":"t"}"#)),
        ];
        for (a, b) in same {
            assert_eq!(transformation_hash(&a), transformation_hash(&b), "{a:?} {b:?}");
        }
    }

    #[test]
    fn an_empty_or_is_not_true() {
        assert_ne!(transformation_hash(&with(&or(&[]))), transformation_hash(&ast(r#"{"table":"t"}"#)));
        assert_eq!(normalize_ast(&with(&or(&[]))).filter, Some(Condition::Or { conditions: vec![] }));
    }

    #[test]
    fn different_meaning_different_hash() {
        let texts = [
            r#"{"table":"t"}"#.to_owned(),
            r#"{"table":"t","limit":1}"#.to_owned(),
            r#"{"table":"t","orderBy":[["a","asc"]]}"#.to_owned(),
            r#"{"table":"t","orderBy":[["a","desc"]]}"#.to_owned(),
            r#"{"table":"t","start":{"row":{"a":1},"exclusive":true}}"#.to_owned(),
            r#"{"table":"t","start":{"row":{"a":1},"exclusive":false}}"#.to_owned(),
            format!(r#"{{"table":"t","where":{A}}}"#),
            format!(r#"{{"table":"t","where":{}}}"#, A.replace("\"value\":1", "\"value\":\"1\"")),
            format!(r#"{{"table":"t","where":{}}}"#, or(&[A, B])),
            format!(r#"{{"table":"t","where":{}}}"#, and(&[A, B])),
        ];
        let hashes: std::collections::BTreeSet<String> = texts.iter().map(|t| transformation_hash(&ast(t))).collect();
        assert_eq!(hashes.len(), texts.len());
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        let once = normalize_ast(&with(&and(&[B, &or(&[B, A, &or(&[A])]), A])));
        assert_eq!(normalize_ast(&once), once);
    }
}
